"""This server beside a peer and the bare loop, in turns in one run.

    python -m benchmarks.serve [--quick] [--scenario NAME ...] [--rounds 3]

The peer is mlx_lm.server unless `--peer` gives the URL of a running
OpenAI-compatible server, or none. Everything stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import gc
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

from benchmarks import metrics, report, servers
from benchmarks import model as bench_model
from benchmarks.client import together
from benchmarks.corpus import prose
from benchmarks.load import Neighbours, wait_for_quiet
from benchmarks.metrics import Bare
from benchmarks.plan import Body, Figures, Inputs, Scenario
from benchmarks.plot import draw
from benchmarks.report import BareRun, Report, Run
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import Server
from benchmarks.tokens import Tokens

QUICK_SCALE = 0.25
"""Factor on words and tokens in a quick run."""


class Loop(Protocol):
    def measure(self, batch: int, prompt: int, context: int, steps: int) -> Bare: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """What one scenario on one server gave; the means are in tokens, for the bare loop."""

    figures: Figures
    prompt: int
    context: int


def measure(scenario: Scenario, server: Server, bodies: list[Body], tokens: Tokens) -> Measured:
    """Drive one server through one scenario."""
    before = server.stats()
    neighbours = Neighbours([server.child.process.pid] if server.child else [])
    gc.collect()
    gc.disable()
    try:
        outcome = scenario.drive(server, bodies)
    finally:
        gc.enable()
    others = neighbours.cores() if server.child else None
    after = server.stats()
    replies = [e.reply for e in outcome.exchanges]
    streams = outcome.streams or replies
    cached = [r.cached_tokens for r in replies]
    prompt_tokens = sum(r.prompt_tokens for r in replies)
    computed: float | None = None
    if before and after:
        key = "prompt_tokens_computed"
        computed = float(after[key] - before[key])
    elif None not in cached:
        computed = float(prompt_tokens - sum(c or 0 for c in cached))
    needed = tokens.needed(outcome)
    figures: Figures = {
        "seconds": metrics.seconds(replies),
        "tokens": float(sum(r.tokens for r in replies)),
        "tokens_per_second": metrics.tokens_per_second(replies),
        "first_token": metrics.first_token(replies),
        "longest_gap": metrics.longest_gap(streams, outcome.since),
        "decode_rate": None if outcome.streams else metrics.decode_rate(streams),
        "errors": float(sum(r.error is not None for r in replies)),
        "prompt_tokens": float(prompt_tokens),
        "computed_tokens": computed,
        "needed_tokens": float(needed),
        "computed_ratio": computed / needed if computed is not None else None,
        "others_cores": others,
        "logprobs": float(all(r.logprobs for r in replies)),
    } | outcome.figures
    for problem in sorted({r.error for r in replies if r.error}):
        figures[f"errors {problem}"] = float(sum(r.error == problem for r in replies))
    mean_prompt = mean(r.prompt_tokens for r in replies)
    mean_context = mean_prompt + mean(r.tokens for r in streams) / 2
    return Measured(figures, max(2, round(mean_prompt)), max(4, round(mean_context)))


def against_bare(figures: Figures, bare: Bare) -> Figures:
    """The ideal by the bare loop's speed, and the server's share of it."""
    ideal = metrics.ideal_seconds(
        int(figures["needed_tokens"] or 0), int(figures["tokens"] or 0), bare
    )
    decode = figures.get("decode_rate")
    return figures | {
        "ideal_seconds": ideal,
        "ideal_rate": (figures["tokens"] or 0.0) / ideal,
        "ideal_share": ideal / (figures["seconds"] or 1e-9),
        "decode_share": decode / bare.decode_rate if decode else None,
    }


def warm_up(server: Server, bodies: Sequence[Body], rng: random.Random) -> None:
    """A few short requests of the scenario's kind, with other prompts."""
    prompt = [{"role": "user", "content": prose(rng, 24)}]
    together(server.endpoint, [b | {"messages": prompt, "max_tokens": 6} for b in bodies[:8]])


