"""Samplers that remember (mirostat, DRY), in a batch and through whatever happens to it, and
probabilities of what was sampled from."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from models import Collected, lose_a_pass, make_engine, make_pair, random_prompts, request, run

MEMORY = [
    {"temperature": 1.0, "seed": 1, "mirostat": 1, "mirostat_tau": 3.0, "mirostat_eta": 0.3},
    {"temperature": 1.0, "seed": 2, "mirostat": 2, "mirostat_tau": 2.0, "mirostat_eta": 0.5},
    {"temperature": 1.0, "seed": 3, "dry_multiplier": 1.0, "dry_breakers": ((5,), (7, 9))},
    {"dry_multiplier": 2.0, "dry_allowed_length": 1, "logprobs": 2},
    {"temperature": 0.8, "seed": 4},
    {"temperature": 0.9, "seed": 5, "mirostat": 2, "presence_penalty": 0.7, "probs": 3},
]


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def remembering(max_tokens: int = 60):
    prompts = random_prompts([20, 33, 4, 40, 11, 27])
    return [
        request(f"r{i}", p, n=1 + i % 2, max_tokens=max_tokens, **options)
        for i, (p, options) in enumerate(zip(prompts, MEMORY, strict=True))
    ]


@pytest.mark.parametrize("overlaps", [False, True])
def test_samplers_that_remember_do_so_in_a_batch(pair, overlaps: bool) -> None:
    _, ours = pair
    requests = remembering()
    engine = make_engine(ours)
    engine.runner.overlaps = overlaps
    together = run(engine, *requests)
    for r in requests:
        alone = run(make_engine(ours), r)
        for i in range(r.n):
            assert together.tokens(r.id, i) == alone.tokens(r.id, i)
    # They do change what is said.
    plain = replace(requests[1], params=replace(requests[1].params, mirostat=0))
    assert run(make_engine(ours), plain).tokens("r1") != together.tokens("r1")


def test_mirostat_goes_on_from_its_last_threshold(pair, monkeypatch) -> None:
    _, ours = pair
    engine, found = make_engine(ours), Collected()
    given: dict[int, list[float | None]] = {0: [], 1: []}
    told: dict[int, list[float | None]] = {0: [None], 1: [None]}
    draw = engine.runner._draw

    def drawing(flight, rows, last):
        for row in rows:
            given[row.choice].append(row.mu)
        draw(flight, rows, last)

    monkeypatch.setattr(engine.runner, "_draw", drawing)
    engine.add(remembering()[1])
    while engine.busy:
        found.take(engine.step())
        for sequence in engine.scheduler.running:
            if sequence.mu is not None and sequence.mu != told[sequence.index][-1]:
                told[sequence.index].append(sequence.mu)
    for index in range(2):
        assert given[index][: len(told[index])] == told[index]
        assert len(told[index]) > 50


def test_preempted_rows_go_on_with_what_they_remember(pair) -> None:
    _, ours = pair
    requests = [replace(r, n=1) for r in remembering(300)[:4]]
    expected = {r.id: run(make_engine(ours), r).tokens(r.id) for r in requests}
    engine = make_engine(ours, kv_bytes=4 * ours.cache.cost(256))
    found = run(engine, *requests)
    ours.cache.max_bytes = float("inf")
    assert engine.scheduler.num_preemptions > 0
    assert {r.id: found.tokens(r.id) for r in requests} == expected


@pytest.mark.parametrize("after", [1, 2, 3, 10, 25])
def test_a_pass_that_fails_is_not_remembered(pair, monkeypatch, after: int) -> None:
    _, ours = pair
    requests = remembering()
    expected = run(make_engine(ours), *requests)
    engine = make_engine(ours)
    lose_a_pass(engine, monkeypatch, after)
    found = run(engine, *requests)
    for r in requests:
        assert [found.tokens(r.id, i) for i in range(r.n)] == [
            expected.tokens(r.id, i) for i in range(r.n)
        ]


@pytest.mark.parametrize("logprobs", [None, 0, 4])
def test_probabilities_of_what_was_sampled_from(pair, logprobs: int | None) -> None:
    theirs, ours = pair
    (prompt,) = random_prompts([20])
    bias = tuple((token, -100.0) for token in range(50))
    options = {"temperature": 0.5, "seed": 2, "logit_bias": bias, "logprobs": logprobs}
    r, other = request("r", prompt, probs=3, **options), request("o", prompt[::-1], logprobs=1)
    found = run(make_engine(ours), r, other)
    tokens = found.tokens("r")
    logits = theirs(mx.array([prompt + tokens]))[0].astype(mx.float32)
    biased = logits + mx.array([-100.0 * (token < 50) for token in range(101)])
    expected, raw = (np.array(mx.softmax(x, axis=-1)) for x in (2 * biased, logits))
    for i, entry in enumerate(found.logprobs("r")):
        row = expected[len(prompt) - 1 + i]
        assert entry.prob == pytest.approx(row[tokens[i]], abs=1e-4)
        np.testing.assert_allclose(
            [v for _, v in entry.top_probs], np.sort(row)[::-1][:3], atol=1e-4
        )
        assert np.exp(entry.logprob) == pytest.approx(raw[len(prompt) - 1 + i][tokens[i]], abs=1e-4)
        assert len(entry.top) == (logprobs or 0)
    assert all(c.prob is None and len(c.top) == 1 for c in found.logprobs("o"))
