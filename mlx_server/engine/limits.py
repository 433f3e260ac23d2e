"""What an engine is allowed."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_server.cache.storage import Quantization, quantization_of
from mlx_server.config import Config
from mlx_server.errors import RequestError
from mlx_server.models.base import ServedModel

ROW = 1024
"""Tokens of a usual sequence, where a budget in tokens is turned into bytes."""


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
        context_length: Tokens that fit all slots together; None: what the model was made for.
        num_shares: Slots that the context is divided among.
        prompt_concurrency: Prompts that are computed in one step; None: as many as the chunk
            has room for.
        cont_batching: Sequences join while others run.
        max_total_tokens: Tokens of all sequences together; None sets no bound of its own.
        slot_similarity: Share of a prompt that a slot must remember to be chosen for it; 0:
            such a slot is not looked for.
        trace: Record what happens to requests.
    """

    max_batch_size: int
    prefill_chunk_size: int
    max_kv_bytes: int | None = None
    prompt_cache_bytes: int | None = None
    prompt_cache_size: int | None = None
    quantization: Quantization | None = None
    context_length: int | None = None
    num_shares: int = 1
    prompt_concurrency: int | None = None
    cont_batching: bool = True
    max_total_tokens: int | None = None
    slot_similarity: float = 0.5
    trace: bool = False

    def context_of(self, trained: int) -> int:
        """Tokens that fit a request, prompt and reply together.

        Args:
            trained: What the model was made for.
        """
        return max(1, (self.context_length or trained) // self.num_shares)

    def longest(self, trained: int) -> int:
        """Tokens of the longest sequence, as far as it is not the memory that decides.

        Args:
            trained: As of `context_of`.
        """
        context = self.context_of(trained)
        return min(context, self.max_total_tokens or context)

    @classmethod
    def of(cls, config: Config) -> Limits:
        """What the settings allow; None stays "no bound" or "decide by what is there".

        Raises:
            ModelLoadError: The settings about quantised keys and values contradict each other.
        """
        return cls(
            max_batch_size=config.parallel or config.max_batch_size,
            context_length=config.ctx_size or None,
            num_shares=config.parallel or 1,
            prefill_chunk_size=config.prefill_chunk_size,
            max_kv_bytes=config.max_kv_bytes,
            prompt_cache_bytes=config.prompt_cache_bytes,
            prompt_cache_size=config.prompt_cache_size,
            quantization=quantization_of(config),
            prompt_concurrency=config.prompt_concurrency,
            cont_batching=config.cont_batching,
            max_total_tokens=config.max_total_seq_length,
            slot_similarity=config.slot_prompt_similarity,
            trace=config.enable_tracing or config.trace_file is not None,
        )

    def kv_bytes(self, model: ServedModel) -> int | None:
        """The budget for keys and values."""
        bounds = [] if self.max_kv_bytes is None else [self.max_kv_bytes]
        if self.max_total_tokens is not None:
            bounds.append(_bytes_for(model, self.max_total_tokens, self.max_batch_size))
        return min(bounds, default=None)


def bound(limit: int | None) -> float:
    """A limit to compare with; None is infinity."""
    return float("inf") if limit is None else limit


def most_tokens(model: ServedModel, context_length: int) -> int:
    """The longest sequence that the cache's budget holds, `context_length` tokens at most."""
    low, high = 0, context_length
    while low < high:
        middle = (low + high + 1) // 2
        if model.cache.cost(middle) <= model.cache.max_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _bytes_for(model: ServedModel, num_tokens: int, num_rows: int) -> int:
    """Keys and values of so many tokens, in one sequence or in several: where a sequence's
    state stops growing, or does not grow at all, several take more."""
    rows = min(num_rows, max(1, num_tokens // ROW))
    return max(model.cache.cost(num_tokens), rows * model.cache.cost(-(-num_tokens // rows)))


def check_slot(slot: int, num_slots: int) -> None:
    """Raises RequestError for a slot that there is not."""
    if not 0 <= slot < num_slots:
        raise RequestError(
            f"There is no slot {slot}; this server has {num_slots}, from 0 on.", param="id_slot"
        )


def no_room(prompt_tokens: int, max_tokens: int) -> str:
    """The message for a prompt that the memory for keys and values does not hold; in tokens."""
    return (
        f"The prompt has {prompt_tokens} tokens, but the memory for keys and values holds "
        f"{max_tokens} with the reply. Shorten the prompt, or start the server with a larger "
        "--max-kv-bytes, or --max-total-seq-length if that is set."
    )
