"""An mlx-lm architecture behind the engine's contract gives what its module gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import falcon_h1, gemma2, gemma3_text, jamba, llama4, mamba, mixtral, qwen3
from mlx_lm.models.cache import ConcatenateKVCache, RotatingKVCache, make_prompt_cache

from mlx_server.cache.zoo import ZooSeat, fits
from mlx_server.errors import ServerError
from mlx_server.models.base import Row
from mlx_server.models.zoo import SPLIT_FROM, ZooModel

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


def _qwen3() -> nn.Module:
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


def _gemma3() -> nn.Module:
    return gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text", num_hidden_layers=4, head_dim=8, query_pre_attn_scalar=8,
            sliding_window=WINDOW, sliding_window_pattern=3, **SHAPE,
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


def _llama4() -> nn.Module:
    text = dict(
        SHAPE, model_type="llama4_text", attention_bias=False, attention_chunk_size=WINDOW,
        head_dim=8, interleave_moe_layer_step=2, intermediate_size_mlp=48, num_hidden_layers=4,
        max_position_embeddings=CONTEXT, num_experts_per_tok=1, num_local_experts=2,
        rms_norm_eps=1e-5, rope_scaling=None, rope_theta=1e4, use_qk_norm=True,
    )  # fmt: skip
    return llama4.Model(llama4.ModelArgs.from_dict({"model_type": "llama4", "text_config": text}))


class _Concatenating(qwen3.Model):
    def make_cache(self) -> list[ConcatenateKVCache]:
        return [ConcatenateKVCache() for _ in self.layers]


class _Keeping(qwen3.Model):
    """A window that keeps its first tokens, which mlx-lm's batch form would lose."""

    def make_cache(self) -> list[RotatingKVCache]:
        return [RotatingKVCache(max_size=WINDOW, keep=2) for _ in self.layers]


class _OneOffset(qwen3.Model):
    """Computes with the offset of its first cache as if it were one number."""

    def __call__(self, inputs: mx.array, cache: Sequence | None = None) -> mx.array:
        if cache[0].offset > CONTEXT:
            raise ValueError("too long")
        return super().__call__(inputs, cache=cache)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mixtral": _mixtral,
    "mamba": _mamba,
    "jamba": _jamba,
    "falcon_h1": _falcon_h1,
    "llama4": _llama4,
    "concatenating": lambda: _Concatenating(_qwen3().args),
    "one_offset": lambda: _OneOffset(_qwen3().args),
}
ROW_BY_ROW = {"gemma2", "llama4", "concatenating", "one_offset"}
TRUNCATABLE = {"qwen3", "gemma2", "mixtral", "one_offset"}


@cache
def _module(name: str) -> nn.Module:
    return _seeded(MODELS[name])


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    mx.random.seed(7)
    module = make()
    module.eval()
    mx.eval(module.parameters())
    return module


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> ZooModel:
    return ZooModel(_module(name), {"model_type": name}, CONTEXT)


# ---------------------------------------------------------------- driver and reference


def _tokens(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB, length).tolist()


def _plain(module: nn.Module, tokens: Sequence[int], prompt: int) -> np.ndarray:
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
        expected = _plain(module, self.tokens, self.prompt)
        assert len(self.logits) == (positions or len(self.tokens) - self.prompt + 1)
        for position, logits in self.logits.items():
            np.testing.assert_allclose(logits, expected[position], atol=TOLERANCE, rtol=0)


def _start(model: ZooModel, seed: int, prompt: int, new: int) -> Sequence_:
    sequence = Sequence_(_tokens(seed, prompt + new), prompt)
    sequence.seat = model.cache.open(prompt + new)
    return sequence


