"""Thousands of random arrivals, aborts, failures, guides, slots, lengths, context shifts and
budgets, and what must hold.

The model under test remembers: its next token follows from the sum of all tokens that it
finds stored in the row's seat. A slot that is leaked, shared, moved wrongly or taken from
the prefix cache at the wrong length gives another token than the reference, which
computes the same from a list.
"""

from __future__ import annotations

import gc
import logging
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from models import Collected, request

from mlx_server.cache.kv import KVCache
from mlx_server.engine.engine import Engine
from mlx_server.engine.limits import Limits
from mlx_server.engine.scheduler import QUIET
from mlx_server.engine.sequence import Status
from mlx_server.exchange import EngineRequest, Guide, GuideError
from mlx_server.models.base import Row, ServedModel
from mlx_server.sampling_params import SamplingParams

VOCAB = 251


def next_token(total: int, length: int) -> int:
    return (31 * total + 7 * length) % VOCAB


class Remembering(ServedModel):
    """Stores each token in its seat, and counts what is stored there."""

    def __init__(self) -> None:
        self.cache = KVCache(1, 1, 2, mx.float32)
        self.vocab_size = VOCAB
        self.context_length = 4000
        self.nbytes = 0
        self.fails_at: int | None = None
        self.num_calls = 0

    def forward(self, tokens: mx.array, rows: Sequence[Row]) -> tuple[mx.array, list[mx.array]]:
        self.num_calls += 1
        if self.num_calls == self.fails_at:
            raise RuntimeError("out of luck")
        logits, at = [], 0
        for row in rows:
            seat, end = row.seat, row.seat.length + row.num_tokens
            stored = seat.slab.layers[0][0]
            new = tokens[at : at + row.num_tokens].astype(mx.float32)
            stored[seat.slot, 0, seat.length : end, 0] = new
            at += row.num_tokens
            for length in range(end - row.num_logits + 1, end + 1):
                total = stored[seat.slot, 0, :length, 0].sum().astype(mx.int64)
                logits.append(mx.arange(VOCAB) == (31 * total + 7 * length) % VOCAB)
            seat.length = end
        if not logits:
            return mx.zeros((0, VOCAB)), [new.sum()]
        return mx.stack(logits).astype(mx.float32), []


