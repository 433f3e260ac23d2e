"""The families with tagged parameters, the templates they were read off, and calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from grammars import call, emitted, tool

from mlx_server.text.parsers import tagged_families as families
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.minimax_m3 import MINIMAX_M3
from mlx_server.text.parsers.solar import SolarOpen
from mlx_server.text.parsers.tagged import Tagged

TEMPLATES = Path(__file__).resolve().parents[2] / "shared" / "templates"

FAMILIES: dict[str, Syntax] = {
    "Qwen3-Coder": families.QWEN_CODER,
    "Qwen3.5-4B": families.QWEN_CODER,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": families.QWEN_CODER,
    "StepFun3.5-Flash": families.STEPFUN,
    "ByteDance-Seed-OSS": families.SEED,
    "openbmb-MiniCPM5-1B": families.MINICPM,
    "GLM-4.6": families.GLM_LINES,
    "poolside-Laguna-XS-2.1": families.GLM_LINES,
    "poolside-Laguna-XS.2": families.GLM_LINES,
    "inclusionai-ling-3.0-flash": families.LING,
    "GLM-4.7-Flash": families.GLM,
    "poolside-Laguna-S-2.1": families.GLM,
    "Spark2.5": families.GLM,
    "tencent-Hy3": families.HUNYUAN,
    "MiniMax-M2": families.MINIMAX_M2,
    "MiniMax-M3": MINIMAX_M3,
    "upstage-Solar-Open-100B": SolarOpen(),
}
"""By the template's file name."""

TAGGED = tuple({s.name: s for s in FAMILIES.values() if isinstance(s, Tagged)}.values())

TOOLS = (
    ToolRule(
        "files.write-text",
        {
            "type": "object",
            "properties": {"path": {"type": "string"}, "text": {"type": "string"}},
            "required": ["path", "text"],
        },
    ),
    ToolRule(
        "set",
        {
            "type": "object",
            "properties": {
                "count": {"type": "integer"},
                "ratio": {"type": "number"},
                "on": {"type": "boolean"},
                "off": {"type": "boolean"},
                "mode": {"enum": ["fast mode", "slow"]},
            },
            "required": ["count"],
        },
    ),
    ToolRule(
        "plan",
        {
            "type": "object",
            "properties": {
                "days": {"type": "array", "items": {"type": "integer"}},
                "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}},
                "more": {"type": "object"},
            },
            "$defs": {
                "stop": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "nights": {"type": "integer"}},
                    "required": ["city"],
                }
            },
        },
    ),
    ToolRule("odd", {"type": "object", "properties": {'the "key" name': {"type": "string"}}}),
    ToolRule("now", {"type": "object", "properties": {}}),
)

STRINGS = (
    {"path": "", "text": 'She said "hi",\n\tZürich 東京 😀 \\n'},
    {"path": "01", "text": " }\n"},
)
MARKUP = {"path": "<b>]}</b> & [", "text": '{"a": [1]}'}
SCALARS = {"count": 3, "ratio": -2.5, "on": True, "off": False, "mode": "fast mode"}
LISTS = {"days": [1, 20], "stops": [{"city": "Bern é", "nights": 2}], "more": {"a": {"b": "c"}}}

TURNS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "strings": ("", [("files.write-text", STRINGS[0])]),
    "two": ("Let me see.", [("files.write-text", STRINGS[1]), ("set", SCALARS)]),
    "markup": ("", [("files.write-text", MARKUP), ("now", {})]),
    "nested": ("", [("plan", LISTS)]),
    "empty": ("", [("now", {})]),
    "names": ("", [("odd", {'the "key" name': "v"}), ("set", {"count": 1})]),
}
"""What the model says before its calls, and the calls."""

_THOUGHT = re.compile(r".*think>", re.DOTALL)
_TURN_END = re.compile(
    r"(<\|im_end\|>|<seed:eos>|</assistant>|<｜[^｜]*｜>|<\|role_end\|>|\[e~\[)\s*$"
)


def template(name: str) -> str:
    if not TEMPLATES.exists():
        pytest.skip("needs the templates in shared")
    return (TEMPLATES / f"{name}.jinja").read_text()


def written(name: str, turn: str) -> str:
    """What the family writes for a turn, behind its reasoning."""
    text, calls = TURNS[turn]
    message = {
        "role": "assistant",
        "content": text,
        "tool_calls": [call(n, a) | {"id": "a1b2c3d4e5"} for n, a in calls],
    }
    tools = [tool(rule.name, dict(rule.schema)) for rule in TOOLS]
    whole = emitted(template(name), message, tools=tools)
    return _TURN_END.sub("", _THOUGHT.sub("", whole, count=1))


def specials(syntax: Syntax) -> list[str]:
    """The family's tags, as a vocabulary may have them for tokens."""
    if not isinstance(syntax, Tagged):
        return sorted(set(re.findall(r"<\|[a-z:_]+\|>", " ".join(_SOLAR))))
    if syntax is MINIMAX_M3:
        return ["]<]minimax[>[", "<tool_call>", "</tool_call>"]
    form = syntax.form
    found = [form.section, form.section_end, form.call, form.call_end]
    found += [form.key, form.key_end, form.value, form.value_end]
    return sorted({tag.strip() for tag in found if len(tag.strip()) > 3})


_SOLAR = (
    "<|think|> <|content|> <|end|> <|begin|> <|flush|> <|tool_calls|> <|calls|>",
    "<|tool_call:begin|> <|tool_call:end|> <|tool_call:name|> <|tool_call:args|>",
)


def grammar(
    syntax: Syntax, tools: Sequence[ToolRule], tokens: dict[str, int], *, several: bool = True
) -> str:
    lark = Lark(tokens)
    return lark.grammar(syntax.calls(lark, tools, several=several))
