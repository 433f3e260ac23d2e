"""Drawing a token with one random number for its row, the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_server.cache.elementwise import exp_below
from mlx_server.sampling.row import SamplingRow, column

SMALLEST_TEMPERATURE = 1e-20
"""Greedy in all but name, and far from overflow: logits are divided by it."""


def draw(
    logits: mx.array, rows: Sequence[SamplingRow], temperature: mx.array | None = None
) -> mx.array:
    """One place per row from softmax(logits / temperature): the first at which the summed
    probabilities pass a random number of the row.

    One number a row costs a third of noise for every token (Gumbel-max) on a CPU, and no
    random numbers on the device. What is -inf stays impossible at any temperature.

    Args:
        logits: float32 [R, W].
        temperature: float32 [R, 1]; None: 1.

    Returns:
        uint32 [R].
    """
    distance = logits - logits.max(axis=-1, keepdims=True)
    if temperature is not None:
        distance = distance / temperature
    weights = exp_below(distance, mx.array(0.0))
    mass = mx.cumsum(weights, axis=-1)
    # The numbers stay below 1, so the last possible token is passed at the latest.
    passed = (mass > row_numbers(rows) * mass[:, -1:]) & (weights > 0)
    # A parallel sum may round a step down: then the likeliest one, whose weight is 1.
    return mx.argmax(mx.where(passed, 2.0, weights), axis=-1)


def temperatures(rows: Sequence[SamplingRow]) -> mx.array:
    """Those of the rows, float32 [R, 1], above 0."""
    return column(max(row.params.temperature, SMALLEST_TEMPERATURE) for row in rows)


def row_numbers(rows: Sequence[SamplingRow], stream: int = 0) -> mx.array:
    """Random numbers in [0, 1), float32 [R, 1]: from a hash of (seed, choice, position).
    Those of another stream, which is part of the hash if it is not 0, are different ones.

    Each is mixed in with the finaliser of SplitMix64 (Steele, Lea and Flood 2014),
    which is a bijection: within one stream no two positions share a hash.
    """
    state = np.zeros(len(rows), dtype=np.uint64)
    for numbers in (
        [(row.params.seed or 0) % 2**64 for row in rows],
        [row.choice for row in rows],
        [row.position for row in rows],
    ):
        state = _mix(state ^ np.array(numbers, dtype=np.uint64))
    if stream:
        state = _mix(state ^ np.uint64(stream))
    return column((state >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
