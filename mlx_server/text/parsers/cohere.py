"""Cohere's calls: a list of actions, whose objects have names of their own.

Command R+    Action:
              ```json
              [ { "tool_name": "get_weather", "parameters": {"city": "Bern"} } ]```
R7B and on    <|START_ACTION|>[
                  {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {…}}
              ]<|END_ACTION|>

The later ones put marks around their answers as well.
https://docs.cohere.com/docs/tool-use-overview
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from mlx_server.text.parsers.json_calls import JsonCalls
from mlx_server.text.parsers.lark import Lark, ToolRule

_INDENT = "    "


@dataclass(frozen=True, kw_only=True)
class CommandRPlus(JsonCalls):
    """https://huggingface.co/CohereForAI/c4ai-command-r-plus"""

    def call(self, lark: Lark, tool: ToolRule) -> str:
        head = (
            f'{_INDENT}{{\n{_INDENT * 2}"tool_name": {json.dumps(tool.name)},\n'
            f'{_INDENT * 2}"parameters": '
        )
        tail = lark.literal(f"\n{_INDENT}}}")
        return f"{lark.literal(head)} {lark.arguments(tool)} {tail}"


COMMAND_R_PLUS = CommandRPlus(
    name="command-r-plus",
    signs=("Action:", '"tool_name": title of the tool'),
    marks=("Action:\n```json", "Action: ```json", "Action:```json"),
    opening="\nAction:\n```json\n[\n",
    closing="\n]```",
    joint=",\n",
    ends=("```",),
)


@dataclass(frozen=True, kw_only=True)
class Actions(JsonCalls):
    """Calls with numbers, which count on through the conversation and are no ids."""

    def call(self, lark: Lark, tool: ToolRule) -> str:
        number = lark.literal(_INDENT + '{"tool_call_id": "') + " " + lark.regex("[0-9]{1,3}")
        head = lark.literal(f'", "tool_name": {json.dumps(tool.name)}, "parameters": ')
        return f"{number} {head} {lark.arguments(tool)} {lark.literal('}')}"


def _actions(name: str, answer: str, other: str) -> Actions:
    around = (f"<|START_{answer}|>", f"<|END_{answer}|>")
    return Actions(
        name=name,
        signs=("<|START_ACTION|>", around[0]),
        lacks=(f"<|START_{other}|>",),
        marks=("<|START_ACTION|>", *around),
        markup=around,
        opening="<|START_ACTION|>[\n",
        closing="\n]<|END_ACTION|>",
        joint=",\n",
        ends=("<|END_ACTION|>",),
        prefix=around[0],
        suffix=around[1],
        always=True,
    )


COMMAND_R7B = _actions("command-r7b", "RESPONSE", "TEXT")
COHERE_2 = _actions("cohere-2", "TEXT", "RESPONSE")
"""https://huggingface.co/CohereForAI/c4ai-command-r7b-12-2024 and Cohere's models of 2026."""
