"""The worker: a bounded queue, deadlines, and nobody left waiting."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from pathlib import Path

import pytest
from models import make_engine, make_pair, random_prompts, request

from mlx_server.core import GenerationRequest, TextPrompt, TokenPrompt
from mlx_server.deltas import Delta, Heartbeat, Lull, Progress, Text
from mlx_server.engine.loading import unload
from mlx_server.engine.worker import Worker
from mlx_server.errors import DeadlineExceeded, ServerError, Unavailable
from mlx_server.exchange import StepOutput
from mlx_server.generation import Generation


@pytest.fixture
def worker():
    worker = Worker(max_waiting=4)
    worker.start()
    worker.call(lambda engines: engines.__setitem__("m", make_engine(make_pair()[1], batch=1)))
    yield worker
    worker.stop()


def submit(worker: Worker, name: str, **options) -> queue.SimpleQueue[StepOutput]:
    outbox: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
    worker.submit("m", [request(name, random_prompts([5])[0], **options)], outbox)
    return outbox


def last(outbox: queue.SimpleQueue[StepOutput]) -> StepOutput:
    while True:
        step = outbox.get(timeout=20)
        if step.error is not None or any(o.finish_reason for o in step.outputs):
            return step


def test_more_than_may_wait_are_told_to_come_back(worker: Worker) -> None:
    running = [submit(worker, "r0", max_tokens=2000)]
    with pytest.raises(Unavailable) as error:
        for i in range(1, 10):
            running.append(submit(worker, f"r{i}", max_tokens=2000))
            time.sleep(0.02)
    assert error.value.retry_after
    assert 4 <= len(running) <= 6
    for i in range(len(running)):
        worker.abort(f"r{i}")
    worker.call(lambda engines: engines["m"].step())  # behind the aborts in the inbox
    time.sleep(0.1)
    assert last(submit(worker, "after")).outputs[0].finish_reason == "length"


def test_requests_that_belong_together_are_queued_together_or_not_at_all(worker: Worker) -> None:
    outbox: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
    many = [request(f"m{i}", [1, 2, 3], max_tokens=2) for i in range(20)]
    worker.submit("m", many, outbox)  # more than may wait, but nobody waits before them
    ends = 0
    while ends < 20:
        ends += sum(o.finish_reason == "length" for o in outbox.get(timeout=20).outputs)
    waiting = [submit(worker, f"r{i}", max_tokens=2000) for i in range(3)]
    time.sleep(0.1)
    with pytest.raises(Unavailable):
        worker.submit("m", many, outbox)
    assert outbox.empty()
    assert len(waiting) == 3


def test_a_call_may_wait_until_an_engine_is_idle(worker: Worker) -> None:
    outbox = submit(worker, "r", max_tokens=400)
    left = worker.call(lambda engines: engines["m"].busy, idle="m")
    assert left is False
    assert last(outbox).outputs[0].finish_reason == "length"


def test_stopping_ends_every_request_with_an_error(worker: Worker) -> None:
    outboxes = [submit(worker, f"r{i}", max_tokens=2000) for i in range(3)]
    worker.stop()
    assert all(isinstance(last(outbox).error, Unavailable) for outbox in outboxes)
    with pytest.raises(Unavailable):
        submit(worker, "late")


def test_an_unknown_engine_and_a_failing_call_harm_nobody(worker: Worker) -> None:
    outbox: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
    worker.submit("gone", [request("r", [1, 2])], outbox)
    assert isinstance(last(outbox).error, Unavailable)
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda engines: 1 / 0)
    assert last(submit(worker, "after")).outputs


def test_a_fault_of_the_engine_itself_ends_its_requests_and_nothing_else(
    worker: Worker, monkeypatch
) -> None:
    outbox = submit(worker, "r", max_tokens=2000)
    outbox.get(timeout=20)

    def break_it(engines) -> None:
        scheduler = engines["m"].scheduler
        scheduler.schedule = lambda: 1 / 0

    worker.call(break_it)
    assert isinstance(last(outbox).error, ServerError)
    worker.call(lambda engines: engines["m"].scheduler.__dict__.pop("schedule"))
    assert last(submit(worker, "after")).outputs[0].finish_reason == "length"


def test_a_deadline_ends_the_request_and_frees_its_row(open_pool, stories: Path) -> None:
    pool = open_pool(model=str(stories / "stories260k"))
    options = {"ignore_eos": True, "max_tokens": 500}
    many = GenerationRequest("d", None, (TextPrompt("Once"),) * 40, options, timeout=0.3)
    with pytest.raises(DeadlineExceeded):
        for _ in pool.generate(many):
            pass
    rows = pool.worker.call(
        lambda engines: [e.num_running + e.num_waiting for e in engines.values()]
    )
    assert rows == [0]


def test_cancelling_from_another_thread_ends_the_iteration(open_pool, stories: Path) -> None:
    pool = open_pool(model=str(stories / "stories260k"))
    options = {"ignore_eos": True, "max_tokens": 500}
    generation = pool.generate(GenerationRequest("c", None, (TextPrompt("Once"),), options))
    seen = []

    def read() -> None:
        try:
            seen.extend(d for d in generation if isinstance(d, Text))
        except ServerError as error:
            seen.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.1)
    generation.cancel()
    reader.join(5)
    assert not reader.is_alive()
    assert isinstance(seen[-1], ServerError)


def test_one_that_listens_gets_what_one_that_waits_gets(open_pool, stories: Path) -> None:
    pool = open_pool(model=str(stories / "stories260k"))
    options = {"ignore_eos": True, "max_tokens": 20, "temperature": 0.0}

    def generation() -> Generation:
        return pool.generate(GenerationRequest("l", None, (TextPrompt("Once"),), options, n=2))

    def texts(deltas: list[Delta]) -> list[Text]:
        return sorted((d for d in deltas if isinstance(d, Text)), key=lambda d: d.index)

    waited = list(generation())
    news: queue.SimpleQueue[None] = queue.SimpleQueue()
    listening = generation()
    listening.listen(lambda: news.put(None))
    heard = []
    for delta in listening:
        if isinstance(delta, Lull):
            news.get(timeout=20)
        else:
            heard.append(delta)
    assert texts(heard) == texts(waited)
    assert heard[-1].usage.completion_tokens == waited[-1].usage.completion_tokens


def test_a_long_prefill_does_not_keep_a_client_in_silence(
    open_pool, stories: Path, monkeypatch
) -> None:
    monkeypatch.setattr(
        "mlx_server.generation.HEARTBEAT", 0.002
    )  # 250 steps take far longer than two
    pool = open_pool(model=str(stories / "stories260k"), prefill_chunk_size=1)
    prompt = TokenPrompt((1, *[300] * 250))
    deltas = list(
        pool.generate(
            GenerationRequest("h", None, (prompt,), {"max_tokens": 2, "ignore_eos": True})
        )
    )
    first_text = next(i for i, d in enumerate(deltas) if isinstance(d, Text))
    before = [type(d) for d in deltas[:first_text]]
    assert before.count(Progress) > 50
    assert before.count(Heartbeat) >= 2


def test_an_engine_that_was_unloaded_is_gone_before_the_next_command(worker: Worker) -> None:
    assert last(submit(worker, "r", max_tokens=3)).outputs
    gone: list[weakref.ref] = []

    def unload(engines) -> None:
        gone.append(weakref.ref(engines.pop("m")))
        gc.collect()

    worker.call(unload)
    assert worker.call(lambda engines: gone[0]()) is None


def test_a_burst_fills_the_free_places_before_the_queue() -> None:
    worker = Worker(max_waiting=4)
    worker.start()
    worker.call(lambda engines: engines.__setitem__("m", make_engine(make_pair()[1], batch=16)))
    time.sleep(0.1)  # the worker tells what is free after a turn
    worker.call(lambda engines: None)
    outboxes = [submit(worker, f"r{i}", max_tokens=3) for i in range(20)]
    assert all(last(outbox).outputs for outbox in outboxes)
    worker.stop()


def test_the_numbers_are_sums_over_the_engines() -> None:
    worker = Worker(max_waiting=4)
    memory = {"active_memory", "peak_memory", "cache_memory"}
    assert worker.stats().keys() == memory
    worker.start()
    for name in ("a", "b"):
        worker.call(lambda engines, n=name: engines.__setitem__(n, make_engine(make_pair()[1])))
        outbox: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        worker.submit(name, [request(name, random_prompts([5])[0], max_tokens=3)], outbox)
        last(outbox)
    stats = worker.stats()
    assert memory < stats.keys()
    assert (stats["running"], stats["waiting"], stats["generated_tokens"]) == (0, 0, 6)
    worker.call(lambda engines: unload(engines, "a"))
    left = worker.stats()
    assert left["generated_tokens"] == 6 and left["slots"] < stats["slots"]
    worker.call(lambda engines: unload(engines, "b"))
    assert worker.stats()["generated_tokens"] == 6
    worker.stop()


def test_when_the_engine_thread_dies_nobody_waits_for_it(worker: Worker) -> None:
    outbox = submit(worker, "r", max_tokens=2000)
    outbox.get(timeout=20)
    worker.call(lambda engines: engines.__setitem__("broken", None))
    assert isinstance(last(outbox).error, Unavailable)
    with pytest.raises(Unavailable):
        submit(worker, "late")
    with pytest.raises(Unavailable):
        worker.call(lambda engines: None)


def test_memory_that_is_only_kept_for_new_arrays_goes_back_when_there_is_no_work(
    worker: Worker, monkeypatch
) -> None:
    monkeypatch.setattr("mlx_server.engine.worker.IDLE", 0.05)
    last(submit(worker, "r", max_tokens=20))
    worker.call(lambda engines: None)  # the wait that is under way has the old patience
    for _ in range(100):
        if not worker.stats()["cache_memory"]:
            break
        time.sleep(0.05)
    assert worker.stats()["cache_memory"] == 0
    assert last(submit(worker, "again", max_tokens=3)).error is None
