"""The parser of a reply: reasoning, content and calls, told apart as the text comes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import cast

from mlx_server.text.parsers.base import Syntax, Thinking
from mlx_server.text.parsers.events import CallPiece, CallStart, Content, Event, Thought
from mlx_server.text.parsers.source import SPACE, Parse, Source

HEAD = 128
"""A call's characters up to its name are at most so many; what is longer is prose about one."""


class OutputParser:
    """Text in, events out.

    Space around reasoning, before a call and between calls is the markup's, not the
    content's; what content holds otherwise is given as it came.

    Args:
        syntax: The family's calls; None: they are not looked for.
        thinking: The marks of its reasoning; None: there is none, or it is content.
        inside: The prompt ends within the reasoning.
    """

    def __init__(
        self, syntax: Syntax | None, thinking: Thinking | None, *, inside: bool = False
    ) -> None:
        self._syntax = syntax
        self._thinking = None if syntax is not None and syntax.thinks else thinking
        self._source = Source()
        self._tidy = _Tidy()
        self._in_call = False
        self._parse = self._reply(inside)

    @property
    def thinking(self) -> bool:
        """What was read last is reasoning."""
        return self._tidy.last is Thought

    @property
    def called(self) -> bool:
        """A call has begun."""
        return self._tidy.called

    def feed(self, text: str) -> list[Event]:
        """The events that more text brings; text whose meaning is still open is held back.

        How a reply is cut into calls of this never shows in its events, joined."""
        self._source.feed(text)
        return self._run()

    def flush(self, *, cut: bool = False) -> list[Event]:
        """The text is over.

        Args:
            cut: It was broken off. What a call had begun with is then no content, though it
                never became a call; nor are the first letters of its mark, where nothing
                stands before them.
        """
        held = self._source.rest.lstrip(SPACE)
        marked = self._tidy.untouched and bool(held) and not held[0].isalnum()
        within = cut and (self._in_call or marked)
        self._source.close()
        events = self._run()
        begun = "".join(event.text for event in events if isinstance(event, Content))
        if within and len(begun) <= HEAD:
            events = [event for event in events if not isinstance(event, Content)]
        return [*events, *self._tidy.flush()]

    def _run(self) -> list[Event]:
        """The events up to where more text is needed, neighbours of one kind joined."""
        found: list[Event] = []
        for event in self._parse:
            if event is None:
                break
            found += self._tidy.pass_on(event)
        return [event for kind, run in groupby(found, type) for event in _one(kind, list(run))]

    @property
    def _family(self) -> Syntax:
        """Where a mark of its was found."""
        assert self._syntax is not None
        return self._syntax

    def _section(self, mark: str, space: str = "") -> Parse[None]:
        """What the family reads behind a mark, and behind the space before that."""
        self._in_call = True
        for event in self._family.read(self._source, mark):
            if event is not None:
                if space and isinstance(event, Content) and event.text.startswith(mark):
                    yield Content(space)  # it was none
                space = ""
                self._in_call = isinstance(event, CallStart | CallPiece)
            yield event
        self._in_call = False

    def _reply(self, inside: bool) -> Parse[None]:
        source, syntax, thinking = self._source, self._syntax, self._thinking
        if inside and thinking is not None:
            self._tidy.begin(Thought)
            yield from self._reasoning(thinking)
        opening = (thinking.opening,) if thinking is not None else ()
        marks = syntax.marks if syntax is not None else ()
        # Reasoning begins where nothing came yet, or behind a call; further on its mark is
        # a word that the answer is about.
        fresh, leading = True, syntax.leading_marks if syntax is not None else ()
        while not source.ended:
            if fresh:
                space = yield from source.skip_space()
                begins = (*opening, *marks, *leading)
                mark = (yield from source.accept(*begins)) if begins else None
                if mark is None and space:
                    yield Content(space)
            else:
                space, mark = "", (yield from source.until(marks, Content))
            if thinking is not None and mark in opening:
                yield from self._reasoning(thinking)
                continue
            fresh, leading = mark is not None, ()
            if mark is not None:
                yield from self._section(mark, space)

    def _reasoning(self, thinking: Thinking) -> Parse[None]:
        """Up to its end. Models call from within it, too, and few of them end it before."""
        syntax = self._syntax
        begins = syntax.triggers if syntax is not None else ()
        marks = tuple(
            trigger.mark
            for trigger in begins
            if not trigger.leading and thinking.closing not in trigger.mark
        )
        yield Thought("")
        while True:
            mark = yield from self._source.until((thinking.closing, *marks), Thought)
            if mark not in marks:
                yield Content("")
                return
            if syntax is not None and syntax.ends_thinking:
                yield Content("")
                yield from self._section(mark)
                return
            yield from self._call_within(mark)

    def _call_within(self, mark: str) -> Parse[None]:
        """A call within the reasoning; what begins like one and is none is a part of that."""
        source, called = self._source, False
        start = source.pin()
        for event in self._family.read(source, mark):
            called = called or isinstance(event, CallStart)
            if event is not None and not called:
                break
            if called:
                source.unpin()
            yield event
        if not called:
            source.go_back(start)
            source.release()
            source.unpin()
            yield Thought(mark)


class _Tidy:
    """Leaves out the space that belongs to the markup, and empty pieces."""

    def __init__(self) -> None:
        self.last: type[Event] = Content
        self.called = False
        self._space = ""  # seen, and not yet known whether it stays
        self._fresh = True  # nothing of this stretch was given yet
        self._bare = True  # nothing but content came so far

    @property
    def untouched(self) -> bool:
        """No content was given yet, or none since the last call."""
        return self.last is CallStart or (self.last is Content and self._fresh)

    def begin(self, kind: type[Event]) -> None:
        """The text begins within a stretch of this kind."""
        self.last, self._bare = kind, False

    def pass_on(self, event: Event) -> list[Event]:
        if isinstance(event, CallStart):
            self._space, self.last, self.called, self._bare = "", CallStart, True, False
            return [event]
        if isinstance(event, CallPiece):
            return [event] if event.text else []
        kind = type(event)
        if kind is not self.last:
            self.last, self._space, self._fresh = kind, "", True
            self._bare = False
        text = event.text.lstrip(SPACE) if self._fresh and not self._bare else event.text
        body = text.rstrip(SPACE)
        if not body:
            self._space += text
            return []
        space, self._space = self._space, text[len(body) :]
        self._fresh = False
        return [kind(space + body)]

    def flush(self) -> list[Event]:
        """Space at the end of plain content is the content's."""
        space, self._space = self._space, ""
        kept = self.last is Content and (self._bare or not self._fresh)
        return [Content(space)] if space and kept else []


def _one(kind: type[Event], run: list[Event]) -> list[Event]:
    """Neighbours of a kind as one; calls begin one by one."""
    if kind is CallStart:
        return run
    text = "".join(event.text for event in run if not isinstance(event, CallStart))
    return [cast(Callable[[str], Event], kind)(text)]
