"""The prefix cache: hit = cold, and nothing is computed that is known."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from models import Collected, make_engine, make_pair, random_prompts, request, run

from mlx_server.cache.base import Cache, Exported, Seat
from mlx_server.cache.prefix import BLOCK, PrefixCache, common_prefix
from mlx_server.core import GenerationRequest, TextPrompt
from mlx_server.engine.engine import Engine
from mlx_server.engine.scheduler import QUIET
from mlx_server.exchange import EngineRequest

SAMPLED = {"temperature": 1.0, "seed": 4, "logprobs": 2}


@pytest.fixture(scope="module")
def ours():
    return make_pair()[1]


@pytest.fixture
def engine(ours):
    engine = make_engine(ours, prefix_bytes=None)
    yield engine
    engine.drop_all()
    assert ours.cache.nbytes == 0


def cold(ours, r: EngineRequest, index: int = 0) -> list[int]:
    return run(make_engine(ours), r).tokens(r.id, index)


def work(engine: Engine, *requests: EngineRequest) -> tuple[Collected, int, int]:
    """What the requests yield, and how many prompt tokens were computed and found for them."""
    before = engine.stats()
    found = run(engine, *requests)
    after = engine.stats()
    computed, cached = (
        after[name] - before[name] for name in ("prompt_tokens_computed", "prompt_tokens_cached")
    )
    return found, computed, cached


def check_same(a: Collected, b: Collected, name: str) -> None:
    assert a.tokens(name) == b.tokens(name)
    for left, right in zip(a.logprobs(name), b.logprobs(name), strict=True):
        assert left.logprob == pytest.approx(right.logprob, abs=1e-4)


# ---------------------------------------------------------------- hit = cold


@pytest.mark.parametrize("length", [40, 300, 700])
def test_a_conversation_computes_only_what_is_new(ours, engine, length: int) -> None:
    (history,) = random_prompts([length])
    for turn in range(4):
        r = request(f"t{turn}", history, **SAMPLED)
        found, computed, cached = work(engine, r)
        check_same(found, run(make_engine(ours), r), r.id)
        assert computed + cached == len(history)
        if turn:
            # The last token of a reply is computed only if another one follows it.
            assert computed <= 8 + 1
            assert found.outputs[r.id, 0][0].cached_tokens == cached
        history = history + found.tokens(r.id) + random_prompts([8], seed=turn)[0]


@pytest.mark.parametrize("length", [1, 2, 5, 100, 600])
def test_a_prompt_found_whole_computes_its_last_token(ours, engine, length: int) -> None:
    (prompt,) = random_prompts([length])
    first, _, _ = work(engine, request("a", prompt, **SAMPLED))
    again, computed, _ = work(engine, request("b", prompt, **SAMPLED))
    assert computed == 1
    assert again.tokens("b") == first.tokens("a")


def test_hits_and_misses_are_counted(ours, engine) -> None:
    a, b = random_prompts([100, 90])
    work(engine, request("a", a))
    work(engine, request("b", b), request("c", a + [1]))
    stats = engine.stats()
    assert (stats["prefix_hits"], stats["prefix_misses"]) == (1, 2)


def test_a_prefix_of_what_is_known_is_known(ours, engine) -> None:
    (prompt,) = random_prompts([500])
    work(engine, request("a", prompt))
    r = request("b", prompt[:350], **SAMPLED)
    found, computed, _ = work(engine, r)
    assert computed == 1
    check_same(found, run(make_engine(ours), r), "b")
    # And the longer one is still there.
    assert work(engine, request("c", prompt))[1] == 1


def test_an_answer_rendered_anew_keeps_the_turns_before_it(ours, engine) -> None:
    (prompt,) = random_prompts([200])
    first, _, _ = work(engine, request("a", prompt, max_tokens=50))
    answer = first.tokens("a")
    r = request("b", prompt + answer[30:] + [5, 6, 7], **SAMPLED)  # its reasoning was dropped
    found, computed, cached = work(engine, r)
    assert cached >= 200 and computed <= 20 + 3
    check_same(found, run(make_engine(ours), r), "b")


def test_conversations_share_what_they_have_in_common(ours, engine) -> None:
    system, *users = random_prompts([300, 20, 25, 30])
    for i, user in enumerate(users):
        r = request(f"c{i}", system + user, **SAMPLED)
        found, computed, _ = work(engine, r)
        assert computed == len(user) if i else 300 + len(user)
        check_same(found, run(make_engine(ours), r), r.id)
    # None of them has been lost to another.
    for i, user in enumerate(users):
        assert work(engine, request(f"d{i}", system + user))[1] == 1


@pytest.mark.parametrize("chunk", [16, 64, 1000])
def test_requests_that_come_together_compute_their_prefix_once(ours, chunk: int) -> None:
    engine = make_engine(ours, chunk=chunk, prefix_bytes=None)
    system, *rest = random_prompts([400, *range(5, 12)])
    users = [[i, *user] for i, user in enumerate(rest)]
    requests = [request(f"r{i}", system + u, **SAMPLED) for i, u in enumerate(users)]
    found, computed, cached = work(engine, *requests)
    assert computed == 400 + sum(map(len, users))
    assert cached == 400 * (len(users) - 1)
    for r in requests:
        assert found.tokens(r.id) == cold(ours, r)
    engine.drop_all()


def test_a_late_comer_waits_for_what_is_being_computed(ours) -> None:
    engine, found = make_engine(ours, chunk=32, prefix_bytes=None), Collected()
    (prompt,) = random_prompts([500])
    requests = [request("a", prompt + [1, 2]), request("b", prompt + [3]), request("c", [9] * 40)]
    engine.add(requests[0])
    for _ in range(3):
        found.take(engine.step())
    engine.add(requests[1])
    engine.add(requests[2])
    found.take(engine.step())
    assert [s.request.id for s in engine.scheduler.waiting] == ["b"]  # nobody waits behind it
    run(engine, into=found)
    assert engine.stats()["prompt_tokens_computed"] == 502 + 1 + 40
    for r in requests:
        assert found.tokens(r.id) == cold(ours, r)
    engine.drop_all()


@pytest.mark.parametrize("gone", ["aborted", "failed"])
def test_who_waited_for_another_goes_on_without_it(ours, monkeypatch, gone: str) -> None:
    engine, found = make_engine(ours, chunk=32, prefix_bytes=None), Collected()
    (prompt,) = random_prompts([500])
    a, b = request("a", prompt), request("b", prompt + [3])
    engine.add(a)
    found.take(engine.step())
    engine.add(b)
    for _ in range(3):
        found.take(engine.step())
    if gone == "aborted":
        engine.abort("a")
    else:
        monkeypatch.setattr(engine.runner, "read", lambda flight: 1 / 0)
        found.take(engine.step())
        monkeypatch.undo()
    run(engine, into=found)
    assert found.tokens("b") == cold(ours, b)
    assert not found.errors
    engine.drop_all()


@pytest.mark.parametrize("length", [1, 2, 30, 300])
def test_n_copies_compute_the_prompt_once(ours, engine, length: int) -> None:
    (prompt,) = random_prompts([length])
    r = request("r", prompt, n=5, temperature=1.0, seed=3)
    found, computed, _ = work(engine, r)
    assert computed == length + 4  # each takes its first logits from the last token
    again = run(make_engine(ours), r)
    for i in range(5):
        assert found.tokens("r", i) == again.tokens("r", i)


def test_what_an_aborted_prefill_computed_is_not_lost(ours, engine) -> None:
    (prompt,) = random_prompts([900])
    engine.add(request("a", prompt))
    for _ in range(2):
        engine.step()
    engine.abort("a")
    r = request("b", prompt, **SAMPLED)
    found, computed, cached = work(engine, r)
    done = 2 * QUIET * 64
    assert (computed, cached) == (900 - done, done)
    check_same(found, run(make_engine(ours), r), "b")


def test_prompt_logprobs_are_computed_even_where_the_prompt_is_known(ours, engine) -> None:
    (prompt,) = random_prompts([90])
    work(engine, request("a", prompt))
    r = request("b", prompt, prompt_logprobs=1)
    found, computed, _ = work(engine, r)
    assert computed == 90
    assert len(found.prompt_logprobs("b")) == 90


def test_other_adapters_have_other_prefixes(ours, engine) -> None:
    (prompt,) = random_prompts([90])
    work(engine, request("a", prompt))
    under = request("b", prompt)
    object.__setattr__(under, "adapters", (("x", 1.0),))
    assert work(engine, under)[1] == 90
    assert work(engine, under)[1] == 1


@pytest.mark.parametrize("slots", [2, 3.5, 6])
def test_rows_get_the_room_that_the_prefix_cache_has(ours, slots: float) -> None:
    budget = int(slots * ours.cache.cost(256))
    engine, most = make_engine(ours, kv_bytes=budget, prefix_bytes=None), 0
    prompts = random_prompts([100, 40, 90, 200, 100, 230, 60])
    found = Collected()
    for i, prompt in enumerate(prompts * 3):
        engine.add(request(f"r{i}", prompt, max_tokens=30))
        for _ in range(12):
            found.take(engine.step())
            most = max(most, ours.cache.nbytes)
    run(engine, into=found)
    ours.cache.max_bytes = float("inf")
    assert most <= budget and engine.stats()["prefix_evictions"] > 0
    for i, prompt in enumerate(prompts):
        alone = cold(ours, request("x", prompt, max_tokens=30))
        assert all(found.tokens(f"r{i + 7 * k}") == alone for k in range(3))
    engine.drop_all()


def test_the_cache_is_bounded_in_bytes_and_entries(ours) -> None:
    prompts = random_prompts([300] * 8)
    limit = 3 * ours.cache.cost(320)
    engine = make_engine(ours, prefix_bytes=limit)
    for i, prompt in enumerate(prompts):
        run(engine, request(f"r{i}", prompt))
        assert engine.stats()["prefix_bytes"] <= limit
    assert engine.stats()["prefix_entries"] >= 2
    # The last one is there still, the first one is not.
    assert work(engine, request("z", prompts[-1]))[1] == 1
    assert work(engine, request("y", prompts[0]))[1] == 300
    engine.prefixes.max_entries = 1
    run(engine, request("x", prompts[1]))
    assert engine.stats()["prefix_entries"] == 1
    engine.drop_all()


def test_it_is_told_where_a_conversation_diverged(ours, engine, caplog) -> None:
    (prompt,) = random_prompts([120])
    work(engine, request("a", prompt))
    changed = [*prompt[:70], (prompt[70] + 1) % 101, *prompt[71:]]
    with caplog.at_level(logging.DEBUG, "mlx_server.engine.seating"):
        found, _, _ = work(engine, request("b", changed))
        origin, *rest = (output.origin for output in found.outputs["b", 0])
        whole, _, _ = work(engine, request("c", prompt))
    assert (origin.known, origin.position) == (70, 70)
    assert origin.there == tuple(prompt[70:78]) and origin.here == tuple(changed[70:78])
    assert not any(rest)
    assert whole.outputs["c", 0][0].origin.position is None
    quiet, _, _ = work(engine, request("d", changed[:90]))
    assert quiet.outputs["d", 0][0].origin is None


def test_the_log_quotes_where_a_conversation_diverged(open_pool, stories, caplog) -> None:
    pool = open_pool(model=str(stories / "stories260k"))
    with caplog.at_level(logging.DEBUG, "mlx_server"):
        for name, text in (("a", "Once upon a time there was a dog"), ("b", "Once upon a cat")):
            list(
                pool.generate(GenerationRequest(name, None, (TextPrompt(text),), {"max_tokens": 2}))
            )
    (message,) = [r.message for r in caplog.records if "differs" in r.message]
    assert message.startswith("b/0: ") and "time" in message and "cat" in message


# ---------------------------------------------------------------- the cache by itself


@pytest.mark.parametrize("size", [0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_common_prefix(size: int) -> None:
    a = np.arange(size + 7, dtype=np.int32)
    b = a.copy()
    b[size] = -1
    assert common_prefix(a, b) == size
    assert common_prefix(a[:size], a) == size


class Shelf(Cache):
    """Seats that cost what they hold."""

    def __init__(self) -> None:
        self.open_seats: set[Seat] = set()

    def open(self, num_tokens: int, expected: int = 1) -> Seat:
        seat = Seat(num_tokens)
        self.open_seats.add(seat)
        return seat

    def fork(self, seat: Seat, length: int, num_tokens: int, expected: int = 1) -> Seat:
        return self.open(length)

    def reserve(self, seat: Seat, num_tokens: int) -> None: ...

    def truncate(self, seat: Seat, length: int) -> None:
        seat.length = length

    def keep(self, seat: Seat) -> None: ...

    def close(self, seat: Seat) -> None:
        self.open_seats.remove(seat)

    def cost(self, num_tokens: int) -> int:
        return num_tokens

    def held(self, seat: Seat) -> int:
        return seat.length

    def export(self, seat: Seat, length: int) -> Exported:
        return {}, {}

    def adopt(self, arrays, metadata, length: int) -> Seat:
        return self.open(length)

    @property
    def nbytes(self) -> int:
        return sum(seat.length for seat in self.open_seats)


def test_a_lookup_of_60k_tokens_reads_each_entry_once_at_most(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    shelf = Shelf()
    prefixes = PrefixCache(shelf, float("inf"), float("inf"))
    prompt = rng.integers(0, 32000, 60_000).astype(np.int32)
    for i in range(64):
        tokens = prompt.copy()
        tokens[59_000 + i] += 1
        prefixes.store(tokens, (), shelf.open(len(tokens)))
    assert len(prefixes) == 64
    read = []

    def counting(a: np.ndarray, b: np.ndarray) -> int:
        read.append(min(len(a), len(b)))
        return common_prefix(a, b)

    monkeypatch.setattr("mlx_server.cache.prefix.common_prefix", counting)
    assert prefixes.find(prompt, ()).length == 59_063
    assert sum(read) <= 64 * len(prompt)


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_what_a_search_through_all_would(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shelf = Shelf()
    prefixes = PrefixCache(shelf, 400, 12)
    for _ in range(400):
        tokens = rng.integers(0, 2, rng.integers(1, 30)).astype(np.int32)
        if rng.random() < 0.5:
            prefixes.store(tokens, (), shelf.open(len(tokens)))
        else:
            known = [common_prefix(e.tokens, tokens) for e in prefixes]
            match = prefixes.find(tokens, ())
            best = min(max(known, default=0), len(tokens) - 1)
            assert (match.length if match else 0) == best
        assert prefixes.nbytes == shelf.nbytes == sum(len(e.tokens) for e in prefixes) <= 400
        assert len(prefixes) <= 12
        held = [tuple(e.tokens) for e in prefixes]
        assert not any(a != b and b[: len(a)] == a for a in held for b in held)
        assert len(set(held)) == len(held)


def test_entries_may_be_looked_at_while_they_go(ours, engine) -> None:
    """As another thread does that tells the figures."""
    tokens = [request(f"r{i}", [i + 1] * 70, max_tokens=2) for i in range(3)]
    work(engine, *tokens)
    entries = iter(engine.prefixes)
    engine.prefixes.evict()
    assert len(list(entries)) == len(engine.prefixes) + 1
