"""A full context makes room (`n_keep`): shifted = a fresh request for what has stayed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from models import (
    CONFIG,
    Collected,
    lose_a_pass,
    make_engine,
    make_pair,
    random_prompts,
    request,
    run,
)
from zoo_models import CONTEXT, EXTRA, MODELS, module_of

from mlx_server.cache.storage import Quantization
from mlx_server.engine.engine import Engine
from mlx_server.engine.limits import Limits
from mlx_server.exchange import EngineRequest
from mlx_server.models.base import ServedModel
from mlx_server.models.llama import LlamaModel
from mlx_server.models.zoo import ZooModel

WINDOW = 48


@pytest.fixture(scope="module")
def ours():
    return make_pair()[1]


def make_short(
    model: ServedModel,
    context: int = WINDOW,
    batch: int = 16,
    chunk: int = 64,
    prefix_bytes: int | None = 0,
) -> Engine:
    """An engine with a short context."""
    limits = Limits(batch, chunk, None, prefix_bytes, context_length=context)
    return Engine(model, limits)


def shifted(window: list[int], keep: int, context: int) -> list[int]:
    """What stays of a full window (llama.cpp)."""
    keep = min(keep, context - 4)
    return window[:keep] + window[keep + (context - keep) // 2 :]


def pieced(
    model: ServedModel, r: EngineRequest, context: int = WINDOW
) -> tuple[list[int], list[float]]:
    """The same reply from fresh requests, each for what has stayed; and its log-probabilities."""
    prompt, params = list(r.token_ids), r.params
    keep = len(prompt) if params.n_keep < 0 else params.n_keep
    window, reply, logprobs = prompt, [], []
    while (left := params.max_tokens - len(reply)) > 0:
        if len(window) >= context:
            window = shifted(window, keep, context)
        part = replace(
            r,
            token_ids=tuple(window),
            params=replace(params, n_keep=None, max_tokens=min(left, context - len(window))),
        )
        found = run(make_engine(model), part)
        window = window + found.tokens(r.id)
        reply += found.tokens(r.id)
        logprobs += [c.logprob for c in found.logprobs(r.id)]
    return reply, logprobs


@pytest.mark.parametrize("prefix_bytes", [0, None])
@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("keep", [-1, 0, 1, 25, 1000])
def test_shifted_equals_fresh(ours, keep: int, chunk: int, prefix_bytes: int | None) -> None:
    (prompt,) = random_prompts([20])
    r = request("r", prompt, n_keep=keep, max_tokens=130, logprobs=0)
    engine = make_short(ours, chunk=chunk, prefix_bytes=prefix_bytes)
    found = run(engine, r)
    tokens, logprobs = pieced(ours, r)
    assert found.tokens("r") == tokens
    assert found.reason("r") == "length"
    assert [c.logprob for c in found.logprobs("r")] == pytest.approx(logprobs, abs=1e-4)
    assert engine.stats()["shifts"] >= 3
    outputs = found.outputs["r", 0]
    # From the first token on that does not fit beside all that was there.
    told = [o.truncated for o in outputs if o.token_ids]
    assert told == [i > WINDOW - len(prompt) for i in range(1, 131)]
    assert outputs[-1].prompt_tokens_done == len(prompt)
    assert outputs[-1].cached_tokens == 0
    assert ours.cache.nbytes == sum(ours.cache.held(e.seat) for e in engine.prefixes)
    engine.drop_all()


def test_a_reply_that_fits_to_the_last_token_is_not_shifted(ours) -> None:
    (prompt,) = random_prompts([20])
    engine = make_short(ours)
    found = run(engine, request("r", prompt, n_keep=0, max_tokens=WINDOW - 20))
    assert len(found.tokens("r")) == WINDOW - 20
    assert engine.stats()["shifts"] == 0 and not found.outputs["r", 0][-1].truncated


def test_without_n_keep_the_reply_ends_with_the_context(ours) -> None:
    (prompt,) = random_prompts([20])
    found = run(make_short(ours), request("r", prompt, max_tokens=500))
    assert len(found.tokens("r")) == WINDOW - 20
    assert found.reason("r") == "length"


@pytest.mark.parametrize("name", [*MODELS, *EXTRA])
@pytest.mark.parametrize("keep", [0, 9])
def test_in_the_caches_of_other_architectures(name: str, keep: int) -> None:
    model = ZooModel(module_of(name), {"model_type": name}, CONTEXT)
    prompts = random_prompts([20, 31], vocab=97)
    requests = [
        request(f"r{i}", p, n_keep=keep, max_tokens=70, logprobs=0) for i, p in enumerate(prompts)
    ]
    engine = make_short(model, prefix_bytes=None)
    found = run(engine, *requests, request("plain", prompts[0][:5], max_tokens=40))
    assert engine.stats()["shifts"] >= 4
    for r in requests:
        tokens, logprobs = pieced(model, r)
        assert found.tokens(r.id) == tokens
        assert [c.logprob for c in found.logprobs(r.id)] == pytest.approx(logprobs, abs=1e-3)
    assert not found.outputs["plain", 0][-1].truncated


@pytest.mark.parametrize("start", [0, 30])
@pytest.mark.parametrize("keep", [0, 12, 40])
def test_with_quantised_keys_and_values(start: int, keep: int) -> None:
    config = CONFIG | {"head_dim": 32}
    _, plain = make_pair(config)
    model = LlamaModel(plain.module, 2048, quantization=Quantization(8, 32, start))
    (prompt,) = random_prompts([20])
    r = request("r", prompt, n_keep=keep, max_tokens=90)
    found = run(make_short(model, prefix_bytes=None), r)
    assert found.tokens("r") == pieced(model, r)[0]


OPTIONS = [
    {},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.8, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 1.0, "mirostat": 2},
    {"temperature": 1.0, "dry_multiplier": 0.8},
    {"temperature": 1.0, "logprobs": 2},
]


def mixture(max_tokens: int = 110) -> list[EngineRequest]:
    prompts = random_prompts([20, 33, 4, 40, 11, 27])
    return [
        request(
            f"r{i}", p, n=1 + i % 2, seed=i, n_keep=(-1, 0, 6)[i % 3], max_tokens=max_tokens, **o
        )
        for i, (p, o) in enumerate(zip(prompts, OPTIONS, strict=True))
    ] + [request("plain", prompts[0][:9], max_tokens=39)]


def replies(found: Collected, requests: list[EngineRequest]) -> list[list[int]]:
    return [found.tokens(r.id, i) for r in requests for i in range(r.n)]


@pytest.fixture(scope="module")
def alone(ours) -> list[list[int]]:
    return [reply for r in mixture() for reply in replies(run(make_short(ours), r), [r])]


@pytest.mark.parametrize("prefix_bytes", [0, None])
@pytest.mark.parametrize("batch", [3, 16])
@pytest.mark.parametrize("overlaps", [False, True])
def test_batched_equals_alone(ours, alone, batch: int, prefix_bytes, overlaps: bool) -> None:
    engine = make_short(ours, batch=batch, prefix_bytes=prefix_bytes)
    engine.runner.overlaps = overlaps
    assert replies(run(engine, *mixture()), mixture()) == alone
    engine.drop_all()


def test_preempted_rows_are_shifted_as_well(ours) -> None:
    context, requests = 300, mixture(310)[:4]
    expected = replies(run(make_short(ours, context), *requests), requests)
    limits = Limits(16, 64, 5 * ours.cache.cost(256), 0, context_length=context)
    engine = Engine(ours, limits)
    found = run(engine, *requests)
    ours.cache.max_bytes = float("inf")
    stats = engine.stats()
    assert stats["preemptions"] and stats["shifts"] >= 4
    assert replies(found, requests) == expected


@pytest.mark.parametrize("after", [3, 20, 29, 30, 31, 60])
def test_a_failed_pass_loses_nothing(ours, alone, monkeypatch, after: int) -> None:
    engine = make_short(ours)
    lose_a_pass(engine, monkeypatch, after)
    found = run(engine, *mixture())
    assert not found.errors
    assert replies(found, mixture()) == alone


class Beginning:
    """A guide that knows how the reply begins."""

    ended = False

    def __init__(self, token_ids: list[int]) -> None:
        self.left = list(token_ids)

    def forced(self) -> list[int]:
        return list(self.left)

    def allowed(self) -> None:
        return None

    def accept(self, token_id: int) -> None:
        assert token_id == self.left.pop(0) if self.left else True


@pytest.mark.parametrize("count", [27, 28, 29, 40, 49, 90])
def test_a_run_of_forced_tokens_goes_across(ours, count: int) -> None:
    prompt, forced = random_prompts([20, count])
    r = request("r", prompt, n_keep=5, max_tokens=count + 8)
    guided = replace(r, guide=lambda: Beginning(forced))
    found = run(make_short(ours), guided, request("other", prompt[::-1]))
    window = list(prompt)
    for token in forced:
        if len(window) >= WINDOW:
            window = shifted(window, 5, WINDOW)
        window.append(token)
    rest = replace(r, token_ids=tuple(window), params=replace(r.params, max_tokens=8))
    assert found.tokens("r") == forced + pieced(ours, rest)[0]


def test_penalties_see_what_the_model_sees_no_more(ours) -> None:
    (prompt,) = random_prompts([10])
    r = request("r", prompt, n_keep=0, max_tokens=90, presence_penalty=1e4)
    tokens = run(make_short(ours), r).tokens("r")
    assert len(tokens) == len(set(tokens)) == 90  # of a vocabulary of 101


def test_random_numbers_go_by_the_place_in_the_reply(ours) -> None:
    # So hot that what the model says does not matter.
    (prompt,) = random_prompts([10])
    r = request("r", prompt, n_keep=0, max_tokens=150, temperature=1e7, seed=3)
    whole = run(make_engine(ours), replace(r, params=replace(r.params, n_keep=None)))
    assert run(make_short(ours), r).tokens("r") == whole.tokens("r")


def test_log_probabilities_of_the_prompt_are_told_once(ours) -> None:
    (prompt,) = random_prompts([20])
    r = request("r", prompt, n_keep=5, max_tokens=100, prompt_logprobs=1)
    found = run(make_short(ours, chunk=8), r)
    assert len(found.prompt_logprobs("r")) == 20
    assert found.tokens("r") == pieced(ours, r)[0]


def test_memory_is_a_context_as_well(ours) -> None:
    (prompt,) = random_prompts([230])
    engine = make_engine(ours, kv_bytes=ours.cache.cost(256))
    r = request("r", prompt, n_keep=10, max_tokens=500)
    found, most = Collected(), 0
    engine.add(r)
    while engine.busy:
        found.take(engine.step())
        most = max(most, ours.cache.nbytes)
    ours.cache.max_bytes = float("inf")
    assert engine.max_tokens == 256 and most == ours.cache.cost(256)
    assert found.tokens("r") == pieced(ours, r, 256)[0]
    assert engine.stats()["preemptions"] == 0


def test_a_second_run_finds_what_the_first_has_computed(ours) -> None:
    (prompt,) = random_prompts([200])
    r = request("r", prompt, n_keep=0, max_tokens=300)
    engine = make_short(ours, 256, prefix_bytes=None)
    first = run(engine, r)
    before = engine.stats()["prompt_tokens_computed"]
    again = run(engine, r)
    assert again.tokens("r") == first.tokens("r")
    # The last window is kept, and what stayed of the one before is its beginning.
    assert before == 200 + 128 + 128
    assert engine.stats()["prompt_tokens_computed"] - before == 200 + 128 + 1
    engine.drop_all()


@pytest.mark.parametrize("context", [2, 3, 4, 5, 6])
def test_the_smallest_contexts(ours, context: int) -> None:
    r = request("r", [7], n_keep=-1, max_tokens=20)
    found = run(make_short(ours, context), r)
    assert len(found.tokens("r")) == 20
    if context >= 4:
        assert found.tokens("r") == pieced(ours, r, context)[0]
