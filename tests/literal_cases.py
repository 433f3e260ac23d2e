"""The families of their own kind, the templates they were read off, and calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grammars import call, rendered, tool

from mlx_server.text.parsers.apertus import Apertus
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.deepseek import DEEPSEEK_R1, DEEPSEEK_V3_1
from mlx_server.text.parsers.dsml import DEEPSEEK_V3_2, DEEPSEEK_V4
from mlx_server.text.parsers.gemma import FUNCTION_GEMMA, GEMMA_4
from mlx_server.text.parsers.harmony import Harmony
from mlx_server.text.parsers.kimi import KimiK2
from mlx_server.text.parsers.kimi_k3 import KimiK3
from mlx_server.text.parsers.lark import ToolRule
from mlx_server.text.parsers.muse import MUSE
from mlx_server.text.parsers.pythonic import LFM2, LLAMA_PYTHONIC

TEMPLATES = Path(__file__).resolve().parents[2] / "shared" / "templates"

Calls = list[tuple[str, dict[str, Any]]]

HARMONY_TOKENS = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>"]
KIMI_TOKENS = [
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
]
DEEPSEEK_TOKENS = [
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
]


@dataclass(frozen=True)
class Family:
    """
    Args:
        tokens: Its tags, as its vocabulary has them.
        known: What stands between a call's name and where the name must be known.
        template: The file's name without ".jinja"; empty: `write` has the form.
        header, end: What stands before and behind a turn's text in the rendering.
        content: What the turn must have for its content if it has none.
        most: Calls that a turn can have.
        keeps: It writes content before calls.
        tells: The template can be given tools.
        lacks: Turns that the template does not write so that they could be read.
    """

    syntax: Syntax
    tokens: list[str]
    known: str
    template: str = ""
    header: str = ""
    end: str = ""
    content: str | None = ""
    most: int = 9
    keeps: bool = False
    tells: bool = True
    lacks: frozenset[str] = frozenset()
    write: Callable[[Calls], str] | None = None

    def written(self, calls: Calls, content: str = "") -> str:
        """What the family writes for the calls, the reasoning and the turn's end left out."""
        if self.write is not None:
            return self.write(calls)
        turn = {
            "role": "assistant",
            "content": content or self.content,
            "tool_calls": [call(name, arguments) for name, arguments in calls],
        }
        told = [tool(rule.name, dict(rule.schema)) for rule in TOOLS] if self.tells else None
        messages = [{"role": "user", "content": "Question"}, turn]
        whole = rendered(source(self.template), messages, tools=told, bos_token="")
        behind = whole[whole.rindex(self.header) + len(self.header) :]
        return behind.removesuffix(self.end)


def source(name: str) -> str:
    if not TEMPLATES.exists():
        pytest.skip("needs the templates in shared")
    return (TEMPLATES / f"{name}.jinja").read_text()


def _python(calls: Calls) -> str:
    texts = [f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls]
    return f"[{', '.join(texts)}]"


def _function_gemma(calls: Calls) -> str:
    def value(given: Any) -> str:
        if isinstance(given, str):
            return f"<escape>{given}<escape>"
        if isinstance(given, dict):
            return "{" + ",".join(f"{k}:{value(given[k])}" for k in sorted(given)) + "}"
        if isinstance(given, list):
            return "[" + ",".join(map(value, given)) + "]"
        return str(given).lower() if isinstance(given, bool) else str(given)

    return "".join(
        f"<start_function_call>call:{name}{value(arguments)}<end_function_call>"
        for name, arguments in calls
    )


_NO_NULL = frozenset({"null"})