class Rule:
    """A guide whose every say follows from what it was told: runs of forced tokens, half of
    the tokens, all of them, the end, or a failure at any place."""

    def __init__(self, prompt: Sequence[int], fails: bool) -> None:
        self.total, self.length, self.fails = sum(prompt), len(prompt), fails
        self.queue: list[int] = []
        self.ended = self.broken = False
        self._decide()

    def _decide(self) -> None:
        self.state = (self.total * 2654435761 + self.length * 40503) % 100_003
        if not self.queue and self.state % 4 == 0:
            self.queue = [(self.state * i) % VOCAB for i in range(1, 2 + self.state % 70)]
        self.ended = self.state % 53 == 1
        self.broken |= self.fails and self.state % 29 == 2

    def _check(self) -> None:
        if self.broken:
            raise GuideError("too complex")

    def forced(self) -> list[int]:
        self._check()
        return list(self.queue)

    def options(self) -> list[int]:
        if self.queue:
            return self.queue[:1]
        return list(range(self.state % 2, VOCAB, 2) if self.state % 3 else range(VOCAB))

    def allowed(self) -> np.ndarray | None:
        self._check()
        if len(self.options()) == VOCAB:
            return None
        bits = np.zeros(-(-VOCAB // 32) * 32, dtype=np.uint8)
        bits[self.options()] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token_id: int) -> None:
        self._check()
        assert token_id in self.options()
        del self.queue[:1]
        self.total, self.length = self.total + token_id, self.length + 1
        self._decide()
        # Now or when it is asked next; in a run of forced tokens nobody need ask before the end.
        if self.state % 2 or self.queue:
            self._check()


def shifted(window: list[int], keep: int, context: int) -> list[int]:
    """What stays of a full window (llama.cpp)."""
    keep = min(keep, context - 4)
    return window[:keep] + window[keep + (context - keep) // 2 :]


def expected(
    prompt: Sequence[int],
    count: int,
    eos: frozenset[int],
    guide: Rule | None = None,
    keep: int | None = None,
    context: int = 0,
) -> tuple[list[int], bool]:
    """The reply, and whether its guide fails."""
    window, found = list(prompt), []
    while len(found) < count:
        if keep is not None and len(window) >= context:
            window = shifted(window, keep if keep >= 0 else len(prompt), context)
        token = next_token(sum(window), len(window))
        try:
            if guide is not None:
                guide.forced()
                token = token if token in guide.options() else guide.options()[0]
            found.append(token)
            window.append(token)
            if token in eos:
                break
            if guide is not None:
                guide.accept(token)
                if guide.ended:
                    break
        except GuideError:
            return found, True
    return found, False


def check_invariants(engine: Engine, budget: float) -> None:
    scheduler, cache, prefixes = engine.scheduler, engine.model.cache, engine.prefixes
    # Every request's sequences are in one place each, and nobody else is.
    known = [s for group in engine._requests.values() for s in group]
    assert len(known) == len(set(known))
    assert set(scheduler.running) | set(scheduler.waiting) == set(known)
    assert len(scheduler.running) + len(scheduler.waiting) == len(known)
    assert all(s.status is Status.RUNNING and s.seat for s in scheduler.running)
    assert all(s.status is Status.WAITING and not s.seat for s in scheduler.waiting)
    assert len(scheduler.running) <= scheduler.max_batch_size
    # Everybody who runs sits in a slot, the one that was asked for if one was.
    slots = engine.slots
    assert {s for slot in slots if (s := slot.sequence)} == set(scheduler.running)
    assert all(slots[s.slot].sequence is s for s in scheduler.running)
    assert all(s.request.slot in (None, s.slot) for s in scheduler.running)
    assert all(s.slot is None for s in scheduler.waiting)
    # Every seat is a running sequence's or an entry's; every byte is a seat's or a free slot's.
    seats = [s.seat for s in scheduler.running] + [e.seat for e in prefixes]
    assert len(seats) == len(set(seats))
    slabs = {seat.slab for seat in seats}
    assert all(seat.slab.seats[seat.slot] is seat for seat in seats)
    assert sum(slab.num_live for slab in slabs) == len(seats)
    assert cache.nbytes == sum(slab.nbytes for slab in slabs) <= budget
    assert {slab for pool in cache.slabs.values() for slab in pool} <= slabs
    # The prefix cache is within its bounds, and each entry is what it says.
    assert prefixes.nbytes == sum(cache.held(e.seat) for e in prefixes) <= prefixes.max_bytes
    assert len(prefixes) <= prefixes.max_entries
    assert all(len(e.tokens) == e.seat.length for e in prefixes)


class Watch:
    """One step: decode rows ran, and prompts kept to the budget."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        running = engine.scheduler.running
        self.seats = {s: (s.seat, s.num_computed) for s in running}
        self.decoding = [s for s in running if s.num_to_compute == 1 and s.wants_step]
        # Who may have broken a step runs alone for a while.
        self.alone = bool(engine.scheduler.suspects)

    def check(self) -> None:
        done = {
            s: s.num_computed - before
            for s, (seat, before) in self.seats.items()
            if s.seat is seat and s.status is Status.RUNNING
        }
        budget = self.engine.scheduler.prefill_chunk_size * (QUIET if len(done) == 1 else 1)
        assert sum(n for n in done.values() if n > 1) <= budget
        if not self.alone and not self.engine.scheduler.suspects:
            assert all(done[s] == 1 for s in self.decoding if s in done)


class Driver:
    """Random requests over a few shared prefixes, and what must come of them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.context = 4000
        self.num_slots = 1
        self.shared = [self.tokens(n) for n in (40, 90, 300, 700)]
        self.requests: dict[str, EngineRequest] = {}
        self.aborted: set[tuple[str, int | None]] = set()
        self.guides: weakref.WeakSet[Rule] = weakref.WeakSet()

    def guide(self, prompt: list[int], fails: bool) -> Callable[[], Guide]:
        def make() -> Rule:
            rule = Rule(prompt, fails)
            self.guides.add(rule)
            return rule

        return make

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(VOCAB) for _ in range(count)]

    def request(self, number: int) -> EngineRequest:
        rng = self.rng
        start = rng.choice([[], *self.shared])
        prompt = start[: rng.choice([len(start), rng.randint(0, len(start))])]
        prompt = prompt + self.tokens(rng.choice([1, 3, 30, 200]))
        if self.requests and rng.random() < 0.3:  # the next turn of another
            last = rng.choice(list(self.requests.values()))
            prompt = [*last.token_ids, *self.reply(last)[0], *self.tokens(rng.randint(0, 9))]
        prompt = prompt[: min(1200, self.context - 90)]
        eos = frozenset(self.tokens(3)) if rng.random() < 0.5 else frozenset()
        count = rng.choice([0, 1, 2, 20, 90])
        r = request(f"r{number}", prompt, rng.choice([1, 1, 1, 3]), eos, max_tokens=count)
        if rng.random() < 0.2:
            r = replace(r, slot=rng.randrange(self.num_slots))
        if rng.random() < 0.1:
            r = replace(r, reuse=False)
        if rng.random() < 0.1:
            r = replace(r, params=SamplingParams(0, max_tokens=count, prompt_logprobs=1, seed=0))
        if rng.random() < 0.5:
            r = replace(r, guide=self.guide(prompt, fails=rng.random() < 0.2))
        if rng.random() < 0.15:
            keep, count = rng.choice([-1, 0, 5, 100, 1000]), rng.choice([0, 90, 250, 700])
            r = replace(r, params=replace(r.params, n_keep=keep, max_tokens=count))
        self.requests[r.id] = r
        return r

    def reply(self, r: EngineRequest) -> tuple[list[int], bool]:
        guide = r.guide() if r.guide is not None else None
        params = r.params
        return expected(
            r.token_ids, params.max_tokens, r.eos_token_ids, guide, params.n_keep, self.context
        )

    def check(self, found: Collected) -> None:
        for name, r in self.requests.items():
            tokens, fails = self.reply(r)
            left = [i for i in range(r.n) if not {(name, i), (name, None)} & self.aborted]
            if name in found.errors:
                assert fails
                continue
            assert not (left and fails)
            for i in left:
                assert found.tokens(name, i) == tokens
                assert found.reason(name, i) in ("stop", "length")


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_leaked_or_mixed_up(seed: int, caplog) -> None:
    caplog.set_level(logging.CRITICAL)  # records would keep the errors, and these the guides
    driver, model = Driver(seed), Remembering()
    rng, found = driver.rng, Collected()
    chunk, batch = rng.choice([8, 64, 512]), rng.choice([1, 3, 8, 20])
    budget = model.cache.cost(2000) * rng.choice([1, 1.5, 4, 30])
    prefix_bytes = rng.choice([None, None, budget // 2, 0])
    driver.num_slots = batch
    if rng.random() < 0.6:
        driver.context = 300
    limits = Limits(
        batch,
        chunk,
        int(budget),
        prefix_bytes,
        context_length=driver.context,
        prompt_concurrency=rng.choice([None, None, 1, 3]),
        cont_batching=rng.random() < 0.8,
        slot_similarity=rng.choice([0.0, 0.5]),
        trace=rng.random() < 0.5,
    )
    engine = Engine(model, limits)
    # What memory cannot hold is no context.
    driver.context = engine.max_tokens
    engine.runner.overlaps = rng.random() < 0.5
    engine.prefixes.max_entries = rng.choice([2, 10, 1000])
    for number in range(600):
        if rng.random() < (0.5 if number % 200 < 120 else 0.1):
            engine.add(driver.request(number))
        if engine._requests and rng.random() < 0.06:
            name = rng.choice(list(engine._requests))
            index = rng.choice([None, 0])
            driver.aborted.add((name, index))
            engine.abort(name, index)
            check_invariants(engine, budget)
        if rng.random() < 0.01 and not engine.scheduler.suspects:
            model.fails_at = model.num_calls + 1
        watch = Watch(engine)
        found.take(engine.step())
        watch.check()
        check_invariants(engine, budget)
        assert not found.errors.keys() & engine._requests.keys()
    for _ in range(50_000):
        if not engine.busy:
            break
        found.take(engine.step())
    check_invariants(engine, budget)
    assert not engine._requests
    driver.check(found)
    engine.drop_all()
    assert model.cache.nbytes == 0
    assert engine.counters.forced_tokens > 100
    del watch
    gc.collect()
    assert not driver.guides
