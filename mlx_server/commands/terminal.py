"""What the chat writes: plain text for a pipe, dimmed parts and no control characters for a
terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

from mlx_server.commands.conversation import Piece

DIM, RESET = "\x1b[2m", "\x1b[0m"

_CONTROLS: dict[int, int | None] = {
    code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"
}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD) | {0x7F: 0x2421, ord("\r"): None}


def printable(text: str) -> str:
    """`text` with pictures in place of the characters that steer a terminal: a model or a
    server could otherwise clear the screen, or set the clipboard."""
    return text.translate(_CONTROLS)


def takes_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether escape sequences may be written to it (https://no-color.org)."""
    plain = environ.get("NO_COLOR") or environ.get("TERM", "dumb") == "dumb"
    return stream.isatty() and not plain


class Screen:
    """A stream that a human may look at.

    Args:
        colour: Dim what is not the reply itself; None decides by the stream and environment.
    """

    def __init__(self, stream: TextIO, colour: bool | None = None) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self.colour = takes_colour(stream) if colour is None else colour

    def write(self, text: str, dim: bool = False) -> None:
        """As it is, at once."""
        text = printable(text) if self.is_terminal else text
        self._stream.write(f"{DIM}{text}{RESET}" if dim and self.colour and text else text)
        self._stream.flush()

    def line(self, text: str = "") -> None:
        self.write(f"{text}\n")

    def note(self, text: str) -> None:
        """A line beside the conversation, dimmed."""
        self.write(text, dim=True)
        self.write("\n")


class ReplyView:
    """Shows a reply's pieces as they come: reasoning and calls dimmed, each on lines of its own.

    Where nothing can be dimmed, a word in brackets stands before the reasoning.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._kind: str | None = None
        self._at_start = True  # of a line

    def show(self, piece: Piece) -> None:
        if piece.kind == "arguments":
            self._put(piece.text, dim=True)
            return
        if piece.kind != self._kind or piece.kind == "call":
            self._part(piece.kind)
        self._put(piece.text, dim=piece.kind != "text")
        if piece.kind == "call":
            self._put(" ", dim=True)

    def _part(self, kind: str) -> None:
        """Begin a part of another kind, below an empty line; calls follow line by line."""
        if self._kind is not None:
            self.end()
            if self._kind != kind:
                self._put("\n")
        self._kind = kind
        if kind == "call":
            self._put("[call] ", dim=True)
        elif kind == "reasoning" and not self._screen.colour:
            self._put("[reasoning] ")

    def _put(self, text: str, dim: bool = False) -> None:
        self._screen.write(text, dim)
        self._at_start = text.endswith("\n")

    def end(self) -> None:
        """End the line, if one was begun."""
        if not self._at_start:
            self._put("\n")
