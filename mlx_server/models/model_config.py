"""What config.json and generation_config.json say beside the architecture: end tokens,
sampling defaults, context length, hidden size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
    "max_seq_length",
    "seq_length",
    "sequence_len",
    "model_max_length",
    "max_context_length",
)
ATTENTION_KEYS = ("num_attention_heads", "n_head", "n_heads")
HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model")

DEFAULT_CONTEXT = 8192
UNBOUNDED_CONTEXT = 1 << 20
"""For recurrent models, whose state does not grow with the sequence."""

SAMPLING_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}
"""What is taken from generation_config.json, within the bounds that requests have."""


def eos_token_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """End tokens named anywhere: `eos_token_id` is a number or a list of them."""
    found: set[int] = set()
    for source in (generation, config, _text_config(config)):
        value = source.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found.update(v for v in values if type(v) is int)
    return tuple(sorted(found))


def sampling_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """Sampling values of generation_config.json; none where it says not to sample.

    Left out, `do_sample` means False to transformers, but files that carry
    sampling values without it are common and mean them. A value that a request
    could not ask for is left out with a warning.
    """
    if generation.get("do_sample") is False:
        return {}
    defaults = {}
    for key in SAMPLING_RANGES:
        if (given := generation.get(key)) is None:
            continue
        if (value := _sampling_value(key, given)) is None:
            log.warning(
                "generation_config.json says %s is %.40r, which is no valid value; it is not used",
                key,
                given,
            )
        else:
            defaults[key] = value
    return defaults


def _sampling_value(key: str, value: Any) -> float | None:
    """A valid value, top_k as an integer; None if it is not one."""
    low, high = SAMPLING_RANGES[key]
    if type(value) not in (int, float) or not low <= value <= high:
        return None
    if key != "top_k":
        return value
    return int(value) if value == int(value) else None


def context_length(config: Mapping[str, Any]) -> int:
    """Tokens that fit, prompt and reply together, as config.json declares it."""
    sources = (config, _text_config(config))
    for source in sources:
        for key in CONTEXT_KEYS:
            value = source.get(key)
            if type(value) is int and value > 0:
                return value
    attends = any(source.get(key) for source in sources for key in ATTENTION_KEYS)
    return DEFAULT_CONTEXT if attends else UNBOUNDED_CONTEXT


def hidden_size(config: Mapping[str, Any]) -> int:
    """Width of the hidden states; 0 where config.json does not say."""
    sources = (config, _text_config(config))
    sizes = (source.get(key) for source in sources for key in HIDDEN_KEYS)
    return next((size for size in sizes if type(size) is int), 0)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else {}
