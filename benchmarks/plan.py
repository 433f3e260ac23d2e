"""The plain types of a benchmark: what goes in, what came out, what is claimed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.client import Reply
from benchmarks.servers import Server

Body = dict[str, Any]
Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the requests of one run are made from; the same for every server in a round.

    Attributes:
        count: Tokens of a text.
        scale: Factor on numbers of tokens and words; below 1 in a quick run.
    """

    rng: random.Random
    count: Callable[[str], int]
    scale: float = 1.0

    def size(self, full: int, least: int = 2) -> int:
        return max(least, round(full * self.scale))


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request's messages and its reply."""

    messages: list[dict[str, str]]
    reply: Reply


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scenario's requests in the order they were sent.

    Attributes:
        streams: The ones whose decoding is looked at; all where empty.
        since: Gaps count from this moment on, in seconds of the client's clock.
    """

    exchanges: list[Exchange]
    streams: list[Reply] = field(default_factory=list)
    since: float = float("-inf")
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """A claim about one figure of `report.Line`: at least, or at most, a number."""

    figure: str
    label: str
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float | None) -> bool | None:
        """None where the figure could not be measured."""
        if value is None:
            return None
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)

    @property
    def bound(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """
    Args:
        batch: Rows of the bare loop that it is compared with; 0: with none.
        prepare: Makes the bodies.
        drive: Sends them to a server.
    """

    name: str
    title: str
    batch: int
    prepare: Callable[[Inputs], list[Body]]
    drive: Callable[[Server, list[Body]], Outcome]
    checks: tuple[Check, ...]
