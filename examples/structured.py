"""Replies in a given form: a pydantic class, a regular expression, a choice (pip install openai).

MLX_SERVER_URL=http://127.0.0.1:8080 python examples/structured.py "Ada met Grace on Monday."
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

from openai import OpenAI
from pydantic import BaseModel, Field

Name = Annotated[str, Field(max_length=20)]


class Meeting(BaseModel):
    people: Annotated[list[Name], Field(min_length=1, max_length=4)]
    day: Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    hour: Annotated[int, Field(ge=0, le=23)] | None


def main() -> None:
    url = os.environ.get("MLX_SERVER_URL", "http://127.0.0.1:8080")
    text = sys.argv[1] if len(sys.argv) > 1 else "Ada met Grace on Monday."
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "not-needed"))

    def ask(question: str) -> dict:
        messages = [{"role": "user", "content": f"{question}\n\n{text}"}]
        return {"model": "default_model", "messages": messages, "temperature": 0}

    print("# an object of a class")
    reply = client.chat.completions.parse(**ask("Who meets when?"), response_format=Meeting)
    meeting = reply.choices[0].message.parsed
    print(repr(meeting))

    print("\n# the same, streamed: each piece as it comes")
    with client.chat.completions.stream(
        **ask("Who meets when?"), response_format=Meeting
    ) as stream:
        for event in stream:
            if event.type == "content.delta":
                print(event.delta, end="|", flush=True)
    print()

    # Fields that the OpenAI API has not, as llama-server and vLLM know them.
    for title, question, field in (
        ("a regular expression", "At what time?", {"regex": "([01][0-9]|2[0-3]):[0-5][0-9]"}),
        ("a choice", "Is it about work?", {"guided_choice": ["yes", "no", "cannot be told"]}),
    ):
        reply = client.chat.completions.create(**ask(question), extra_body=field)
        print(f"\n# {title}\n{reply.choices[0].message.content}")


if __name__ == "__main__":
    main()
