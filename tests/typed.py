"""A program on a terminal of its own that a test types to, on the standard library's pty."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

RUN = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Ctrl-C is a signal only where the terminal is the one that controls the process."""


class Typed:
    """`python -m` with the given words, in a session on a new terminal.

    Attributes:
        screen: Everything that was written so far.
        master: The descriptor of the keyboard and the screen.
    """

    def __init__(self, *argv: str, home: Path, **environ: str) -> None:
        self.screen = ""
        self._at = 0  # what was expected and came lies before
        self._news = threading.Condition()
        self.master, slave = pty.openpty()
        # Wide enough that no line is broken.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))
        keep = {name: os.environ[name] for name in ("PATH", "LD_PRELOAD") if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, *argv],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**keep, "HOME": str(home), "TERM": "xterm", "LANG": "C.UTF-8", **environ},
        )  # fmt: skip
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        data = b""
        with contextlib.suppress(OSError):  # the other side is closed
            while piece := os.read(self.master, 65536):
                data += piece
                with self._news:
                    self.screen = data.decode("utf-8", "replace")
                    self._news.notify()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, seconds: float = 30) -> str:
        """Wait until `text` comes. Returns what came before it since the last one."""
        with self._news:
            found = self._news.wait_for(lambda: text in self.screen[self._at :], seconds)
            assert found, f"{text!r} does not come:\n{self.screen[self._at :]}"
            end = self.screen.index(text, self._at)
            before, self._at = self.screen[self._at : end], end + len(text)
        return before

    def ready(self, seconds: float = 30) -> None:
        """Wait until the line editor gets every key. Before that a Ctrl-C is the terminal's, and
        CPython sees it with the next key only."""
        deadline = time.monotonic() + seconds
        while termios.tcgetattr(self.master)[3] & termios.ICANON:
            assert time.monotonic() < deadline, "no line editor listens"
            time.sleep(0.01)

    def interrupt(self) -> None:
        """Ctrl-C, and again if nothing at all comes of it: CPython may miss one that arrives
        just before it waits for a key."""
        self.ready()
        before = len(self.screen)
        for _ in range(3):
            self.type("\x03")
            with self._news:
                if self._news.wait_for(lambda: len(self.screen) != before, 8):
                    return
            if self.process.poll() is not None:
                return

    def ask(self, text: str, prompt: str = "> ") -> str:
        """Type a line; returns what is shown until the next prompt, without the line's echo."""
        self.type(text + "\n")
        self.expect(text)
        return self.expect("\n" + prompt).replace("\x1b[?2004l", "").strip()

    def wait(self, seconds: float = 30) -> int:
        """The exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        os.close(self.master)
