"""Which family a model is of: chosen by its chat template and its vocabulary."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mlx_server.text.parsers.apertus import Apertus
from mlx_server.text.parsers.base import Syntax, Thinking
from mlx_server.text.parsers.cohere import COHERE_2, COMMAND_R7B, COMMAND_R_PLUS
from mlx_server.text.parsers.deepseek import DEEPSEEK_R1, DEEPSEEK_V3_1
from mlx_server.text.parsers.dsml import DEEPSEEK_V3_2, DEEPSEEK_V4
from mlx_server.text.parsers.functionary import Functionary31, Functionary32
from mlx_server.text.parsers.gemma import FUNCTION_GEMMA, GEMMA_4
from mlx_server.text.parsers.harmony import Harmony
from mlx_server.text.parsers.hermes import Hermes, Reka
from mlx_server.text.parsers.json_calls import (
    APRIEL,
    FIREFUNCTION_2,
    GIGACHAT_3,
    GIGACHAT_3_1,
    GRANITE_3,
    MINIMAX_M1,
    NEMOTRON_NANO_2,
)
from mlx_server.text.parsers.kimi import KimiK2
from mlx_server.text.parsers.kimi_k3 import KimiK3
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.llama3 import Llama3
from mlx_server.text.parsers.minimax_m3 import MINIMAX_M3
from mlx_server.text.parsers.mistral import MISTRAL
from mlx_server.text.parsers.muse import MUSE
from mlx_server.text.parsers.output_parser import OutputParser
from mlx_server.text.parsers.pythonic import LFM2, LLAMA_PYTHONIC
from mlx_server.text.parsers.solar import SolarOpen
from mlx_server.text.parsers.tagged_families import (
    GLM,
    GLM_LINES,
    HUNYUAN,
    LING,
    MINICPM,
    MINIMAX_M2,
    QWEN_CODER,
    SEED,
    STEPFUN,
)
from mlx_server.text.parsers.thinking import find_thinking

SYNTAXES: tuple[Syntax, ...] = (
    # The first that matches is taken: the most special ones come first.
    Harmony(),
    MUSE,
    KimiK3(),
    KimiK2(),
    DEEPSEEK_R1,
    DEEPSEEK_V3_1,
    DEEPSEEK_V3_2,
    DEEPSEEK_V4,
    GEMMA_4,
    FUNCTION_GEMMA,
    Apertus(),
    LFM2,
    LLAMA_PYTHONIC,
    MINIMAX_M3,
    MINIMAX_M2,
    SolarOpen(),
    SEED,
    STEPFUN,
    QWEN_CODER,
    MINICPM,
    HUNYUAN,
    LING,
    GLM_LINES,
    GLM,
    *MISTRAL,
    COHERE_2,
    COMMAND_R7B,
    COMMAND_R_PLUS,
    GIGACHAT_3_1,
    GIGACHAT_3,
    APRIEL,
    MINIMAX_M1,
    NEMOTRON_NANO_2,
    FIREFUNCTION_2,
    GRANITE_3,
    Functionary31(),
    Functionary32(),
    Llama3(),
    Reka(),
    Hermes(),
)
"""A new family's line goes here."""


@dataclass(frozen=True)
class OutputFormat:
    """How a model's family writes reasoning and calls.

    Args:
        syntax: The calls.
        thinking: The marks of the reasoning; None: there is none, or `syntax` has it.
        generic: The template knows no tools: the model is told of them in the generic form.
    """

    syntax: Syntax
    thinking: Thinking | None
    generic: bool = False

    @cached_property
    def markup(self) -> frozenset[str]:
        """The texts by which a reply is read, and those that a grammar writes around values.

        Tokens of the vocabulary that occur in them must be shown although they are special.
        """
        syntax, lark = self.syntax, _Literals({})
        calls = syntax.calls(lark, (_SAMPLE,))
        syntax.thought(lark, None)
        syntax.answer(lark, calls)
        marks = {*syntax.marks, *syntax.leading_marks, *syntax.tags, *lark.found}
        if self.thinking is not None:
            marks |= {self.thinking.opening, self.thinking.closing, self.thinking.tail}
        return frozenset(filter(str.strip, marks))

    def state(self, prompt: str) -> Literal["inside", "after", "before"]:
        """Whether a rendered prompt ends within the reasoning, just behind it, or neither.

        Line ends and blanks at its end do not count.
        """
        thinking, end = self.thinking, prompt.rstrip()
        if thinking is None:
            return "before"
        if end.endswith(thinking.opening):
            return "inside"
        # What follows the reasoning may stand there without any reasoning before it.
        behind = filter(None, (thinking.closing, thinking.tail.strip()))
        return "after" if end.endswith(tuple(behind)) else "before"

    def parser(
        self, tools: Sequence[ToolRule], *, reasoning: bool = True, inside: bool = False
    ) -> OutputParser | None:
        """A parser for one reply; None where all of it is content.

        Args:
            tools: The functions whose calls are looked for; empty: none are.
            reasoning: Whether reasoning is told apart; else it stays in the content with
                its tags. A syntax that `thinks` always tells it apart where it looks for
                calls.
            inside: The prompt ends within the reasoning (`state`).
        """
        wanted = tools or (self.syntax.always and (reasoning or not self.syntax.thinks))
        syntax = self.syntax.for_tools(tools) if wanted else None
        thinking = self.thinking if reasoning else None
        if syntax is None and thinking is None:
            return None
        return OutputParser(syntax, thinking, inside=inside)


def choose_format(template: str, vocabulary: Container[str], knows_tools: bool) -> OutputFormat:
    """The format of a model.

    Args:
        template: The Jinja source of its chat template.
        vocabulary: The texts of its tokens.
        knows_tools: Whether the template tells the model of tools. One that does not has
            the generic form, which is Hermes'.
    """
    found = (syntax for syntax in SYNTAXES if syntax.matches(template, vocabulary))
    syntax = next(found, Hermes())
    if not (knows_tools or syntax.always):
        syntax = Hermes()
    thinking = None if syntax.thinks else find_thinking(template, vocabulary)
    return OutputFormat(syntax, thinking, generic=not knows_tools)


class _Literals(Lark):
    """Collects the literals of a grammar."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        super().__init__(specials)
        self.found: set[str] = set()

    def literal(self, text: str) -> str:
        self.found.add(text)
        return super().literal(text)

    def until(self, end: str, **bounds: Any) -> str:
        self.found.add(end)
        return super().until(end, **bounds)


_SAMPLE = ToolRule(
    "f",
    {
        "type": "object",
        "properties": {"text": {"type": "string"}, "n": {"type": "number"}, "e": {"enum": ["a"]}},
        "required": ["text", "n", "e"],
    },
)
"""A tool whose calls show all of a family's markup."""
