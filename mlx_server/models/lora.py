"""Adapters over one base model: rows under different ones run in one batch.

The layers that an adapter changes are replaced in place by wrappers that call
the base layer and add the adapters' deltas, so the base weights stay as they
are and loading an adapter costs its own bytes. Before each forward pass the
model says which rows run under which adapters:

    bank.select([(1, (("a", 1.0),)), (1, ()), (512, (("b", 0.5),))])

Rows of one combination that lie together are one slice and two matrix
products; short neighbours are gathered row by row (as in S-LoRA,
arXiv:2311.03285) from the layer's stacked factors, where slot 0 is zero:

    rows    a . b a b | c c c c c c c c … | .        "." runs without adapters
    spans   gathered    slice               (as it is)

Several adapters on one row add up: y = base + Σ (adapterᵢ − base). A scale of 0
switches an adapter off.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_server.errors import ModelLoadError, NotFound
from mlx_server.gguf import is_gguf
from mlx_server.models.adapter_files import (
    AdapterFile,
    Factors,
    Magnitude,
    check_shapes,
    read_adapter,
)
from mlx_server.models.gguf_adapter import read_gguf_adapter
from mlx_server.models.lora_layers import (
    LoRAEmbedding,
    LoRALinear,
    LoRASwitchLinear,
    RowSplit,
)
from mlx_server.models.lora_rows import Pairs, Segments, Selection, for_gather
from mlx_server.models.registry import mlx_lm_utils

RECENT_SELECTIONS = 8
"""Selections kept with their index arrays: decode steps repeat the same one."""

Wrapper = LoRALinear | LoRAEmbedding | LoRASwitchLinear


class AdapterBank:
    """The adapters loaded over one model: LoRA (arXiv:2106.09685) and DoRA (arXiv:2402.09353).

    Used on the engine thread only.

    Args:
        model: Loaded; ours or mlx_lm's. Its layers are replaced and put back in place.

    Attributes:
        selection: What the forward pass that is being built runs under; None
            for the bare model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.selection: Selection | None = None
        self._args = getattr(model, "args", None)
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._wrapped: dict[str, Wrapper] = {}
        self._adapters: dict[str, tuple[str, ...]] = {}
        self._recent: OrderedDict[Segments, Selection] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are loaded, in the order in which they were."""
        return tuple(self._adapters)

    def select(self, segments: Sequence[tuple[int, Pairs]]) -> None:
        """Say what the next forward pass runs under.

        Call it again before a layer that sees fewer rows, such as an output
        head that gets the last positions only.

        Args:
            segments: (units, sorted pairs) in order. Units are tokens where
                layers get [N, D], rows where they get [N, T, D].

        Raises:
            NotFound: An adapter is not loaded.
        """
        key = tuple((n, tuple(p for p in pairs if p[1] != 0)) for n, pairs in segments)
        if not any(n and pairs for n, pairs in key):
            self.selection = None
            return
        if (selection := self._recent.get(key)) is None:
            selection = Selection(key)
            if unknown := selection.names - self._adapters.keys():
                raise NotFound(f"There is no adapter {min(unknown)!r}.")
            if len(self._recent) >= RECENT_SELECTIONS:
                self._recent.popitem(last=False)
            self._recent[key] = selection
        self._recent.move_to_end(key)
        self.selection = selection

    @contextmanager
    def running(self, pairs: Pairs) -> Iterator[None]:
        """Everything inside runs under one combination."""
        outer = self.selection
        self.select([(1, pairs)])
        try:
            yield
        finally:
            self.selection = outer

    def load(self, name: str, path: Path) -> None:
        """Load the adapter in `path`; nothing changes if that fails.

        Args:
            path: A folder in mlx-lm's format, or a .gguf file.

        Raises:
            ModelLoadError: The name is taken, or `path` does not hold a
                LoRA or DoRA adapter of this model.
        """
        try:
            if name in self._adapters:
                raise ModelLoadError("an adapter of that name is loaded; choose another.")
            path = Path(path)
            file = read_gguf_adapter(path, self._args) if is_gguf(path) else read_adapter(path)
            factors = {module: self._factors(module, file) for module in file.tensors}
        except ModelLoadError as error:
            raise ModelLoadError(f"Cannot load the adapter {name!r}: {error.message}") from error
        for module, f in factors.items():
            self._wrap(module).table.put(name, f)
        self._adapters[name] = tuple(factors)

    def unload(self, name: str) -> None:
        """Forget an adapter; layers that no adapter changes any more are put back.

        Raises:
            NotFound: It is not loaded.
        """
        if name not in self._adapters:
            raise NotFound(f"There is no adapter {name!r}.")
        self.selection = None
        self._recent.clear()
        for module in self._adapters.pop(name):
            table = self._wrapped[module].table
            table.drop(name)
            if not table.factors:
                self._unwrap(module)

    def _factors(self, module: str, file: AdapterFile) -> Factors:
        layer, tensors = self._modules.get(module), file.tensors[module]
        if layer is None:
            raise ModelLoadError(
                f"it changes {module}, which the model does not have; it belongs to another model."
            )
        experts = _is_switch(layer) and _is_switch_block(self._modules.get(_parent(module)))
        embedding = _is_embedding(layer)
        if not (experts or embedding or isinstance(layer, (nn.Linear, nn.QuantizedLinear))):
            raise ModelLoadError(
                f"it changes {module}, a {type(layer).__name__}; only linear, embedding and "
                "mixture-of-experts layers can have adapters (fuse it with `mlx_lm.fuse`)."
            )
        if experts and file.dora:
            raise ModelLoadError(
                f"{module} is a mixture-of-experts layer, where DoRA is undefined."
            )
        *shape, inputs = layer.weight.shape
        if "scales" in layer:
            inputs = inputs * 32 // layer.bits
        check_shapes(module, tensors, (*shape, inputs), file.rank, embedding=embedding)
        a, b = tensors["lora_a"], tensors["lora_b"]
        if embedding:
            a, b = b.T, a.T
        elif experts:
            a, b = for_gather(a), for_gather(b)
        mx.eval(a, b)
        magnitude = Magnitude.of(layer, a, b, tensors["m"]) if file.dora else None
        return Factors(a, b, file.scale, magnitude)

    def _wrap(self, module: str) -> Wrapper:
        if (wrapper := self._wrapped.get(module)) is None:
            layer, parent = self._modules[module], _parent(module)
            if _is_switch(layer):
                wrapper = LoRASwitchLinear(layer, self)
                if not self._wrapped_below(parent):
                    self._put(parent, RowSplit(self._modules[parent], self))
            elif _is_embedding(layer):
                wrapper = LoRAEmbedding(layer, self)
            else:
                wrapper = LoRALinear(layer, self)
            self._wrapped[module] = wrapper
            self._put(module, wrapper)
        return wrapper

    def _unwrap(self, module: str) -> None:
        del self._wrapped[module]
        self._put(module, self._modules[module])
        parent = _parent(module)
        if _is_switch(self._modules[module]) and not self._wrapped_below(parent):
            self._put(parent, self._modules[parent])

    def _wrapped_below(self, block: str) -> bool:
        return any(_parent(module) == block for module in self._wrapped)

    def _put(self, path: str, module: nn.Module) -> None:
        """Put `module` in its place below the nearest module (a list is none)."""
        ancestor = _parent(path)
        while ancestor not in self._modules:
            ancestor = _parent(ancestor)
        place = path.removeprefix(ancestor).lstrip(".")
        self._modules[ancestor].update_modules(tree_unflatten([(place, module)]))


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))


def _is_switch(module: nn.Module) -> bool:
    mlx_lm_utils()
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    return isinstance(module, (QuantizedSwitchLinear, SwitchLinear))


def _is_switch_block(module: nn.Module | None) -> bool:
    from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

    return isinstance(module, (SwitchGLU, SwitchMLP))
