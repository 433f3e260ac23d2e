"""Lines from a terminal: editing and history by the standard library's readline.

readline and libedit (which stands in for it on macOS) both know history, search and the
usual keys; what they lack is done here: messages of several lines, and pasted ones where
the library gives one line after the other.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

readline: ModuleType | None
try:
    readline = importlib.import_module("readline")
except ImportError:  # a Python built without it: lines can be typed all the same
    readline = None

PROMPT, MORE = "> ", "… "
QUOTES = '"""'
MAX_HISTORY = 1000
PASTE_SECONDS = 0.03
"""What comes so soon behind a line was pasted with it."""

Complete = Callable[[str], list[str]]
"""The begun line → what it may become."""


class Interrupted(Exception):
    """Ctrl-C at the prompt. Args: empty: nothing was typed."""

    def __init__(self, empty: bool) -> None:
        super().__init__()
        self.empty = empty


class LineInput:
    """
    Args:
        history: The file that keeps what was typed; None keeps nothing.
        complete: For the Tab key.
    """

    def __init__(self, history: Path | None = None, complete: Complete | None = None) -> None:
        self._history = history
        self._entries: list[str] = []
        self._begun = False  # a message has a line already
        if readline is not None:
            self._set_up(readline, complete)

    def _set_up(self, library: ModuleType, complete: Complete | None) -> None:
        library.set_auto_history(False)  # a message of several lines is one entry
        for entry in self._read_history():
            library.add_history(entry)
        if complete is not None:
            library.set_completer_delims("")
            library.set_completer(_completer(complete))
            libedit = "libedit" in (library.__doc__ or "")
            library.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

    # ------------------------------------------------------------ reading

    def read(self) -> str:
        r'''The next message: one line, several that end with a backslash, or what stands
        between two """ and may begin and end with empty lines.

        Raises:
            Interrupted: Ctrl-C was pressed.
            EOFError: Ctrl-D, or the input has ended.
        '''
        self._begun = False
        with self._watching():
            text = self._message(input(PROMPT))
        if text.strip():
            self._remember(text)
        return text

    def _message(self, line: str) -> str:
        if line.startswith(QUOTES):
            return self._quoted(line.removeprefix(QUOTES))
        if line.startswith("/"):
            return line
        lines = [line]
        while True:
            if not _more_is_there():
                if not lines[-1].endswith("\\"):
                    return "\n".join(lines)
                lines[-1] = lines[-1].removesuffix("\\")
            lines.append(self._next())

    def _quoted(self, line: str) -> str:
        lines = [line]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._next())
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def _next(self) -> str:
        """A further line of a message."""
        self._begun = True
        try:
            return input(MORE)
        except EOFError:
            raise Interrupted(empty=False) from None

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Ctrl-C as Interrupted. What was typed is gone once input() has ended, so the
        signal's handler looks at it."""
        typed = ""

        def interrupt(*_: Any) -> None:
            nonlocal typed
            typed = readline.get_line_buffer() if readline is not None else ""
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(empty=not (typed or self._begun)) from None
        finally:
            signal.signal(signal.SIGINT, before)

    # ------------------------------------------------------------ history

    def _remember(self, text: str) -> None:
        if self._entries and self._entries[-1] == text:
            return
        self._entries.append(text)
        if readline is not None:
            readline.add_history(text)

    def _read_history(self) -> list[str]:
        if self._history is None:
            return []
        try:
            lines = self._history.read_text("utf-8").splitlines()
            entries = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError):
            return []
        return [entry for entry in entries if isinstance(entry, str)][-MAX_HISTORY:]

    def save_history(self) -> None:
        """Add what was typed to the file, readable by nobody else. Each entry is a JSON string on
        a line: the library's own formats differ and know no line ends."""
        if self._history is None or not self._entries:
            return
        entries = [*self._read_history(), *self._entries][-MAX_HISTORY:]
        with contextlib.suppress(OSError):  # no home to write to is no reason to fail
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = self._history.with_suffix(".new")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
            new.replace(self._history)


def history_file() -> Path:
    """In the XDG base directory for such state."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "mlx_server" / "chat_history"


def _more_is_there() -> bool:
    try:
        return bool(select.select([sys.stdin], [], [], PASTE_SECONDS)[0])
    except (OSError, ValueError):
        return False


def _completer(complete: Complete) -> Callable[[str, int], str | None]:
    found: list[str] = []

    def at(text: str, state: int) -> str | None:
        if state == 0:
            found[:] = complete(text)
        return found[state] if state < len(found) else None

    return at
