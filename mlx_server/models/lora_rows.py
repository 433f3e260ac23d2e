"""Which rows of a batch run under which adapters, and what that adds to a layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import mlx.core as mx

from mlx_server.core import AdapterScale
from mlx_server.models.adapter_files import Factors

Pairs = tuple[AdapterScale, ...]
Segments = tuple[tuple[int, Pairs], ...]

LONG_RUN = 8
"""Neighbours of one combination that are worth matrix products of their own."""

MAX_GAINS = 32
"""Combinations of scales whose DoRA gains one layer remembers."""


# ---------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Which factors each of n rows runs under, at most K each.

    Attributes:
        slots: uint32 [n, K], places in the layer's stacked factors; 0 is none.
        scales: float32 [n, K].
        pairs: The distinct (adapter, scale) pairs among the rows.
        pair_slots: uint32 [n, K], 1 + place in `pairs`; 0 is none.
    """

    slots: mx.array
    scales: mx.array
    pairs: Pairs
    pair_slots: mx.array


class Span:
    """Neighbouring units under one combination (`pairs`), or gathered (`rows`, one each).

    Args:
        start: The first of them; `stop` is the one behind the last.
        runs: (units, sorted pairs) in order; one run is a slice, several are gathered.
    """

    def __init__(self, start: int, runs: Segments) -> None:
        self.start = start
        self.stop = start + sum(count for count, _ in runs)
        self.pairs = runs[0][1] if len(runs) == 1 else None
        self.rows: list[Pairs] = []
        if self.pairs is None:
            self.rows = [pairs for count, pairs in runs for _ in range(count)]
        self._indices: dict[tuple[str, ...], RowIndex] = {}

    def index(self, names: tuple[str, ...]) -> RowIndex:
        """For layers that hold the adapters `names`; made once for all of them."""
        if names not in self._indices:
            rows = [[pair for pair in pairs if pair[0] in names] for pairs in self.rows]
            distinct = tuple(sorted({pair for row in rows for pair in row}))
            width = max(1, *map(len, rows))
            blank = [("", 0.0)]
            rows = [row + blank * (width - len(row)) for row in rows]
            slots = {name: 1 + i for i, name in enumerate(names)}
            pair_slots = {pair: 1 + i for i, pair in enumerate(distinct)}
            self._indices[names] = RowIndex(
                slots=mx.array([[slots.get(n, 0) for n, _ in row] for row in rows], mx.uint32),
                scales=mx.array([[scale for _, scale in row] for row in rows], mx.float32),
                pairs=distinct,
                pair_slots=mx.array([[pair_slots.get(p, 0) for p in r] for r in rows], mx.uint32),
            )
        return self._indices[names]


class Selection:
    """The adapters of one forward pass.

    Args:
        segments: (units, sorted pairs) in order, as of `AdapterBank.select`.

    Attributes:
        total: Units: tokens of a packed array, or rows of a padded one.
        runs: (start, stop, pairs) of neighbours under one combination.
        spans: The runs, short neighbours put together.
        uniform: The combination, where all units have the same.
        names: All adapters in use.
    """

    def __init__(self, segments: Segments) -> None:
        grouped = groupby((s for s in segments if s[0]), key=lambda segment: segment[1])
        merged = [(sum(count for count, _ in group), pairs) for pairs, group in grouped]
        self.runs: list[tuple[int, int, Pairs]] = []
        self.total = 0
        for count, pairs in merged:
            self.runs.append((self.total, self.total + count, pairs))
            self.total += count
        self.uniform = merged[0][1] if len(merged) == 1 else None
        self.names = frozenset(name for _, pairs in merged for name, _ in pairs)
        self.spans: list[Span] = []
        for long, group in groupby(merged, key=lambda run: run[0] >= LONG_RUN):
            for runs in ((run,) for run in group) if long else (tuple(group),):
                start = self.spans[-1].stop if self.spans else 0
                self.spans.append(Span(start, runs))

    def units(self, x: mx.array) -> mx.array:
        """x with its units on the first axis: [total, T, D].

        Raises:
            ValueError: The layer got another number of units than were selected.
        """
        if x.shape[0] != self.total and x.size != self.total * x.shape[-1]:
            raise ValueError(f"{self.total} units are selected, the layer got {x.shape}")
        return x.reshape(self.total, -1, x.shape[-1])


# ---------------------------------------------------------------- what a layer is given


