"""Which samplers a request uses, and in what order.

    samplers not given   mlx-lm's way: bias, penalties, filters, temperature (`filters.py`)
      but one of llama.cpp's own is used, or samplers given
                         bias, penalties, dry, then the chain in its order (`chain.py`)
    mirostat             bias, penalties, dry, temperature, mirostat (`mirostat.py`)
    temperature ≤ 0      bias, penalties, dry, the best token

Penalties and DRY are wherever `samplers` names them, each time it does; where it does not,
they come first, since older llama.cpp servers always penalise. A grammar's mask is applied
in between: behind what comes first, before everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_server.sampling_params import SAMPLERS, SamplingParams

XTC_LIMIT = 0.5
"""Above this threshold XTC is off: at most one token can be that likely."""


@dataclass(frozen=True, slots=True)
class Order:
    """
    Args:
        penalties_first, dry_first: They are applied before the grammar's mask, in this order.
        chain: The samplers behind it by llama.cpp's names, without those that would change
            nothing; None: mlx-lm's filters, or none.
    """

    penalties_first: bool = True
    dry_first: bool = True
    chain: tuple[str, ...] | None = None


def order_of(params: SamplingParams) -> Order:
    """
    Raises:
        KeyError: `params.samplers` names a sampler that is not one of `sampling_params.SAMPLERS`.
    """
    if params.temperature <= 0 or uses_mirostat(params):
        return _FIRST
    names = params.samplers
    if names is None:
        if not any(_USES[name](params) for name in _OWN) and params.min_keep <= 0:
            return _FIRST
        names = SAMPLERS
    first = [name for name in ("penalties", "dry") if name not in names]
    used = [name for name in (*first, *names) if _USES[name](params)]
    penalties_first = used[:1] == ["penalties"]
    used = used[penalties_first:]
    dry_first = used[:1] == ["dry"]
    return Order(penalties_first, dry_first, tuple(used[dry_first:]))


def uses_mirostat(params: SamplingParams) -> bool:
    """A greedy row has no use for it."""
    return params.mirostat in (1, 2) and params.temperature > 0


def uses_dry(params: SamplingParams) -> bool:
    """As in llama.cpp: -1 is all of the history, and what is below is nothing."""
    return (
        params.dry_multiplier != 0
        and params.dry_base >= 1
        and (params.dry_penalty_last_n > 0 or params.dry_penalty_last_n == -1)
    )


def uses_penalties(params: SamplingParams) -> bool:
    """Whether one of the three penalties is on."""
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


def uses_dynamic_temperature(params: SamplingParams) -> bool:
    """Whether the temperature is moved by the entropy (`dynatemp_range`)."""
    return params.dynatemp_range > 0


def _uses_xtc(params: SamplingParams) -> bool:
    return params.xtc_probability > 0 and params.xtc_threshold <= XTC_LIMIT


_USES: dict[str, Callable[[SamplingParams], bool]] = {
    "penalties": uses_penalties,
    "dry": uses_dry,
    "top_n_sigma": lambda params: params.top_n_sigma > 0,
    "top_k": lambda params: params.top_k > 0,
    "tfs_z": lambda params: params.tfs_z < 1,
    "typical_p": lambda params: params.typical_p < 1,
    "top_p": lambda params: params.top_p < 1,
    "min_p": lambda params: params.min_p > 0,
    "xtc": _uses_xtc,
    "temperature": lambda params: params.temperature != 1 or uses_dynamic_temperature(params),
    "dynamic_temperature": uses_dynamic_temperature,
}

_OWN = ("dry", "top_n_sigma", "tfs_z", "typical_p", "xtc", "dynamic_temperature")
"""What mlx-lm's way does not know."""

_FIRST = Order()
