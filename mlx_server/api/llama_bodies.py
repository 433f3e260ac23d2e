"""The bodies of /completion and /infill, and the forms that a prompt has there."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from mlx_server.api.described import PromptsType, accepting
from mlx_server.api.fields import (
    INT32_MAX,
    Biases,
    OptionalText,
    at_most,
    biases,
    checked,
    integer,
    mapping,
    number,
    optional,
    required,
    text,
    unchecked,
)
from mlx_server.api.schema import GenerationFields
from mlx_server.core import MixedPrompt, Prompt, TextOptions, TextPrompt, TokenPrompt
from mlx_server.services import SystemPrompt

MAX_STOP_STRINGS = 128
MAX_FILES = 256
MAX_RESPONSE_FIELDS = 256

MAX_BIAS = 1e9
"""llama.cpp has no bound; beyond this one float32 tells nothing apart."""

RANDOM_SEEDS = (-1, 2**32 - 1)
"""llama-server tells of the second one where it was asked for none."""


# ---------------------------------------------------------------- values


@accepting(str | Annotated[list[str], Field(max_length=MAX_STOP_STRINGS)])
def _stops(value: Any) -> tuple[str, ...]:
    """Strings that end a reply; empty ones end none."""
    stops = [value] if isinstance(value, str) else value
    allowed = f"must be a string or a list of up to {MAX_STOP_STRINGS} strings"
    if not isinstance(stops, list) or len(stops) > MAX_STOP_STRINGS:
        raise ValueError(allowed)
    if not all(isinstance(stop, str) for stop in stops):
        raise ValueError(allowed)
    return tuple(text(stop) for stop in stops if stop)


@accepting(str | dict[str, Any])
def _system_prompt(value: Any) -> SystemPrompt:
    """A text, or the document's object."""
    if isinstance(value, str):
        return SystemPrompt(text(value))
    given = mapping(value)
    names = ("prompt", "anti_prompt", "assistant_name")
    values = ["" if given.get(name) is None else given[name] for name in names]
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"must be a string, or an object with strings in {', '.join(names)}")
    return SystemPrompt(*values)


@accepting(Annotated[list[str], Field(max_length=MAX_RESPONSE_FIELDS)])
def _response_fields(value: Any) -> tuple[str, ...]:
    items = at_most(MAX_RESPONSE_FIELDS)(value)
    if not all(isinstance(item, str) for item in items):
        raise ValueError("must be a list of strings")
    return tuple(items)


def _or_empty(value: Any) -> Any:
    return [] if value is None else value


class ExtraFile(BaseModel):
    filename: OptionalText = None
    text: Annotated[str, required(text)]


# ---------------------------------------------------------------- the bodies


class LlamaBody(GenerationFields):
    """The options of /completion, which /infill takes as well."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"prompt": "Building a website can be done in 10 steps:", "n_predict": 32}
        }
    )

    temperature: Annotated[float | None, optional(number(-100, 100))] = None
    top_k: Annotated[int | None, optional(integer(-INT32_MAX, INT32_MAX))] = None
    presence_penalty: Annotated[float | None, optional(number(-100, 100))] = None
    frequency_penalty: Annotated[float | None, optional(number(-100, 100))] = None
    stop: Annotated[tuple[str, ...] | None, optional(_stops)] = None
    logit_bias: Annotated[Biases | None, optional(biases(MAX_BIAS))] = None
    prompt: Annotated[Any, unchecked(PromptsType | None)] = None
    system_prompt: Annotated[SystemPrompt | None, optional(_system_prompt)] = None
    response_fields: Annotated[tuple[str, ...] | None, optional(_response_fields)] = None

    def text_options(self, biases: tuple[tuple[str, float], ...]) -> TextOptions:
        return replace(super().text_options(biases), ban_ends=True)

    def options(self, *, min_tokens: int = 0) -> dict[str, Any]:
        options = super().options(min_tokens=min_tokens)
        if "temperature" in options:  # below 0 it is greedy, as it is at 0
            options["temperature"] = max(options["temperature"], 0.0)
        if "top_k" in options:
            options["top_k"] = max(options["top_k"], 0)
        if self.seed in RANDOM_SEEDS:
            options["seed"] = None
        return options


class InfillBody(LlamaBody):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "input_prefix": "def double(x):\n    return ",
                "input_suffix": "\n",
                "n_predict": 16,
            }
        }
    )

    input_prefix: OptionalText = None
    input_suffix: OptionalText = None
    input_extra: Annotated[
        list[ExtraFile],
        FailFast(),
        BeforeValidator(_or_empty, json_schema_input_type=list[ExtraFile] | None),
    ] = []
    prompt: OptionalText = None

    def files(self) -> list[ExtraFile]:
        """Raises RequestError: they are too many."""
        return checked(at_most(MAX_FILES), self.input_extra, "input_extra")


# ---------------------------------------------------------------- prompts


def behind(system: SystemPrompt, prompt: Prompt) -> Prompt:
    """The prompt after the system's."""
    match prompt:
        case TextPrompt(text):
            return MixedPrompt((system.prompt, text))
        case TokenPrompt(parts) | MixedPrompt(parts):
            return MixedPrompt((system.prompt, *parts))
    return prompt
