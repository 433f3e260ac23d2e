"""Stop strings in streamed text.

Sans-IO: feed text in pieces, get back what is safe to show. Text that may be the
beginning of a stop string is held back until that is decided.

    stops ("</s>", "\\n\\n")     feed "a<"    feed "/b"    feed "\\n"   feed "\\nc"
    released                    "a"          "</b"        ""          "" matched "\\n\\n"
    pending                     1            0            1           0

The stop string that is complete first wins, so a reply ends at the very token
that completes one; of two that end at the same character, the longer (it starts
further left). How the text was cut into pieces never matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopResult:
    """What one piece of text led to.

    Args:
        text: Safe to release now.
        matched: The stop string that ended the text, or None.
        cut: Characters that will never be released: the stop string itself
            and what was fed after it.
    """

    text: str
    matched: str | None = None
    cut: int = 0


class StopChecker:
    """Looks for stop strings with the automaton of Aho and Corasick (1975).

    A state stands for the longest end of the text so far that begins a stop
    string: its depth is the number of characters to hold back, its own text is
    what they are. Time is linear in the text; empty stop strings match nothing.

    Args:
        stops: The stop strings; of those complete at one character the longest counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]  # state of the longest proper end that is a state too
        self._depth = [0]
        self._origin = [""]  # a stop string whose first `depth` characters are the state's text
        self._match: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._link()
        self._state = 0
        self._matched: str | None = None

    @property
    def pending(self) -> int:
        """Characters fed and not yet released, nor cut."""
        return self._depth[self._state]

    @property
    def matched(self) -> str | None:
        """The stop string that was found; None while there is none."""
        return self._matched

    def feed(self, text: str) -> StopResult:
        """Take the next piece of text. After a match everything is cut."""
        if self._matched is not None:
            return StopResult("", self._matched, len(text))
        if len(self._next) == 1:
            return StopResult(text)
        old, state = self._state, self._state
        for position, character in enumerate(text):
            while state and character not in self._next[state]:
                state = self._fallback[state]
            state = self._next[state].get(character, 0)
            matched = self._match[state]
            if matched is not None:
                self._state, self._matched = 0, matched
                end = self._depth[old] + position + 1
                cut = len(matched) + len(text) - position - 1
                return StopResult(self._released(old, text, end - len(matched)), matched, cut)
        self._state = state
        total = self._depth[old] + len(text)
        return StopResult(self._released(old, text, total - self._depth[state]))

    def flush(self) -> str:
        """The text is over: what was held back is no stop string after all."""
        text = self._origin[self._state][: self.pending]
        self._state = 0
        return text

    def _released(self, state: int, text: str, count: int) -> str:
        """The first `count` characters of the held text of `state` followed by `text`."""
        depth = self._depth[state]
        held = self._origin[state][: min(depth, count)]
        return held + text[: max(0, count - depth)]

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = len(self._next)
                self._next[state][character] = following
                self._next.append({})
                self._fallback.append(0)
                self._depth.append(self._depth[state] + 1)
                self._origin.append(stop)
                self._match.append(None)
            state = following
        if state:
            self._match[state] = stop

    def _link(self) -> None:
        """Set the fallbacks, shallow states first: a state's builds on its parent's."""
        queue = list(self._next[0].values())
        for state in queue:
            for character, following in self._next[state].items():
                fallback = self._fallback[state]
                while fallback and character not in self._next[fallback]:
                    fallback = self._fallback[fallback]
                fallback = self._next[fallback].get(character, 0)
                self._fallback[following] = fallback
                if self._match[following] is None:
                    self._match[following] = self._match[fallback]
                queue.append(following)
