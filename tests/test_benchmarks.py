"""The benchmarks' arithmetic, the model they make, and one small run; nothing about time."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import running_server

from benchmarks import bare, client, metrics, report, scaling, serve
from benchmarks import model as bench_model
from benchmarks.client import Raw, Reply
from benchmarks.metrics import Bare
from benchmarks.plan import Check, Figures, Inputs, Scenario
from benchmarks.report import BareRun, Run
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import Child, Endpoint, Server


def stream(start: float, first: float, step: float, count: int, **fields) -> Reply:
    times = tuple(first + i * step for i in range(count))
    return Reply(start, times[-1], times, tokens=count, **fields)


# ---------------------------------------------------------------- figures


def test_figures_of_two_streams():
    one, two = stream(0.0, 1.0, 0.1, 21), stream(0.5, 2.0, 0.1, 31)
    replies = [one, two]
    assert metrics.seconds(replies) == pytest.approx(5.0)
    assert metrics.tokens_per_second(replies) == pytest.approx(52 / 5)
    assert metrics.first_token(replies) == pytest.approx((1.0 + 1.5) / 2)
    assert metrics.decode_window(replies) == pytest.approx((2.0, 3.0))
    assert metrics.decode_rate(replies) == pytest.approx(20.0)


def test_decode_rate_counts_the_tokens_of_a_piece_that_holds_two():
    pieces = replace(stream(0.0, 0.0, 0.1, 11), tokens=22)
    assert metrics.decode_rate([pieces]) == pytest.approx(20.0)


def test_streams_that_never_decode_together_have_no_decode_rate():
    assert metrics.decode_rate([stream(0, 0, 0.1, 10), stream(0, 5, 0.1, 10)]) is None
    assert metrics.decode_rate([Reply(0.0, 1.0, error="reset")]) is None
    assert metrics.decode_rate([]) is None


def test_longest_gap_looks_only_at_what_ends_after_a_moment():
    reply = Reply(0.0, 4.0, (0.0, 2.0, 2.5, 3.5), tokens=4)
    assert metrics.longest_gap([reply]) == 2.0
    assert metrics.longest_gap([reply], since=2.1) == 1.0
    assert metrics.longest_gap([reply], since=9.0) is None


def test_failed_requests_give_no_tokens():
    good = stream(0.0, 0.1, 0.1, 10)
    assert metrics.tokens_per_second([good, replace(good, error="reset")]) == pytest.approx(10.0)


def test_the_ideal_is_prompt_and_output_at_the_bare_loops_speed():
    speed = Bare(1000.0, 200.0, batch=8, prompt=100, context=150)
    assert metrics.ideal_seconds(500, 300, speed) == pytest.approx(0.5 + 1.5)


def test_a_shared_prefix_is_needed_once():
    system, turns = list(range(100)), [[200, 201], [300, 301]]
    prompts = [system + turn for turn in turns]
    assert metrics.needed_tokens(prompts, [[], []]) == 102 + 2
    # The last token of a reply was never an input.
    following = [*prompts[0], 7, 8, 9, 400]
    assert metrics.needed_tokens([prompts[0], following], [[7, 8, 9], []]) == 102 + 2
    assert metrics.needed_tokens([prompts[0], prompts[0]], [[], []]) == 102 + 1
    assert metrics.needed_tokens([[1, 2, 3], [1, 2, 4]], [[], []]) == 6


# ---------------------------------------------------------------- the client

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "a"}}]},
    {"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
]


def sse(event: dict) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_the_same_however_its_bytes_are_cut(chunked: bool, size: int):
    wrap = chunk if chunked else bytes
    whole = HEAD if chunked else b"HTTP/1.0 200 OK\r\n\r\n"
    whole += wrap(b": keepalive 1/2\n\n") + b"".join(wrap(sse(e)) for e in EVENTS)
    whole += wrap(b"data: [DONE]\n\n")
    cut = [whole[i : i + size] for i in range(0, len(whole), size)]
    reply = client.parse(Raw(0.0, [(1.0 + i, data) for i, data in enumerate(cut)]))
    assert (reply.text, reply.tokens, reply.prompt_tokens) == ("ab", 2, 9)
    assert (reply.error, reply.finish_reason, reply.cached_tokens) == (None, "length", None)
    assert len(reply.times) == 2 and reply.times[0] <= reply.times[1] <= reply.ended


def test_errors_are_told_apart():
    cut = HEAD + chunk(sse(EVENTS[1]))
    assert client.parse(Raw(0.0, [(1.0, cut)])).error == "cut"
    assert client.parse(Raw(0.0, [(1.0, cut)], left=True)).error is None
    assert client.parse(Raw(0.0, [], "reset")).error == "reset"
    busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
    assert client.parse(Raw(0.0, [(1.0, busy)])).error == "http 503"


def test_a_closed_port_refuses():
    assert client.exchange(Endpoint("127.0.0.1", 1), {}).error == "refused"


def test_a_process_without_a_handler_is_not_sent_the_signal(tmp_path: Path):
    child = Child(["sleep", "30"], tmp_path / "log")
    try:
        assert Server("ours", Endpoint("127.0.0.1", 1), child).stats() is None
        assert child.process.poll() is None
    finally:
        child.stop()


# ---------------------------------------------------------------- the report


def runs_of(scenario: str, server: str, rates: list[float], **figures: float) -> list[Run]:
    return [
        Run(scenario, server, i, {"tokens_per_second": rate, "errors": 0.0} | figures)
        for i, rate in enumerate(rates)
    ]


def test_ratios_are_medians_of_the_rounds_own_ratios(tmp_path: Path):
    runs = runs_of("one", "ours", [10.0, 40.0, 30.0], ideal_share=0.9, seconds=1.0)
    runs += runs_of("one", "peer", [10.0, 10.0, 20.0], seconds=2.0)
    bare_run = BareRun("one", 0, Bare(100.0, 10.0, 1, 20, 30))
    made = report.summarise({"model": "m"}, runs, [bare_run])
    (line,) = made.lines
    assert line.figures["speed_ratio"] == pytest.approx(1.5)
    assert line.figures["time_ratio"] == pytest.approx(0.5)
    assert line.bare["prefill_rate"] == 100.0
    assert {v.label: v.passed for v in line.verdicts} == {
        "tokens/s against the peer": True,
        "share of the bare loop": False,
        "failed requests": True,
    }
    assert made.missed
    assert "1.50" in report.text(made) and "| MISS |" in report.markdown(made)
    report.write_json(made, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["lines"][0]["scenario"] == "one"


def test_what_was_not_measured_is_neither_passed_nor_missed():
    runs = runs_of("vanish", "ours", [1.0])
    made = report.summarise({}, runs, [])
    assert {v.passed for v in made.lines[0].verdicts} == {None, True}
    assert not made.missed
    assert Check("x", "x", at_most=1.0).holds(float("inf")) is False


def test_a_busy_machine_is_said():
    runs = runs_of("one", "ours", [1.0], others_cores=0.7)
    assert "Other processes" in report.text(report.summarise({}, runs, []))
    runs = runs_of("one", "ours", [1.0], others_cores=0.01)
    assert "Other processes" not in report.text(report.summarise({}, runs, []))


def test_the_figure_is_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from benchmarks.plot import draw

    settings = dict.fromkeys(("model", "versions", "machine", "rounds"), "x")
    runs = runs_of("one", "ours", [2.0], ideal_share=0.9) + runs_of("one", "peer", [1.0])
    bare_run = BareRun("one", 0, Bare(100.0, 10.0, 1, 20, 30))
    draw(report.summarise(settings, runs, [bare_run]), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- a model, and a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench") / "model"
    bench_model.make(bench_model.Spec("tiny"), made)
    return made


@pytest.fixture(scope="module")
def tokens(folder: Path) -> serve.Tokens:
    return serve.Tokens(folder)


class TinyLoop:
    def __init__(self, folder: Path) -> None:
        self.model, _ = bare.load_model(folder)

    def measure(self, batch: int, prompt: int, context: int, steps: int) -> Bare:
        return bare.measure(self.model, batch, prompt, context, 4)


def test_bodies_are_the_same_for_a_seed_and_new_in_each_round(tokens: serve.Tokens):
    def bodies(scenario: Scenario, seed: int) -> list:
        return scenario.prepare(Inputs(random.Random(seed), tokens.count, 0.05))

    for scenario in SCENARIOS:
        assert bodies(scenario, 1) == bodies(scenario, 1) != bodies(scenario, 2)


@pytest.fixture(scope="module")
def found(folder: Path, tokens: serve.Tokens) -> dict[str, tuple[Figures, Figures]]:
    """Every scenario's figures and bare speeds, with few tokens."""
    with running_server(model=str(folder)) as running:
        ours = Server("ours", Endpoint("127.0.0.1", running.server_address[1]))
        chosen = [s for s in SCENARIOS if s.name in ("mixed8", "interrupt", "conversations")]
        measured = serve.run(chosen, 1, [ours], TinyLoop(folder), tokens, scale=0.1)
    return {x.scenario: (x.figures, x.bare) for x in report.summarise({}, *measured).lines}


