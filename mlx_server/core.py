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
        add_generation_prompt: End with the mark that the model's turn begins.
        continue_final: The last message is the assistant's and is not ended: the reply goes
            on with it.
    """

    messages: tuple[Message, ...]
    template_args: Mapping[str, Any] = field(default_factory=dict)
    role_mapping: Mapping[str, str] | None = None
    tools: tuple[Tool, ...] = ()
    reasoning_effort: str | None = None
    add_generation_prompt: bool = True
    continue_final: bool = False


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class MixedPrompt:
    """Texts and token ids in turns. The tokenizer's own start token comes first only where a
    text does (llama-server)."""

    parts: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class InfillFile:
    """A file beside the one that is completed."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class InfillPrompt:
    """A gap to fill, written with the model's fill-in-the-middle tokens.

    Args:
        prefix, suffix: What stands before and after the gap.
        prompt: The beginning of what fills it.
        files: For context, the most important last.
        suffix_first: Suffix, prefix, middle instead of prefix, suffix, middle.
    """

    prefix: str
    suffix: str
    prompt: str = ""
    files: tuple[InfillFile, ...] = ()
    suffix_first: bool = False


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt | MixedPrompt | InfillPrompt


# ---------------------------------------------------------------- how to generate


@dataclass(frozen=True, slots=True)
class TextOptions:
    """Sampling options that are text, for the tokenizer to turn into tokens.

    Args:
        logit_bias: (text, bias): every token of the text gets the bias.
        dry_breakers: Strings that no repetition goes across; None: the usual ones.
        penalize_nl: Whether the penalties count for a newline's token; None: they do.
        ban_ends: `ignore_eos` means that no end token can come (llama.cpp), not that the
            reply goes on past it.
    """

    logit_bias: tuple[tuple[str, float], ...] = ()
    dry_breakers: tuple[str, ...] | None = None
    penalize_nl: bool | None = None
    ban_ends: bool = False


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
        own_defaults: They stand above the model's generation_config.json.
        adapters: Path the client named in `adapters`, else None.
        echo: Give the prompt's text (and log-probabilities) back first.
        grammar: What the reply's content must follow.
        tool_use: The calls it may hold; None: calls are not looked for.
        max_thinking_tokens: Tokens after which the model's reasoning is ended; -1:
            it ends by itself; None: the command line's limit, if any.
        split_reasoning: Tell the model's reasoning apart from its answer; None: as the command
            line says.
        stream: Whether the client wants the deltas as they come.
        slot: The slot that the reply has to run in; None: any.
        reuse: Go on from what earlier requests have computed.
        adapter_scales: (number in the list of adapters, scale) pairs, in place of those that
            are set; None: as set.
        text_options: Sampling options that are written as text.
        return_tokens: Give the token ids with the text.
        return_timings: Give timings with every piece of text.
        timeout: Seconds after which the request ends with DeadlineExceeded.
        format: What the dialect's formatter must remember of the body.
    """

    id: str
    model: str | None
    prompts: tuple[Prompt, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    own_defaults: bool = False
    n: int = 1
    adapters: str | None = None
    echo: bool = False
    grammar: Grammar | None = None
    tool_use: ToolUse | None = None
    max_thinking_tokens: int | None = None
    split_reasoning: bool | None = None
    stream: bool = False
    slot: int | None = None
    reuse: bool = True
    adapter_scales: tuple[tuple[int, float], ...] | None = None
    text_options: TextOptions = field(default_factory=TextOptions)
    return_tokens: bool = False
    return_timings: bool = False
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
