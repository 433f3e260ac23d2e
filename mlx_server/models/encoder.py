"""Encoders: models that embed and rank texts and generate nothing.

Their layers come from the optional package mlx-embeddings; what stands around them is here:
weights under the names of every checkpoint form, masks, pooling, and the heads of
cross-encoders as transformers has them (https://github.com/huggingface/transformers,
…ForSequenceClassification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_server.errors import ModelLoadError, NotSupported
from mlx_server.models.embedding_files import dense_files, own_pooling
from mlx_server.models.encoder_parts import (
    FAMILIES,
    Head,
    Weights,
    architecture_module,
    fill,
    own_name,
    part_of,
    renamed,
)
from mlx_server.models.model_config import context_length
from mlx_server.models.model_files import (
    check_safetensors,
    read_json,
    weight_files,
)
from mlx_server.models.parameters import parameters
from mlx_server.models.read_in import read_in
from mlx_server.models.registry import ENCODERS, mlx_lm_utils
from mlx_server.progress import UNTOLD, Progress
from mlx_server.services import Pooling


@dataclass(frozen=True, slots=True)
class EncoderRow:
    """A text's tokens, or two texts' in one.

    Args:
        types: Which of the two each token belongs to, 0 or 1; none: all to the first.
    """

    token_ids: tuple[int, ...]
    types: tuple[int, ...] = ()


class Encoder:
    """A loaded encoder. Made and used on the engine thread only.

    Args:
        path: Its folder.
        config: Its config.json.
        weights: By the checkpoint's names.

    Attributes:
        vocab_size: Token ids are below it.
        context_length: Tokens that fit an input.
        embedding_size: Numbers of a vector.
        num_labels: What its head tells apart; 0 without a head.
        pads: Whether rows of different lengths may be padded to one: a row's vector is then
            the same in any company.
        nbytes, num_parameters: Of the weights.

    Raises:
        ModelLoadError: mlx-embeddings is not installed, or the weights do not fit.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], weights: Weights) -> None:
        name = ENCODERS[str(config["model_type"])]
        self._name, self._family = name, FAMILIES[name]
        self._pad = config.get("pad_token_id")
        if not isinstance(self._pad, int):
            self._pad = 1 if self._family.behind_pad else 0
        self._config = {**config, "pad_token_id": self._pad}
        self._body = self._build(weights)
        self._head = self._build_head(weights)
        self._dense = self._build_dense(path, weights)
        self.dtype = part_of(self._body, self._family.norm).weight.dtype
        # Its mask is -1e9, which is minus infinity there: a padded token behind the window sees
        # nothing at all, and what it gets is no number.
        self.pads = not (name == "modernbert" and self.dtype == mx.float16)
        self.vocab_size = int(config["vocab_size"])
        self.context_length = self._context_length()
        self.num_labels = 0 if self._head is None else self._head.out.weight.shape[0]
        modules = [
            m for m in (self._body, self._head, *(m for m, _ in self._dense)) if m is not None
        ]
        found = [value for m in modules for _, value in parameters(m)]
        mx.eval(found)
        self.embedding_size = (
            self._dense[-1][0].weight.shape[0] if self._dense else int(config["hidden_size"])
        )
        self.nbytes = sum(value.nbytes for value in found)
        self.num_parameters = sum(map(mlx_lm_utils().get_total_parameters, modules))

    @property
    def can_rank(self) -> bool:
        """Whether its head gives one number: a score, and no classes."""
        return self.num_labels == 1

    # ------------------------------------------------------------ a batch

    def pool(self, rows: Sequence[EncoderRow], pooling: Pooling) -> mx.array:
        """float32 [B, embedding_size], not normalised and lazy."""
        hidden, lengths = self._hidden(rows)
        pooled = _pooled(hidden.astype(mx.float32), lengths, pooling)
        for dense, tanh in self._dense:
            pooled = dense(pooled)
            pooled = mx.tanh(pooled) if tanh else pooled
        return pooled.astype(mx.float32)

    def score(self, rows: Sequence[EncoderRow]) -> mx.array:
        """float32 [B]: the head's logits for pairs of texts, lazy.

        Raises:
            NotSupported: It has no head, or one for classes.
        """
        if self._head is None or not self.can_rank:
            raise NotSupported(
                "This model cannot rank documents: it is no cross-encoder with one label."
            )
        hidden, lengths = self._hidden(rows)
        # transformers' default; only ModernBERT has the setting.
        pooling: Pooling = "mean" if self._config.get("classifier_pooling") == "mean" else "cls"
        pooled = _pooled(hidden.astype(mx.float32), lengths, pooling)
        return self._head(pooled.astype(hidden.dtype)).astype(mx.float32)[:, 0]

    def _hidden(self, rows: Sequence[EncoderRow]) -> tuple[mx.array, np.ndarray]:
        """The last states [B, T, hidden], padded on the right, and the lengths [B]."""
        lengths = np.array([len(row.token_ids) for row in rows])
        shape = len(rows), int(lengths.max())
        ids = np.full(shape, self._pad, np.int32)
        types = np.zeros(shape, np.int32)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = row.token_ids
            types[i, : len(row.types)] = row.types
        types = np.minimum(types, int(self._config.get("type_vocab_size") or 2) - 1)
        mask = np.arange(shape[1]) < lengths[:, None]
        tokens, seen = mx.array(ids), mx.array(mask)
        if self._name in ("bert", "xlm_roberta"):
            kinds = mx.array(types) if self._family.takes_types else mx.zeros_like(tokens)
            ones = seen.astype(self.dtype)
            out = self._body(tokens, token_type_ids=kinds, attention_mask=ones)
            return out.last_hidden_state, lengths
        if self._name == "modernbert":
            out = self._body(tokens, attention_mask=seen.astype(self.dtype), return_dict=True)
            return out["last_hidden_state"], lengths
        hidden = mx.where(seen, 0.0, -mx.inf).astype(self.dtype)
        return self._body(tokens, hidden[:, None, None, :]), lengths

    # ------------------------------------------------------------ its parts

    def _build(self, weights: Weights) -> nn.Module:
        arch = architecture_module(self._name)
        config = {**self._config, "architectures": ["encoder"]}  # none with a head
        try:
            body = arch.Model(arch.ModelArgs.from_dict(config))
        except (TypeError, ValueError, KeyError) as error:
            raise ModelLoadError(f"config.json does not fit the encoder: {error}") from error
        if self._name in ("bert", "xlm_roberta"):
            body.pooler = lambda hidden: None  # the head has it, where there is one
        else:
            body = body.model
        own = {k: v for k, v in weights.items() if k.split(".")[0] in self._family.roots}
        fill(body, own, self._config)
        return body

    def _build_head(self, weights: Weights) -> Head | None:
        architecture = str((self._config.get("architectures") or [""])[0])
        if not architecture.endswith("ForSequenceClassification"):
            return None
        family = self._family
        if not family.out:
            raise ModelLoadError(f"{architecture} is not supported; load the model without a head.")
        size = int(self._config["hidden_size"])
        act = self._config.get("classifier_activation", "gelu")
        if not family.tanh and act != "gelu":
            raise ModelLoadError(
                f"classifier_activation {act!r} is not supported; it must be gelu."
            )
        if f"{family.out}.weight" not in weights:
            raise ModelLoadError(
                f"the weights lack {family.out}.weight, which {architecture} needs."
            )
        labels = weights[f"{family.out}.weight"].shape[0]
        norm = None
        if family.dense_norm:
            bias = f"{family.dense_norm}.bias" in weights
            norm = nn.LayerNorm(size, eps=float(self._config.get("norm_eps", 1e-5)), bias=bias)
        head = Head(
            nn.Linear(size, size, bias=f"{family.dense}.bias" in weights),
            norm,
            nn.Linear(size, labels, bias=f"{family.out}.bias" in weights),
            family.tanh,
        )
        own: Weights = {}
        for name, part in (("dense", family.dense), ("norm", family.dense_norm)):
            if part:
                own |= renamed(weights, part, name)
        fill(head, own | renamed(weights, family.out, "out"), self._config)
        return head

    def _build_dense(self, path: Path, weights: Weights) -> list[tuple[nn.Linear, bool]]:
        """The layers behind the pooling, each with whether a tanh follows."""
        files = dense_files(path)
        found = []
        for number, entry in enumerate(files):
            # mlx-embeddings' own conversions hold them with the other weights.
            own = renamed(weights, f"dense.{number}", "linear")
            if not own:
                file = entry.folder / "model.safetensors"
                check_safetensors(file)
                own = _loaded(file)
            own = {name.removeprefix("linear."): value for name, value in own.items()}
            if "weight" not in own:
                raise ModelLoadError(f"{entry.folder} has no linear.weight; fetch it again.")
            size = read_json(entry.folder / "config.json").get("in_features")
            layer = nn.Linear(size or own["weight"].shape[1], own["weight"].shape[0], "bias" in own)
            holder = nn.Sequential(layer)
            fill(holder, {f"layers.0.{k}": v for k, v in own.items()}, self._config)
            found.append((holder.layers[0], entry.tanh))
        return found

    def _context_length(self) -> int:
        declared = context_length(self._config)
        return declared - self._pad - 1 if self._family.behind_pad else declared


