"""What an engine is allowed, and what it counts."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from model_folders import write_random
from models import Collected, make_engine, make_pair, random_prompts, request, run

from mlx_server.config import Config
from mlx_server.engine.engine import Engine
from mlx_server.engine.limits import Limits
from mlx_server.engine.loading import load_engine
from mlx_server.errors import ModelLoadError, RequestError


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def test_limits_of_the_command_line() -> None:
    given = Limits.of(
        Config(
            parallel=4, ctx_size=1000, prompt_concurrency=2, cont_batching=False,
            max_total_seq_length=5000, slot_prompt_similarity=0.25, enable_tracing=True,
        )
    )  # fmt: skip
    assert (given.max_batch_size, given.prompt_concurrency, given.cont_batching) == (4, 2, False)
    assert (given.max_total_tokens, given.slot_similarity, given.trace) == (5000, 0.25, True)
    assert given.context_of(2048) == 250
    plain = Limits.of(Config())
    assert (plain.max_batch_size, plain.context_of(2048)) == (Config.max_batch_size, 2048)
    assert (plain.cont_batching, plain.trace, plain.max_total_tokens) == (True, False, None)


def test_prompts_of_a_step_can_be_limited(pair) -> None:
    _, ours = pair
    prompts = random_prompts([100, 90, 80, 70])
    requests = [request(f"r{i}", p, max_tokens=4) for i, p in enumerate(prompts)]
    expected = run(make_engine(ours, chunk=48), *requests)
    for limit, most in ((1, 1), (2, 2), (None, 3)):
        engine, found = Engine(ours, Limits(8, 48, prompt_concurrency=limit)), Collected()
        for r in requests:
            engine.add(r)
        widest = 0
        while engine.busy:
            found.take(engine.step())
            rows = engine._flight.rows if engine._flight else []
            widest = max(widest, sum(row.num_tokens > 1 for row in rows))
        assert widest >= most if limit is None else widest == most
        assert [found.tokens(r.id) for r in requests] == [expected.tokens(r.id) for r in requests]
        engine.drop_all()


class Dictating:
    """A guide that leaves no choice: three tokens at a time."""

    ended = False

    def forced(self) -> list[int]:
        return [1, 2, 3]

    def accept(self, token_id: int) -> None:
        pass


@pytest.mark.parametrize("first", ["prompt", "reply"])
def test_a_reply_does_not_count_as_a_prompt(pair, first: str) -> None:
    _, ours = pair
    engine, found = Engine(ours, Limits(8, 16, prompt_concurrency=1)), Collected()
    requests = [
        request("prompt", random_prompts([200])[0], max_tokens=1),
        replace(request("reply", [5], max_tokens=300), guide=Dictating),
    ]
    for r in sorted(requests, key=lambda r: r.id != first):
        engine.add(r)
    found.take(engine.step())
    prompt, reply = sorted(engine.scheduler.running, key=lambda s: s.request.id)
    for _ in range(10):
        before = prompt.num_computed, reply.num_computed
        found.take(engine.step())
        assert (prompt.num_computed, reply.num_computed) == (before[0] + 13, before[1] + 3)
    engine.drop_all()


def test_without_continuous_batching_nobody_joins(pair) -> None:
    _, ours = pair
    engine, found = Engine(ours, Limits(3, 64, cont_batching=False)), Collected()
    prompts = random_prompts([9, 12, 10, 8, 7])
    requests = [
        request(f"r{i}", p, n=1 + (i == 0), max_tokens=5 + 9 * i) for i, p in enumerate(prompts)
    ]
    for r in requests[:3]:  # four sequences for three places
        engine.add(r)
    parties: list[set[str]] = []
    while engine.busy:
        found.take(engine.step())
        if len(requests) > 3 and engine.num_steps == 4:
            for r in (requests.pop(), requests.pop()):
                engine.add(r)
        party = {f"{s.request.id}[{s.index}]" for s in engine.scheduler.running}
        # The copy comes when the prompt is computed that it shares.
        if parties and party > parties[-1]:
            parties[-1] = party
        elif party and not (parties and party <= parties[-1]):
            parties.append(party)
    assert parties[0] == {"r0[0]", "r0[1]", "r1[0]"}
    assert parties[1] == {"r2[0]", "r4[0]", "r3[0]"}
    assert len(parties) == 2
    engine.drop_all()


@pytest.mark.parametrize("tokens", [256, 2048])
def test_tokens_of_all_sequences_can_be_limited(pair, tokens: int) -> None:
    _, ours = pair
    engine = Engine(ours, Limits(16, 64, 10**9, max_total_tokens=tokens))
    prompts = random_prompts([100] * 12)
    requests = [request(f"r{i}", p, max_tokens=40) for i, p in enumerate(prompts)]
    found, most = Collected(), 0
    for r in requests:
        engine.add(r)
    while engine.busy:
        found.take(engine.step())
        most = max(most, engine.stats()["kv_tokens"])
        assert ours.cache.nbytes <= ours.cache.cost(tokens) == engine.stats()["kv_budget_bytes"]
    assert most <= tokens and len(found.outputs) == 12
    with pytest.raises(RequestError, match="holds"):
        engine.add(request("r", random_prompts([tokens])[0]))
    engine.drop_all()
    ours.cache.max_bytes = float("inf")


def test_the_numbers_add_up(pair) -> None:
    _, ours = pair
    engine = make_engine(ours, prefix_bytes=None)
    before = time.monotonic()
    requests = [request(f"r{i}", p) for i, p in enumerate(random_prompts([100, 40, 7]))]
    run(engine, *requests)
    stats = engine.stats()
    assert (stats["prompt_tokens_computed"], stats["shifts"]) == (147, 0)
    assert 36 <= stats["generated_tokens"] <= 39  # a pass too many where one ends
    assert stats["prompt_seconds"] > 0 and stats["decode_seconds"] > 0
    assert stats["prompt_seconds"] + stats["decode_seconds"] <= time.monotonic() - before
    assert stats["kv_tokens"] == sum(len(e.tokens) for e in engine.prefixes) == 147 + 3 * 11
    assert (stats["running"], stats["waiting"], stats["slots"]) == (0, 0, 16)
    assert stats["kv_bytes"] == ours.cache.nbytes and stats["kv_budget_bytes"] == 0
    engine.drop_all()


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"context_length": 4, "num_shares": 4}, "--ctx-size.*--parallel"),
        ({"max_total_tokens": 1}, "--max-total-seq-length"),
        ({"max_kv_bytes": 1000}, "--max-kv-bytes"),
    ],
    ids=str,
)
def test_what_holds_no_sequence_is_refused_by_its_name(
    tmp_path: Path, limits: dict[str, int], named: str
) -> None:
    engines: dict[str, Engine] = {}
    with pytest.raises(ModelLoadError, match=named):
        load_engine(
            engines, write_random(tmp_path), name="m", limits=Limits(4, 64, **limits),
            max_models=1, trust_remote_code=False,
        )  # fmt: skip
    assert not engines
