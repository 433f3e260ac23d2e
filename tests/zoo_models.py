"""Tiny models of mlx-lm's architectures, and a driver that steps rows of them by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import falcon_h1, gemma2, gemma3_text, jamba, llama4, mamba, mixtral, qwen3
from mlx_lm.models.cache import ConcatenateKVCache, RotatingKVCache, make_prompt_cache

from mlx_server.cache.zoo import ZooSeat
from mlx_server.models.base import Row
from mlx_server.models.zoo import ZooModel

VOCAB = 97
WINDOW = 8
CONTEXT = 2048
TOLERANCE = 1e-4


# ---------------------------------------------------------------- tiny models

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
}


def make_qwen3() -> nn.Module:
    return qwen3.Model(
        qwen3.ModelArgs(
            model_type="qwen3", num_hidden_layers=2, rms_norm_eps=1e-5, head_dim=8,
            max_position_embeddings=CONTEXT, tie_word_embeddings=True, rope_theta=1e4, **SHAPE,
        )
    )  # fmt: skip


def _gemma2() -> nn.Module:
    """Its mask has no axis for the groups of heads: two rows, two heads, and it is wrong."""
    return gemma2.Model(
        gemma2.ModelArgs(
            model_type="gemma2", num_hidden_layers=2, head_dim=8, rms_norm_eps=1e-5,
            query_pre_attn_scalar=8, **SHAPE,
        )
    )  # fmt: skip


def _gemma3(window: int = WINDOW) -> nn.Module:
    return gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text", num_hidden_layers=4, head_dim=8, query_pre_attn_scalar=8,
            sliding_window=window, sliding_window_pattern=3, **SHAPE,
        )
    )  # fmt: skip


def _mixtral() -> nn.Module:
    return mixtral.Model(
        mixtral.ModelArgs(
            model_type="mixtral", num_hidden_layers=2, num_local_experts=4, **SHAPE
        )
    )  # fmt: skip


def _mamba() -> nn.Module:
    return mamba.Model(
        mamba.ModelArgs(
            model_type="mamba", vocab_size=VOCAB, hidden_size=32, intermediate_size=64,
            state_size=4, num_hidden_layers=2, conv_kernel=4, use_bias=False, use_conv_bias=True,
            time_step_rank=4,
        )
    )  # fmt: skip


def _jamba() -> nn.Module:
    return jamba.Model(
        jamba.ModelArgs(
            model_type="jamba", num_hidden_layers=4, attn_layer_offset=1, attn_layer_period=2,
            expert_layer_offset=1, expert_layer_period=2, mamba_d_conv=4, mamba_d_state=4,
            mamba_expand=2, num_experts=4, num_experts_per_tok=2, rms_norm_eps=1e-5,
            max_position_embeddings=CONTEXT, **SHAPE,
        )
    )  # fmt: skip


def _falcon_h1() -> nn.Module:
    return falcon_h1.Model(
        falcon_h1.ModelArgs(
            num_hidden_layers=2, head_dim=8, mamba_d_head=8, mamba_d_ssm=32, mamba_d_state=8,
            mamba_n_heads=4, mamba_chunk_size=16, lm_head_multiplier=1.0, **SHAPE,
        )
    )  # fmt: skip


def _llama4(window: int = WINDOW) -> nn.Module:
    text = dict(
        SHAPE, model_type="llama4_text", attention_bias=False, attention_chunk_size=window,
        head_dim=8, interleave_moe_layer_step=2, intermediate_size_mlp=48, num_hidden_layers=4,
        max_position_embeddings=CONTEXT, num_experts_per_tok=1, num_local_experts=2,
        rms_norm_eps=1e-5, rope_scaling=None, rope_theta=1e4, use_qk_norm=True,
    )  # fmt: skip
    return llama4.Model(llama4.ModelArgs.from_dict({"model_type": "llama4", "text_config": text}))


class _Concatenating(qwen3.Model):
    def make_cache(self) -> list[ConcatenateKVCache]:
        return [ConcatenateKVCache() for _ in self.layers]


class Keeping(qwen3.Model):
    """A window that keeps its first tokens, which mlx-lm's batch form would lose."""

    def make_cache(self) -> list[RotatingKVCache]:
        return [RotatingKVCache(max_size=WINDOW, keep=2) for _ in self.layers]


class _ForeignCache:
    """A cache that is none of mlx-lm's classes, as that of its DeepSeek 4.1."""

    def __init__(self) -> None:
        self.offset = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values, self.offset = keys, values, keys.shape[2]
        return keys, values

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        return self.keys, self.values

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def make_mask(self, n: int, **_: object) -> str | None:
        return "causal" if n > 1 else None


