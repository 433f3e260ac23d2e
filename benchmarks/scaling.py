"""How the cost of a step grows with batch and context: our engine and the bare loop, no HTTP.

    python -m benchmarks.scaling [--quick] [--json FILE] [--markdown FILE]

Every point is measured in a process of its own, so that memory is that point's alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import model as bench_model
from benchmarks import servers
from benchmarks.report import number, pipes, plain

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
CHUNK = 192
"""Prompt tokens per step of our engine: its default."""


@dataclass(frozen=True, slots=True)
class Point:
    """
    Attributes:
        context: Tokens of each row's prompt.
        step: Seconds of a decode step with all rows, median.
        prefill_rate: Prompt tokens a second. All rows' prompts; the bare loop's one.
        peak: Bytes, the most that were in use, with weights.
        cache: Bytes that came on top of the weights while decoding.
    """

    batch: int
    context: int
    step: float
    prefill_rate: float
    peak: int
    cache: int


def measure_ours(folder: Path, batch: int, context: int, steps: int) -> Point:
    import mlx.core as mx
    import numpy as np

    from mlx_server.engine.engine import Engine
    from mlx_server.engine.limits import Limits
    from mlx_server.engine.loading import load_engine
    from mlx_server.exchange import EngineRequest
    from mlx_server.sampling_params import SamplingParams

    engines: dict[str, Engine] = {}
    limits = Limits(max_batch_size=batch, prefill_chunk_size=CHUNK)
    info = load_engine(
        engines, folder, name="m", limits=limits, max_models=1, trust_remote_code=False
    )
    engine = engines["m"]
    weights = mx.get_active_memory()
    rng = np.random.default_rng(batch + context)

    def add(name: str, length: int, max_tokens: int) -> None:
        tokens = tuple(rng.integers(0, info.vocab_size, length).tolist())
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=0, ignore_eos=True)
        engine.add(EngineRequest(name, tokens, params))

    add("warm", 64, 8)
    while engine.busy:
        engine.step()
    mx.reset_peak_memory()
    left = {f"r{i}" for i in range(batch)}
    # The first rows decode while the last ones' prompts are computed: they need tokens for it.
    spare = batch * -(-context // CHUNK) + 8
    for name in left:
        add(name, context, steps + spare)
    started = time.perf_counter()
    while left:
        left -= {
            name for name, out in engine.step().items() if any(o.token_ids for o in out.outputs)
        }
    prefill = time.perf_counter() - started
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begun)
    cache = mx.get_active_memory() - weights
    return Point(
        batch, context, median(times), batch * context / prefill, mx.get_peak_memory(), cache
    )


def measure_bare(folder: Path, batch: int, context: int, steps: int) -> Point:
    import mlx.core as mx
    import numpy as np
    from mlx_lm.utils import load_model

    from benchmarks import bare

    model, _ = load_model(folder)
    rng = np.random.default_rng(context)
    tokens = rng.integers(0, model.args.vocab_size, context)
    bare.prefill(model, tokens[:64])
    weights = mx.get_active_memory()
    mx.reset_peak_memory()
    cache, took = bare.prefill(model, tokens)
    bare.tile(cache, batch)
    bare.decode(model, cache, batch, 2)
    step = bare.decode(model, cache, batch, steps)
    held = mx.get_active_memory() - weights
    return Point(batch, context, step, context / took, mx.get_peak_memory(), held)


KINDS: dict[str, Callable[[Path, int, int, int], Point]] = {
    "ours": measure_ours,
    "bare": measure_bare,
}


def in_process(
    kind: str, folder: Path, batch: int, context: int, steps: int, root: Path = servers.ROOT
) -> Point:
    command = [sys.executable, "-m", "benchmarks.scaling", "--model", str(folder)]
    env = servers.environment(root)
    env["PYTHONPATH"] = f"{root}:{servers.ROOT}"
    point = ["--point", kind, str(batch), str(context), "--steps", str(steps)]
    done = subprocess.run(
        [*command, *point], cwd=root, env=env, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{kind}, batch {batch}, context {context}: {done.stderr[-2000:]}")
    return Point(**json.loads(done.stdout.splitlines()[-1]))


# ---------------------------------------------------------------- the table

HEAD = (
    "batch",
    "context",
    "step ms, ours",
    "bare",
    "share of bare",
    "µs per row",
    "prefill tok/s, ours",
    "bare",
    "cache MiB, ours",
    "bare",
    "peak MiB, ours",
    "bare",
)


def row(ours: Point, bare: Point) -> list[str]:
    def mebi(count: int) -> str:
        return number(count / 2**20, 0)

    return [
        str(ours.batch),
        str(ours.context),
        number(ours.step * 1e3),
        number(bare.step * 1e3),
        number(bare.step / ours.step),
        number(ours.step * 1e6 / ours.batch, 0),
        number(ours.prefill_rate, 0),
        number(bare.prefill_rate, 0),
        mebi(ours.cache),
        mebi(bare.cache),
        mebi(ours.peak),
        mebi(bare.peak),
    ]


def points(args: argparse.Namespace) -> list[tuple[int, int]]:
    """Batches at the shortest context, and contexts at the one batch size."""
    wanted = [(batch, min(args.context)) for batch in args.batch]
    wanted += [(args.at_batch, context) for context in args.context]
    return list(dict.fromkeys(wanted))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench_model.add_arguments(parser)
    parser.add_argument("--model", type=Path, help="folder; otherwise one is made")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--context", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--at-batch", type=int, default=4, help="rows where the context grows")
    parser.add_argument("--steps", type=int, default=32, help="decode steps to time")
    parser.add_argument("--rounds", type=int, default=1, help="the fastest step of so many counts")
    parser.add_argument("--quick", action="store_true", help="up to batch 8 and context 1,024")
    parser.add_argument("--checkout", type=Path, default=servers.ROOT, help="where our engine is")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    return parser


def best(found: Sequence[Point]) -> Point:
    return min(found, key=lambda point: point.step)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    folder = args.model or bench_model.model_folder(bench_model.spec_of(args))
    if args.point:
        kind, batch, context = args.point
        point = KINDS[kind](folder, int(batch), int(context), args.steps)
        print(json.dumps(asdict(point)))
        return 0
    if args.quick:
        args.batch, args.context, args.steps = [1, 4, 8], [256, 1024], 12
    table, record = [], []
    for batch, context in points(args):
        found: dict[str, list[Point]] = {kind: [] for kind in KINDS}
        for _ in range(args.rounds):
            for kind in KINDS:
                at = folder, batch, context, args.steps, args.checkout
                found[kind].append(in_process(kind, *at))
        table.append(row(best(found["ours"]), best(found["bare"])))
        record.append({kind: [asdict(p) for p in runs] for kind, runs in found.items()})
        print(" ".join(table[-1]), file=sys.stderr, flush=True)
    print(plain(HEAD, table))
    if args.json:
        settings: dict[str, Any] = {"model": folder.name, "chunk": CHUNK}
        args.json.write_text(json.dumps(settings | {"points": record}, indent=1) + "\n", "utf-8")
    if args.markdown:
        args.markdown.write_text(pipes(HEAD, table) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
