"""How far downloads and loading are: a bar on a terminal, else a line now and then.

downloading owner/model  [======>         ]  42 %, 3.1 of 7.42 GB, 85 MB/s, 0:51 left
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from mlx_server.amounts import clock, duration, size
from mlx_server.terminal.screen import Screen

log = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds after which something counts as long; of what is over before nothing is told."""

_REDRAW = 0.1
_WINDOW = 10.0  # seconds over which the speed is measured
_BAR = 24
_NAME = 16  # characters of a name that there is room for at least

LINE_SECONDS, LINE_SHARE, LEAST_SECONDS = 30.0, 0.1, 2.0
"""Where there is no bar, a line comes after so many seconds, or so large a share of the whole
if that took as long as LEAST_SECONDS: a quick download is no page of the log."""


class Reporter:
    """A `mlx_server.progress.Progress` on a screen. Thread-safe.

    Lines for the log have `drawn` where a bar tells the same: the screen leaves those out
    (logs.py), a log file has them.

    Args:
        clock: Seconds, for tests.
    """

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen = screen
        self._clock = clock
        self._lock = threading.Lock()
        self._tasks: list[_Task] = []
        self._drawn_at = float("-inf")

    def begin(self, what: str, total: int | None) -> _Task:
        task = _Task(self, what, total, self._clock())
        with self._lock:
            self._tasks.append(task)
        return task

    def close(self) -> None:
        """Take the bar away, for good: the process ends in the middle of something."""
        with self._lock:
            self._tasks.clear()
            self._draw(self._clock())

    def _advanced(self, task: _Task, nbytes: int) -> None:
        with self._lock:
            now = self._clock()
            task.note(nbytes, now)
            if self._screen.bars and now - self._drawn_at >= _REDRAW:
                self._draw(now)
            line = task.line(now)
        if line is not None:
            log.info("%s", line, extra={"drawn": self._screen.bars})

    def _ended(self, task: _Task, failed: bool) -> None:
        with self._lock:
            now = self._clock()
            if task in self._tasks:
                self._tasks.remove(task)
            self._draw(now)
        took = now - task.began
        if not failed and took >= PATIENCE:
            log.info("%s: %s in %s", task.what, size(task.done), duration(took))

    def _draw(self, now: float) -> None:
        if not self._screen.bars:
            return
        long = [task for task in self._tasks if now - task.began >= PATIENCE]
        others = f" (and {len(long) - 1} more)" if len(long) > 1 else ""
        width = self._screen.width - 1 - len(others)
        self._screen.show(long[0].bar(now, width) + others if long else "")
        self._drawn_at = now


class _Task:
    """Bytes on their way. Everything but the context manager is the reporter's, with its lock."""

    def __init__(self, reporter: Reporter, what: str, total: int | None, now: float) -> None:
        self._reporter = reporter
        self.what = what
        self.total = total
        self.began = now
        self.done = 0
        self._past: deque[tuple[float, int]] = deque([(now, 0)])
        self._told_at, self._told = now, 0

    def advance(self, nbytes: int) -> None:
        """So many more bytes are done. From any thread."""
        self._reporter._advanced(self, nbytes)

    def __enter__(self) -> _Task:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reporter._ended(self, failed=kind is not None)

    def note(self, nbytes: int, now: float) -> None:
        self.done += nbytes
        if now - self._past[-1][0] >= _REDRAW or len(self._past) == 1:
            self._past.append((now, self.done))
        while len(self._past) > 2 and now - self._past[1][0] > _WINDOW:
            self._past.popleft()

    def line(self, now: float) -> str | None:
        """A line for the log, if it is time for one."""
        waited, share = now - self._told_at, 0.0
        if self.total:
            share = (self.done - self._told) / self.total
            if self.done >= self.total:
                return None  # its end will be told
        if waited < LINE_SECONDS and (waited < LEAST_SECONDS or share < LINE_SHARE):
            return None
        self._told_at, self._told = now, self.done
        return f"{self.what}: {self._state(now)}"

    def bar(self, now: float, width: int) -> str:
        """One line of at most `width` characters, if they are enough for the figures."""
        state = self._state(now)
        length = min(_BAR, width - len(state) - min(len(self.what), _NAME) - 6)
        if not self.total or length < 4:
            return f"{_end(self.what, width - len(state) - 2)}: {state}"
        filled = int(length * min(1.0, self.done / self.total))
        drawn = ("=" * filled + ">" * (filled < length)).ljust(length)
        return f"{_end(self.what, width - len(state) - length - 6)}  [{drawn}]  {state}"

    def _state(self, now: float) -> str:
        parts = [size(self.done)]
        if self.total:
            share = min(1.0, self.done / self.total)
            parts = [f"{int(100 * share)} %", f"{size(self.done)} of {size(self.total)}"]
        speed = self._speed(now)
        if speed > 0:
            parts.append(f"{size(speed)}/s")
            if self.total and self.done < self.total:
                parts.append(f"{clock(max(1.0, (self.total - self.done) / speed))} left")
        return ", ".join(parts)

    def _speed(self, now: float) -> float:
        """Bytes a second lately."""
        since, before = self._past[0]
        return (self.done - before) / (now - since) if now > since else 0.0


def _end(what: str, width: int) -> str:
    """Of a long name the end, which tells more."""
    return what if len(what) <= width else "…" + what[len(what) - max(width, 2) + 1 :]
