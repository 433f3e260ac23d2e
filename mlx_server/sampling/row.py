"""SamplingRow: what the sampler needs to know of one sequence in a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_server.sampling.order import uses_dry, uses_mirostat
from mlx_server.sampling_params import SamplingParams


@dataclass(slots=True)
class SamplingRow:
    """One row of logits and how its token is chosen.

    The engine builds step t+1 while step t still runs, so a row's history is
    what the host knows plus, perhaps, one token that only the device has:

        token_ids   p p p p g g g        pending   ?
                    prompt  reply                  the token of step t

    Attributes:
        params: `params.seed` is set.
        choice: Index of the sequence within its request.
        position: Tokens, prompt and reply, before the one being sampled.
        token_ids: int32 [k], prompt then reply, without the pending token.
        num_prompt_tokens: How many of `token_ids` are the prompt.
        pending: One more token of the reply follows `token_ids`.
        allowed: The tokens it may be, uint32 [⌈V / 32⌉], the lowest bit first; None: all.
        mu: Mirostat's bound on the surprise in bits, as the row's last `Sampled.mu` gave it;
            None at the start of the reply.
    """

    params: SamplingParams
    choice: int
    position: int
    token_ids: np.ndarray
    num_prompt_tokens: int
    pending: bool
    allowed: np.ndarray | None = None
    mu: float | None = None


def needs_host(params: SamplingParams) -> bool:
    """Whether the token before must be known on the host before the next one is sampled:
    mirostat goes on from its state, DRY looks for repetitions in the whole history."""
    return uses_mirostat(params) or uses_dry(params)


def column(values: Iterable[Any], dtype: type = np.float32) -> mx.array:
    """One value per row, [R, 1], ready to broadcast over the vocabulary."""
    return mx.array(np.array(list(values), dtype=dtype)[:, None])


def power_of_two(n: int) -> int:
    """The smallest power of two ≥ n: widths that repeat let MLX reuse its buffers."""
    return 1 << max(0, n - 1).bit_length()
