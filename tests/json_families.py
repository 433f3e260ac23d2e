"""The families whose calls are JSON: their templates, and what those write for a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from grammars import Bytes, call, emitted, tool

from mlx_server.text.formats import SYNTAXES
from mlx_server.text.parsers.base import Syntax, Thinking
from mlx_server.text.parsers.lark import Lark, ToolRule

TEMPLATES = Path(__file__).parents[2] / "shared" / "templates"
THINK = Thinking("<think>", "</think>")

SPECIALS = (
    *("<tool_call>", "</tool_call>", "<|tool_call|>", "<tool_calls>", "</tool_calls>"),
    *("<TOOLCALL>", "</TOOLCALL>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"),
    *("<|message_sep|>\n\n", "<|role_sep|>\n", "<|function_call|>"),
    *("<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    *("<|START_TEXT|>", "<|END_TEXT|>"),
)
"""Tags that are single tokens where a family has them; no family has another's."""


@dataclass(frozen=True)
class Family:
    """
    Args:
        template: The file's name without ".jinja".
        syntax: The name of what it must be found to be.
        end: What ends a turn.
        header: What begins one and the prompt does not end with.
        lead: What the template writes before the first call, and a model is not made to.
        keeps: It writes content beside calls.
        most: Calls that a turn can have.
        as_text: It wants arguments as JSON text.
        indent: It writes them on lines of their own, so far to the right.
    """

    template: str
    syntax: str
    end: str
    header: str = ""
    lead: str = ""
    keeps: bool = True
    most: int = 9
    as_text: bool = False
    indent: int = 0
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return (TEMPLATES / f"{self.template}.jinja").read_text()

    def reply(self, content: str, calls: Sequence[tuple[str, Any]]) -> str:
        """What the template has as the model's turn, without its end."""
        turn: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            turn["tool_calls"] = [call(*given, as_text=self.as_text) for given in calls]
        variables = {"bos_token": "<s>", "eos_token": "</s>", "tools": TOOLS, **self.variables}
        text = emitted(self.source, turn, **variables).removeprefix(self.header)
        if text.endswith(self.end):
            return text.removesuffix(self.end)
        return text.partition(self.end)[0]

    def as_forced(self, calls: Sequence[tuple[str, Any]]) -> str:
        """The same for calls alone, as the family's grammar has it: characters are not
        escaped that need not be, and JSON has no line ends between its values."""
        text = self.reply("", calls).removeprefix(self.lead)
        text = re.sub(r"(\\u[0-9a-f]{4})+", lambda m: json.loads(f'"{m.group()}"'), text)
        for _, arguments in calls if self.indent else ():
            wide = json.dumps(arguments, indent=4, ensure_ascii=False)
            plain = json.dumps(arguments, ensure_ascii=False)
            text = text.replace(wide.replace("\n", "\n" + " " * self.indent), plain)
        return text.removesuffix("\n") if self.indent else text


_CHATML = "<|im_end|>"

