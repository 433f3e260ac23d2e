"""The figure: ours against the peer, and ours as a share of the ideal. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import Line, Report

OURS, PEER, BOUND = "#2a6f97", "#b8b8b8", "#d1495b"


def draw(report: Report, path: Path) -> None:
    """Write a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [x for x in report.lines if x.bare.get("decode_rate")]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, 1.8 + 0.5 * len(lines)), sharey=True, layout="constrained"
    )
    _ratios(left, lines)
    _shares(right, lines)
    left.set_yticks(range(len(lines)), [x.title for x in lines])
    left.invert_yaxis()
    caption = " · ".join(str(report.settings[key]) for key in ("model", "versions", "machine"))
    figure.suptitle(f"{caption} · rounds: {report.settings['rounds']}", fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _bars(axes: Any, values: list[float | None], claims: list[float | None], unit: str) -> None:
    """Bars with their numbers; a red mark where the claim is."""
    known = [value or 0.0 for value in values]
    axes.barh(range(len(known)), known, height=0.6, color=OURS)
    axes.axvline(1.0, color="black", linewidth=0.8)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
    for i, (value, claim) in enumerate(zip(values, claims, strict=True)):
        if claim is not None:
            axes.plot([claim, claim], [i - 0.36, i + 0.36], color=BOUND, linewidth=2)
        label = "n/a" if value is None else f"{value:.2f}{unit}"
        at = max(value or 0.0, claim or 0.0) if _near(value, claim) else value or 0.0
        axes.annotate(
            label, (at, i), (5, 0), textcoords="offset points", va="center", fontsize=9, bbox=box
        )
    axes.set_xlim(0, max([1.0, *known, *(c for c in claims if c)]) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)


def _near(value: float | None, claim: float | None) -> bool:
    """Whether the number would hide the mark."""
    return value is not None and claim is not None and 0 <= claim - value < 0.3


def _claim(x: Line, *labels: str) -> float | None:
    """A claim on tokens a second; one on the time is turned over."""
    for v in x.verdicts:
        if v.label.startswith(labels):
            bound = float(v.bound.split()[1])
            return 1 / bound if v.bound.startswith("≤") else bound
    return None


def _ratios(axes: Any, lines: list[Line]) -> None:
    claims = [_claim(x, "tokens/s against", "total time against") for x in lines]
    _bars(axes, [x.figures.get("speed_ratio") for x in lines], claims, "×")
    axes.set_title("tokens/s, ours : peer (red: the least that is claimed)", fontsize=10)


def _shares(axes: Any, lines: list[Line]) -> None:
    peer = [x.peer.get("ideal_share") or 0.0 for x in lines]
    axes.barh([i + 0.39 for i in range(len(lines))], peer, height=0.14, color=PEER)
    claims = [_claim(x, "share of") for x in lines]
    _bars(axes, [x.figures.get("ideal_share") for x in lines], claims, "")
    axes.set_xlim(0, max(axes.get_xlim()[1], *peer))
    axes.set_title("share of the bare loop's ideal (blue: ours, grey: peer)", fontsize=10)
