"""An mlx-lm architecture behind the engine's contract gives what its module gives alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from zoo_models import (
    CONTEXT,
    MODELS,
    ROW_BY_ROW,
    TOLERANCE,
    TRUNCATABLE,
    VOCAB,
    Keeping,
    Sequence_,
    make_qwen3,
    module_of,
    plain_logits,
    run_all,
    seeded,
    start,
    step,
    tokens_of,
)

from mlx_server.cache.zoo import fits
from mlx_server.errors import ServerError
from mlx_server.models.zoo import SPLIT_FROM, ZooModel


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> ZooModel:
    return ZooModel(module_of(name), {"model_type": name}, CONTEXT)


# ---------------------------------------------------------------- equivalences


def test_logits_depend_on_the_context(name: str) -> None:
    """What the equivalences below rest on: a wrong cache would show."""
    tokens = tokens_of(1, 12)
    other = [*tokens[:-2], tokens[-2] % (VOCAB - 1) + 1, tokens[-1]]
    module = module_of(name)
    difference = plain_logits(module, tokens, 12)[-1] - plain_logits(module, other, 12)[-1]
    assert np.abs(difference).max() > 100 * TOLERANCE


def test_who_decodes_in_one_call(name: str, model: ZooModel) -> None:
    assert model.vocab_size == VOCAB
    assert model.cache.batchable == (name not in ROW_BY_ROW)
    sequences = [start(model, i, 5 + i, 2) for i in range(3)]
    run_all(model, sequences)
    groups = {id(s.seat.group) for s in sequences}
    assert len(groups) == (3 if name in ROW_BY_ROW else 1)


def test_batched_is_alone(name: str, model: ZooModel) -> None:
    sequences = [start(model, i, prompt, 14) for i, prompt in enumerate((5, 23, 1, 40, 7))]
    run_all(model, sequences)
    for s in sequences:
        s.check(module_of(name))


def test_chunked_is_whole(name: str, model: ZooModel) -> None:
    sequence = start(model, 3, 37, 3)
    run_all(model, [sequence], chunk=6)
    sequence.check(module_of(name))


def test_every_position_can_have_logits(name: str, model: ZooModel) -> None:
    sequences = [start(model, i, prompt, 1) for i, prompt in enumerate((9, 2, 13))]
    step(model, sequences, chunk=7, all_logits=True)
    step(model, sequences, chunk=7, all_logits=True)
    for s in sequences:
        s.check(module_of(name), positions=s.seat.length)


def test_a_window_that_keeps_its_first_tokens_runs_row_by_row() -> None:
    module = seeded(lambda: Keeping(make_qwen3().args))
    model = ZooModel(module, {}, CONTEXT)
    sequences = [start(model, i, prompt, 14) for i, prompt in enumerate((5, 9, 7))]
    run_all(model, sequences)
    for s in sequences:
        s.check(module)


def test_a_long_chunk_with_few_logits_is_whole() -> None:
    model = ZooModel(module_of("gemma3"), {}, CONTEXT)
    sequence = start(model, 4, 2 * SPLIT_FROM + 5, 2)
    run_all(model, [sequence])
    sequence.check(module_of("gemma3"))


@pytest.mark.parametrize("seed", range(2))
def test_rows_come_go_and_pause_at_random(name: str, model: ZooModel, seed: int) -> None:
    """Joining, leaving, pausing and preemption, in any order, change no row's logits."""
    rng = np.random.default_rng(seed)
    waiting = [
        Sequence_(tokens_of(i, int(p) + int(n)), int(p))
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
            step(model, chosen, chunk=9)
        for sequence in [s for s in running if s.done]:
            model.cache.close(sequence.seat)
            running.remove(sequence)
        if running and rng.random() < 0.06:
            sequence = running.pop(int(rng.integers(len(running))))
            model.cache.close(sequence.seat)
            waiting.append(sequence)
    for sequence in everyone:
        sequence.check(module_of(name))
    assert model.cache.nbytes == 0


def test_a_subset_of_a_group_runs(name: str, model: ZooModel) -> None:
    sequences = [start(model, i, 6 + 4 * i, 12) for i in range(4)]
    for _ in range(3):
        step(model, sequences)
    for subset in ([1, 3], [0], [1, 3], [0, 1, 2], [2]):
        step(model, [sequences[i] for i in subset])
    run_all(model, sequences)
    for s in sequences:
        s.check(module_of(name))


def test_a_preempted_row_is_undisturbed(name: str, model: ZooModel) -> None:
    first, second, third = (start(model, i, 5 + 3 * i, 12) for i in range(3))
    for _ in range(4):
        step(model, [first, second, third])
    model.cache.close(second.seat)
    for _ in range(2):
        step(model, [first, third])
    # Computed again from its tokens, those it had generated included.
    again = Sequence_(second.tokens, second.prompt + 3, model.cache.open(len(second.tokens)))
    run_all(model, [first, again, third])
    again.check(module_of(name))
    for s in (first, third):
        s.check(module_of(name))


def test_rows_that_met_decode_several_tokens_at_once(name: str, model: ZooModel) -> None:
    """A row of a group with more than one new token, as speculation has it."""
    sequences = [start(model, i, 6 + i, 12) for i in range(3)]
    for _ in range(3):
        step(model, sequences)
    sequences[1].prompt = sequences[1].seat.length + 4
    sequences[1].logits.clear()
    run_all(model, sequences)
    for s in sequences:
        s.check(module_of(name))


def test_steps_may_be_built_before_the_last_is_read(name: str, model: ZooModel) -> None:
    sequences = [start(model, i, 4 + 5 * i, 8) for i in range(3)]
    pending: list[mx.array] = []
    while any(not s.done for s in sequences):
        arrays = step(model, [s for s in sequences if not s.done], evaluate=False)
        mx.async_eval(arrays)
        pending.append(arrays[0])
    order = sorted(range(3), key=lambda i: sequences[i].seat.order)
    for place, i in enumerate(order):
        expected = plain_logits(module_of(name), sequences[i].tokens, sequences[i].prompt)[-1]
        np.testing.assert_allclose(np.array(pending[-1])[place], expected, atol=TOLERANCE, rtol=0)


# ---------------------------------------------------------------- groups, room, truncation


def test_a_long_row_does_not_pad_the_short_ones() -> None:
    model = ZooModel(module_of("qwen3"), {}, CONTEXT)
    lengths = (10, 700, 20, 1500, 610)
    sequences = [start(model, i, length, 4) for i, length in enumerate(lengths)]
    run_all(model, sequences)
    for s in sequences:
        assert fits(min(m.length for m in s.seat.group.members()), s.seat.length)
        s.check(module_of("qwen3"))
    assert len({id(s.seat.group) for s in sequences}) == 3


def test_groups_meet_when_their_lengths_have_come_close() -> None:
    model = ZooModel(module_of("qwen3"), {}, CONTEXT)
    lengths = (296, 297, 603, 604)
    sequences = [start(model, i, length, 16) for i, length in enumerate(lengths)]
    groups = []
    while not sequences[0].done:
        step(model, sequences)
        groups.append(len({id(s.seat.group) for s in sequences}))
    # 604 is more than twice 296, until both have grown by 12.
    assert (groups[2], groups[-1]) == (2, 1)
    for s in sequences:
        s.check(module_of("qwen3"))


def test_recurrent_rows_share_a_group_whatever_their_lengths() -> None:
    model = ZooModel(module_of("mamba"), {}, CONTEXT)
    short, long = start(model, 0, 2, 3), start(model, 1, 300, 3)
    run_all(model, [short, long])
    assert short.seat.group is long.seat.group


def test_truncated_is_never_seen(name: str, model: ZooModel) -> None:
    sequences = [start(model, i, 5 + i, 10) for i in range(3)]
    for _ in range(6):
        step(model, sequences)
    target = sequences[1]
    assert model.cache.can_truncate == (name in TRUNCATABLE)
    if not model.cache.can_truncate:
        with pytest.raises(ServerError):
            model.cache.truncate(target.seat, 8)
        return
    model.cache.truncate(target.seat, 8)
    target.tokens = target.tokens[:8] + tokens_of(99, 7)
    target.logits = {p: v for p, v in target.logits.items() if p < 8}
    run_all(model, sequences)
    for s in sequences:
        s.check(module_of(name))


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
    sequence = start(model, 0, length, 1)
    run_all(model, [sequence], chunk=64)
    held = sum(c.nbytes for c in sequence.seat.group.caches)
    cost = model.cache.cost(length + 1)
    # Windows are smaller than their bound; only concatenation allocates no room ahead.
    assert held <= cost
    if name not in {"gemma3", "llama4", "concatenating"}:
        assert held == cost
