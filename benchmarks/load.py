"""What else the machine is doing: a measurement beside a busy neighbour says little."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def _machine_seconds() -> float:
    """CPU seconds of all processes since the start, with what the hypervisor took away."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _process_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


BUSY = 0.1
"""Cores that others may use before we say so."""


class Neighbours:
    """Cores that others use between the construction and `cores()`; None but on Linux.

    Args:
        pids: Processes that are not others; this one neither.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = [os.getpid(), *pids]
        self._begun = time.perf_counter()
        self._before = self._others()

    def _others(self) -> float | None:
        if sys.platform != "linux":
            return None
        try:
            return _machine_seconds() - sum(map(_process_seconds, self._pids))
        except (OSError, ValueError):
            return None

    def cores(self) -> float | None:
        after = self._others()
        if after is None or self._before is None:
            return None
        return max(0.0, (after - self._before) / (time.perf_counter() - self._begun))


def wait_for_quiet(patience: float) -> None:
    """Until others use hardly anything, for so many seconds at most."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        neighbours = Neighbours([])
        time.sleep(0.3)
        if (neighbours.cores() or 0.0) <= BUSY:
            return
