"""The server's figures in Prometheus' text format.

Names below `llamacpp:` are those of llama.cpp's server, its document's and today's; our own
begin with `mlx_server_`. What engines count comes as a mapping when it is asked for; what is
known of a reply only once it ends is kept by an `Observer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlx_server.deltas import Finished

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_RATES = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 500, 1000)


@dataclass(frozen=True, slots=True)
class _Figure:
    """A metric that is a key of the engines' figures.

    Args:
        name: A counter's is without its ending `_total`.
    """

    name: str
    key: str
    help: str
    kind: Literal["counter", "gauge"] = "counter"


_FIGURES = (
    _Figure(
        "llamacpp:prompt_tokens", "prompt_tokens_computed", "Number of prompt tokens processed."
    ),
    _Figure("llamacpp:prompt_seconds", "prompt_seconds", "Prompt process time."),
    _Figure(
        "llamacpp:tokens_predicted", "generated_tokens", "Number of generation tokens processed."
    ),
    _Figure("llamacpp:tokens_predicted_seconds", "decode_seconds", "Predict process time."),
    _Figure("llamacpp:n_decode", "steps", "Number of steps, each one pass of the model."),
    _Figure("llamacpp:kv_cache_tokens", "kv_tokens", "KV-cache tokens.", "gauge"),
    _Figure("llamacpp:requests_processing", "running", "Number of requests processing.", "gauge"),
    _Figure("llamacpp:requests_deferred", "waiting", "Number of requests deferred.", "gauge"),
    _Figure(
        "mlx_server_prompt_tokens_cached",
        "prompt_tokens_cached",
        "Prompt tokens that did not have to be computed.",
    ),
    _Figure(
        "mlx_server_forced_tokens",
        "forced_tokens",
        "Reply tokens that a grammar left no choice about.",
    ),
    _Figure("mlx_server_preemptions", "preemptions", "Sequences that had to give up their memory."),
    _Figure("mlx_server_context_shifts", "shifts", "Full contexts whose older half made room."),
    _Figure("mlx_server_prefix_hits", "prefix_hits", "Prompts whose beginning was known."),
    _Figure("mlx_server_prefix_misses", "prefix_misses", "Prompts that began with nothing known."),
    _Figure(
        "mlx_server_prefix_evictions",
        "prefix_evictions",
        "Prefixes that made room for others.",
    ),
    _Figure("mlx_server_prefix_entries", "prefix_entries", "Prefixes that are known.", "gauge"),
    _Figure("mlx_server_prefix_bytes", "prefix_bytes", "Bytes that they take.", "gauge"),
    _Figure("mlx_server_kv_bytes", "kv_bytes", "Bytes of all keys and values.", "gauge"),
    _Figure(
        "mlx_server_kv_budget_bytes", "kv_budget_bytes", "Bytes they may take; 0: any.", "gauge"
    ),
    _Figure("mlx_server_memory_active_bytes", "active_memory", "Bytes that arrays hold.", "gauge"),
    _Figure("mlx_server_memory_peak_bytes", "peak_memory", "The most they have held.", "gauge"),
    _Figure("mlx_server_memory_cache_bytes", "cache_memory", "Bytes kept for new arrays.", "gauge"),
)


@dataclass(frozen=True, slots=True)
class _Ratio:
    """One figure over another; 0 where the other is."""

    name: str
    over: str
    under: str
    help: str


_RATIOS = (
    _Ratio(
        "llamacpp:prompt_tokens_seconds",
        "prompt_tokens_computed",
        "prompt_seconds",
        "Average prompt throughput in tokens/s.",
    ),
    _Ratio(
        "llamacpp:predicted_tokens_seconds",
        "generated_tokens",
        "decode_seconds",
        "Average generation throughput in tokens/s.",
    ),
    _Ratio(
        "llamacpp:kv_cache_usage_ratio",
        "kv_bytes",
        "kv_budget_bytes",
        "KV-cache usage. 1 means 100 percent usage.",
    ),
    _Ratio(
        "llamacpp:n_busy_slots_per_decode",
        "generated_tokens",
        "steps",
        "Average number of sequences that a step gave a token.",
    ),
)


class Observer:
    """Replies that have ended. Thread-safe; nothing is kept of any one of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "mlx_server_requests",
            "Replies that have ended, by how.",
            ["outcome"],
            registry=self.registry,
        )
        self._prompt = Counter(
            "mlx_server_prompt_tokens", "Tokens of their prompts.", registry=self.registry
        )
        self._completion = Counter(
            "mlx_server_completion_tokens", "Tokens of the replies.", registry=self.registry
        )
        self._first = Histogram(
            "mlx_server_time_to_first_token_seconds",
            "From a reply's first step to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rate = Histogram(
            "mlx_server_tokens_per_second",
            "Tokens of a reply per second, from its first token on.",
            buckets=_RATES,
            registry=self.registry,
        )

    def observe(self, finished: Finished) -> None:
        """A reply has ended."""
        timings = finished.timings
        self._requests.labels(finished.reason).inc()
        self._prompt.inc(timings.prompt_n + timings.cache_n)
        self._completion.inc(timings.predicted_n)
        if timings.predicted_n:
            self._first.observe(timings.prompt_ms / 1000)
        # The first token comes with the prompt: it took no time of its own.
        if timings.predicted_n > 1 and timings.predicted_ms > 0:
            self._rate.observe((timings.predicted_n - 1) * 1000 / timings.predicted_ms)

    def outcomes(self) -> dict[str, int]:
        """Replies that have ended, by how."""
        return {
            sample.labels["outcome"]: int(sample.value)
            for family in self._requests.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }


class _Engines(Collector):
    """The engines' figures as they are just now."""

    def __init__(self, stats: Mapping[str, float]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        for figure in _FIGURES:
            if figure.key not in stats:
                continue
            family = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
            yield family(figure.name, figure.help, value=float(stats[figure.key]))
        for ratio in _RATIOS:
            if ratio.over in stats and ratio.under in stats:
                under = float(stats[ratio.under])
                value = float(stats[ratio.over]) / under if under else 0.0
                yield GaugeMetricFamily(ratio.name, ratio.help, value=value)


class _Together(Collector):
    def __init__(self, collectors: Iterable[Collector | CollectorRegistry]) -> None:
        self._collectors = tuple(collectors)

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()


def render(stats: Mapping[str, float], observer: Observer) -> bytes:
    """Everything in the text format, version 0.0.4.

    Args:
        stats: What the engines count and hold (`Worker.stats()`); what is missing there is
            left out.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Together((_Engines(stats), observer.registry)))
    return generate_latest(registry)
