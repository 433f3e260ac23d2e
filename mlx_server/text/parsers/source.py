"""Text that is still coming, and how a parser takes it.

A parser is a generator. It yields the events it finds, and None where it needs text
that has not come yet; it is resumed once there is more. So it reads like one that
has the whole text, and works however that is cut into pieces:

    name = yield from source.collect((">",))      # waits, as often as it must
    yield CallStart(name)
    mark = yield from source.until(("</call>",), CallPiece)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from mlx_server.text.parsers.events import Event

T = TypeVar("T")

Parse = Generator[Event | None, None, T]
"""A parser whose result is a T."""

SPACE = " \t\r\n"


class Source:
    """The text of one reply. Positions are counted from its start."""

    def __init__(self) -> None:
        self._text = ""
        self._base = 0  # where `_text` begins in the reply
        self._at = 0  # what is read of `_text`
        self._held: int | None = None
        self._pinned: int | None = None
        self.closed = False

    # ------------------------------------------------------------ for who feeds it

    def feed(self, text: str) -> None:
        """More text; what is read and not held is forgotten."""
        kept = [place - self._base for place in (self._held, self._pinned) if place is not None]
        keep = min([self._at, *kept])
        self._text = self._text[keep:] + text
        self._base += keep
        self._at -= keep

    def close(self) -> None:
        """No more text will come."""
        self.closed = True

    # ------------------------------------------------------------ for parsers

    @property
    def rest(self) -> str:
        """What has come and is not read."""
        return self._text[self._at :]

    @property
    def ended(self) -> bool:
        """Everything is read, and there will be no more."""
        return self.closed and self._at == len(self._text)

    @property
    def position(self) -> int:
        """What is read so far, in characters from the start of the reply."""
        return self._base + self._at

    def hold(self) -> int:
        """Keep the text from here on for `go_back`, until `release`."""
        self._held = self.position
        return self._held

    def pin(self) -> int:
        """As `hold`, for who tries a parser that holds text itself."""
        self._pinned = self.position
        return self._pinned

    def unpin(self) -> None:
        """What was pinned need not be kept any more."""
        self._pinned = None

    def go_back(self, position: int) -> None:
        """Read again from a position that is held or pinned."""
        self._at = position - self._base

    def release(self) -> None:
        """What was held need not be kept any more."""
        self._held = None

    def take(self, count: int) -> str:
        """Read `count` characters, fewer if fewer have come."""
        text = self._text[self._at : self._at + count]
        self._at += len(text)
        return text

    def peek(self, count: int = 1) -> Parse[str]:
        """The next characters, not read yet; fewer only at the end."""
        while len(self._text) - self._at < count and not self.closed:
            yield None
        return self._text[self._at : self._at + count]

    def ahead(self, pattern: re.Pattern[str]) -> int:
        """How many of the characters that have come next the pattern matches."""
        found = pattern.match(self._text, self._at)
        return found.end() - self._at if found else 0

    def run(self, characters: re.Pattern[str], start: int = 0) -> Parse[int]:
        """Where the run of such characters ends that begins at `start`, counted from here;
        nothing is read.

        Args:
            characters: Matches any number of them.
        """
        end = start
        while True:
            run = characters.match(self._text, self._at + end)
            end = (run.end() if run is not None else self._at + end) - self._at
            if self._at + end < len(self._text) or self.closed:
                return end
            yield None

    def skip_space(self) -> Parse[str]:
        """Read blanks and line ends; returns them."""
        found = ""
        while (yield from self.peek()) and self._text[self._at] in SPACE:
            found += self.take(1)
        return found

    def next_is(self, *literals: str) -> Parse[str | None]:
        """The longest of the literals that comes next, not read yet; None if none does.
        Waits only while that is undecided."""
        while True:
            rest = self._text[self._at : self._at + max(map(len, literals))]
            open_ = [w for w in literals if len(w) > len(rest) and w.startswith(rest)]
            if not open_ or self.closed:
                return max((w for w in literals if rest.startswith(w)), key=len, default=None)
            yield None

    def accept(self, *literals: str) -> Parse[str | None]:
        """Read the longest of the literals that comes next, if one does."""
        found = yield from self.next_is(*literals)
        if found is not None:
            self.take(len(found))
        return found

    def finish(self, *literals: str) -> Parse[str | None]:
        """Read the literal that comes next, if one does, or as much of one as there is
        where the text ends; returns what was read."""
        found = yield from self.next_is(*literals)
        if found is None and self.closed and any(w.startswith(self.rest) for w in literals):
            found = self.rest
        return self.take(len(found)) if found is not None else None

    def until(
        self, marks: Sequence[str], event: Callable[[str], Event], *, cut: bool = False
    ) -> Parse[str | None]:
        """Give the text up to the first of the marks as events, as soon as it is certain.

        Args:
            cut: A text that ends without a mark was cut: what may be the beginning of one
                is read then and not given.

        Returns:
            The mark, which is read as well; None where the text ends without one.
        """
        while True:
            found = self._find(marks, self._at)
            if found is not None:
                place, mark = found
                if place > self._at:
                    yield event(self.take(place - self._at))
                self.take(len(mark))
                return mark
            whole = self.closed and not cut
            safe = len(self._text) - (0 if whole else self._partial(marks))
            if safe > self._at:
                yield event(self.take(safe - self._at))
            if self.closed:
                self._at = len(self._text)
                return None
            yield None

    def collect(self, marks: Sequence[str]) -> Parse[tuple[str, str | None]]:
        """The text up to the first of the marks, and the mark (None at the end); both read."""
        width = max(map(len, marks))
        searched = self._at
        while True:
            found = self._find(marks, searched)
            if found is not None:
                text = self.take(found[0] - self._at)
                self.take(len(found[1]))
                return text, found[1]
            if self.closed:
                return self.take(len(self._text) - self._at), None
            # What was searched need not be searched again, wherever feeding moves it.
            done = self._base + max(self._at, len(self._text) - width + 1)
            yield None
            searched = max(self._at, done - self._base)

    def _find(self, marks: Sequence[str], start: int) -> tuple[int, str] | None:
        """The first mark from `start` on; of those at one place the longest."""
        found = [(self._text.find(mark, start), mark) for mark in marks]
        return min(
            ((place, mark) for place, mark in found if place >= 0),
            key=lambda f: (f[0], -len(f[1])),
            default=None,
        )

    def _partial(self, marks: Sequence[str]) -> int:
        """Characters at the end that may be the beginning of a mark."""
        unread = len(self._text) - self._at
        for count in range(min(unread, max(map(len, marks), default=1) - 1), 0, -1):
            tail = self._text[len(self._text) - count :]
            if any(mark.startswith(tail) for mark in marks):
                return count
        return 0
