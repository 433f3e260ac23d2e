"""Plain data that every room shares. Standard library only, frozen throughout.

A request travels as `GenerationRequest`; what comes back is a stream of
`Delta`s, and a whole reply is the fold of that stream. Below `llm.py` there is
no text: `exchange.py` has what passes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]

AdapterScale = tuple[str, float]
"""An adapter's name and the scale it is applied at; a row carries a sorted tuple of them."""


# ---------------------------------------------------------------- what to generate from


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    url: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made. `arguments` is the JSON text as the API carries it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Parts stay typed until the chat template turns them into text."""

    role: str
    parts: tuple[TextPart | ImagePart, ...] = ()
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The text parts joined as they are."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Args:
        name: What the model calls it by.
        description: What it does, for the model.
        parameters: JSON Schema of its arguments, an object's; None: anything.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, rendered by the model's chat template.

    Args:
        template_args: Extra variables for the template (`chat_template_kwargs`).
        role_mapping: mlx-lm's role prefixes, for models without a template.
        tools: The functions that the prompt tells the model of.
        reasoning_effort: How much the model is to think, as the client says it ("low",
            "high" …); templates that know no effort are told whether to think at all.
    """

    messages: tuple[Message, ...]
    template_args: Mapping[str, Any] = field(default_factory=dict)
    role_mapping: Mapping[str, str] | None = None
    tools: tuple[Tool, ...] = ()
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


# ---------------------------------------------------------------- how to generate


GrammarKind = Literal["json_schema", "regex", "lark", "gbnf"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply must follow.

    Args:
        kind: How `text` is written.
        text: The grammar; a JSON Schema as JSON.
        param: The request's field that it came in, for errors.
    """

    kind: GrammarKind
    text: str
    param: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which calls a reply may hold.

    Args:
        tools: The functions that may be called, at least one.
        required: The reply must be a call.
        parallel: It may hold several.
    """

    tools: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a dialect makes of a request body.

    Args:
        id: The response's id ("chatcmpl-…"); also names the request in logs.
        model: The name the client sent, or None.
        prompts: One or more; choice index = prompt index * n + copy.
        options: The `SamplingParams` fields that the client named. A field it
            left out comes from the command line, else from the model's
            generation_config.json, else from `defaults`.
        defaults: The dialect's own defaults.
        adapters: Path the client named in `adapters`, else None.
        echo: Give the prompt's text (and log-probabilities) back first.
        grammar: What the reply's content must follow.
        tool_use: The calls it may hold; None: calls are not looked for.
        max_thinking_tokens: Tokens after which the model's reasoning is ended; -1:
            it ends by itself; None: the command line's limit, if any.
        stream: Whether the client wants the deltas as they come.
        timeout: Seconds after which the request ends with DeadlineExceeded.
        format: What the dialect's formatter must remember of the body.
    """

    id: str
    model: str | None
    prompts: tuple[Prompt, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    adapters: str | None = None
    echo: bool = False
    grammar: Grammar | None = None
    tool_use: ToolUse | None = None
    max_thinking_tokens: int | None = None
    stream: bool = False
    timeout: float | None = None
    format: Any = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A name that can be put into a request's `model`."""

    id: str
    created: int
    owned_by: str = "mlx_server"
    loaded: bool = False
    root: str | None = None
    parent: str | None = None
    context_length: int | None = None
