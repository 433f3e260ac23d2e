"""A program on a terminal of its own: what a user would see, and what was written for that."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Terminal:
    """What a process writes to its stderr, which is a terminal.

    Attributes:
        written: Everything so far, with its escape sequences.
    """

    def __init__(self, process: subprocess.Popen, end: int) -> None:
        self.process = process
        self.written = ""
        self._end = end

    def read_until(self, there: Callable[[str], bool], timeout: float = 120.0) -> str:
        """Read on until `there(written)` holds or the program has ended."""
        deadline = time.monotonic() + timeout
        while not there(self.written) and time.monotonic() < deadline:
            if not select.select([self._end], [], [], 0.5)[0]:
                continue
            try:
                piece = os.read(self._end, 65536)
            except OSError:  # Linux: the other end is closed
                piece = b""
            if not piece:
                break
            self.written += piece.decode()
        return self.written

    def stop(self) -> str:
        """End it with SIGTERM; everything it has written."""
        self.process.send_signal(signal.SIGTERM)
        return self.read_until(lambda written: False, 30)


@contextlib.contextmanager
def on_a_terminal(
    command: Sequence[str], columns: int = 200, **environ: str | None
) -> Iterator[Terminal]:
    """Run a program whose stderr is a terminal.

    Args:
        environ: Variables beside those of the tests; None takes one away.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    given = {**os.environ, "TERM": "xterm-256color", **environ}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=its,
        env={name: value for name, value in given.items() if value is not None},
    )
    os.close(its)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def plain(written: str) -> str:
    """The text without its escape sequences."""
    return _ESCAPE.sub("", written).replace("\r\n", "\n")


def lasting(written: str) -> list[str]:
    """The lines that are left to see: what was drawn over is gone."""
    lines = written.replace("\r\n", "\n").split("\n")
    return [_ESCAPE.sub("", re.split(r"\r\x1b\[K", line)[-1]) for line in lines]
