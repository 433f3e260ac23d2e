"""The layers that stand in for a model's own where adapters change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from mlx_server.models.lora_rows import FactorTable, Features, Selection, TokenIds

if TYPE_CHECKING:
    from mlx_server.models.lora import AdapterBank


class LoRALinear(nn.Module):
    """A linear layer, plain or quantised, with the adapters that change it: [..., D] → [..., O].

    y = x Wᵀ + Σ s (x A) B (LoRA, arXiv:2106.09685), each row under its own adapters; with
    DoRA (arXiv:2402.09353) scaled to the trained magnitude.

    Args:
        linear: The layer it stands in for.
        bank: Says which rows run under which adapters.
    """

    def __init__(self, linear: nn.Module, bank: AdapterBank) -> None:
        super().__init__()
        self.linear = linear
        self.bank = bank
        self.table = FactorTable()

    def __call__(self, x: mx.array) -> mx.array:
        bias = self.linear.get("bias")
        return _adapted(self.bank.selection, self.table, Features, x, self.linear(x), bias)


class LoRAEmbedding(nn.Module):
    """An embedding, plain or quantised, with the adapters that change it.

    Its factors serve both ways: ids to vectors, and, where the weights are
    tied, hidden states to logits.

    Args:
        embedding: The layer it stands in for.
        bank: Says which rows run under which adapters.
    """

    def __init__(self, embedding: nn.Module, bank: AdapterBank) -> None:
        super().__init__()
        self.embedding = embedding
        self.bank = bank
        self.table = FactorTable()

    def __call__(self, ids: mx.array) -> mx.array:
        y = self.embedding(ids)
        return _adapted(self.bank.selection, self.table, TokenIds, ids[..., None], y)

    def as_linear(self, x: mx.array) -> mx.array:
        """The output head with the same weight: x [..., D] → logits [..., V]."""
        y = self.embedding.as_linear(x)
        return _adapted(self.bank.selection, self.table, Features, x, y)


def _adapted(
    selection: Selection | None,
    table: FactorTable,
    kind: type[Features] | type[TokenIds],
    x: mx.array,
    y: mx.array,
    bias: mx.array | None = None,
) -> mx.array:
    """y with what the selected adapters add; `kind` says what x is to the layer."""
    if selection is None or selection.names.isdisjoint(table.factors):
        return y
    if selection.uniform is not None:
        return y + table.delta(kind(x), y, bias, selection.uniform)
    units_x, units_y = selection.units(x), selection.units(y)
    parts = []
    for span in selection.spans:
        inputs = kind(units_x[span.start : span.stop])
        part = units_y[span.start : span.stop]
        if span.pairs is not None:
            delta = table.delta(inputs, part, bias, span.pairs)
        else:
            delta = table.gathered(inputs, part, bias, span.index(table.names))
        parts.append(part if delta is None else part + delta)
    return mx.concatenate(parts).reshape(y.shape)


class LoRASwitchLinear(nn.Module):
    """A mixture-of-experts layer with the adapters that change it.

    Its tokens come sorted by expert, so it cannot tell rows apart: `RowSplit`
    around the experts gives it one combination at a time.
    """

    def __init__(self, linear: nn.Module, bank: AdapterBank) -> None:
        super().__init__()
        self.linear = linear
        self.bank = bank
        self.table = FactorTable()

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y = self.linear(x, indices, sorted_indices=sorted_indices)
        selection = self.bank.selection
        if selection is None:
            return y
        for name, row_scale in selection.uniform:
            if (f := self.table.factors.get(name)) is None:
                continue
            z = x
            for factor in (f.a, f.b):
                z = mx.gather_mm(
                    z,
                    factor.swapaxes(-1, -2),
                    rhs_indices=indices,
                    sorted_indices=sorted_indices,
                )
            y = y + ((f.scale * row_scale) * z).astype(y.dtype)
        return y


class RowSplit(nn.Module):
    """Calls the experts once per run of rows that share a combination of adapters."""

    def __init__(self, experts: nn.Module, bank: AdapterBank) -> None:
        super().__init__()
        self.experts = experts
        self.bank = bank

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        selection = self.bank.selection
        if selection is None or selection.uniform is not None:
            return self.experts(x, indices)
        units_x, units_i = selection.units(x), selection.units(indices)
        parts = []
        for start, stop, pairs in selection.runs:
            with self.bank.running(pairs):
                parts.append(self.experts(units_x[start:stop], units_i[start:stop]))
        return mx.concatenate(parts).reshape(*indices.shape, -1)
