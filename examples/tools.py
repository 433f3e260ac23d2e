"""Tools: the model calls functions of this file until it can answer (pip install openai).

MLX_SERVER_URL=http://127.0.0.1:8080 python examples/tools.py "What is 17 times 23?"
"""

from __future__ import annotations

import json
import operator
import os
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

from openai import OpenAI

ROUNDS = 4
"""After so many rounds of calls the model has to answer."""

OPERATORS = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "divided by": operator.truediv,
}


def calculate(a: int, operation: str, b: int) -> float:
    return OPERATORS[operation](a, b)


def clock(utc_offset: int) -> str:
    return datetime.now(timezone(timedelta(hours=utc_offset))).strftime("%A, %H:%M")


FUNCTIONS = {"calculate": calculate, "clock": clock}


def tool(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


NUMBER = {"type": "integer", "minimum": -10000, "maximum": 10000}
OFFSET = {"type": "integer", "minimum": -12, "maximum": 14}
TOOLS = [
    tool("calculate", "Work out a sum.", a=NUMBER, operation={"enum": list(OPERATORS)}, b=NUMBER),
    tool("clock", "Day and time at an offset from UTC in hours.", utc_offset=OFFSET),
]


def run(name: str, arguments: str) -> str:
    """What the function returns; an error is the model's to read, too."""
    try:
        return str(FUNCTIONS[name](**json.loads(arguments)))
    except Exception as error:
        return f"error: {error}"


def main() -> None:
    url = os.environ.get("MLX_SERVER_URL", "http://127.0.0.1:8080")
    question = sys.argv[1] if len(sys.argv) > 1 else "What is 17 times 23?"
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "not-needed"))
    messages: list[Any] = [{"role": "user", "content": question}]
    for number in range(ROUNDS + 1):
        reply = client.chat.completions.create(
            model="default_model",
            messages=messages,
            tools=TOOLS,
            # The first reply must be a call here, so that small models make one at all.
            tool_choice={0: "required", ROUNDS: "none"}.get(number, "auto"),
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=300,
        )
        choice = reply.choices[0]
        messages.append(choice.message)
        if choice.finish_reason != "tool_calls":
            break
        for call in choice.message.tool_calls:
            result = run(call.function.name, call.function.arguments)
            print(f"{call.function.name}({call.function.arguments}) -> {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(choice.message.content)


if __name__ == "__main__":
    main()