# ---------------------------------------------------------------- loading


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """
    Attributes:
        pooling: How its folder says it is to be pooled; None: it does not.
    """

    model: Encoder
    pooling: Pooling | None


def check(path: Path, *, name: str) -> None:
    """See whether the encoder in the folder `path` can be loaded, as far as that shows without
    its weights. Makes no arrays; any thread may call it.

    Raises:
        ModelLoadError: As `load` would.
    """
    try:
        _inspect(path)
    except ModelLoadError as error:
        raise ModelLoadError(f"Cannot load {name}: {error.message}") from error


def load(path: Path, *, name: str, progress: Progress = UNTOLD) -> LoadedEncoder:
    """Load the encoder in the folder `path`; the thread that calls owns its arrays.

    Args:
        progress: Is told how many bytes of the weights are there.

    Raises:
        ModelLoadError: One line that says what is wrong and how to mend it.
    """
    try:
        config, files, pooling = _inspect(path)
        family = FAMILIES[ENCODERS[config["model_type"]]]
        weights: Weights = {}
        for file in files:
            weights |= _loaded(file)
        read_in(weights.values(), f"loading {name}", progress)
        weights = {own_name(name, family): value for name, value in weights.items()}
        return LoadedEncoder(Encoder(path, config, weights), pooling)
    except ModelLoadError as error:
        raise ModelLoadError(f"Cannot load {name}: {error.message}") from error


