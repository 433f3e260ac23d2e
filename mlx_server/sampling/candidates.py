"""The tokens that llama.cpp's samplers have left, for rows that go the same way."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_server.cache.elementwise import exp_below


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens that are left.

    Attributes:
        logits: float32 [R, W], -inf for what was dropped.
        ids: int32 [R, W], their tokens; None: W is V, and they stand at their ids.
        ordered: Best first, of equals the lowest id; what was dropped last.
    """

    logits: mx.array
    ids: mx.array | None = None
    ordered: bool = False

    def in_order(self) -> Candidates:
        """The same, best first; sorted at most once."""
        if self.ordered:
            return self
        order = mx.argsort(-self.logits, axis=-1)
        return self._taken(order, ordered=True)

    def top(self, width: int) -> Candidates:
        """The `width` best in order; of equals at that depth any."""
        size = self.logits.shape[-1]
        if self.ordered or 2 * width > size:  # what is picked out has to be sorted as well
            found = self.in_order()
            ids = None if found.ids is None else found.ids[:, :width]
            return Candidates(found.logits[:, :width], ids, ordered=True)
        picked = mx.argpartition(self.logits, size - width, axis=-1)[:, size - width :]
        return self._taken(mx.sort(picked, axis=-1), ordered=False).in_order()

    def head(self, count: mx.array) -> Candidates:
        """Of candidates in order the first ones: as many as `count`, int [R, 1], says."""
        return self.kept(self.places() < count)

    def kept(self, mask: mx.array) -> Candidates:
        """Those of a mask, bool [R, W], which has to leave a beginning if they are in order."""
        return Candidates(mx.where(mask, self.logits, -mx.inf), self.ids, self.ordered)

    def reordered(self, order: mx.array) -> Candidates:
        """Those at the places `order`, int [R, W], in this order."""
        return self._taken(order, ordered=False)

    def places(self) -> mx.array:
        """0, 1, 2 …: int32 [1, W]."""
        return mx.arange(self.logits.shape[-1], dtype=mx.int32)[None]

    def best(self) -> mx.array:
        """The largest logit, float32 [R, 1]."""
        return self.logits[:, :1] if self.ordered else self.logits.max(axis=-1, keepdims=True)

    def probs(self) -> mx.array:
        """float32 [R, W], which sum up to 1."""
        return mx.softmax(self.logits, axis=-1, precise=True)

    def logprobs(self) -> mx.array:
        """float32 [R, W]."""
        best = self.best()
        # Not `elementwise.logsumexp`, which chooses its way by the number of rows as well.
        return self.logits - best - mx.log(exp_below(self.logits, best).sum(-1, keepdims=True))

    def count(self) -> mx.array:
        """How many are left, int32 [R, 1]."""
        return (self.logits > -mx.inf).sum(axis=-1, keepdims=True).astype(mx.int32)

    def spread(self, vocab_size: int) -> mx.array:
        """Their logits by token id, float32 [R, V]."""
        if self.ids is None:
            return self.logits
        nothing = mx.full((self.logits.shape[0], vocab_size), -mx.inf)
        return mx.put_along_axis(nothing, self.ids, self.logits, axis=-1)

    def _taken(self, order: mx.array, ordered: bool) -> Candidates:
        order = order.astype(mx.int32)
        logits = mx.take_along_axis(self.logits, order, axis=-1)
        ids = order if self.ids is None else mx.take_along_axis(self.ids, order, axis=-1)
        return Candidates(logits, ids, ordered)
