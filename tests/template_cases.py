"""Templates and conversations that the tests of chat templates share."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mlx_server.core import Message, TextPart, Tool, ToolCall
from mlx_server.text.template import ChatTemplate

SHARED = Path(__file__).parents[1] / "../shared"
PATHS = sorted((SHARED / "templates").glob("*.jinja"))
REAL = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)

GENERIC = {
    "HuggingFaceTB-SmolLM3-3B",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1",
    "google-gemma-2-2b-it",
    "llama-cpp-deepseek-r1",  # tojson of a generator: it fails at any tools
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}
"""Templates that know no tools."""

WITHOUT_INNER_DESCRIPTIONS = {
    "Apertus-8B-Instruct",
    "ByteDance-Seed-OSS",
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "openai-gpt-oss-120b",
}
"""Templates that write signatures: what an argument's own fields mean is not in them."""


@cache
def template_of(path: Path) -> ChatTemplate:
    return made_of(path)


def made_of(path: Path) -> ChatTemplate:
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatTemplate(path.read_text(encoding="utf-8"), variables)


def say(role: str, text: str, **fields: object) -> Message:
    return Message(role, (TextPart(text),) if text else (), **fields)


def tool(letter: str) -> Tool:
    inner = {"type": "string", "description": f"inner_about_{letter}"}
    outer = {
        "type": "object",
        "description": f"outer_about_{letter}",
        "properties": {f"inner_{letter}": inner},
        "required": [f"inner_{letter}"],
    }
    schema = {"type": "object", "properties": {f"outer_{letter}": outer}}
    return Tool(f"tool_{letter}", f"tool_about_{letter}", schema)


def call(letter: str) -> ToolCall:
    arguments = json.dumps({f"outer_{letter}": {f"inner_{letter}": f"value_{letter}"}})
    return ToolCall(f"call_{letter * 24}", f"tool_{letter}", arguments)


def result(letter: str) -> Message:
    return say("tool", f"result_{letter}", tool_call_id=call(letter).id)


TOOLS = (tool("a"), tool("b"))
SYSTEM, ASKED, NEXT = say("system", "rule_s"), say("user", "asked_u"), say("user", "next_u")
CALLS = say("assistant", "beside_t", tool_calls=(call("a"), call("b")))
RESULTS = (result("a"), result("b"))
ANSWER = say("assistant", "answer_t")

HISTORIES: dict[str, tuple[Message, ...]] = {
    "a new question": (SYSTEM, ASKED, CALLS, *RESULTS, NEXT),
    "an answer and a new question": (SYSTEM, ASKED, CALLS, *RESULTS, ANSWER, NEXT),
    "results last": (SYSTEM, ASKED, CALLS, *RESULTS),
    "results in another order": (SYSTEM, ASKED, CALLS, *reversed(RESULTS)),
    "no system message": (ASKED, CALLS, *RESULTS, ANSWER, NEXT),
    "developer": (replace(SYSTEM, role="developer"), ASKED, CALLS, *RESULTS),
    "a later system message": (SYSTEM, ASKED, CALLS, *RESULTS, ANSWER, say("system", "s2"), NEXT),
    "calls without text": (SYSTEM, ASKED, replace(CALLS, parts=()), *RESULTS, NEXT),
    "one call": (SYSTEM, ASKED, replace(CALLS, tool_calls=(call("a"),)), RESULTS[0], ANSWER, NEXT),
}


def words_of(messages: Sequence[Message]) -> list[str]:
    calls = [call for message in messages for call in message.tool_calls]
    values = [re.findall(r"value_\w", call.arguments)[0] for call in calls]
    return [m.text for m in messages if m.text] + [call.name for call in calls] + values


def words_of_tools(name: str) -> list[str]:
    pieces = ["tool_", "tool_about_", "outer_", "outer_about_"]
    if name not in WITHOUT_INNER_DESCRIPTIONS:
        pieces.append("inner_about_")
    return [piece + letter for piece in pieces for letter in "ab"]


ANY = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
SHOWS = "{% for t in tools %}({{ t.function | tojson }}){% endfor %}"
FUNCTION = '({"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}})'

GENERIC_CALLS = """\
[assistant:beside_t
<tool_call>
{"name": "tool_a", "arguments": {"outer_a": {"inner_a": "value_a"}}}
</tool_call>
<tool_call>
{"name": "tool_b", "arguments": {"outer_b": {"inner_b": "value_b"}}}
</tool_call>]"""

GENERIC_RESULTS = """\
[user:<tool_response>
result_a
</tool_response>
<tool_response>
result_b
</tool_response>]"""
