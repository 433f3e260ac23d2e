"""Screen: stderr, as everybody writes to it.

    log lines ──┐
    banner ─────┼─ one lock ─> stderr      text that stays
    status line ┘                          one last line that is drawn anew, and never stays

A line that is written takes the status line away and puts it back below, so that neither cuts
into the other. All goes to stderr: the log is there, stdout stays free for what a command was
asked to print, and one stream keeps one order.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from typing import TextIO

_TRUE = ("1", "ON", "YES", "TRUE")
_CLEAR = "\r\x1b[K"

_CODES = {"bold": "1", "dim": "2", "red": "31", "yellow": "33", "cyan": "36"}


class Screen:
    """Thread-safe.

    Args:
        stream: Where it goes.
        plain: Draw nothing even on a terminal: lines are read by a program, or few are wanted.
        environ: NO_COLOR (https://no-color.org), TERM and HF_HUB_DISABLE_PROGRESS_BARS count.

    Attributes:
        rich: Whether somebody looks at a terminal: there is a banner.
        bars: Whether a status line can be drawn.
        colours: Whether text may have colours.
    """

    def __init__(
        self, stream: TextIO, *, plain: bool = False, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._status = ""
        smart = environ.get("TERM", "dumb") != "dumb"
        self.rich = not plain and _is_terminal(stream)
        self.colours = self.rich and smart and not environ.get("NO_COLOR")
        quiet = environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in _TRUE
        self.bars = self.rich and smart and not quiet

    def write(self, text: str) -> None:
        """Whole lines, without the last newline.

        Raises:
            OSError, ValueError: The stream takes nothing any more.
        """
        with self._lock:
            before, after = (_CLEAR, self._status) if self._status else ("", "")
            self._stream.write(f"{before}{text}\n{after}")
            self._stream.flush()

    def show(self, status: str) -> None:
        """Draw the status line anew, cut to the terminal's width; "" takes it away. Only
        where there are `bars`."""
        status = status[: self.width - 1]
        with self._lock:
            if status == self._status:
                return
            self._status = status
            with contextlib.suppress(OSError, ValueError):  # nobody looks any more
                self._stream.write(_CLEAR + status)
                self._stream.flush()

    @property
    def width(self) -> int:
        """Characters of a line."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def paint(self, text: str, style: str) -> str:
        """Text in a style of `_CODES`, where there are colours."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colours else text


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False
