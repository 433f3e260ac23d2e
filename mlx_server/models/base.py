"""What the engine asks of a model: one packed forward pass, and a cache.

A step's new tokens travel as one flat array, row after row: first the rows that
decode (one token each), then the prompt chunks.

    tokens   d0 d1 d2 | c0 c1 c2 c3 | e0 e1          N = 9
    rows     0  1  2    3             4
    logits   *  *  *            *          *         the last `num_logits` of each row

A row may have any number of new tokens and any number of logit positions, so
speculation and forced tokens need no other contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from mlx_server.cache.base import Cache, Seat
from mlx_server.core import AdapterScale
from mlx_server.errors import NotSupported

if TYPE_CHECKING:
    from mlx_server.models.lora import AdapterBank


@dataclass(slots=True)
class Row:
    """One sequence's share of a step.

    Attributes:
        seat: Its place in the cache; `seat.length` is where the new tokens go.
        num_tokens: New tokens.
        num_logits: How many of the last new positions need logits (0 for a
            prompt chunk that is not the last).
        adapters: Sorted (adapter, scale) pairs that the row runs under.
    """

    seat: Seat
    num_tokens: int
    num_logits: int
    adapters: tuple[AdapterScale, ...] = ()


class ServedModel(ABC):
    """A loaded architecture behind the engine's contract.

    Attributes:
        cache: Where its sequences live.
        vocab_size: Width of the logits.
        context_length: Tokens that fit, prompt and reply together.
        nbytes: Bytes of the weights.
        module: What holds them.
        bank: The adapters that are loaded over it; None: it takes none.
    """

    cache: Cache
    vocab_size: int
    context_length: int
    nbytes: int
    module: nn.Module
    bank: AdapterBank | None

    @abstractmethod
    def forward(self, tokens: mx.array, rows: Sequence[Row]) -> tuple[mx.array, list[mx.array]]:
        """Build one forward pass and add the tokens to the rows' seats.

        Args:
            tokens: int32 [N], packed as drawn above.
            rows: In packed order; rows with one new token come first, sorted
                by `seat.order`.

        Returns:
            Logits [M, vocab_size], M = sum of the rows' `num_logits`, and a
            list of small arrays whose evaluation completes the pass even where
            no logits depend on it (the keys and values of a prompt chunk).
            Both are lazy; the engine evaluates them with the step's tokens.
        """

    def hidden(self, tokens: mx.array, rows: Sequence[Row]) -> mx.array:
        """The last layer's states behind the final norm, for embeddings; adds the tokens to
        the rows' seats as `forward` does.

        Args:
            tokens: int32 [N], packed as for `forward`.
            rows: As for `forward`; their `num_logits` has no meaning here.

        Returns:
            [N, hidden], lazy; whoever evaluates any of it completes the pass.

        Raises:
            NotSupported: The architecture does not show them.
        """
        raise NotSupported("This model's architecture gives no embeddings; load another model.")
