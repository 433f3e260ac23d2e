"""The trace: every request's way through the engine, in a form that Chrome and Perfetto read."""

from __future__ import annotations

import json
import queue
import time
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import pytest
from models import make_engine, make_pair, random_prompts, request, run

from mlx_server.engine.engine import Engine
from mlx_server.engine.limits import Limits
from mlx_server.engine.trace import Trace
from mlx_server.engine.worker import Worker
from mlx_server.exchange import StepOutput

Event = dict[str, Any]


@pytest.fixture(scope="module")
def ours():
    return make_pair()[1]


def traced(ours, **limits: Any) -> Engine:
    return Engine(ours, Limits(4, 16, **({"prompt_cache_bytes": 0, "trace": True} | limits)))


def of(events: list[Event], name: str, request: str | None = None) -> list[Event]:
    return [
        e for e in events
        if e["name"] == name and request in (None, e.get("id"), e["args"].get("request"))
    ]  # fmt: skip


def test_the_way_of_each_request(ours) -> None:
    engine = traced(ours)
    before = time.monotonic() * 1e6
    prompts = random_prompts([40, 5, 23])
    run(engine, *(request(f"r{i}", p, max_tokens=7) for i, p in enumerate(prompts)))
    after = time.monotonic() * 1e6
    events = json.loads(json.dumps(engine.trace.export(1, "m")))
    for i, prompt in enumerate(prompts):
        name = f"r{i}[0]"
        chunks = of(events, "prefill", name)
        assert sum(e["args"]["tokens"] for e in chunks) == len(prompt)
        assert chunks[-1]["args"]["end"] == len(prompt)
        # The last prompt chunk gives the first token.
        assert len(of(events, "decode", name)) >= 6
        begin, end = of(events, "request", name)
        queued, started = of(events, "queued", name)
        (finish,) = of(events, "finish", name)
        assert [e["ph"] for e in (queued, started, begin, end)] == ["b", "e", "b", "e"]
        assert begin["args"] == {"reason": "length", "prompt_tokens": len(prompt), "tokens": 7}
        order = [begin["ts"], queued["ts"], started["ts"], chunks[0]["ts"], finish["ts"]]
        assert order == sorted(order) and before <= order[0]
        assert finish["ts"] <= end["ts"] <= after


def test_spans_lie_in_one_another(ours) -> None:
    """Readers keep a stack for each id: what ends has to be what began last."""
    engine = traced(ours)
    for i, prompt in enumerate(random_prompts([40, 5, 23, 9, 9, 9])):
        engine.add(request(f"r{i}", prompt, max_tokens=5))
    engine.step()
    engine.abort("r5")  # it still waits
    run(engine)
    seen = defaultdict(list)
    for event in engine.trace.export(1, "m"):
        if event["ph"] in "be":
            seen[event["id"]].append(f"{event['name']} {event['ph']}")
    assert len(seen) == 6
    cut = seen.pop("r5[0]")
    assert cut == ["request b", "queued b", "queued e", "request e"]
    assert set(map(tuple, seen.values())) == {tuple(cut)}


def test_steps_and_the_slices_of_their_rows(ours) -> None:
    engine = traced(ours)
    run(engine, *(request(f"r{i}", p) for i, p in enumerate(random_prompts([40, 5, 23]))))
    events = engine.trace.export(3, "m")
    steps = of(events, "step")
    assert len(steps) == engine.num_steps
    slices = Counter(e["ts"] for e in of(events, "prefill") + of(events, "decode"))
    assert slices == {step["ts"]: step["args"]["rows"] for step in steps}
    computed = sum(step["args"]["prompt_tokens"] for step in steps)
    assert computed == engine.stats()["prompt_tokens_computed"] == 68
    # One thing at a time on each line.
    lines = defaultdict(list)
    for event in (e for e in events if e["ph"] == "X"):
        lines[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in lines.values():
        assert all(end <= start + 0.2 for (_, end), (start, _) in pairwise(spans))


def test_its_form(ours) -> None:
    engine = traced(ours)
    run(engine, request("r", [1, 2, 3]))
    events = engine.trace.export(3, "org/model")
    assert {"name", "ph", "ts", "pid", "tid", "args"} <= set.intersection(*map(set, events))
    assert {e["pid"] for e in events} == {3}
    names = {e["tid"]: e["args"]["name"] for e in of(events, "thread_name")}
    assert names == {0: "steps", 1: "slot 0"}
    assert of(events, "process_name")[0]["args"]["name"] == "org/model"
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
    assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")
    assert all(e["s"] == "t" for e in events if e["ph"] == "i")


def test_preemptions_shifts_and_aborts(ours) -> None:
    engine = traced(ours, max_kv_bytes=3 * ours.cache.cost(256), context_length=300)
    for i, prompt in enumerate(random_prompts([200, 210, 220])):
        engine.add(request(f"r{i}", prompt, n_keep=0, max_tokens=200))
    engine.add(request("late", [1], max_tokens=3))
    engine.abort("late")
    run(engine)
    ours.cache.max_bytes = float("inf")
    events, stats = engine.trace.export(1, "m"), engine.stats()
    assert len(of(events, "preempt")) == stats["preemptions"] > 0
    assert len(of(events, "shift")) == stats["shifts"] >= 3
    assert all(e["tid"] > 0 for e in of(events, "preempt"))
    assert of(events, "request", "late[0]")[0]["args"]["reason"] == "abort"
    assert [e["ph"] for e in of(events, "queued", "late[0]")] == ["b", "e"]


def test_what_is_given_up_ends_as_well(ours) -> None:
    engine = traced(ours)
    for name in ("running", "waiting"):
        engine.add(request(name, [1, 2, 3], n=4))
    engine.step()
    engine.drop_all()
    spans = of(engine.trace.export(1, "m"), "request")
    assert Counter(e["ph"] for e in spans) == {"b": 8, "e": 8}
    assert {e["args"]["reason"] for e in spans if e["ph"] == "b"} == {"error"}


def test_the_oldest_events_go_first() -> None:
    trace = Trace(capacity=10)
    for i in range(25):
        trace.add("x", float(i), args={"i": i})
    assert len(trace) == 10
    assert [e["args"]["i"] for e in of(trace.export(1, "m"), "x")] == list(range(15, 25))


def test_nothing_is_written_down_unless_asked_for(ours) -> None:
    engine = make_engine(ours)
    run(engine, request("r", [1, 2, 3]))
    assert engine.trace is None


def test_the_workers_trace_has_every_model_and_outlives_it(ours) -> None:
    worker = Worker(max_waiting=4)
    worker.start()
    assert worker.trace() == []
    for name, trace in (("a", True), ("b", True), ("off", False)):

        def load(engines, name=name, trace=trace) -> None:
            engines[name] = Engine(make_pair()[1], Limits(2, 16, trace=trace))

        worker.call(load)
        outbox: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        worker.submit(name, [request(f"r{name}", [1, 2, 3], max_tokens=3)], outbox)
        while not any(o.finish_reason for o in outbox.get(timeout=20).outputs):
            pass
    worker.call(lambda engines: engines.pop("a"))
    worker.stop()
    events = worker.trace()
    processes = {e["pid"]: e["args"]["name"] for e in of(events, "process_name")}
    assert processes == {1: "a", 2: "b"}
    assert {e["pid"]: e["id"] for e in of(events, "request")} == {1: "ra[0]", 2: "rb[0]"}