class _Foreign(qwen3.Model):
    def make_cache(self) -> list[_ForeignCache]:
        return [_ForeignCache() for _ in self.layers]


class _OneOffset(qwen3.Model):
    """Computes with the offset of its first cache as if it were one number."""

    def __call__(self, inputs: mx.array, cache: Sequence | None = None) -> mx.array:
        if cache[0].offset > CONTEXT:
            raise ValueError("too long")
        return super().__call__(inputs, cache=cache)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen3": make_qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mixtral": _mixtral,
    "mamba": _mamba,
    "jamba": _jamba,
    "falcon_h1": _falcon_h1,
    "llama4": _llama4,
    "concatenating": lambda: _Concatenating(make_qwen3().args),
    "one_offset": lambda: _OneOffset(make_qwen3().args),
}
WIDE = 64
EXTRA: dict[str, Callable[[], nn.Module]] = {
    "gemma3_wide": lambda: _gemma3(WIDE),
    "llama4_wide": lambda: _llama4(WIDE),
    "foreign": lambda: _Foreign(make_qwen3().args),
}
"""Whose state is reused in another way than that of MODELS."""

ROW_BY_ROW = {"gemma2", "llama4", "concatenating", "one_offset"}
TRUNCATABLE = {"qwen3", "gemma2", "mixtral", "one_offset"}


@cache
def module_of(name: str) -> nn.Module:
    return seeded((MODELS | EXTRA)[name])


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    mx.random.seed(7)
    module = make()
    module.eval()
    mx.eval(module.parameters())
    return module


# ---------------------------------------------------------------- driver and reference


def tokens_of(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB, length).tolist()


def plain_logits(module: nn.Module, tokens: Sequence[int], prompt: int) -> np.ndarray:
    """The module's own logits [T, V]: the prompt in one call, then token by token."""
    caches = make_prompt_cache(module)
    pieces = [module(mx.array([tokens[:prompt]]), cache=caches)[0]]
    for token in tokens[prompt:]:
        pieces.append(module(mx.array([[token]]), cache=caches)[0])
        mx.eval(pieces[-1])
    return np.array(mx.concatenate(pieces))


@dataclass(eq=False)
class Sequence_:
    """A row with its tokens known beforehand, its seat, and the logits that came back."""

    tokens: list[int]
    prompt: int
    seat: ZooSeat | None = None
    logits: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def next_count(self) -> int:
        return max(1, self.prompt - self.seat.length)

    @property
    def done(self) -> bool:
        return self.seat is not None and self.seat.length == len(self.tokens)

    def check(self, module: nn.Module, *, positions: int | None = None) -> None:
        expected = plain_logits(module, self.tokens, self.prompt)
        assert len(self.logits) == (positions or len(self.tokens) - self.prompt + 1)
        for position, logits in self.logits.items():
            np.testing.assert_allclose(logits, expected[position], atol=TOLERANCE, rtol=0)


def start(model: ZooModel, seed: int, prompt: int, new: int) -> Sequence_:
    sequence = Sequence_(tokens_of(seed, prompt + new), prompt)
    sequence.seat = model.cache.open(prompt + new)
    return sequence


def step(
    model: ZooModel,
    sequences: Sequence[Sequence_],
    *,
    chunk: int = 10**6,
    all_logits: bool = False,
    evaluate: bool = True,
) -> list[mx.array]:
    """One forward pass, packed as the engine packs it; at most `chunk` tokens a row."""
    counts = {s: min(s.next_count, chunk) for s in sequences}
    ordered = sorted(sequences, key=lambda s: (counts[s] > 1, s.seat.order))
    starts = {s: s.seat.length for s in ordered}
    rows, packed = [], []
    for s in ordered:
        start, end = starts[s], starts[s] + counts[s]
        last = int(end >= s.prompt)
        rows.append(Row(s.seat, counts[s], counts[s] if all_logits else last))
        packed += s.tokens[start:end]
    logits, pending = model.forward(mx.array(packed, dtype=mx.int32), rows)
    assert logits.shape == (sum(row.num_logits for row in rows), VOCAB)
    if not evaluate:
        return [logits, *pending]
    mx.eval(logits, pending)
    at, values = 0, np.array(logits)
    for s, row in zip(ordered, rows, strict=True):
        end = starts[s] + counts[s]
        assert s.seat.length == end
        for position in range(end - row.num_logits, end):
            s.logits[position] = values[at]
            at += 1
    return []


def run_all(model: ZooModel, sequences: Sequence[Sequence_], **options: int) -> None:
    while unfinished := [s for s in sequences if not s.done]:
        step(model, unfinished, **options)
