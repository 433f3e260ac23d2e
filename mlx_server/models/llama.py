"""Llama and Mistral, written for packed batches.

All tokens of a step, decode rows and prompt chunks alike, go through the linear
layers as one [N, hidden] array; attention runs per group of rows (`StepPlan`).
Parameter names are those of the Hugging Face checkpoints, so weights load as
they are. Architecture: arXiv:2302.13971 (Llama), arXiv:2310.06825 (Mistral).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_server.cache.elementwise import rms_norm, swiglu
from mlx_server.cache.kv import KVCache, KVSeat
from mlx_server.cache.plan import StepPlan
from mlx_server.cache.storage import Quantization
from mlx_server.models.base import Row, ServedModel
from mlx_server.models.parameters import parameters
from mlx_server.models.rope import Rope, Scaling, make_rope
from mlx_server.models.tile import padding, row_tile

if TYPE_CHECKING:
    from mlx_server.models.lora import AdapterBank
    from mlx_server.models.lora_rows import Pairs


LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass
class ModelArgs:
    """The fields of config.json that shape the model.

    Layers whose entry in `layer_types` is "sliding_attention" see the last
    `sliding_window` tokens; without `layer_types` every layer sees all, as in
    mlx-lm, whatever `sliding_window` says.

    Raises:
        ValueError: A field has a value that makes no model; the message names it.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    rms_norm_eps: float
    vocab_size: int
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    num_key_value_heads: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10000
    rope_traditional: bool = False
    rope_scaling: Scaling | None = None
    tie_word_embeddings: bool = True
    layer_types: Sequence[str] | None = None
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        self._check_layout()

    def _check_types(self) -> None:
        for name in (
            "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
            "vocab_size",
        ):  # fmt: skip
            self._require(name, _is_size, "a whole number above 0")
        for name in ("head_dim", "max_position_embeddings", "num_key_value_heads"):
            self._require(name, lambda v: v is None or _is_size(v), "a whole number above 0")
        for name in ("rms_norm_eps", "rope_theta"):
            self._require(name, _is_positive, "a number above 0")
        for name in ("attention_bias", "mlp_bias", "rope_traditional", "tie_word_embeddings"):
            self._require(name, lambda v: isinstance(v, bool | None), "true or false")
        self._require("rope_scaling", lambda v: isinstance(v, Mapping | None), "an object")

    def _check_layout(self) -> None:
        """What holds between fields."""
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads, {groups} does not {heads}"
            )
        self._require("head_dim", lambda v: v > 0 and v % 2 == 0, "an even number above 0")
        kinds = self.layer_types
        if not isinstance(kinds, list | tuple) or len(kinds) != self.num_hidden_layers:
            found = f"{len(kinds)} entries" if isinstance(kinds, list | tuple) else repr(kinds)
            raise ValueError(
                "layer_types must name a kind for each of the num_hidden_layers "
                f"{self.num_hidden_layers}, not {found}"
            )
        if unknown := [kind for kind in kinds if kind not in LAYER_TYPES]:
            raise ValueError(f"layer_types must be {' or '.join(LAYER_TYPES)}, not {unknown[0]!r}")
        if "sliding_attention" in kinds:
            self._require("sliding_window", _is_size, "a whole number above 0 for sliding layers")

    def _require(self, name: str, holds: Callable[[Any], bool], allowed: str) -> None:
        value = getattr(self, name)
        if not holds(value):
            raise ValueError(f"{name} must be {allowed}, not {value!r}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelArgs:
        """Of a whole config.json; fields that shape no Llama are left out.

        Raises:
            TypeError: A field without a default is missing.
            ValueError: As of the class.
        """
        known = inspect.signature(cls).parameters
        fields = {name: value for name, value in config.items() if name in known}
        # transformers 5 writes base and scaling together.
        rope = config.get("rope_parameters")
        if isinstance(rope, Mapping) and "rope_theta" in rope:
            fields.setdefault("rope_theta", rope["rope_theta"])
            fields["rope_scaling"] = fields.get("rope_scaling") or rope
        return cls(**fields)

    def window(self, layer: int) -> int | None:
        """Tokens that layer number `layer`, from 0, sees of a sequence; None: all."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


class Norm(nn.RMSNorm):
    """RMSNorm (arXiv:1910.07467): [..., dim] → like it."""

    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245) over packed tokens: [N, hidden] → [N, hidden].

    Args:
        layer: Its number, from 0, which is its place in the cache.
        rope: Shared by all layers, so that its angles are worked out once a step.
    """

    def __init__(self, args: ModelArgs, layer: int, rope: Rope) -> None:
        super().__init__()
        self.layer = layer
        self.window = args.window(layer)
        self.head_dim = args.head_dim
        self.scale = args.head_dim**-0.5
        queries = args.num_attention_heads * args.head_dim
        keys = args.num_key_value_heads * args.head_dim
        bias = args.attention_bias
        self.q_proj = nn.Linear(args.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(args.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(args.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, args.hidden_size, bias=bias)
        self.rope = rope

    def __call__(self, x: mx.array, plan: StepPlan) -> mx.array:
        # Head counts come from the (possibly sharded) weights.
        shape = (x.shape[0], -1, 1, self.head_dim)
        rotate = plan.once(self.rope, lambda: self.rope.rotation(plan.positions))
        queries, keys = rotate(self.q_proj(x).reshape(shape)), rotate(self.k_proj(x).reshape(shape))
        values = self.v_proj(x).reshape(shape)
        out = plan.attend(self.layer, queries, keys, values, self.scale, self.window)
        return self.o_proj(out)


class MLP(nn.Module):
    """SwiGLU (arXiv:2002.05202): [N, hidden] → [N, hidden]."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        width, hidden, bias = args.hidden_size, args.intermediate_size, args.mlp_bias
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    """A decoder layer, norms before its parts: [N, hidden] → [N, hidden]."""

    def __init__(self, args: ModelArgs, layer: int, rope: Rope) -> None:
        super().__init__()
        self.self_attn = Attention(args, layer, rope)
        self.mlp = MLP(args)
        self.input_layernorm = Norm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = Norm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, x: mx.array, plan: StepPlan) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), plan)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and the weight of the final norm: int32 [N] → [N, hidden], not normed.

    Attributes:
        control: What is added to what each layer gives, [hidden] by layer, from 0.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        rope = make_rope(
            args.head_dim,
            args.rope_theta,
            args.rope_traditional,
            args.rope_scaling,
            args.max_position_embeddings,
        )
        self.layers = [Layer(args, i, rope) for i in range(args.num_hidden_layers)]
        self.norm = Norm(args.hidden_size, eps=args.rms_norm_eps)
        # Directions by layer (`control.py`). Not a dict: MLX takes those for parameters.
        self.control: Mapping[int, mx.array] = MappingProxyType({})

    def __call__(self, tokens: mx.array, plan: StepPlan) -> mx.array:
        x = self.embed_tokens(tokens)
        for i, layer in enumerate(self.layers):
            x = layer(x, plan)
            if i in self.control:
                x = x + self.control[i]
        return x


class Model(nn.Module):
    """The weights, by the checkpoint's names. `LlamaModel` serves them.

    Args:
        args: The shape; kept as `args`.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model = Decoder(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, tokens: mx.array, plan: StepPlan) -> mx.array:
        """tokens: int32 [N], packed → hidden states [N, hidden], before the final norm."""
        return self.model(tokens, plan)

    def logits(self, hidden: mx.array) -> mx.array:
        """hidden: [M, hidden], before the final norm → logits [M, vocab_size]."""
        hidden = self.model.norm(hidden)
        if self.args.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(hidden)
        return self.lm_head(hidden)

    @property
    def layers(self) -> list[Layer]:
        """The decoder layers in order; mlx-lm and mlx.nn look for them by this name."""
        return self.model.layers

    @property
    def control(self) -> Mapping[int, mx.array]:
        """What is added to what each layer gives, [hidden] by layer, from 0."""
        return self.model.control

    def set_control(self, directions: Mapping[int, mx.array]) -> None:
        """Take control vectors, [hidden] by layer, in place of those there are."""
        # In the type of the hidden state, which the sum would take on otherwise.
        dtype = self.model.norm.weight.dtype
        cast = {i: array.astype(dtype) for i, array in directions.items()}
        mx.eval(cast)
        self.model.control = MappingProxyType(cast)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Drop what old checkpoints carry and the model computes itself.

        Args:
            weights: By name, of any shapes; those that stay are given as they are.
        """
        tied = self.args.tie_word_embeddings
        return {
            name: value
            for name, value in weights.items()
            if "rotary_emb.inv_freq" not in name and not (tied and name.startswith("lm_head."))
        }


class LlamaModel(ServedModel):
    """A Llama behind the engine's contract.

    Args:
        module: With its weights loaded.
        context_length: Tokens that fit.
        bank: Its adapters; None serves the bare weights.
        quantization: Of keys and values.

    Raises:
        ValueError: Its heads cannot be quantised so.
    """

    def __init__(
        self,
        module: Model,
        context_length: int,
        bank: AdapterBank | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        args = module.args
        self.module = module
        self.bank = bank
        self.vocab_size = args.vocab_size
        self.context_length = context_length
        self.windows = sorted(
            {args.window(i) for i in range(args.num_hidden_layers)}, key=lambda w: w or 0
        )
        first = module.layers[0]
        embedded = module.model.embed_tokens(mx.zeros((1,), mx.int32))
        # Never evaluated: only the dtype that keys have is of interest.
        key = first.self_attn.k_proj(first.input_layernorm(embedded))
        self.cache = KVCache(
            args.num_hidden_layers, args.num_key_value_heads, args.head_dim, key.dtype, quantization
        )
        self.tile = row_tile(module)
        self.nbytes = sum(value.nbytes for _, value in parameters(module))

    def forward(self, tokens: mx.array, rows: Sequence[Row]) -> tuple[mx.array, list[mx.array]]:
        hidden = self._run(tokens, rows)
        counts = [row.num_tokens for row in rows]
        wanted = _logit_positions(counts, [row.num_logits for row in rows])
        if not len(wanted):
            return mx.zeros((0, self.vocab_size), hidden.dtype), [hidden[-1:, :1]]
        num_wanted = len(wanted)
        if num_wanted < sum(counts):
            spare = padding(num_wanted, self.tile)
            hidden = hidden[mx.array(np.pad(wanted, (0, spare)))]
            # For an adapter on the head, which sees fewer rows.
            self._select([(row.num_logits, row.adapters) for row in rows], spare)
        logits = self.module.logits(hidden)
        return (logits if num_wanted == len(logits) else logits[:num_wanted]), []

    def hidden(self, tokens: mx.array, rows: Sequence[Row]) -> mx.array:
        return self.module.model.norm(self._run(tokens, rows)[: len(tokens)])

    def _run(self, tokens: mx.array, rows: Sequence[Row]) -> mx.array:
        """The layers: hidden states [N + spare, hidden] before the final norm."""
        spare = padding(len(tokens), self.tile)
        counts = [row.num_tokens for row in rows]
        seats = [cast(KVSeat, row.seat) for row in rows]
        plan = StepPlan(seats, counts, self.windows, spare)
        if spare:
            tokens = mx.pad(tokens, (0, spare))
        self._select([(row.num_tokens, row.adapters) for row in rows], spare)
        hidden = self.module(tokens, plan)
        for row in rows:
            row.seat.length += row.num_tokens
        return hidden

    def _select(self, segments: Sequence[tuple[int, Pairs]], spare: int) -> None:
        """Say which adapters the next layers' rows have; the spare ones have none."""
        if self.bank is not None:
            self.bank.select([*segments, (spare, ())] if spare else segments)


def _logit_positions(counts: Sequence[int], num_logits: Sequence[int]) -> np.ndarray:
    """Packed positions of the last `num_logits` tokens of each row."""
    ends = np.cumsum(counts)
    spans = [
        np.arange(end - wanted, end, dtype=np.int32)
        for end, wanted in zip(ends, num_logits, strict=True)
        if wanted
    ]
    return np.concatenate(spans) if spans else np.zeros(0, dtype=np.int32)