def run(
    scenarios: Sequence[Scenario],
    rounds: int,
    under_test: Sequence[Server],
    loop: Loop,
    tokens: Tokens,
    seed: int = 0,
    scale: float = 1.0,
    patience: float = 0.0,
) -> tuple[list[Run], list[BareRun]]:
    """All scenarios on all servers, the servers in turns; each sleeps while others are measured.

    Args:
        patience: Seconds to wait, at most, before each measurement for a quiet machine.
    """
    runs: list[Run] = []
    bare_runs: list[BareRun] = []
    for turn in range(rounds):
        for scenario in scenarios:
            rng = random.Random(f"{seed} {scenario.name} {turn}")
            bodies = scenario.prepare(Inputs(rng, tokens.count, scale))
            found: dict[str, Measured] = {}
            bare: Bare | None = None
            # Who is first alternates, so that a drift of the machine favours nobody; the bare
            # loop's turn is between them.
            for server in under_test[:: -1 if turn % 2 else 1]:
                server.resume()
                warm_up(server, bodies, rng)
                wait_for_quiet(patience)
                one = found[server.name] = measure(scenario, server, bodies, tokens)
                if not scenario.batch:
                    time.sleep(1.0)  # rows of clients that left end meanwhile
                server.pause()
                if scenario.batch and bare is None:
                    steps = max(8, round(48 * scale))
                    bare = loop.measure(scenario.batch, one.prompt, one.context, steps)
                    bare_runs.append(BareRun(scenario.name, turn, bare))
            for name, measured in found.items():
                figures = against_bare(measured.figures, bare) if bare else measured.figures
                runs.append(Run(scenario.name, name, turn, figures))
            _progress(scenario, turn, found)
    return runs, bare_runs


def _progress(scenario: Scenario, turn: int, found: dict[str, Measured]) -> None:
    speeds = ", ".join(
        f"{name} {m.figures['seconds']:.2f} s {m.figures['tokens_per_second']:.0f} tok/s"
        for name, m in found.items()
    )
    print(f"round {turn + 1}, {scenario.name}: {speeds}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- command line


def settings_of(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} absent"

    preload = servers.environment().get("LD_PRELOAD")
    if sys.platform == "linux":
        blas = f"OpenBLAS preloaded for all ({preload})" if preload else "no OpenBLAS found"
    else:
        blas = "the system's"
    return {
        "model": folder.name,
        "peer": {"mlx_lm": "mlx_lm.server, defaults"}.get(args.peer, args.peer),
        "rounds": f"{args.rounds}{', quick' if args.quick else ''}",
        "versions": ", ".join([of("mlx"), of("mlx-lm"), f"Python {platform.python_version()}"]),
        "machine": f"{platform.system()} {platform.machine()}, {servers.num_cores()} cores",
        "BLAS": blas,
        "our flags": " ".join(args.server_arg) or "none",
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench_model.add_arguments(parser)
    names = [s.name for s in SCENARIOS]
    parser.add_argument("--model", type=Path, help="folder to serve; otherwise one is made")
    parser.add_argument("--peer", default="mlx_lm", help="mlx_lm (default), a URL, or none")
    parser.add_argument("--scenario", action="append", choices=names, help="repeatable")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens, one round")
    parser.add_argument(
        "--wait", type=float, default=0.0, help="seconds to wait for a quiet machine, per turn"
    )
    parser.add_argument("--server-arg", action="append", default=[], help="flag for our server")
    parser.add_argument(
        "--checkout", type=Path, default=servers.ROOT, help="run our server from this checkout"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--check", action="store_true", help="a missed claim exits with 1")
    return parser


def start(args: argparse.Namespace, folder: Path, log: Path) -> list[Server]:
    """Our server, and the peer; each waits asleep for its turn."""
    started = [servers.start_ours(folder, log, args.server_arg, args.checkout)]
    try:
        if args.peer == "mlx_lm":
            started.append(servers.start_peer(folder, log))
        elif args.peer != "none":
            started.append(servers.running_peer(args.peer))
        for server in started:
            server.wait_ready()
            server.pause()
    except BaseException:
        for server in started:
            server.stop()
        raise
    return started


def measure_all(args: argparse.Namespace, folder: Path) -> Report:
    chosen = [s for s in SCENARIOS if not args.scenario or s.name in args.scenario]
    settings = settings_of(args, folder)
    print(report.describe(settings), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="mlx_server_bench_") as logs:
        under_test = start(args, folder, Path(logs))
        loop = servers.BareLoop(folder, Path(logs))
        try:
            scale = QUICK_SCALE if args.quick else 1.0
            tokens = Tokens(folder)
            found = run(chosen, args.rounds, under_test, loop, tokens, args.seed, scale, args.wait)
        finally:
            for server in under_test:
                server.stop()
            loop.stop()
    return report.summarise(settings, *found)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    if args.quick:
        args.rounds = 1
    folder = args.model or bench_model.model_folder(bench_model.spec_of(args))
    result = measure_all(args, folder)
    print(report.text(result))
    if args.json:
        report.write_json(result, args.json)
    if args.markdown:
        args.markdown.write_text(report.markdown(result), "utf-8")
    if args.png:
        draw(result, args.png)
    return int(args.check and result.missed)


if __name__ == "__main__":
    sys.exit(main())
