"""State of mlx-lm's architectures is reused where it is valid, and never wrongly: hit = cold."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from models import Collected, make_engine, random_prompts, request, run
from zoo_models import (
    CONTEXT,
    EXTRA,
    MODELS,
    TOLERANCE,
    VOCAB,
    WIDE,
    WINDOW,
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

from mlx_server.engine.engine import Engine
from mlx_server.engine.seating import REWIND
from mlx_server.exchange import EngineRequest
from mlx_server.models.zoo import ZooModel

EVERY = [*MODELS, *EXTRA]
WINDOWS = {"gemma3": WINDOW, "llama4": WINDOW, "keeping": WINDOW} | {
    "gemma3_wide": WIDE, "llama4_wide": WIDE,
}  # fmt: skip


def make_model(name: str) -> ZooModel:
    return ZooModel(module_of(name), {"model_type": name}, CONTEXT)


# ---------------------------------------------------------------- seats by themselves


def check_goes_on(name: str, model: ZooModel, seat, tokens: list[int], chunk: int) -> None:
    """What follows the seat's tokens gets the logits it would get cold."""
    length = seat.length
    everything = tokens[:length] + tokens_of(1000 + length, chunk + 4)
    sequence = Sequence_(everything, length + chunk, seat)
    model.cache.reserve(seat, len(everything))
    run_all(model, [sequence])
    expected = plain_logits(module_of(name), everything, length + chunk)
    for position, logits in sequence.logits.items():
        np.testing.assert_allclose(logits, expected[position], atol=TOLERANCE, rtol=0)
    assert len(sequence.logits) == 5


def lengths_around(name: str) -> list[int]:
    size = WINDOWS.get(name, 20)
    return [size - 1, size, size + 1, 2 * size + 3]


