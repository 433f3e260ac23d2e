"""The limit: mlx_lm's model, forward and argmax, no server.

    python -m benchmarks.bare [--model FOLDER] [--batch 8] [--context 300]

With `--serve` it reads one JSON object a line, {batch, prompt, context, steps},
and answers each with one line; `benchmarks.serve` measures through that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from benchmarks import model as bench_model
from benchmarks.metrics import Bare

CHUNK = 2048
"""Prompt tokens per forward pass, mlx_lm's default."""


def prefill(model: Any, tokens: np.ndarray) -> tuple[list[Any], float]:
    """A cache with the tokens (a row), and the seconds that it took."""
    cache = make_prompt_cache(model)
    started = time.perf_counter()
    for i in range(0, len(tokens), CHUNK):
        model(mx.array(tokens[i : i + CHUNK])[None], cache=cache)
        mx.eval([c.state for c in cache])
    return cache, time.perf_counter() - started


def tile(cache: list[Any], batch: int) -> None:
    """Make `batch` equal rows of a cache's one row."""
    for c in cache:
        c.state = tuple(
            mx.repeat(part, batch, axis=0) if isinstance(part, mx.array) else part
            for part in c.state
        )
    mx.eval([c.state for c in cache])


def decode(model: Any, cache: list[Any], batch: int, steps: int) -> float:
    """Seconds of a decode step; the next is submitted before the last is read."""

    def step(tokens: mx.array) -> mx.array:
        return mx.argmax(model(tokens[:, None], cache=cache)[:, -1, :], axis=-1)

    tokens = step(mx.zeros((batch,), mx.int32))
    mx.async_eval(tokens)
    times = []
    for _ in range(steps + 2):
        following = step(tokens)
        mx.async_eval(following)
        tokens.tolist()
        times.append(time.perf_counter())
        tokens = following
    tokens.tolist()
    times = times[1:]  # the first one waits for the pipeline to fill
    return (times[-1] - times[0]) / (len(times) - 1)


def measure(model: Any, batch: int, prompt: int, context: int, steps: int) -> Bare:
    """Speed at this prompt length, and at this batch and mean context, in tokens a second."""
    rng = np.random.default_rng(prompt + context)
    vocab = model.args.vocab_size

    def random_tokens(count: int) -> np.ndarray:
        return rng.integers(0, vocab, max(1, count))

    repeats = max(1, min(5, 1500 // max(1, prompt)))
    prefill(model, random_tokens(prompt))
    took = median(prefill(model, random_tokens(prompt))[1] for _ in range(repeats))
    cache, _ = prefill(model, random_tokens(context - steps // 2))
    tile(cache, batch)
    decode(model, cache, batch, 2)
    step = decode(model, cache, batch, steps)
    del cache
    mx.clear_cache()
    return Bare(prompt / took, batch / step, batch, prompt, context)


def serve(model: Any) -> None:
    measure(model, 1, 32, 32, 4)
    for line in sys.stdin:
        print(json.dumps(asdict(measure(model, **json.loads(line)))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=__doc__)
    bench_model.add_arguments(parser)
    parser.add_argument("--model", type=Path, help="folder; otherwise one is made")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=256, help="tokens")
    parser.add_argument("--steps", type=int, default=48, help="decode steps to time")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    model, _ = load_model(args.model or bench_model.model_folder(bench_model.spec_of(args)))
    if args.serve:
        serve(model)
        return
    for batch in args.batch:
        print(measure(model, batch, args.context, args.context, args.steps))


if __name__ == "__main__":
    main()