def _step(
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


def _run(model: ZooModel, sequences: Sequence[Sequence_], **options: int) -> None:
    while unfinished := [s for s in sequences if not s.done]:
        _step(model, unfinished, **options)


# ---------------------------------------------------------------- equivalences


def test_logits_depend_on_the_context(name: str) -> None:
    """What the equivalences below rest on: a wrong cache would show."""
    tokens = _tokens(1, 12)
    other = [*tokens[:-2], tokens[-2] % (VOCAB - 1) + 1, tokens[-1]]
    module = _module(name)
    difference = _plain(module, tokens, 12)[-1] - _plain(module, other, 12)[-1]
    assert np.abs(difference).max() > 100 * TOLERANCE


def test_who_decodes_in_one_call(name: str, model: ZooModel) -> None:
    assert model.vocab_size == VOCAB
    assert model.cache.batchable == (name not in ROW_BY_ROW)
    sequences = [_start(model, i, 5 + i, 2) for i in range(3)]
    _run(model, sequences)
    groups = {id(s.seat.group) for s in sequences}
    assert len(groups) == (3 if name in ROW_BY_ROW else 1)


def test_batched_is_alone(name: str, model: ZooModel) -> None:
    sequences = [_start(model, i, prompt, 14) for i, prompt in enumerate((5, 23, 1, 40, 7))]
    _run(model, sequences)
    for s in sequences:
        s.check(_module(name))


def test_chunked_is_whole(name: str, model: ZooModel) -> None:
    sequence = _start(model, 3, 37, 3)
    _run(model, [sequence], chunk=6)
    sequence.check(_module(name))


def test_every_position_can_have_logits(name: str, model: ZooModel) -> None:
    sequences = [_start(model, i, prompt, 1) for i, prompt in enumerate((9, 2, 13))]
    _step(model, sequences, chunk=7, all_logits=True)
    _step(model, sequences, chunk=7, all_logits=True)
    for s in sequences:
        s.check(_module(name), positions=s.seat.length)


def test_a_window_that_keeps_its_first_tokens_runs_row_by_row() -> None:
    module = _seeded(lambda: _Keeping(_qwen3().args))
    model = ZooModel(module, {}, CONTEXT)
    sequences = [_start(model, i, prompt, 14) for i, prompt in enumerate((5, 9, 7))]
    _run(model, sequences)
    for s in sequences:
        s.check(module)


def test_a_long_chunk_with_few_logits_is_whole() -> None:
    model = ZooModel(_module("gemma3"), {}, CONTEXT)
    sequence = _start(model, 4, 2 * SPLIT_FROM + 5, 2)
    _run(model, [sequence])
    sequence.check(_module("gemma3"))


@pytest.mark.parametrize("seed", range(2))
def test_rows_come_go_and_pause_at_random(name: str, model: ZooModel, seed: int) -> None:
    """Joining, leaving, pausing and preemption, in any order, change no row's logits."""
    rng = np.random.default_rng(seed)
    waiting = [
        Sequence_(_tokens(i, int(p) + int(n)), int(p))
        for i, (p, n) in enumerate(rng.integers((1, 3), (30, 22), (7, 2)))
    ]
    everyone, running = list(waiting), []
    while waiting or running:
        if waiting and (not running or rng.random() < 0.4):
            sequence = waiting.pop()
            sequence.seat = model.cache.open(len(sequence.tokens))
            running.append(sequence)
        chosen = [s for s in running if rng.random() < 0.85]
        if chosen:
            _step(model, chosen, chunk=9)
        for sequence in [s for s in running if s.done]:
            model.cache.close(sequence.seat)
            running.remove(sequence)
        if running and rng.random() < 0.06:
            sequence = running.pop(int(rng.integers(len(running))))
            model.cache.close(sequence.seat)
            waiting.append(sequence)
    for sequence in everyone:
        sequence.check(_module(name))
    assert model.cache.nbytes == 0


def test_a_subset_of_a_group_runs(name: str, model: ZooModel) -> None:
    sequences = [_start(model, i, 6 + 4 * i, 12) for i in range(4)]
    for _ in range(3):
        _step(model, sequences)
    for subset in ([1, 3], [0], [1, 3], [0, 1, 2], [2]):
        _step(model, [sequences[i] for i in subset])
    _run(model, sequences)
    for s in sequences:
        s.check(_module(name))


def test_a_preempted_row_is_undisturbed(name: str, model: ZooModel) -> None:
    first, second, third = (_start(model, i, 5 + 3 * i, 12) for i in range(3))
    for _ in range(4):
        _step(model, [first, second, third])
    model.cache.close(second.seat)
    for _ in range(2):
        _step(model, [first, third])
    # Computed again from its tokens, those it had generated included.
    again = Sequence_(second.tokens, second.prompt + 3, model.cache.open(len(second.tokens)))
    _run(model, [first, again, third])
    again.check(_module(name))
    for s in (first, third):
        s.check(_module(name))


def test_rows_that_met_decode_several_tokens_at_once(name: str, model: ZooModel) -> None:
    """A row of a group with more than one new token, as speculation has it."""
    sequences = [_start(model, i, 6 + i, 12) for i in range(3)]
    for _ in range(3):
        _step(model, sequences)
    sequences[1].prompt = sequences[1].seat.length + 4
    sequences[1].logits.clear()
    _run(model, sequences)
    for s in sequences:
        s.check(_module(name))


def test_steps_may_be_built_before_the_last_is_read(name: str, model: ZooModel) -> None:
    sequences = [_start(model, i, 4 + 5 * i, 8) for i in range(3)]
    pending: list[mx.array] = []
    while any(not s.done for s in sequences):
        arrays = _step(model, [s for s in sequences if not s.done], evaluate=False)
        mx.async_eval(arrays)
        pending.append(arrays[0])
    order = sorted(range(3), key=lambda i: sequences[i].seat.order)
    for place, i in enumerate(order):
        expected = _plain(_module(name), sequences[i].tokens, sequences[i].prompt)[-1]
        np.testing.assert_allclose(np.array(pending[-1])[place], expected, atol=TOLERANCE, rtol=0)


# ---------------------------------------------------------------- groups, room, truncation


def test_a_long_row_does_not_pad_the_short_ones() -> None:
    model = ZooModel(_module("qwen3"), {}, CONTEXT)
    lengths = (10, 700, 20, 1500, 610)
    sequences = [_start(model, i, length, 4) for i, length in enumerate(lengths)]
    _run(model, sequences)
    for s in sequences:
        assert fits(min(m.length for m in s.seat.group.members()), s.seat.length)
        s.check(_module("qwen3"))
    assert len({id(s.seat.group) for s in sequences}) == 3


def test_groups_meet_when_their_lengths_have_come_close() -> None:
    model = ZooModel(_module("qwen3"), {}, CONTEXT)
    lengths = (296, 297, 603, 604)
    sequences = [_start(model, i, length, 16) for i, length in enumerate(lengths)]
    groups = []
    while not sequences[0].done:
        _step(model, sequences)
        groups.append(len({id(s.seat.group) for s in sequences}))
    # 604 is more than twice 296, until both have grown by 12.
    assert (groups[2], groups[-1]) == (2, 1)
    for s in sequences:
        s.check(_module("qwen3"))


def test_recurrent_rows_share_a_group_whatever_their_lengths() -> None:
    model = ZooModel(_module("mamba"), {}, CONTEXT)
    short, long = _start(model, 0, 2, 3), _start(model, 1, 300, 3)
    _run(model, [short, long])
    assert short.seat.group is long.seat.group


def test_truncated_is_never_seen(name: str, model: ZooModel) -> None:
    sequences = [_start(model, i, 5 + i, 10) for i in range(3)]
    for _ in range(6):
        _step(model, sequences)
    target = sequences[1]
    assert model.cache.can_truncate == (name in TRUNCATABLE)
    if not model.cache.can_truncate:
        with pytest.raises(ServerError):
            model.cache.truncate(target.seat, 8)
        return
    model.cache.truncate(target.seat, 8)
    target.tokens = target.tokens[:8] + _tokens(99, 7)
    target.logits = {p: v for p, v in target.logits.items() if p < 8}
    _run(model, sequences)
    for s in sequences:
        s.check(_module(name))


def test_room_is_promised_and_given_back(name: str, model: ZooModel) -> None:
    cache = model.cache
    seat = cache.open(100)
    assert cache.nbytes == cache.cost(100) > 0
    cache.max_bytes = cache.cost(100)
    assert not cache.can_open(1)
    assert cache.can_reserve(seat, 100)
    if cache.cost(CONTEXT) > cache.cost(100):
        assert not cache.can_reserve(seat, CONTEXT)
    cache.reserve(seat, CONTEXT)
    assert cache.nbytes == cache.cost(CONTEXT)
    cache.close(seat)
    cache.close(seat)
    assert cache.nbytes == 0


@pytest.mark.parametrize("length", [3, 300])
def test_cost_is_what_the_caches_hold(name: str, model: ZooModel, length: int) -> None:
    sequence = _start(model, 0, length, 1)
    _run(model, [sequence], chunk=64)
    held = sum(c.nbytes for c in sequence.seat.group.caches)
    cost = model.cache.cost(length + 1)
    # Windows are smaller than their bound; only concatenation allocates no room ahead.
    assert held <= cost
    if name not in {"gemma3", "llama4", "concatenating"}:
        assert held == cost
