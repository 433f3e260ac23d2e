"""Prometheus' text format, read back by Prometheus' own parser."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_server.deltas import Finished, Timings, Usage
from mlx_server.metrics import Observer, render

STATS = {
    "steps": 40, "prompt_tokens_computed": 300, "generated_tokens": 120, "forced_tokens": 4,
    "prompt_seconds": 1.5, "decode_seconds": 6.0, "prompt_tokens_cached": 77, "prefix_hits": 3,
    "prefix_misses": 2, "preemptions": 1, "running": 5, "waiting": 6, "prefix_entries": 7,
    "prefix_bytes": 800, "prefix_evictions": 9, "kv_bytes": 250, "kv_budget_bytes": 1000,
    "kv_tokens": 64, "shifts": 14, "active_memory": 11, "peak_memory": 12,
    "cache_memory": 13,
}  # fmt: skip

DOCUMENTED = {
    "llamacpp:prompt_tokens_total": 300,
    "llamacpp:tokens_predicted_total": 120,
    "llamacpp:prompt_tokens_seconds": 200,
    "llamacpp:predicted_tokens_seconds": 20,
    "llamacpp:kv_cache_usage_ratio": 0.25,
    "llamacpp:kv_cache_tokens": 64,
    "llamacpp:requests_processing": 5,
    "llamacpp:requests_deferred": 6,
}
TODAYS = {
    "llamacpp:prompt_seconds_total": 1.5,
    "llamacpp:tokens_predicted_seconds_total": 6,
    "llamacpp:n_decode_total": 40,
    "llamacpp:n_busy_slots_per_decode": 3,
}
OWN = {
    "mlx_server_prompt_tokens_cached_total": 77,
    "mlx_server_forced_tokens_total": 4,
    "mlx_server_preemptions_total": 1,
    "mlx_server_context_shifts_total": 14,
    "mlx_server_prefix_hits_total": 3,
    "mlx_server_prefix_misses_total": 2,
    "mlx_server_prefix_evictions_total": 9,
    "mlx_server_prefix_entries": 7,
    "mlx_server_prefix_bytes": 800,
    "mlx_server_kv_bytes": 250,
    "mlx_server_kv_budget_bytes": 1000,
    "mlx_server_memory_active_bytes": 11,
    "mlx_server_memory_peak_bytes": 12,
    "mlx_server_memory_cache_bytes": 13,
}
COUNTERS = [name for name in {**DOCUMENTED, **TODAYS, **OWN} if name.endswith("_total")]

Sample = tuple[str, frozenset[tuple[str, str]]]


def finished(reason: str = "stop", timings: Timings = Timings()) -> Finished:
    return Finished(0, reason, None, Usage(), timings)


def samples(observer: Observer, stats: dict[str, float] | None = None) -> dict[Sample, float]:
    text = render(STATS if stats is None else stats, observer).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(("name", "value"), {**DOCUMENTED, **TODAYS, **OWN}.items())
def test_every_figure_has_its_name_and_value(name: str, value: float) -> None:
    assert samples(Observer())[name, frozenset()] == value


def test_types_and_help_are_told() -> None:
    text = render(STATS, Observer()).decode()
    assert text.endswith("\n")
    for name in {**DOCUMENTED, **TODAYS, **OWN}:
        kind = "counter" if name in COUNTERS else "gauge"
        assert f"# TYPE {name} {kind}\n" in text
        assert f"# HELP {name} " in text
    lines = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(lines) == len(set(lines))


def test_before_the_first_request_nothing_is_divided_by_zero() -> None:
    found = samples(Observer(), dict.fromkeys(STATS, 0))
    ratios = [name for name in DOCUMENTED if name.endswith(("_seconds", "_ratio"))]
    assert {found[name, frozenset()] for name in ratios} == {0.0}


def test_what_an_engine_does_not_count_is_left_out() -> None:
    found = {name for name, _ in samples(Observer(), {"running": 1})}
    assert "llamacpp:requests_processing" in found
    assert not {"llamacpp:kv_cache_usage_ratio", "llamacpp:n_decode_total"} & found


def test_replies_are_counted_by_outcome() -> None:
    observer = Observer()
    for reason in ("stop", "length", "stop", "abort"):
        observer.observe(finished(reason))
    found = samples(observer)
    for reason, count in (("stop", 2), ("length", 1), ("abort", 1)):
        key = "mlx_server_requests_total", frozenset({("outcome", reason)})
        assert found[key] == count
    assert ("mlx_server_requests_total", frozenset({("outcome", "error")})) not in found


def test_times_and_speeds_fall_into_buckets() -> None:
    observer = Observer()
    observer.observe(finished(timings=Timings(10, 40.0, 11, 500.0, 5)))  # 20 tokens a second
    observer.observe(finished("length", Timings(1, 3000.0, 1, 0.0)))  # no speed with one token
    observer.observe(finished("abort", Timings(8, 900.0, 0, 0.0)))  # no first token
    found = samples(observer)

    def bucket(name: str, bound: str) -> float:
        return found[f"mlx_server_{name}_bucket", frozenset({("le", bound)})]

    first, rate = "time_to_first_token_seconds", "tokens_per_second"
    assert [bucket(first, bound) for bound in ("0.025", "0.05", "2.5", "5.0", "+Inf")] == [
        0, 1, 1, 2, 2,
    ]  # fmt: skip
    assert [bucket(rate, bound) for bound in ("10.0", "20.0", "+Inf")] == [0, 1, 1]
    assert found[f"mlx_server_{first}_sum", frozenset()] == pytest.approx(3.04)
    assert found["mlx_server_prompt_tokens_total", frozenset()] == 10 + 5 + 1 + 8
    assert found["mlx_server_completion_tokens_total", frozenset()] == 12


def test_two_observers_do_not_share() -> None:
    one, other = Observer(), Observer()
    one.observe(finished())
    key = "mlx_server_requests_total", frozenset({("outcome", "stop")})
    assert key in samples(one) and key not in samples(other)


def test_threads_lose_nothing() -> None:
    observer = Observer()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: observer.observe(finished()), range(400)))
    key = "mlx_server_requests_total", frozenset({("outcome", "stop")})
    assert samples(observer)[key] == 400
