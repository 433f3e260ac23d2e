"""Request bodies at the door: how they are checked, and the fields all generation routes share.

The first wrong field is told by its path (`fields.py`). An unknown field is
ignored, and null counts as absent.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlx_server.api.constraints import ConstraintFields
from mlx_server.api.fields import (
    LIMIT_ALLOWED,
    Biases,
    OptionalFlag,
    OptionalSize,
    OptionalText,
    Penalty,
    Probability,
    TokenLimit,
    biases,
    integer,
    number,
    optional,
    path,
    stop_strings,
    top_k_or_all,
    wrong,
)
from mlx_server.api.llama_fields import LlamaFields
from mlx_server.errors import RequestError

MAX_CHOICES = 128

Schema = TypeVar("Schema", bound=BaseModel)


# ---------------------------------------------------------------- errors

_REASONS = {
    "missing": "is required",
    "too_short": "must not be empty",
    "list_type": "must be a list",
    "model_type": "must be an object",
}


def validate(schema: type[Schema], body: Any) -> Schema:
    """The body as the schema's fields. Raises RequestError for the first wrong one."""
    try:
        return schema.model_validate(body)
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
    except RecursionError:
        raise RequestError("The body is nested too deeply.") from None
    raise wrong(path(first["loc"]), _reason(first), first["input"], first["type"] != "missing")


def _reason(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return _REASONS.get(error["type"], error["msg"])


def agreed(values: dict[str, Any]) -> Any:
    """What all of the fields say that are given. Raises RequestError where two differ."""
    given = [(param, value) for param, value in values.items() if value is not None]
    for param, value in given[1:]:
        if value != given[0][1]:
            raise RequestError(
                f"`{given[0][0]}` and `{param}` must be equal where both are given.", param=param
            )
    return given[0][1] if given else None


# ---------------------------------------------------------------- fields of every route


class StreamOptions(BaseModel):
    include_usage: OptionalFlag = None


class GenerationFields(ConstraintFields, LlamaFields):
    """What chat and legacy completions have in common."""

    model: OptionalText = None
    adapters: OptionalText = None
    user: OptionalText = None  # without a meaning: no accounts are kept here
    n: Annotated[int | None, optional(integer(1, MAX_CHOICES))] = None
    stream: OptionalFlag = None
    stream_options: StreamOptions | None = None

    temperature: Annotated[float | None, optional(number(0, 100))] = None
    top_p: Probability = None
    top_k: Annotated[int | None, optional(top_k_or_all)] = None
    min_p: Probability = None
    seed: Annotated[int | None, optional(integer())] = None
    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None
    stop: Annotated[tuple[str, ...] | None, optional(stop_strings)] = None
    ignore_eos: OptionalFlag = None
    logit_bias: Annotated[Biases | None, optional(biases(100))] = None
    repetition_penalty: Annotated[float | None, optional(number(0.01, 100))] = None
    repetition_context_size: OptionalSize = None
    presence_penalty: Penalty = None
    presence_context_size: OptionalSize = None
    frequency_penalty: Penalty = None
    frequency_context_size: OptionalSize = None

    @property
    def choices(self) -> int:
        """Replies to each prompt."""
        return agreed({"n": self.n, "n_cmpl": self.n_cmpl}) or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def options(self, *, min_tokens: int = 1) -> dict[str, Any]:
        """The `SamplingParams` fields that the client named.

        Args:
            min_tokens: The least `max_tokens`; 0 where the prompt alone is a reply.
        """
        values = {name: getattr(self, name) for name in _SAME_NAME}
        options = {name: value for name, value in values.items() if value is not None}
        options |= self.llama_options()
        penalties = ("repetition_penalty", "repeat_penalty")
        penalty = agreed({name: getattr(self, name) for name in penalties})
        if penalty is not None:
            options["repetition_penalty"] = penalty
        if self.logit_bias is not None:
            options["logit_bias"] = self.logit_bias.ids
        if self.seed is not None:
            options["seed"] = None if self.seed == -1 else self.seed % 2**63
        for name in ("max_tokens", "max_completion_tokens"):  # the later one wins
            limit = getattr(self, name)
            if limit is not None:
                if limit != -1 and limit < min_tokens:
                    raise wrong(name, LIMIT_ALLOWED, limit)
                options["max_tokens"] = None if limit == -1 else limit
        if self.n_predict is not None:  # llama.cpp's own name, where 0 computes the prompt
            options["max_tokens"] = None if self.n_predict < 0 else self.n_predict
        windows = {self.presence_context_size, self.frequency_context_size} - {None}
        if len(windows) > 1:
            raise RequestError(
                "`presence_context_size` and `frequency_context_size` must be equal where both "
                f"are given, but got {self.presence_context_size} and "
                f"{self.frequency_context_size}.",
                param="frequency_context_size",
            )
        if windows:
            options["penalty_context_size"] = windows.pop()
        return options

    def generation_fields(self) -> dict[str, Any]:
        """The fields of a `GenerationRequest` that every route has in common.

        Raises:
            NotSupported: The body has images beside its text.
        """
        self.refuse_images()
        texts = () if self.logit_bias is None else self.logit_bias.texts
        return {
            "model": self.model or None,
            "n": self.choices,
            "adapters": self.adapters or None,
            "stream": bool(self.stream),
            "text_options": self.text_options(texts),
            **self.request_fields(),
        }


_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "ignore_eos",
    "repetition_context_size",
    "presence_penalty",
    "frequency_penalty",
)
