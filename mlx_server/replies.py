"""What a request's replies look like: how they are guided, and how they are read.

request, prompt ── the model's family ──> ReplyForm: a guide for the engine,
                                          a parser for its text
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mlx_server.core import ChatPrompt, GenerationRequest, Prompt, Tool, ToolUse
from mlx_server.errors import RequestError
from mlx_server.exchange import Guide
from mlx_server.sampling.grammar import Grammars, Vocabulary
from mlx_server.sampling.guide import Plan, Trigger
from mlx_server.sampling.guide import Reasoning as ReasoningPlan
from mlx_server.sampling.notations import json_grammar, lark_grammar
from mlx_server.sampling.schema import exact_schema
from mlx_server.text.formats import OutputFormat
from mlx_server.text.parsers.base import Syntax
from mlx_server.text.parsers.lark import JSON_STYLE, Lark, ToolRule
from mlx_server.text.parsers.output_parser import OutputParser
from mlx_server.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
NO_ARGUMENTS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}

TAIL = 64
"""The last tokens of a prompt, which tell whether it ends within reasoning."""


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """How the replies to one prompt are made and read.

    Args:
        guide: Holds one to its form; None: nothing has to.
        parser: Reads one; None: all of it is content.
        shown: Special tokens that the parser must see.
    """

    guide: Callable[[], Guide] | None = None
    parser: Callable[[], OutputParser | None] = lambda: None
    shown: frozenset[int] = frozenset()


class ReplyForms:
    """Of one model. May be used from any thread.

    Args:
        width: Of the model's logits.
        reasoning_format: "auto" or "none", as `--reasoning-format`.
        max_thinking_tokens: For requests that name none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        width: int,
        *,
        reasoning_format: str = "auto",
        max_thinking_tokens: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._split_reasoning = reasoning_format != "none"
        self._max_thinking_tokens = max_thinking_tokens
        self.grammars = Grammars(
            Vocabulary(
                tokens=tokenizer.table,
                specials=tokenizer.markup_tokens,
                eos_token_ids=tokenizer.eos_token_ids,
                width=width,
                encode=tokenizer.encode_within,
            )
        )

    def of(self, request: GenerationRequest, prompt: Prompt, token_ids: Sequence[int]) -> ReplyForm:
        """
        Args:
            token_ids: The prompt's.

        Raises:
            RequestError: Its grammar cannot be held to.
        """
        if not isinstance(prompt, ChatPrompt):
            if request.grammar is None:
                return ReplyForm()
            return ReplyForm(Plan(self.grammars, self.grammars.compile(request.grammar)))
        format_ = self._tokenizer.format
        tail = self._tokenizer.decode(token_ids[-TAIL:])
        state = format_.state(tail)
        budget = request.max_thinking_tokens
        if budget is None:
            budget = self._max_thinking_tokens
        elif budget < 0:
            budget = None
        rules = [self._rule(tool) for tool in request.tool_use.tools] if request.tool_use else []
        plan = self._plan(request, format_, rules, state, budget)
        split = request.split_reasoning
        split = self._split_reasoning if split is None else split
        return ReplyForm(
            guide=plan,
            parser=lambda: format_.parser(rules, reasoning=split, inside=state == "inside"),
            shown=self._tokenizer.visible(format_.markup),
        )

    # ------------------------------------------------------------ tools

    def _rule(self, tool: Tool) -> ToolRule:
        """The tool with a schema that compiles: its own to the letter if that can be held to,
        else as much of it as can; any arguments, where nothing of it can."""
        schema = NO_ARGUMENTS if tool.parameters is None else closed(tool.parameters)
        problem: str | None = None
        for version in (_exact(schema), schema):
            if version is not None:
                problem = self.grammars.problem(json_grammar(version, JSON_STYLE))
                if problem is None:
                    return ToolRule(tool.name, version)
        _warn_once(tool.name, problem or "")
        return ToolRule(tool.name, ANY_OBJECT)

    # ------------------------------------------------------------ the guide

    def _plan(
        self,
        request: GenerationRequest,
        format_: OutputFormat,
        rules: list[ToolRule],
        state: str,
        budget: int | None,
    ) -> Plan | None:
        use, syntax = request.tool_use, format_.syntax.for_tools(rules)
        reasoning = self._reasoning(format_, state, budget)
        grammar: str | None = None
        triggers: tuple[Trigger, ...] = ()
        if request.grammar is not None or (use is not None and use.required):
            grammar = self._bound(request, syntax, rules, None if state == "after" else budget)
            if syntax.thinks:
                reasoning = None
        elif use is not None:
            triggers = self._triggers(syntax, rules, use)
        if grammar is None and not triggers and (reasoning is None or budget is None):
            return None
        once = use is not None and not use.parallel
        return Plan(self.grammars, grammar, triggers, reasoning, once)

    def _reasoning(
        self, format_: OutputFormat, state: str, budget: int | None
    ) -> ReasoningPlan | None:
        thinking = format_.syntax.reasoning if format_.syntax.thinks else format_.thinking
        if thinking is None or state == "after":
            return None
        return ReasoningPlan(
            thinking.opening, thinking.closing, thinking.tail, state == "inside", budget
        )

    def _bound(
        self,
        request: GenerationRequest,
        syntax: Syntax,
        rules: list[ToolRule],
        budget: int | None,
    ) -> str:
        """The grammar of a whole reply: calls, or an answer, or either."""
        use = request.tool_use
        several = use is None or use.parallel

        def around(tools: list[ToolRule]) -> str:
            lark = Lark(self._tokenizer.markup_tokens)
            starts = []
            if tools:
                starts.append(syntax.calls(lark, tools, several))
            if request.grammar is not None:
                starts.append(syntax.answer(lark, "@reply"))
            return lark.grammar(f"{syntax.thought(lark, budget)} {lark.either(starts)}")

        if request.grammar is not None:
            return self.grammars.compile(request.grammar, around(rules))
        # Together they may be too much, though none of them is.
        for tools in (rules, [ToolRule(rule.name, ANY_OBJECT) for rule in rules]):
            text = lark_grammar(around(tools))
            problem = self.grammars.problem(text)
            if problem is None:
                return text
            _warn_once(", ".join(rule.name for rule in rules), problem)
        raise RequestError(f"These tools cannot be called: {problem}", param="tools")

    def _triggers(self, syntax: Syntax, rules: list[ToolRule], use: ToolUse) -> tuple[Trigger, ...]:
        lark = Lark(self._tokenizer.markup_tokens)
        section = syntax.section(lark, rules, use.parallel)
        if syntax.between.strip():
            # What stands between sections and is no space is in the marks of the later ones.
            section = f"({lark.literal(syntax.between)})? {section}"
        text = lark_grammar(lark.grammar(section))
        if problem := self.grammars.problem(text):
            _warn_once(", ".join(rule.name for rule in rules), problem)
            return ()
        lead = self._space_before(text)
        return tuple(Trigger(t.mark, text, t.leading, lead) for t in syntax.triggers)

    def _space_before(self, grammar: str) -> str:
        """The space that whatever follows the grammar begins with."""
        table = self.grammars.vocabulary.tokens
        start = b"".join(table[i] for i in self.grammars.matcher(grammar).forced())
        return start[: len(start) - len(start.lstrip())].decode()


_COMBINED = ("allOf", "anyOf", "oneOf", "$ref", "if", "patternProperties", "propertyNames")


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool's schema as an object's that has no other than its named parameters, where it
    does not say otherwise: models make others up that no tool knows."""
    schema = {"type": "object", **schema}
    if "properties" in schema and not any(key in schema for key in _COMBINED):
        schema.setdefault("additionalProperties", False)
    return schema


def _exact(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema as one that is held to exactly; None where there is none, or where it names
    its parameters in another place than the tool does."""
    try:
        exact = exact_schema(schema)
    except (ValueError, RecursionError):
        return None
    if not isinstance(exact, Mapping):
        return None
    same = list(exact.get("properties", ())) == list(schema.get("properties", ()))
    return exact if same else None


@lru_cache(maxsize=1024)
def _warn_once(names: str, problem: str) -> None:
    log.warning("calls of %s are not held to their schema: %s", names, problem)