def places(model: ZooModel, seat) -> list[int]:
    """Lengths that the seat may be gone on from, a few of many."""
    found = [n for n in range(1, seat.length + 1) if model.cache.reusable(seat, n) == n]
    assert found[-1] == seat.length
    return sorted({found[len(found) // 2], found[-2:][0], found[-1]})


def prefilled(model: ZooModel, length: int) -> Sequence_:
    sequence = start(model, length, length, 0)
    run_all(model, [sequence], chunk=11)
    return sequence


def decoded(model: ZooModel, length: int) -> Sequence_:
    """A row of a batch that got to its length token by token."""
    rows = [start(model, length + i, 1 + 3 * i, length + 9) for i in range(3)]
    target = rows[1]
    target.tokens = target.tokens[: max(length, 2)]
    target.prompt = min(target.prompt, len(target.tokens))
    while not target.done:
        step(model, rows)
    return target


@pytest.mark.parametrize(("make", "chunk"), [(prefilled, 3), (decoded, 1)])
@pytest.mark.parametrize("name", EVERY)
def test_forked_is_cold(name: str, make: Callable, chunk: int) -> None:
    """A fork of a running seat, and of one that was kept; the source goes on undisturbed."""
    model = make_model(name)
    for length in lengths_around(name):
        source = make(model, length)
        seat, known = source.seat, source.seat.length
        for place in places(model, seat):
            fork = model.cache.fork(seat, place, place + 9)
            assert fork.length == place
            check_goes_on(name, model, fork, source.tokens, chunk)
            model.cache.close(fork)
        model.cache.keep(seat)
        for place in places(model, seat):
            fork = model.cache.fork(seat, place, place)
            model.cache.keep(fork)
            again = model.cache.fork(fork, place, place + 9)
            check_goes_on(name, model, again, source.tokens, chunk)
            model.cache.close(again)
            check_goes_on(name, model, fork, source.tokens, chunk)
            model.cache.close(fork)
        check_goes_on(name, model, seat, source.tokens[:known], chunk)


@pytest.mark.parametrize("make", [prefilled, decoded])
@pytest.mark.parametrize("name", EVERY)
def test_truncated_is_cold(name: str, make: Callable) -> None:
    model = make_model(name)
    for length in lengths_around(name):
        for kept in (False, True):
            source = make(model, length)
            if kept:
                model.cache.keep(source.seat)
            place = places(model, source.seat)[0]
            model.cache.truncate(source.seat, place)
            check_goes_on(name, model, source.seat, source.tokens, 2)


def test_a_window_that_keeps_its_first_tokens_is_copied_whole() -> None:
    """Its chunks see other tokens than the whole would, so the source is what is compared with."""
    model = ZooModel(seeded(lambda: Keeping(make_qwen3().args)), {}, CONTEXT)
    for length in lengths_around("gemma3"):
        source = start(model, length, length, 6)
        while source.seat.length < length:
            step(model, [source], chunk=5)
        fork = Sequence_(source.tokens, source.prompt)
        fork.seat = model.cache.fork(source.seat, length, length)
        model.cache.keep(fork.seat)
        model.cache.reserve(fork.seat, len(fork.tokens))
        run_all(model, [source, fork])
        for position, logits in fork.logits.items():
            np.testing.assert_allclose(logits, source.logits[position], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_what_cannot_go_back_does_not(name: str) -> None:
    model = make_model(name)
    for length in lengths_around(name):
        seat = prefilled(model, length).seat
        found = {n for n in range(1, length + 1) if model.cache.reusable(seat, n) == n}
        if model.cache.can_truncate or length < WINDOWS.get(name, 0):
            assert found == set(range(1, length + 1))
        elif not (name.startswith("llama4") and length == WINDOWS[name]):
            assert found == {length}
        assert model.cache.reusable(seat, length + 5) == length


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_a_group_go_on_when_one_is_kept(name: str) -> None:
    model = make_model(name)
    rows = [start(model, i, 4 + 5 * i, 24) for i in range(4)]
    for _ in range(5):
        step(model, rows)
    model.cache.keep(rows[1].seat)
    model.cache.keep(rows[3].seat)
    kept = rows[1], rows[3]
    for _ in range(6):
        step(model, [rows[0], rows[2]])
    for row in kept:
        model.cache.reserve(row.seat, len(row.tokens))
    run_all(model, rows)
    for row in rows:
        row.check(module_of(name))


@pytest.mark.parametrize("name", EVERY)
def test_bytes_are_those_that_are_held(name: str) -> None:
    model = make_model(name)
    cache = model.cache
    rows = [start(model, i, 30 + i, 40) for i in range(3)]
    for _ in range(5):
        step(model, rows)
    for row in rows:
        promised = cache.nbytes
        cache.keep(row.seat)
        held = cache.held(row.seat)
        assert cache.nbytes == promised - cache.cost(len(row.tokens)) + held
        assert held == sum(leaf.nbytes for leaf in row.seat.group.caches)
        assert held <= cache.cost(row.seat.length)
    if cache.can_truncate:
        assert cache.held(rows[0].seat) <= cache.cost(256) // 4
    seat = rows[0].seat
    cache.max_bytes = cache.nbytes
    assert not cache.can_reserve(seat, 300) or cache.cost(300) <= cache.held(seat)
    cache.reserve(seat, 70)
    assert cache.nbytes == cache.cost(70) + sum(cache.held(row.seat) for row in rows[1:])
    for row in rows:
        cache.close(row.seat)
    assert cache.nbytes == 0


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_copy_of_a_running_row_takes_the_memory_of_one(num_rows: int) -> None:
    """While steps are on their way: a copy that were still lazy would have the next write
    copy all that the row, or its group, holds."""
    model = make_model("qwen3")
    rows = [start(model, i, 1500, 40) for i in range(num_rows)]
    for _ in range(4):
        step(model, rows)

    def steps_ahead(count: int) -> list[mx.array]:
        arrays: list[mx.array] = []
        for _ in range(count):
            arrays = step(model, rows, evaluate=False)
            mx.async_eval(arrays)
        return arrays

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    steps_ahead(1)
    seat = rows[-1].seat
    fork = model.cache.fork(seat, seat.length, seat.length)
    model.cache.keep(fork)
    mx.eval(steps_ahead(4))
    state = sum(leaf.nbytes for leaf in seat.group.caches)
    assert mx.get_peak_memory() - before < model.cache.held(fork) + state / 4 / num_rows


# ---------------------------------------------------------------- in the engine

SERVED = ["qwen3", "gemma3", "gemma3_wide", "mamba", "jamba", "falcon_h1", "llama4", "foreign"]
SAMPLED = {"temperature": 1.0, "seed": 4, "logprobs": 0}


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest):
    model = make_model(request.param)
    yield model
    assert model.cache.nbytes == 0


@pytest.fixture
def engine(served: ZooModel):
    engine = make_engine(served, prefix_bytes=None)
    yield engine
    engine.drop_all()


def prompts_of(*lengths: int, seed: int = 1) -> list[list[int]]:
    return random_prompts(list(lengths), seed=seed, vocab=VOCAB)


def work(engine: Engine, *requests: EngineRequest) -> tuple[Collected, int]:
    """What the requests yield, and how many prompt tokens were computed for them."""
    before = engine.stats()["prompt_tokens_computed"]
    found = run(engine, *requests)
    return found, engine.stats()["prompt_tokens_computed"] - before


def check_cold(model: ZooModel, found: Collected, *requests: EngineRequest) -> None:
    engine = make_engine(model)
    for r in requests:
        expected = run(engine, r)
        for index in range(r.n):
            assert found.tokens(r.id, index) == expected.tokens(r.id, index)


@pytest.mark.parametrize("length", [40, 150])
def test_a_conversation_computes_only_what_is_new(served, engine, length: int) -> None:
    (history,) = prompts_of(length)
    for turn in range(4):
        r = request(f"t{turn}", history, **SAMPLED)
        found, computed = work(engine, r)
        check_cold(served, found, r)
        # The last token of a reply is computed only if another one follows it.
        assert computed <= 8 + 1 or not turn
        history = history + found.tokens(r.id) + prompts_of(8, seed=turn)[0]


def test_a_reply_rendered_anew_costs_no_more_than_its_turn(served, engine) -> None:
    """Turns whose reasoning is dropped: known up to a little before the reply."""
    (history,) = prompts_of(150)
    for turn in range(4):
        r = request(f"t{turn}", history, **SAMPLED)
        found, computed = work(engine, r)
        check_cold(served, found, r)
        assert computed <= REWIND + 6 + 9 or not turn
        history = history + found.tokens(r.id)[6:] + prompts_of(9, seed=turn)[0]


def test_a_turn_asked_again_is_known(served, engine) -> None:
    (prompt,) = prompts_of(120)
    work(engine, request("a", prompt))
    for i in range(3):
        r = request(f"b{i}", prompt, **SAMPLED)
        found, computed = work(engine, r)
        assert computed <= REWIND
        check_cold(served, found, r)
    # And after another turn has gone on from it.
    more = prompt + found.tokens("b2") + [3] * 9
    assert work(engine, request("c", more))[1] <= 9 + 1
    assert work(engine, request("d", prompt))[1] <= REWIND


def test_requests_that_come_together_compute_their_prefix_once(served, engine) -> None:
    system, *users = prompts_of(150, *range(5, 12))
    users = [[i, *user] for i, user in enumerate(users)]
    requests = [request(f"r{i}", system + user, **SAMPLED) for i, user in enumerate(users)]
    found, computed = work(engine, *requests)
    assert computed == 150 + sum(map(len, users))
    check_cold(served, found, *requests)


def test_a_system_prompt_is_computed_twice_at_most(served, engine) -> None:
    """The second conversation leaves its state where the first one went another way."""
    system, *users = prompts_of(150, 70, 80, 70, 75, 60)
    for i, user in enumerate(users):
        r = request(f"r{i}", system + user, **SAMPLED)
        found, computed = work(engine, r)
        assert computed <= len(user) or i < 2
        check_cold(served, found, r)


def test_a_system_prompt_is_shared_with_rows_that_decode(served, engine) -> None:
    """All of them run together, later ones arrive when earlier ones have begun to reply."""
    system, *users = prompts_of(150, 70, 80, 70, 75)
    requests = [request(f"r{i}", system + u, max_tokens=60, **SAMPLED) for i, u in enumerate(users)]
    found = Collected()
    for r in requests:
        engine.add(r)
        for _ in range(12):
            found.take(engine.step())
        assert engine.num_running == requests.index(r) + 1
    run(engine, into=found)
    assert engine.stats()["prompt_tokens_computed"] <= 2 * 150 + sum(map(len, users))
    check_cold(served, found, *requests)
    # And each of them can be gone on from.
    for r in requests:
        again = request("next", [*r.token_ids, *found.tokens(r.id), 5, 6], **SAMPLED)
        more, computed = work(engine, again)
        assert computed <= 3
        check_cold(served, more, again)


@pytest.mark.parametrize("length", [2, 30, 150])
def test_n_copies_compute_the_prompt_once(served, engine, length: int) -> None:
    (prompt,) = prompts_of(length)
    r = request("r", prompt, n=5, temperature=1.0, seed=3)
    found, computed = work(engine, r)
    assert computed == length + 4
    check_cold(served, found, r)
    again, computed = work(engine, request("s", prompt, n=3, temperature=1.0, seed=3))
    assert computed == 3
    assert again.tokens("s", 2) == found.tokens("r", 2)


def test_without_a_prefix_cache_copies_still_share_their_prompt(served) -> None:
    engine = make_engine(served, prefix_bytes=0)
    (prompt,) = prompts_of(100)
    r = request("r", prompt, n=4, temperature=1.0, seed=3)
    found, computed = work(engine, r)
    assert computed == 100 + 3
    check_cold(served, found, r)


def test_a_stopped_reply_can_be_gone_on_from(served, engine) -> None:
    (prompt,) = prompts_of(100)
    options = SAMPLED | {"max_tokens": 30}
    whole = run(make_engine(served), request("x", prompt, **options)).tokens("x")
    eos = next(token for i, token in enumerate(whole) if i > 3 and token not in whole[:i])
    found, _ = work(engine, request("a", prompt, eos=frozenset({eos}), **options))
    assert found.tokens("a")[-1] == eos
    r = request("b", prompt + found.tokens("a") + [4, 5], **SAMPLED)
    more, computed = work(engine, r)
    assert computed <= 3
    check_cold(served, more, r)


@pytest.mark.parametrize("slots", [2.2, 4.5])
def test_rows_get_the_room_that_the_prefix_cache_has(served, slots: float) -> None:
    budget = int(slots * served.cache.cost(512))
    engine, found, most = make_engine(served, kv_bytes=budget, prefix_bytes=None), Collected(), 0
    prompts = prompts_of(100, 40, 90, 200, 70)
    requests = [
        request(f"r{i}", prompt, max_tokens=20) for i, prompt in enumerate(prompts + prompts)
    ]
    for r in requests:
        engine.add(r)
        for _ in range(5):
            found.take(engine.step())
            most = max(most, served.cache.nbytes)
    run(engine, into=found)
    assert most <= budget
    engine.drop_all()
    served.cache.max_bytes = float("inf")
    check_cold(served, found, *requests)