FAMILIES = (
    Family("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "hermes", _CHATML, keeps=False),
    Family("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "hermes", _CHATML, keeps=False),
    Family("Qwen-Qwen2.5-7B-Instruct", "hermes", _CHATML),
    Family("Qwen-Qwen3-0.6B", "hermes", _CHATML, lead="<think>\n\n</think>\n\n"),
    Family("Qwen-QwQ-32B", "hermes", _CHATML),
    Family("MiMo-VL", "hermes", _CHATML),
    Family("Bielik-11B-v3.0-Instruct", "hermes", _CHATML, lead="\n"),
    Family("ibm-granite-granite-4.0", "hermes", "<|end_of_text|>"),
    Family("ibm-granite-granite-4.1", "hermes", "<|end_of_text|>"),
    Family("Reka-Edge", "reka", "\n\n<sep>"),
    Family("MiniMax-M1", "minimax-m1", "<end_of_sentence>", keeps=False),
    Family("NVIDIA-Nemotron-Nano-v2", "nemotron-nano-2", "<SPECIAL_12>", keeps=False),
    Family("unsloth-Apriel-1.5", "apriel", "\n<|end|>"),
    Family("Apriel-1.6-15b-Thinker-fixed", "apriel", "\n<|end|>"),
    Family(
        *("fireworks-ai-llama-3-firefunction-v2", "firefunction-2", "<|eot_id|>"),
        variables={"functions": "[]", "datetime": "today"},
    ),
    Family("GigaChat3-10B-A1.8B", "gigachat-3", "<|message_sep|>\n\n", most=1),
    Family("GigaChat3.1-10B-A1.8B", "gigachat-3.1", "<|message_sep|>\n\n", most=1),
    Family("meta-llama-Llama-3.1-8B-Instruct", "llama-3", "<|eot_id|>", keeps=False, most=1),
    Family("meta-llama-Llama-3.2-3B-Instruct", "llama-3", "<|eot_id|>", keeps=False, most=1),
    Family("meta-llama-Llama-3.3-70B-Instruct", "llama-3", "<|eot_id|>", keeps=False, most=1),
    Family("meetkai-functionary-medium-v3.1", "functionary-3.1", "<|e"),
    Family("meetkai-functionary-medium-v3.2", "functionary-3.2", "<|eot_id|>", as_text=True),
    Family("mistralai-Mistral-Nemo-Instruct-2407", "mistral-list", "</s>", keeps=False),
    Family("Mistral-Small-3.2-24B-Instruct-2506", "mistral-call-id", "</s>", keeps=False),
    Family("unsloth-mistral-Devstral-Small-2507", "mistral", "</s>"),
    Family("mistralai-Ministral-3-14B-Reasoning-2512", "mistral", "</s>"),
    Family(
        *("CohereForAI-c4ai-command-r-plus-tool_use", "command-r-plus", "<|"),
        header="<|CHATBOT_TOKEN|>",
        indent=8,
    ),
    Family(
        *("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "command-r7b", "<|END_OF_TURN"),
        keeps=False,
    ),
    Family("Cohere2MoE", "cohere-2", "<|END_OF_TURN", keeps=False),
)
"""With templates that write calls into the history."""

SILENT = (
    ("ibm-granite-granite-3.3-2B-Instruct", "granite-3"),
    ("HuggingFaceTB-SmolLM3-3B", None),
    ("microsoft-Phi-3.5-mini-instruct", None),
)
"""Templates that leave calls out of the history."""


# ---------------------------------------------------------------- tools


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    given = {"type": "object", "properties": properties, "required": list(required)}
    return {**given, "additionalProperties": False}


def _short(**more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": 8, **more}


_PARAMETERS = {
    "get_weather": _object(
        ["city"],
        city={"type": "string", "maxLength": 40},
        days={"type": "integer", "minimum": 0, "maximum": 99},
        unit={"type": "string", "enum": ["C", 'F"']},
        exact={"type": "boolean"},
    ),
    "now.f-2": _object([]),
    "put": _object(
        ["tags", 'the "odd" key'],
        tags={"type": "array", "items": _short(), "maxItems": 2},
        **{'the "odd" key': _object(["x"], x={"type": ["null", "integer"], "maximum": 9})},
    ),
}
RULES = tuple(ToolRule(name, schema) for name, schema in _PARAMETERS.items())
TOOLS = [tool(name, {"type": "object", "properties": {}}) for name in _PARAMETERS]
"""As the prompt has them, which is another matter (not every template can say every schema)."""

WEATHER = ("get_weather", {"city": 'B"e\\\n ü😀 </b>}]', "days": 3, "unit": 'F"', "exact": True})
SHORT = ("get_weather", {"city": "Bern"})
EMPTY = ("now.f-2", {})
NESTED = ("put", {"tags": ["<b>", "[]"], 'the "odd" key': {"x": None}})


# ---------------------------------------------------------------- syntaxes and grammars


def found(name: str) -> Syntax:
    """The syntax, for a request with the tools."""
    (syntax,) = (s for s in SYNTAXES if s.name == name)
    return syntax.for_tools(RULES)


def matching(template: str) -> str | None:
    return next((s.name for s in SYNTAXES if s.matches(template, ())), None)


@cache
def vocabulary(specials: tuple[str, ...]) -> Bytes:
    return Bytes(specials)


def grammar(
    syntax: Syntax, text: Bytes, *, several: bool = True, rules: Sequence[ToolRule] = RULES
) -> str:
    lark = Lark(text.specials)
    return lark.grammar(syntax.calls(lark, rules, several=several))
