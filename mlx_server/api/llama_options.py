"""llama.cpp's options beside the body: what holds where they are left out, how they are told.

Names and defaults are those of the document of llama.cpp's HTTP server; where today's
llama-server has others, both are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_server.api.llama_limits import NO_LIMITS, Limits
from mlx_server.sampling_params import DRY_BREAKERS, SAMPLERS, SamplingParams

DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "tfs_z": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.1,
    "repetition_context_size": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "penalty_context_size": 64,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "samplers": SAMPLERS,
    "n_keep": 0,
}
"""What /completion takes where a body is silent (the document's table)."""

UNFILTERED = ("penalties", "top_p", "min_p", "top_k", "temperature")
"""What applies where no order of samplers is set, in this order (mlx-lm's)."""


# ---------------------------------------------------------------- what a reply shows


@dataclass(frozen=True, slots=True)
class LlamaView:
    """What llama.cpp's form of a reply must remember of the body.

    Args:
        prompts: As they came, for each of the request's.
        num_probs: The most likely tokens to tell at each position; 0: none.
        post_sampling: Tell them as they were sampled from, not as the model has them.
        timings: With every piece.
        progress: Tell of the prompt while it is computed.
        tokens: Tell the token ids.
        fields: What of the last body is wanted, as paths; none: all of it.
        limits: Where its replies are cut.
    """

    prompts: tuple[Any, ...] = ()
    num_probs: int = 0
    post_sampling: bool = False
    timings: bool = False
    progress: bool = False
    tokens: bool = False
    fields: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS


def settings_body(
    params: SamplingParams | Mapping[str, Any] | None,
    *,
    context_length: int,
    model: str,
    **more: Any,
) -> dict[str, Any]:
    """llama.cpp's `generation_settings`: the document's names and today's.

    Args:
        params: Resolved; None: /completion's defaults.
        model: The path of the model.
        more: Values by their names here that `params` does not hold, or not as they came.
    """
    if params is None:
        params = DEFAULTS
    if isinstance(params, Mapping):
        params = SamplingParams(**params)
    limit = -1 if params.max_tokens is None else params.max_tokens
    body: dict[str, Any] = {
        "n_ctx": context_length,
        "model": model,
        "n_predict": limit,
        "max_tokens": limit,
        "seed": -1 if params.seed is None else params.seed,
        **{name: getattr(params, name) for name in _SHOWN},
        "repeat_penalty": params.repetition_penalty,
        "repeat_last_n": params.repetition_context_size,
        "penalize_nl": not params.unpenalized,
        "dry_sequence_breakers": list(DRY_BREAKERS),
        "stop": list(params.stop),
        "n_keep": params.n_keep or 0,
        "n_discard": 0,
        "n_indent": 0,
        "t_max_predict_ms": 0,
        "logit_bias": [
            # JSON has no infinity; `false` is how the option spells it.
            {"token": token, "bias": bias if bias > float("-inf") else False}
            for token, bias in params.logit_bias
        ],
        "n_probs": params.logprobs or 0,
        "post_sampling_probs": False,
        "samplers": list(UNFILTERED if params.samplers is None else params.samplers),
        "grammar": "",
        "stream": False,
        "cache_prompt": True,
        "return_tokens": False,
        "timings_per_token": False,
        "lora": [],
    }
    return {**body, **{name: value for name, value in more.items() if value is not None}}


_SHOWN = (
    "temperature",
    "dynatemp_range",
    "dynatemp_exponent",
    "top_k",
    "top_p",
    "min_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "tfs_z",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "ignore_eos",
    "min_keep",
)