@dataclass(frozen=True, slots=True)
class Features:
    """What a linear layer gets: x [..., D]."""

    x: mx.array

    def project(self, a: mx.array, b: mx.array) -> mx.array:
        """x A B: [..., O], A [D, R] and B [R, O]."""
        return (self.x @ a) @ b

    def project_gathered(self, a: mx.array, b: mx.array, slots: mx.array) -> mx.array:
        """The same for x [n, T, D] with K pairs of factors a row: [n, T, K, O].

        Args:
            a, b: [slots, R, D] and [slots, O, R].
            slots: uint32 [n, K].
        """
        # One row to a product, over transposed stacks: all that CUDA's gather_mm knows.
        z = self.x[:, :, None, None]
        for stack in (a, b):
            z = mx.gather_mm(z, stack.swapaxes(1, 2), rhs_indices=slots[:, None])
        return z.squeeze(3)

    def gain(self, gain: mx.array) -> mx.array:
        """What scales the outputs, of gains [O]."""
        return gain

    def gain_gathered(self, gains: mx.array, slots: mx.array) -> mx.array:
        """The same, of gains [slots, O]: [n, 1, K, O]."""
        return gains[slots][:, None]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """What an embedding gets: ids x [..., 1].

    The factors are those of the output head with the same weight, so an id
    takes a column of B: with A [D, R] and B [R, V] it is B[:, id]ᵀ Aᵀ.
    """

    x: mx.array

    def project(self, a: mx.array, b: mx.array) -> mx.array:
        """As of `Features`: [..., O], of A [O, R] and B [R, V]."""
        return b.T[self.x[..., 0]] @ a.T

    def project_gathered(self, a: mx.array, b: mx.array, slots: mx.array) -> mx.array:
        """As of `Features`: [n, T, K, O]."""
        z = b[slots[:, None], self.x]
        return (z[..., None, :] @ a[slots][:, None]).squeeze(3)

    def gain(self, gain: mx.array) -> mx.array:
        """As of `Features`, of gains [V]: one for each id."""
        return gain[self.x]

    def gain_gathered(self, gains: mx.array, slots: mx.array) -> mx.array:
        """As of `Features`, of gains [slots, V]: [n, T, K, 1]."""
        return gains[slots[:, None], self.x][..., None]


Inputs = Features | TokenIds


def for_gather(factor: mx.array) -> mx.array:
    """The factor, any shape, in a type that `mx.gather_mm` takes: on the CPU that is float32
    alone."""
    return factor.astype(mx.float32) if mx.default_device() == mx.cpu else factor


# ---------------------------------------------------------------- one layer's adapters


class FactorTable:
    """Name → factors for one layer, with what is computed from them once."""

    def __init__(self) -> None:
        self.factors: dict[str, Factors] = {}
        self._clear()

    def _clear(self) -> None:
        self._names = tuple(self.factors)
        self._stacks: tuple[mx.array, mx.array] | None = None
        self._gains: dict[Pairs, mx.array] = {}

    def put(self, name: str, factors: Factors) -> None:
        """Add an adapter's factors, or take them in place of the old ones."""
        self.factors[name] = factors
        self._clear()

    def drop(self, name: str) -> None:
        """Forget an adapter's factors. Raises KeyError for one that is not there."""
        del self.factors[name]
        self._clear()

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the stacked factors' slots 1, 2, …"""
        return self._names

    def delta(
        self, inputs: Inputs, y: mx.array, bias: mx.array | None, pairs: Pairs
    ) -> mx.array | None:
        """What the adapters of one combination add to y; None if none is for this layer.

        Args:
            inputs, y: The base layer's inputs and its outputs [..., O].
            bias: The base layer's, which DoRA does not scale.
        """
        total = None
        for name, row_scale in pairs:
            if (f := self.factors.get(name)) is None:
                continue
            z = (f.scale * row_scale) * inputs.project(f.a, f.b)
            if f.magnitude is not None:
                gain = inputs.gain(self._gain_rows(((name, row_scale),))[1])
                z = (gain - 1) * (y if bias is None else y - bias) + gain * z
            total = z if total is None else total + z
        return None if total is None else total.astype(y.dtype)

    def gathered(
        self, inputs: Inputs, y: mx.array, bias: mx.array | None, index: RowIndex
    ) -> mx.array:
        """The same for rows that each have a combination of their own.

        Args:
            inputs, y: [n, T, D] (or ids [n, T, 1]) and [n, T, O].
        """
        z = inputs.project_gathered(*self._stacked(), index.slots)
        z = index.scales[:, None, :, None] * z
        if any(f.magnitude is not None for f in self.factors.values()):
            gain = inputs.gain_gathered(self._gain_rows(index.pairs), index.pair_slots)
            z = (gain - 1) * (y if bias is None else y - bias)[:, :, None] + gain * z
        return (z.squeeze(2) if z.shape[2] == 1 else z.sum(axis=2)).astype(y.dtype)

    def _stacked(self) -> tuple[mx.array, mx.array]:
        """A [1 + adapters, R, D] and scaled B [1 + adapters, O, R], ranks padded with zeros."""
        if self._stacks is None:
            factors = list(self.factors.values())
            rank = max(f.a.shape[1] for f in factors)
            a = [mx.pad(f.a.T, [(0, rank - f.a.shape[1]), (0, 0)]) for f in factors]
            b = [mx.pad(f.scale * f.b.T, [(0, 0), (0, rank - f.b.shape[0])]) for f in factors]
            self._stacks = (
                for_gather(mx.stack([mx.zeros_like(a[0]), *a])),
                for_gather(mx.stack([mx.zeros_like(b[0]), *b])),
            )
        return self._stacks

    def _gain_rows(self, pairs: Pairs) -> mx.array:
        """float32 [1 + pairs, O]: DoRA's gain of each pair; 1 for LoRA and for slot 0."""
        if (rows := self._gains.get(pairs)) is None:
            if len(self._gains) >= MAX_GAINS:
                self._gains.clear()
            one = mx.ones(next(iter(self.factors.values())).b.shape[1:], mx.float32)
            gains = [one]
            for name, row_scale in pairs:
                f = self.factors[name]
                m = f.magnitude
                gains.append(one if m is None else m.gain(f.scale * row_scale))
            rows = self._gains[pairs] = mx.stack(gains)
        return rows
