"""The engine's equivalences: batched = alone, chunked = whole, preempted = undisturbed,
ours = mlx_lm's."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from models import Collected, make_engine, make_pair, random_prompts, request, run

from mlx_server.errors import RequestError

MIXTURE = [
    {},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.0, "seed": 6, "top_p": 0.7, "min_p": 0.02},
    {"temperature": 1.3, "seed": 7, "top_k": 9},
    {"repetition_penalty": 1.4, "repetition_context_size": 8},
    {"temperature": 0.8, "seed": 8, "presence_penalty": 0.9, "frequency_penalty": 0.4},
    {"logit_bias": ((3, 4.0), (7, -100.0)), "logprobs": 3},
    {"temperature": 1.0, "seed": 9, "logprobs": 0, "frequency_penalty": 1.0},
]


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def greedy(theirs, prompt: list[int], count: int) -> list[int]:
    steps = generate_step(mx.array(prompt), theirs, max_tokens=count)
    return [int(token) for token, _ in steps]


def mixture(prompts: list[list[int]]):
    return [
        request(f"r{i}", p, **(MIXTURE[i % len(MIXTURE)] | {"max_tokens": 10 + i}))
        for i, p in enumerate(prompts)
    ]


def test_greedy_rows_equal_mlx_lm(pair) -> None:
    theirs, ours = pair
    prompts = random_prompts([3, 40, 17, 1, 100])
    found = run(make_engine(ours), *(request(f"r{i}", p) for i, p in enumerate(prompts)))
    for i, prompt in enumerate(prompts):
        assert found.tokens(f"r{i}") == greedy(theirs, prompt, 12)
        assert found.reason(f"r{i}") == "length"


@pytest.mark.parametrize("prefix_bytes", [0, None])
def test_batched_equals_alone_for_every_option(pair, prefix_bytes: int | None) -> None:
    _, ours = pair
    shared, *prompts = random_prompts([40, 5, 33, 70, 12, 90, 8, 21, 50])
    requests = mixture(prompts[:4] + [shared + prompt for prompt in prompts[4:]])
    engine = make_engine(ours, prefix_bytes=prefix_bytes)
    together = run(engine, *requests)
    assert engine.stats()["prefix_hits"] == 3  # who shares the beginning, also while it runs
    engine.drop_all()
    for r in requests:
        alone = run(make_engine(ours), r)
        assert together.tokens(r.id) == alone.tokens(r.id)
        for ours_at, alone_at in zip(together.logprobs(r.id), alone.logprobs(r.id), strict=True):
            assert ours_at.logprob == pytest.approx(alone_at.logprob, abs=1e-4)
            assert [i for i, _ in ours_at.top] == [i for i, _ in alone_at.top]


def test_a_pass_that_is_on_its_way_before_the_last_is_read_gives_the_same(pair) -> None:
    # As on a GPU; on a CPU the outputs go out first.
    _, ours = pair
    requests = mixture(random_prompts([5, 33, 70, 12, 90, 8, 21, 50]))
    expected = run(make_engine(ours), *requests)
    engine = make_engine(ours)
    engine.runner.overlaps = not engine.runner.overlaps
    found = run(engine, *requests)
    assert [found.tokens(r.id) for r in requests] == [expected.tokens(r.id) for r in requests]


def test_rows_that_join_late_equal_rows_alone(pair) -> None:
    _, ours = pair
    requests = mixture(random_prompts([30, 9, 64, 3, 41, 27]))
    engine, found = make_engine(ours), Collected()
    for r in requests:
        engine.add(r)
        for _ in range(3):
            found.take(engine.step())
    run(engine, into=found)
    for r in requests:
        assert found.tokens(r.id) == run(make_engine(ours), r).tokens(r.id)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunked_prefill_equals_whole(pair, chunk: int) -> None:
    theirs, ours = pair
    prompts = random_prompts([150, 20, 3])
    requests = [request(f"r{i}", p, max_tokens=6) for i, p in enumerate(prompts)]
    found = run(make_engine(ours, chunk=chunk), *requests)
    for i, prompt in enumerate(prompts):
        assert found.tokens(f"r{i}") == greedy(theirs, prompt, 6)


def test_preempted_rows_equal_undisturbed_ones(pair) -> None:
    _, ours = pair
    requests = [
        request(f"r{i}", p, **(MIXTURE[i] | {"max_tokens": 300}))
        for i, p in enumerate(random_prompts([150, 160, 170, 180]))
    ]
    slot = ours.cache.cost(256)
    engine = make_engine(ours, kv_bytes=5 * slot)
    found = run(engine, *requests)
    assert engine.scheduler.num_preemptions > 0
    ours.cache.max_bytes = float("inf")
    for r in requests:
        assert found.tokens(r.id) == run(make_engine(ours), r).tokens(r.id)


def test_n_copies_equal_n_rows_of_their_own(pair) -> None:
    _, ours = pair
    (prompt,) = random_prompts([25])
    found = run(make_engine(ours), request("r", prompt, n=4, temperature=1.0, seed=3))
    copies = [found.tokens("r", i) for i in range(4)]
    assert len({tuple(c) for c in copies}) == 4
    again = run(make_engine(ours), request("r", prompt, n=2, temperature=1.0, seed=3))
    assert [again.tokens("r", i) for i in range(2)] == copies[:2]


def test_seed_decides_and_nothing_else(pair) -> None:
    _, ours = pair
    (prompt,) = random_prompts([10])
    options = {"temperature": 1.0, "max_tokens": 20}
    first = run(make_engine(ours), request("a", prompt, seed=1, **options)).tokens("a")
    crowd = [request(f"x{i}", p, **options) for i, p in enumerate(random_prompts([9, 77, 4]))]
    among = run(make_engine(ours), *crowd, request("b", prompt, seed=1, **options)).tokens("b")
    other = run(make_engine(ours), request("c", prompt, seed=2, **options)).tokens("c")
    assert first == among != other


def test_logprobs_are_the_models_own(pair) -> None:
    theirs, ours = pair
    (prompt,) = random_prompts([20])
    options = {"temperature": 0.7, "seed": 2, "repetition_penalty": 1.5, "logit_bias": ((5, 9.0),)}
    found = run(make_engine(ours), request("r", prompt, logprobs=4, **options))
    tokens = found.tokens("r")
    logits = theirs(mx.array([prompt + tokens]))[0].astype(mx.float32)
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for i, entry in enumerate(found.logprobs("r")):
        row = expected[len(prompt) - 1 + i]
        assert entry.logprob == pytest.approx(row[tokens[i]], abs=1e-4)
        assert [t for t, _ in entry.top] == np.argsort(-row)[:4].tolist()
        np.testing.assert_allclose([v for _, v in entry.top], np.sort(row)[::-1][:4], atol=1e-4)


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("length", [1, 2, 23])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_logprobs(pair, chunk: int, length: int, max_tokens: int) -> None:
    theirs, ours = pair
    (prompt,) = random_prompts([length])
    engine = make_engine(ours, chunk=chunk)
    r = request("r", prompt, prompt_logprobs=2, max_tokens=max_tokens)
    found = run(engine, r, request("other", prompt[::-1]))
    logits = theirs(mx.array([prompt]))[0]
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    entries = found.prompt_logprobs("r")
    assert len(entries) == length and entries[0].logprob is None
    for i, entry in enumerate(entries[1:]):
        assert entry.logprob == pytest.approx(expected[i][prompt[i + 1]], abs=1e-4)
        assert [t for t, _ in entry.top] == np.argsort(-expected[i])[:2].tolist()
    assert len(found.tokens("r")) == max_tokens
    assert found.reason("r") == "length"


def test_end_token_stops_unless_ignored(pair) -> None:
    theirs, ours = pair
    (prompt,) = random_prompts([15])
    expected = greedy(theirs, prompt, 12)
    eos = expected[5]
    first = expected.index(eos)
    found = run(make_engine(ours), request("r", prompt, eos={eos}))
    assert found.tokens("r") == expected[: first + 1]
    assert found.reason("r") == "stop"
    found = run(make_engine(ours), request("r", prompt, eos={eos}, ignore_eos=True))
    assert found.tokens("r") == expected
    assert found.reason("r") == "length"


def test_abort_frees_the_row_at_once(pair) -> None:
    _, ours = pair
    engine, found = make_engine(ours, chunk=16), Collected()
    prompts = random_prompts([100, 10, 12])
    for i, p in enumerate(prompts):
        engine.add(request(f"r{i}", p, max_tokens=50))
    for _ in range(2):
        found.take(engine.step())
    engine.abort("r0")  # in prefill
    engine.abort("r1")  # decoding
    assert engine.num_running == 1
    run(engine, into=found)
    alone = run(make_engine(ours), request("r2", prompts[2], max_tokens=50))
    assert found.tokens("r2") == alone.tokens("r2")
    assert ours.cache.nbytes == 0


def test_abort_of_one_copy_leaves_the_others(pair) -> None:
    _, ours = pair
    (prompt,) = random_prompts([9])
    engine, found = make_engine(ours), Collected()
    engine.add(request("r", prompt, n=3, temperature=1.0))
    for _ in range(4):
        found.take(engine.step())
    engine.abort("r", 1)
    run(engine, into=found)
    assert [len(found.tokens("r", i)) for i in (0, 2)] == [12, 12]
    assert len(found.tokens("r", 1)) < 12


def test_more_requests_than_places_all_get_done(pair) -> None:
    _, ours = pair
    requests = mixture(random_prompts([11] * 20))
    found = run(make_engine(ours, batch=3), *requests)
    assert all(len(found.tokens(r.id)) == r.params.max_tokens for r in requests)
    assert ours.cache.nbytes == 0


def test_a_long_prompt_starves_neither_streams_nor_short_prompts(pair) -> None:
    _, ours = pair
    engine, found = make_engine(ours, chunk=16), Collected()
    long, stream, short = random_prompts([1500, 5, 7])
    engine.add(request("stream", stream, max_tokens=200))
    for _ in range(3):
        found.take(engine.step())
    engine.add(request("long", long))
    found.take(engine.step())
    engine.add(request("short", short, max_tokens=3))
    before = len(found.tokens("stream"))
    for _ in range(8):
        found.take(engine.step())
    assert found.reason("short") == "length"
    assert len(found.tokens("stream")) == before + 8
    assert not found.tokens("long")
    engine.drop_all()


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers(pair) -> None:
    _, ours = pair
    engine = make_engine(ours, kv_bytes=ours.cache.cost(256))
    with pytest.raises(RequestError, match=r"1000 tokens.* 256 .*--max-kv-bytes"):
        engine.add(request("r", random_prompts([1000])[0]))
    ours.cache.max_bytes = float("inf")


def test_one_requests_failure_is_its_own(pair, monkeypatch) -> None:
    _, ours = pair
    prompts = random_prompts([6, 7, 8])
    requests = [request(f"r{i}", p, max_tokens=30) for i, p in enumerate(prompts)]
    expected = {r.id: run(make_engine(ours), r).tokens(r.id) for r in requests}
    engine = make_engine(ours)
    forward = ours.forward

    def failing(tokens, rows):
        if any(row.adapters for row in rows):
            forward(tokens, rows)  # leaves half-built state behind
            raise ValueError("out of luck")
        return forward(tokens, rows)

    monkeypatch.setattr(ours, "forward", failing)
    found = Collected()
    for r in requests:
        engine.add(r)
    for _ in range(5):
        found.take(engine.step())
    bad = request("bad", prompts[0])
    object.__setattr__(bad, "adapters", (("x", 1.0),))
    run(engine, bad, into=found)
    assert "out of luck" in str(found.errors["bad"])
    assert list(found.errors) == ["bad"]
    assert {r.id: found.tokens(r.id) for r in requests} == expected
    assert ours.cache.nbytes == 0


def test_rows_that_fail_only_in_company_still_get_done(pair, monkeypatch) -> None:
    _, ours = pair
    requests = [request(f"r{i}", p, max_tokens=9) for i, p in enumerate(random_prompts([6, 7, 8]))]
    expected = {r.id: run(make_engine(ours), r).tokens(r.id) for r in requests}
    forward = ours.forward

    def unsociable(tokens, rows):
        if len(rows) > 1:
            raise ValueError("one at a time")
        return forward(tokens, rows)

    monkeypatch.setattr(ours, "forward", unsociable)
    engine = make_engine(ours)
    found = run(engine, *requests)
    assert {r.id: found.tokens(r.id) for r in requests} == expected
    assert engine.num_steps < 100


@pytest.mark.parametrize("after", range(1, 14))
def test_a_failure_while_reading_loses_nothing(pair, monkeypatch, after: int) -> None:
    # Under memory pressure, so that preempted rows have tokens on their way.
    _, ours = pair
    requests = [
        request(f"r{i}", p, max_tokens=120, prompt_logprobs=1 if i == 1 else None)
        for i, p in enumerate(random_prompts([200, 210, 220]))
    ]
    expected = {r.id: run(make_engine(ours), r).tokens(r.id) for r in requests}
    engine = make_engine(ours, kv_bytes=3 * ours.cache.cost(256))
    read, calls = engine.runner.read, []

    def unlucky(flight):
        calls.append(flight)
        if len(calls) == 6 * after:
            raise RuntimeError("lost")
        return read(flight)

    monkeypatch.setattr(engine.runner, "read", unlucky)
    found = run(engine, *requests)
    ours.cache.max_bytes = float("inf")
    assert not found.errors
    assert {r.id: found.tokens(r.id) for r in requests} == expected
    entries = found.prompt_logprobs("r1")
    assert len(entries) == 210 and [e.logprob for e in entries].count(None) == 1
    done = [o.prompt_tokens_done for o in found.outputs["r0", 0]]
    assert done == sorted(done)


@pytest.mark.parametrize("slots", [1, 1.5, 2.5, 4])
def test_no_row_outgrows_the_budget_and_what_does_not_fit_ends_in_length(pair, slots) -> None:
    _, ours = pair
    budget = int(slots * ours.cache.cost(256))
    engine, found = make_engine(ours, kv_bytes=budget), Collected()
    prompts = random_prompts([100, 40])
    for i, prompt in enumerate(prompts):
        engine.add(request(f"r{i}", prompt, max_tokens=3000))
    most = 0
    while engine.busy:
        found.take(engine.step())
        most = max(most, ours.cache.nbytes)
    ours.cache.max_bytes = float("inf")
    assert most <= budget
    assert engine.max_tokens in (256, 384, 512, 1024)
    for i, prompt in enumerate(prompts):
        tokens = found.tokens(f"r{i}")
        assert len(prompt) + len(tokens) == engine.max_tokens
        assert found.reason(f"r{i}") == "length"
        alone = run(make_engine(ours), request("a", prompt, max_tokens=len(tokens)))
        assert alone.tokens("a") == tokens


def test_failures_of_others_are_not_held_against_a_row(pair, monkeypatch) -> None:
    _, ours = pair
    forward = ours.forward

    def failing(tokens, rows):
        if any(row.adapters for row in rows):
            raise ValueError("out of luck")
        return forward(tokens, rows)

    monkeypatch.setattr(ours, "forward", failing)
    engine, found = make_engine(ours), Collected()
    for i, prompt in enumerate(random_prompts([6, 7])):
        engine.add(request(f"r{i}", prompt, max_tokens=200))
    for number in range(5):
        bad = request(f"bad{number}", [1, 2, 3])
        object.__setattr__(bad, "adapters", (("x", 1.0),))
        engine.add(bad)
        for _ in range(12):
            found.take(engine.step())
    assert sorted(found.errors) == [f"bad{i}" for i in range(5)]
    engine.add(request("new", [4, 5, 6], max_tokens=3))
    for _ in range(6):
        found.take(engine.step())
    assert found.reason("new") == "length"
    assert engine.num_running == 2
    engine.drop_all()
    assert ours.cache.nbytes == 0


def test_a_failure_to_make_room_is_survived(pair, monkeypatch) -> None:
    _, ours = pair
    requests = [request(f"r{i}", p) for i, p in enumerate(random_prompts([6, 7, 8]))]
    expected = {r.id: run(make_engine(ours), r).tokens(r.id) for r in requests}
    engine = make_engine(ours)
    open_seat, calls = engine.model.cache.open, []

    def unlucky(*args):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("no room")
        return open_seat(*args)

    monkeypatch.setattr(engine.model.cache, "open", unlucky)
    found = run(engine, *requests)
    assert not found.errors
    assert {r.id: found.tokens(r.id) for r in requests} == expected


def test_a_prompt_that_fills_the_context_can_be_evaluated(pair) -> None:
    _, ours = pair
    (prompt,) = random_prompts([ours.context_length])
    full = request("r", prompt, max_tokens=0, prompt_logprobs=0)
    found = run(make_engine(ours, chunk=512), full)
    assert len(found.prompt_logprobs("r")) == len(prompt)
    with pytest.raises(RequestError):
        make_engine(ours).add(request("r", prompt, max_tokens=1))