def test_a_run_has_all_figures(found: dict[str, tuple[Figures, Figures]]):
    assert set(found) == {"mixed8", "interrupt", "conversations"}
    for figures, speeds in found.values():
        assert figures["errors"] == 0
        known = {"seconds", "tokens_per_second", "first_token", "ideal_share", "ideal_seconds"}
        assert all((figures[name] or 0) > 0 for name in known), figures
        assert (speeds["prefill_rate"] or 0) > 0 and (speeds["decode_rate"] or 0) > 0
        assert figures["speed_ratio"] is None  # there is no peer


def test_the_model_never_ends_a_reply(found: dict[str, tuple[Figures, Figures]]):
    figures, _ = found["mixed8"]
    assert figures["tokens"] == sum(max(2, round((32 + 64 * i // 7) * 0.1)) for i in range(8))


def test_replies_encode_to_the_tokens_that_were_generated(tokens: serve.Tokens, folder: Path):
    import mlx.core as mx

    model, _ = bare.load_model(folder)
    prompt = tokens.prompt([{"role": "user", "content": "some words"}])
    allowed = set(bench_model.winners(tokens._tokenizer.backend_tokenizer))
    logits = model(mx.array([prompt]))[0]
    best = mx.argsort(logits, axis=-1)[:, -5:].flatten().tolist()
    assert set(best) <= allowed


def test_a_point_of_the_scaling_table(folder: Path):
    ours = scaling.measure_ours(folder, 2, 40, 4)
    theirs = scaling.measure_bare(folder, 2, 40, 4)
    cells = scaling.row(ours, theirs)
    assert len(cells) == len(scaling.HEAD) and cells[:2] == ["2", "40"]
    assert "–" not in cells
