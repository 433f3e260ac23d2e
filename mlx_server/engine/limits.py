"""What an engine is allowed, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_server.cache.storage import Quantization
from mlx_server.config import Config
from mlx_server.models.base import ServedModel


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Args:
        max_batch_size: Sequences that run at the same time.
        prefill_chunk_size: Prompt tokens computed per step.
        max_kv_bytes: Budget for keys and values; None sets no bound.
        prompt_cache_bytes, prompt_cache_size: Bytes and entries that the prefix cache may
            have of it; None sets no bound of its own.
        quantization: Of keys and values; None stores them as they are computed.
    """

    max_batch_size: int
    prefill_chunk_size: int
    max_kv_bytes: int | None = None
    prompt_cache_bytes: int | None = None
    prompt_cache_size: int | None = None
    quantization: Quantization | None = None

    @classmethod
    def of(cls, config: Config) -> Limits:
        quantization = None
        if config.kv_bits is not None:
            quantization = Quantization(
                config.kv_bits, config.kv_group_size, config.quantized_kv_start
            )
        return cls(
            max_batch_size=config.max_batch_size,
            prefill_chunk_size=config.prefill_chunk_size,
            max_kv_bytes=config.max_kv_bytes,
            prompt_cache_bytes=config.prompt_cache_bytes,
            prompt_cache_size=config.prompt_cache_size,
            quantization=quantization,
        )


@dataclass(slots=True)
class Counters:
    """Since the start.

    Attributes:
        prompt_tokens_computed: Also those computed again after a preemption.
        generated_tokens: Sampled, those of ended rows that nobody got included, or forced.
        forced_tokens: Those that a grammar left no choice about.
    """

    steps: int = 0
    prompt_tokens_computed: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0


def bound(limit: int | None) -> float:
    return float("inf") if limit is None else limit


def most_tokens(model: ServedModel) -> int:
    """The longest sequence whose keys and values fit the cache's budget, and the context."""
    low, high = 0, model.context_length
    while low < high:
        middle = (low + high + 1) // 2
        if model.cache.cost(middle) <= model.cache.max_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def no_room(prompt_tokens: int, max_tokens: int) -> str:
    return (
        f"The prompt has {prompt_tokens} tokens, but the memory for keys and values holds "
        f"{max_tokens} with the reply. Shorten the prompt, or start the server with a larger "
        "--max-kv-bytes."
    )
