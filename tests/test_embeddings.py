"""Embeddings beside generation: alone = in company, chunked = whole, ours = mlx_lm's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from models import CONFIG, make_engine, make_pair, random_prompts, request
from zoo_models import CONTEXT, MODELS, VOCAB, module_of

from mlx_server.cache.storage import Quantization
from mlx_server.core import TokenPrompt
from mlx_server.embedder import Embedder
from mlx_server.engine.embedding import DecoderJob
from mlx_server.engine.worker import Worker
from mlx_server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    NotSupported,
    RequestError,
    ServerError,
    Unavailable,
)
from mlx_server.models.base import Row
from mlx_server.models.llama import LlamaModel
from mlx_server.models.lora import AdapterBank
from mlx_server.models.zoo import ZooModel
from mlx_server.services import EmbeddingRequest

LENGTHS = [1, 40, 3, 200, 1, 17]
POOLINGS = ("mean", "last", "cls")


def serve_zoo(name: str) -> ZooModel:
    return ZooModel(module_of(name), {"model_type": name}, CONTEXT)


def hidden_by_hand(model, prompts: list[list[int]]) -> list[np.ndarray]:
    """The states of several prompts in one packed pass."""
    seats = [model.cache.open(len(ids), len(prompts)) for ids in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) > 1, seats[i].order))
    rows = [Row(seats[i], len(prompts[i]), 0) for i in order]
    tokens = mx.array([t for i in order for t in prompts[i]], mx.int32)
    states = np.array(model.hidden(tokens, rows).astype(mx.float32))
    ends = np.cumsum([len(prompts[i]) for i in order])
    found = {i: states[end - len(prompts[i]) : end] for i, end in zip(order, ends, strict=True)}
    for seat in seats:
        model.cache.close(seat)
    return [found[i] for i in range(len(prompts))]


def pooled(states: np.ndarray, pooling: str) -> np.ndarray:
    return {"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pooling]


def vectors(job: DecoderJob, engine) -> np.ndarray:
    """Run a job by hand to its end."""
    engines = {job.engine: engine}
    for _ in range(1000):
        if job.done:
            return np.stack(job.results)
        assert job.advance(engines)
    raise AssertionError("the job does not come to an end")


# ---------------------------------------------------------------- hidden states


def test_our_hidden_states_are_mlx_lms() -> None:
    theirs, ours = make_pair()
    prompts = random_prompts(LENGTHS)
    for ids, states in zip(prompts, hidden_by_hand(ours, prompts), strict=True):
        expected = np.array(theirs.model(mx.array([ids])))[0]
        np.testing.assert_allclose(states, expected, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_zoos_hidden_states_are_the_modules_own(name: str) -> None:
    model = serve_zoo(name)
    prompts = random_prompts([5, 1, 12], vocab=VOCAB)
    for ids, states in zip(prompts, hidden_by_hand(model, prompts), strict=True):
        module = getattr(model.module, "language_model", model.module)
        trunk = module.backbone if name == "mamba" else module.model
        caches = make_prompt_cache(model.module)
        expected = np.array(trunk(mx.array([ids]), cache=caches).astype(mx.float32))[0]
        np.testing.assert_allclose(states, expected, atol=1e-4)
        assert states.shape[1] != VOCAB  # hidden states, no logits
    assert model.cache.nbytes == 0


def test_a_module_that_shows_no_hidden_states_is_not_supported() -> None:
    model = serve_zoo("qwen3")
    model.module = SimpleNamespace(model=None)
    model.__dict__.pop("_trunk", None)
    with pytest.raises(NotSupported, match="no embeddings"):
        hidden_by_hand(model, [[1, 2]])


def test_adapters_apply_to_hidden_states() -> None:
    _, model = make_pair()
    bank = AdapterBank(model.module)
    seen = []
    bank.select = lambda segments: seen.append(list(segments))
    model.bank = bank
    seat = model.cache.open(3)
    model.hidden(mx.array([1, 2, 3]), [Row(seat, 3, 0, (("a", 1.0),))])
    assert seen[0][0] == (3, (("a", 1.0),))


# ---------------------------------------------------------------- a job


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("chunk", [2, 16, 1000])
def test_chunks_and_company_change_no_vector(pooling: str, chunk: int) -> None:
    _, model = make_pair()
    prompts = random_prompts(LENGTHS)
    engine = make_engine(model, chunk=chunk)
    found = vectors(DecoderJob("m", prompts, pooling), engine)
    expected = [pooled(states, pooling) for states in hidden_by_hand(model, prompts)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert model.cache.nbytes == 0 and len(engine.prefixes) == 0


@pytest.mark.parametrize("name", ["qwen3", "mamba", "gemma3"])
def test_the_zoos_vectors_are_the_same_in_chunks(name: str) -> None:
    model = serve_zoo(name)
    prompts = random_prompts([30, 1, 7], vocab=VOCAB)
    found = vectors(DecoderJob("m", prompts, "mean"), make_engine(model, chunk=2))
    expected = [states.mean(0) for states in hidden_by_hand(model, prompts)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_quantised_keys_change_a_vector_little_and_chunks_not_at_all() -> None:
    _, plain = make_pair(CONFIG | {"head_dim": 32})
    model = LlamaModel(plain.module, 2048, None, Quantization(8, 32, 24))
    prompts = random_prompts([100, 20, 60])
    whole = vectors(DecoderJob("m", prompts, "mean"), make_engine(model, chunk=1000))
    chunked = vectors(DecoderJob("m", prompts, "mean"), make_engine(model, chunk=3))
    exact = vectors(DecoderJob("m", prompts, "mean"), make_engine(plain))
    # A number that another sum puts beside a step's edge falls on its other side.
    np.testing.assert_allclose(chunked, whole, atol=5e-3)
    np.testing.assert_allclose(whole, exact, atol=0.1)


def test_a_chunk_has_no_more_tokens_than_a_prompts() -> None:
    _, model = make_pair()
    engine = make_engine(model, chunk=16)
    engine.add(request("r", [1, 2, 3], max_tokens=4))  # somebody waits for the next step
    sizes: list[int] = []
    hidden = model.hidden
    model.hidden = lambda tokens, rows: sizes.append(len(tokens)) or hidden(tokens, rows)
    vectors(DecoderJob("m", random_prompts(LENGTHS), "last"), engine)
    assert max(sizes) == 16
    assert len(sizes) == -(-sum(LENGTHS) // 16)  # short inputs share a chunk


def test_the_prefix_cache_gives_way_and_running_rows_do_not() -> None:
    _, model = make_pair()
    one = model.cache.cost(100)
    engine = make_engine(model, kv_bytes=3 * one, prefix_bytes=None)
    for i, prompt in enumerate(random_prompts([60, 70, 80])):
        engine.add(request(str(i), prompt, max_tokens=4))
    while engine.busy:
        engine.step()
    assert len(engine.prefixes) == 3
    vectors(DecoderJob("m", random_prompts([50]), "mean"), engine)
    assert len(engine.prefixes) == 2
    for i, prompt in enumerate(random_prompts([60, 61, 62], seed=5)):
        engine.add(request(f"r{i}", prompt, max_tokens=100))
    for _ in range(4):
        engine.step()
    job = DecoderJob("m", random_prompts([50]), "mean")
    assert job.advance({"m": engine}) is False
    assert engine.num_running == 3


def test_a_failed_pass_gives_its_seats_up() -> None:
    _, model = make_pair()
    engine = make_engine(model, chunk=2)
    job = DecoderJob("m", random_prompts([40]), "mean")
    assert job.advance({"m": engine})
    assert model.cache.nbytes > 0

    def fail(tokens: mx.array, rows: list[Row]) -> mx.array:
        raise ValueError("broken")

    model.hidden = fail
    with pytest.raises(ValueError, match="broken"):
        job.advance({"m": engine})
    assert model.cache.nbytes == 0


# ---------------------------------------------------------------- the embedder


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(100)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def embedder(worker: Worker) -> Embedder:
    def load(engines: dict) -> None:
        engines["m"] = make_engine(make_pair()[1], chunk=8)

    worker.call(load)
    tokenizer = SimpleNamespace(encode_prompt=lambda prompt: list(prompt.token_ids))
    return Embedder("m", worker, tokenizer, 101, 2048, kv_tokens=2048)


def asked(prompts: list[list[int]], **settings) -> EmbeddingRequest:
    return EmbeddingRequest(None, tuple(TokenPrompt(tuple(ids)) for ids in prompts), **settings)


def never() -> bool:
    return False


def test_vectors_have_length_one_unless_they_are_wanted_as_they_are(embedder: Embedder) -> None:
    prompts = random_prompts([5, 30])
    unit = np.array(embedder.embed(asked(prompts), never).vectors)
    plain = np.array(embedder.embed(asked(prompts, normalize=False), never).vectors)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(plain, axis=1)[:, None], plain, atol=1e-5)


def test_dimensions_are_cut_before_they_are_normalised(embedder: Embedder) -> None:
    prompts = random_prompts([9])
    plain = np.array(embedder.embed(asked(prompts, normalize=False), never).vectors)[:, :10]
    found = np.array(embedder.embed(asked(prompts, dimensions=10), never).vectors)
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain), atol=1e-6)
    with pytest.raises(RequestError, match="between 1 and 64") as failure:
        embedder.embed(asked(prompts, dimensions=65), never)
    assert failure.value.param == "dimensions"


def test_the_requests_pooling_comes_first(embedder: Embedder) -> None:
    prompts = random_prompts([9])
    by_default = embedder.embed(asked(prompts), never).vectors
    assert by_default == embedder.embed(asked(prompts, pooling="mean"), never).vectors
    assert by_default != embedder.embed(asked(prompts, pooling="last"), never).vectors


@pytest.mark.parametrize(
    ("prompts", "error", "told"),
    [
        ([[1], [2] * 2049], ContextLengthExceeded, r"input\[1\]"),
        ([[1], []], RequestError, r"input\[1\].*empty"),
        ([[101]], RequestError, "vocabulary"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(
    embedder: Embedder, prompts: list, error: type, told: str
) -> None:
    with pytest.raises(error, match=told if error is not ContextLengthExceeded else "2048") as f:
        embedder.embed(asked(prompts), never)
    assert f.value.status == 400 and f.value.param.startswith("input")


def test_the_tokens_are_counted(embedder: Embedder) -> None:
    assert embedder.embed(asked([[1, 2], [3]]), never).num_tokens == 3


def cached_bytes(worker: Worker) -> int:
    return worker.call(lambda engines: engines["m"].model.cache.nbytes)


def test_a_cancelled_request_ends_between_two_chunks(embedder: Embedder, worker: Worker) -> None:
    asks = []

    def cancelled() -> bool:
        asks.append(cached_bytes(worker))
        return len(asks) == 3

    with pytest.raises(Unavailable, match="cancelled"):
        embedder.embed(asked(random_prompts([500])), cancelled)
    assert asks[0] == 0 and asks[2] > 0
    assert cached_bytes(worker) == 0


def test_a_deadline_ends_a_request(embedder: Embedder, worker: Worker) -> None:
    with pytest.raises(DeadlineExceeded):
        embedder.embed(asked(random_prompts([500]), timeout=0.0), never)
    assert cached_bytes(worker) == 0


def test_numbers_that_are_none_are_an_error(embedder: Embedder, worker: Worker) -> None:
    def spoil(engines: dict) -> None:
        norm = engines["m"].model.module.model.norm
        norm.weight = norm.weight * float("nan")

    worker.call(spoil)
    with pytest.raises(ServerError, match="not finite"):
        embedder.embed(asked([[1, 2]]), never)


def test_an_unloaded_model_is_told(embedder: Embedder, worker: Worker) -> None:
    worker.call(lambda engines: engines.clear())
    with pytest.raises(Unavailable, match="unloaded"):
        embedder.embed(asked([[1, 2]]), never)


def test_streams_go_on_beside_embeddings(embedder: Embedder, worker: Worker) -> None:
    """Every chunk lets a step through, and neither changes the other."""
    prompts = random_prompts([200, 30, 2])
    alone = embedder.embed(asked(prompts), never).vectors
    stream = request("s", [7, 8, 9], max_tokens=100)
    expected = tokens_of(worker, stream)
    outbox: queue.SimpleQueue = queue.SimpleQueue()
    worker.submit("m", [stream], outbox)
    steps: list[int] = []

    def watch() -> bool:
        steps.append(worker.call(lambda engines: engines["m"].num_steps))
        return False

    found = embedder.embed(asked(prompts), watch).vectors
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert collect(outbox) == expected
    # While the stream ran there was a step, or more, between any two chunks.
    assert len(steps) > 20 and steps[20] - steps[0] >= 20


def test_requests_at_once_get_what_each_gets_alone(embedder: Embedder) -> None:
    groups = [random_prompts([50, 3, 20], seed=i) for i in range(4)]
    alone = [embedder.embed(asked(group), never).vectors for group in groups]
    found: dict[int, tuple] = {}

    def work(i: int) -> None:
        found[i] = embedder.embed(asked(groups[i]), never).vectors

    run_together([lambda i=i: work(i) for i in range(4)])
    for i in range(4):
        np.testing.assert_allclose(found[i], alone[i], atol=1e-5)


def run_together(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def tokens_of(worker: Worker, asked_for) -> list[int]:
    outbox: queue.SimpleQueue = queue.SimpleQueue()
    worker.submit("m", [asked_for], outbox)
    return collect(outbox)


def collect(outbox: queue.SimpleQueue) -> list[int]:
    tokens: list[int] = []
    while True:
        step = outbox.get(timeout=30)
        assert step.error is None
        for output in step.outputs:
            tokens += output.token_ids
            if output.finish_reason is not None:
                return tokens
