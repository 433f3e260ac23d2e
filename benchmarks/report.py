"""From the runs of all rounds to lines, claims, a table, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import BUSY
from benchmarks.metrics import Bare
from benchmarks.plan import Figures, Scenario
from benchmarks.scenarios import SCENARIOS


@dataclass(frozen=True, slots=True)
class Run:
    """One scenario on one server in one round. Times in seconds, rates in tokens a second."""

    scenario: str
    server: str
    round: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class BareRun:
    scenario: str
    round: int
    bare: Bare


@dataclass(frozen=True, slots=True)
class Verdict:
    """`passed` is None where the figure could not be measured."""

    label: str
    bound: str
    value: float | None
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Line:
    """A scenario over all rounds: medians, and medians of the ratios within each round."""

    scenario: str
    title: str
    ours: Figures
    peer: Figures
    bare: Figures
    figures: Figures
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Report:
    settings: dict[str, Any]
    lines: list[Line]
    runs: list[Run]
    bare_runs: list[BareRun]

    @property
    def missed(self) -> bool:
        return any(v.passed is False for line in self.lines for v in line.verdicts)


# ---------------------------------------------------------------- figures over the rounds

RATIOS = {
    "speed_ratio": "tokens_per_second",
    "time_ratio": "seconds",
    "first_ratio": "first_token",
    "gap_ratio": "longest_gap",
}
"""Ours by the peer's, from this figure of each."""


def middle(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None


def medians(runs: Sequence[Run]) -> Figures:
    """Of each figure; failed requests are summed up."""
    names = {name: None for run in runs for name in run.figures}
    found = {name: middle([run.figures.get(name) for run in runs]) for name in names}
    if runs:
        found["errors"] = float(sum(run.figures.get("errors") or 0 for run in runs))
    return found


def ratio(above: Figures, below: Figures, name: str) -> float | None:
    a, b = above.get(name), below.get(name)
    return a / b if a is not None and b else None


def compare(ours: Sequence[Run], peer: Sequence[Run]) -> Figures:
    """Our figures, and the median over the rounds of each ratio to the peer."""
    theirs = {run.round: run.figures for run in peer}
    found = medians(ours)
    for name, figure in RATIOS.items():
        found[name] = middle(
            [ratio(run.figures, theirs.get(run.round, {}), figure) for run in ours]
        )
    return found


def line(scenario: Scenario, runs: Sequence[Run], bare_runs: Sequence[BareRun]) -> Line:
    own = [run for run in runs if run.scenario == scenario.name]
    ours = [run for run in own if run.server == "ours"]
    peer = [run for run in own if run.server == "peer"]
    bare = [run.bare for run in bare_runs if run.scenario == scenario.name]
    figures = compare(ours, peer)
    verdicts = tuple(
        Verdict(c.label, c.bound, figures.get(c.figure), c.holds(figures.get(c.figure)))
        for c in scenario.checks
    )
    speeds: Figures = {
        name: middle([getattr(b, name) for b in bare])
        for name in ("prefill_rate", "decode_rate", "batch", "prompt", "context")
    }
    return Line(
        scenario.name, scenario.title, medians(ours), medians(peer), speeds, figures, verdicts
    )


def summarise(
    settings: dict[str, Any], runs: Sequence[Run], bare_runs: Sequence[BareRun]
) -> Report:
    present = {run.scenario for run in runs}
    lines = [line(s, runs, bare_runs) for s in SCENARIOS if s.name in present]
    return Report(settings, lines, list(runs), list(bare_runs))


# ---------------------------------------------------------------- text


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value * 1000:.0f}"


def rated(x: Line, figures: Figures, name: str) -> float | None:
    """A rate; none where the time is spent on something else than tokens."""
    return figures.get(name) if x.bare.get("decode_rate") else None


COLUMNS: tuple[tuple[str, Callable[[Line], str]], ...] = (
    ("scenario", lambda x: x.title),
    ("ours tok/s", lambda x: number(rated(x, x.ours, "tokens_per_second"), 0)),
    ("peer tok/s", lambda x: number(rated(x, x.peer, "tokens_per_second"), 0)),
    ("ratio", lambda x: number(rated(x, x.figures, "speed_ratio"))),
    ("ideal tok/s", lambda x: number(x.ours.get("ideal_rate"), 0)),
    ("share of ideal", lambda x: number(x.figures.get("ideal_share"))),
    ("decode : bare", lambda x: number(x.figures.get("decode_share"))),
    ("first token ms, ours", lambda x: milliseconds(x.ours.get("first_token"))),
    ("peer", lambda x: milliseconds(x.peer.get("first_token"))),
    ("longest gap ms, ours", lambda x: milliseconds(x.ours.get("longest_gap"))),
    ("peer", lambda x: milliseconds(x.peer.get("longest_gap"))),
    ("others' cores, ours", lambda x: number(x.ours.get("others_cores"))),
    ("peer", lambda x: number(x.peer.get("others_cores"))),
    ("failed, ours", lambda x: number(x.ours.get("errors"), 0)),
    ("peer", lambda x: number(x.peer.get("errors"), 0)),
)


def rows(report: Report) -> list[list[str]]:
    return [[cell(x) for _, cell in COLUMNS] for x in report.lines]


def claims(report: Report) -> list[list[str]]:
    words = {True: "pass", False: "MISS", None: "n/a"}
    return [
        [x.title, v.label, v.bound, number(v.value, 3), words[v.passed]]
        for x in report.lines
        for v in x.verdicts
    ]


CLAIM_COLUMNS = ["scenario", "figure", "bound", "measured", ""]


def plain(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in columns; the heads are wrapped at their spaces."""
    parts = [name.replace(", ", " ").split(" ") if i else [name] for i, name in enumerate(head)]
    depth = max(len(p) for p in parts)
    heads = [[p[i] if i < len(p) else "" for p in parts] for i in range(depth)]
    widths = [max(len(r[i]) for r in [*heads, *body]) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()

    return "\n".join([*map(row, heads), *map(row, body)])


def pipes(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *body])


def describe(settings: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in settings.items())


def warnings(report: Report) -> list[str]:
    found = []
    busy = [
        x.title
        for x in report.lines
        if max(x.ours.get("others_cores") or 0, x.peer.get("others_cores") or 0) > BUSY
    ]
    if busy:
        found.append("Other processes were busy meanwhile, so read with care: " + "; ".join(busy))
    for x in report.lines:
        if x.ours.get("logprobs") and x.peer.get("logprobs") == 0:
            found.append(f"{x.title}: the peer's replies have no log-probabilities.")
    return found


def text(report: Report) -> str:
    head = [name for name, _ in COLUMNS]
    return "\n\n".join(
        [
            describe(report.settings),
            plain(head, rows(report)),
            plain(CLAIM_COLUMNS, claims(report)),
            *warnings(report),
        ]
    )


def markdown(report: Report) -> str:
    head = [name for name, _ in COLUMNS]
    settings = "\n".join(f"- {name}: {value}" for name, value in report.settings.items())
    parts = [settings, pipes(head, rows(report)), pipes(CLAIM_COLUMNS, claims(report))]
    parts += warnings(report)
    return "\n\n".join(parts) + "\n"


def write_json(report: Report, path: Path) -> None:
    path.write_text(json.dumps(asdict(report), indent=1, default=str) + "\n", "utf-8")