def _loaded(file: Path) -> Weights:
    return cast(Weights, mx.load(str(file)))


def _inspect(path: Path) -> tuple[dict[str, Any], list[Path], Pooling | None]:
    config = read_json(path / "config.json")
    for key, allowed in (
        ("hidden_act", ("gelu", None)),
        ("hidden_activation", ("gelu", "gelu_pytorch_tanh", None)),
        ("position_embedding_type", ("absolute", "sans_pos", None)),
    ):
        bidirectional = ENCODERS.get(str(config.get("model_type"))) in ("llama_bidirec",)
        if config.get(key) not in allowed and not bidirectional:
            raise ModelLoadError(f"mlx-embeddings does not know {key} {config[key]!r}.")
    for key in ("hidden_size", "vocab_size"):
        if type(config.get(key)) is not int:
            raise ModelLoadError(f"config.json has no whole number for {key}; fetch it again.")
    files = weight_files(path)
    for file in files:
        check_safetensors(file)
    pooling = own_pooling(path)
    dense_files(path)
    architecture_module(ENCODERS[config["model_type"]])
    return config, files, pooling


def _pooled(hidden: mx.array, lengths: np.ndarray, pooling: Pooling) -> mx.array:
    """Hidden states [B, T, D] of right-padded rows → [B, D]."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[mx.arange(len(lengths)), mx.array(lengths - 1)]
    seen = mx.arange(hidden.shape[1]) < mx.array(lengths)[:, None]
    total = mx.where(seen[..., None], hidden, 0).sum(axis=1)
    return total / mx.array(lengths)[:, None]
