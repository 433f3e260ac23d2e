"""llama.cpp's options as fields of a body: what is accepted, and what they mean for a request.

They work on /completion and on the OpenAI routes alike.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, FailFast, Field

from mlx_server.api.described import accepting
from mlx_server.api.fields import (
    INT32_MAX,
    OptionalFlag,
    OptionalSize,
    Probability,
    at_most,
    integer,
    number,
    optional,
    required,
    text,
)
from mlx_server.api.llama_limits import Limits
from mlx_server.api.llama_options import LlamaView
from mlx_server.core import TextOptions
from mlx_server.errors import NotSupported
from mlx_server.sampler_names import LETTERS, canonical, lettered, named
from mlx_server.sampling_params import SAMPLERS

MAX_N_PROBS = 100
"""llama.cpp has no bound; each of them is looked up and sent with every token."""

UNTIL_FULL = -2
"""The `n_predict` with which a reply ends where the context does, whatever `n_keep` says."""

MAX_BREAKERS = 64
MAX_ADAPTERS = 64

_SAMPLERS_ALLOWED = (
    f"must be a list of samplers ({', '.join(SAMPLERS)}) or a string of their letters "
    f"({''.join(LETTERS)})"
)


# ---------------------------------------------------------------- values


@accepting(str | list[str])
def sampler_names(value: Any) -> tuple[str, ...]:
    """A list of names, names with semicolons between them, or a letter for each."""
    try:
        if isinstance(value, str):
            names = value.split(";")
            return named(names) if len(names) > 1 or _is_name(value) else lettered(value)
        if isinstance(value, list) and len(value) <= 4 * len(SAMPLERS):
            return named([str(name) for name in value])
    except ValueError as error:
        raise ValueError(f"{_SAMPLERS_ALLOWED}; {error}") from None
    raise ValueError(_SAMPLERS_ALLOWED)


def _is_name(text: str) -> bool:
    try:
        canonical(text)
    except ValueError:
        return False
    return True


@accepting(Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)])
def _breakers(value: Any) -> tuple[str, ...]:
    items = at_most(MAX_BREAKERS)(value)
    if not items or not all(isinstance(item, str) and item for item in items):
        raise ValueError("must be a non-empty list of non-empty strings")
    return tuple(text(item) for item in items)


class _AdapterScale(BaseModel):
    id: Annotated[int, required(integer(0, INT32_MAX))]
    scale: Annotated[float, required(number(-1000, 1000))]


def _real(low: float, high: float) -> Any:
    return Annotated[float | None, optional(number(low, high))]


def _whole(low: int, high: int = INT32_MAX) -> Any:
    return Annotated[int | None, optional(integer(low, high))]


# ---------------------------------------------------------------- fields


class LlamaFields(BaseModel):
    """The options that llama.cpp has and OpenAI's API has not."""

    samplers: Annotated[tuple[str, ...] | None, optional(sampler_names)] = None
    min_keep: OptionalSize = None
    typical_p: Probability = None
    tfs_z: Probability = None
    top_n_sigma: _real(-1e6, 1e6) = None
    dynatemp_range: _real(0, 100) = None
    dynatemp_exponent: _real(0, 100) = None
    xtc_probability: Probability = None
    xtc_threshold: Probability = None
    mirostat: _whole(0, 2) = None
    mirostat_tau: _real(0, 100) = None
    mirostat_eta: _real(0, 100) = None
    repeat_penalty: _real(0.01, 100) = None
    repeat_last_n: _whole(-1) = None
    penalize_nl: OptionalFlag = None
    dry_multiplier: _real(0, 100) = None
    dry_base: _real(1, 100) = None
    dry_allowed_length: OptionalSize = None
    dry_penalty_last_n: _whole(-1) = None
    dry_sequence_breakers: Annotated[tuple[str, ...] | None, optional(_breakers)] = None

    n_predict: _whole(-2) = None
    n_keep: _whole(-1) = None
    n_discard: _whole(0, 0) = None  # 0: half of what does not stay makes room, as it does
    n_cmpl: _whole(1, 128) = None
    n_probs: _whole(0, MAX_N_PROBS) = None
    n_indent: OptionalSize = None
    t_max_predict_ms: _real(0, 1e12) = None

    id_slot: _whole(-1) = None
    slot_id: _whole(-1) = None
    cache_prompt: OptionalFlag = None
    n_cache_reuse: OptionalSize = None  # without a meaning: common beginnings are always found
    lora: Annotated[
        list[_AdapterScale] | None,
        FailFast(),
        BeforeValidator(
            lambda value: None if value is None else at_most(MAX_ADAPTERS)(value),
            json_schema_input_type=list[_AdapterScale] | None,
        ),
    ] = None

    return_tokens: OptionalFlag = None
    return_progress: OptionalFlag = None
    timings_per_token: OptionalFlag = None
    post_sampling_probs: OptionalFlag = None
    verbose: OptionalFlag = None
    image_data: Annotated[list[Any] | None, optional(at_most(INT32_MAX))] = None

    def refuse_images(self) -> None:
        """Raises NotSupported."""
        if self.image_data:
            raise NotSupported(
                "This server does not support images; leave `image_data` out.", param="image_data"
            )

    def llama_options(self) -> dict[str, Any]:
        """The `SamplingParams` fields that these options name."""
        values = {name: getattr(self, name) for name in _SAME_NAME}
        options = {name: value for name, value in values.items() if value is not None}
        if self.repeat_last_n is not None:
            # Here the window is that of all penalties.
            options["repetition_context_size"] = self.repeat_last_n
            options["penalty_context_size"] = self.repeat_last_n
        if self.n_probs:
            options["logprobs"] = options["probs"] = self.n_probs
        if self.n_predict == UNTIL_FULL:
            options["n_keep"] = None
        return options

    def limits(self) -> Limits:
        return Limits(self.n_indent or 0, self.t_max_predict_ms or 0.0)

    def text_options(self, biases: tuple[tuple[str, float], ...]) -> TextOptions:
        """
        Args:
            biases: The texts of `logit_bias`.
        """
        return TextOptions(biases, self.dry_sequence_breakers, self.penalize_nl)

    def view(self, **more: Any) -> LlamaView:
        """How llama.cpp's body of the reply looks."""
        return LlamaView(
            num_probs=self.n_probs or 0,
            post_sampling=bool(self.post_sampling_probs),
            timings=bool(self.timings_per_token),
            progress=bool(self.return_progress),
            tokens=bool(self.return_tokens),
            limits=self.limits(),
            **more,
        )

    def request_fields(self) -> dict[str, Any]:
        """The `GenerationRequest` fields that these options name, but for the text options."""
        slot = self.slot_id if self.id_slot is None else self.id_slot
        return {
            "slot": None if slot == -1 else slot,
            "reuse": self.cache_prompt is not False,
            "adapter_scales": None
            if self.lora is None
            else tuple((entry.id, entry.scale) for entry in self.lora),
            "return_tokens": bool(self.return_tokens),
            "return_timings": bool(self.timings_per_token) or self.limits().any,
        }


_SAME_NAME = (
    "samplers",
    "min_keep",
    "typical_p",
    "tfs_z",
    "top_n_sigma",
    "dynatemp_range",
    "dynatemp_exponent",
    "xtc_probability",
    "xtc_threshold",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "n_keep",
)