FAMILIES: dict[str, Family] = {
    "harmony": Family(
        Harmony(),
        HARMONY_TOKENS,
        "<|channel|>",
        "openai-gpt-oss-120b",
        "<|start|>assistant",
        most=1,
    ),
    "muse": Family(
        MUSE,
        ["<|start|>", "<|message|>", "<|eom|>", "<|eot|>", "</atem:parameter>"],
        '">\n<',
        "muse-glimmer",
        header="Question<|eot|><|start|>assistant",
        end="<|eot|>",
    ),
    "kimi-k2": Family(
        KimiK2(),
        KIMI_TOKENS,
        ":0<|tool_call_argument_begin|>",
        "moonshotai-Kimi-K2",
        "<|im_middle|>",
        "<|im_end|>",
        keeps=True,
    ),
    "kimi-k3": Family(
        KimiK3(),
        ["<|open|>", "<|close|>", "<|sep|>"],
        '" index="1"<|sep|>',
        "Kimi-K3",
        "<|close|>think<|sep|>",
        "<|end_of_msg|>",
        keeps=True,
    ),
    "deepseek-r1": Family(
        DEEPSEEK_R1,
        DEEPSEEK_TOKENS,
        "\n",
        "llama-cpp-deepseek-r1",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        tells=False,
    ),
    "deepseek-r1-distill": Family(
        DEEPSEEK_R1,
        DEEPSEEK_TOKENS,
        "\n",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        content=None,
    ),
    "deepseek-v3.1": Family(
        DEEPSEEK_V3_1,
        DEEPSEEK_TOKENS,
        "<｜tool▁sep｜>",
        "deepseek-ai-DeepSeek-V3.1",
        "</think>",
        "<｜end▁of▁sentence｜>",
        keeps=True,
    ),
    "deepseek-v3.2": Family(
        DEEPSEEK_V3_2,
        ["｜DSML｜", "</｜DSML｜parameter>", "</｜DSML｜function_calls>"],
        '">\n<',
        "deepseek-ai-DeepSeek-V3.2",
        "</think>",
        "<｜end▁of▁sentence｜>",
        keeps=True,
    ),
    "deepseek-v4": Family(
        DEEPSEEK_V4,
        ["｜DSML｜", "</｜DSML｜parameter>", "</｜DSML｜tool_calls>"],
        '">\n<',
        "deepseek-ai-DeepSeek-V4",
        "</think>",
        "<｜end▁of▁sentence｜>",
        keeps=True,
    ),
    "lfm2": Family(
        LFM2,
        ["<|tool_call_start|>", "<|tool_call_end|>"],
        "(",
        "LFM2.5-8B-A1B",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        keeps=True,
        lacks=frozenset({"escapes"}),
    ),
    "pythonic": Family(LLAMA_PYTHONIC, [], "(", write=_python),
    "gemma-4": Family(
        GEMMA_4,
        ["<|tool_call>", "<tool_call|>", '<|"|>'],
        "{",
        "google-gemma-4-31B-it",
        "<|turn>model\n",
        "<|tool_response>",
        lacks=_NO_NULL,
    ),
    "gemma-4-interleaved": Family(
        GEMMA_4,
        ["<|tool_call>", "<tool_call|>", '<|"|>'],
        "{",
        "google-gemma-4-31B-it-interleaved",
        "<|turn>model\n",
        "<turn|>\n",
        lacks=_NO_NULL,
    ),
    "functiongemma": Family(
        FUNCTION_GEMMA,
        ["<start_function_call>", "<end_function_call>", "<escape>"],
        "{",
        write=_function_gemma,
        lacks=_NO_NULL,
    ),
    "apertus": Family(
        Apertus(),
        ["<|tools_prefix|>", "<|tools_suffix|>"],
        '": ',
        "Apertus-8B-Instruct",
        "<|assistant_start|>",
        keeps=True,
    ),
}

OTHERS = {
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek-r1",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "deepseek-v4",
    "Kimi-K2-Instruct": "kimi-k2",
    "Kimi-K2-Thinking": "kimi-k2",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2",
}
"""More templates of theirs; they do not render calls, or do it in the same way."""

SYNTAXES = tuple({family.syntax.name: family.syntax for family in FAMILIES.values()}.values())


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_STOP = _object({"city": {"type": "string"}, "nights": {"type": "integer"}}, "city")

# Some templates sort parameters: these are in order.
TOOLS = (
    ToolRule(
        "files.write-text",
        _object({"path": {"type": "string"}, "text": {"type": "string"}}, "path", "text"),
    ),
    ToolRule(
        "set",
        _object(
            {
                "count": {"type": "integer"},
                "mode": {"enum": ["fast mode", "slow"]},
                "nothing": {"type": ["integer", "null"]},
                "off": {"type": "boolean"},
                "on": {"type": "boolean"},
                "ratio": {"type": "number"},
            },
            "count",
        ),
    ),
    ToolRule(
        "plan",
        {
            **_object(
                {
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "more": {"type": "object"},
                    "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}},
                }
            ),
            "$defs": {"stop": _STOP},
        },
    ),
    ToolRule("odd", _object({'the "key" name': {"type": "string"}})),
    ToolRule("now", {"type": "object", "properties": {}}),
    ToolRule("free", {}),
)

TURNS: dict[str, Calls] = {
    "quotes": [("files.write-text", {"path": "01234", "text": 'She said "hi",\n\tZürich 東京 😀'})],
    "escapes": [("files.write-text", {"path": "it's", "text": "a\\nb \\ \"'"})],
    "markup": [("files.write-text", {"path": "<b>]}</b> & [", "text": '{"a": [1]}, (x=1)'})],
    "two": [
        ("set", {"count": 3, "mode": "fast mode", "off": False, "on": True, "ratio": -2.5}),
        ("now", {}),
    ],
    "null": [("set", {"count": 0, "nothing": None})],
    "nested": [
        (
            "plan",
            {
                "days": [1, 20],
                "more": {"a": {"b": ["c", 1.5, True]}},
                "stops": [{"city": "Bern é", "nights": 2}],
            },
        )
    ],
    "empty": [("now", {})],
    "names": [("odd", {'the "key" name': "v"})],
    "unknown": [("free", {"x": "y", "n": 1})],
}
