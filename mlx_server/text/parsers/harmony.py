"""gpt-oss's messages: reasoning, calls and the answer in channels.

    <|channel|>analysis<|message|> reasoning <|end|>
    <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json
    <|message|>{"city": "Bern"}<|call|>
    <|start|>assistant<|channel|>final<|message|> answer <|return|>

(Without the line ends.) The prompt ends with `<|start|>assistant`. A message to nobody in
the commentary channel is content. https://github.com/openai/harmony (docs/format.md).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from mlx_server.text.parsers import json_text
from mlx_server.text.parsers.base import Syntax, Thinking, Trigger
from mlx_server.text.parsers.events import CallPiece, CallStart, Content, Thought
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.parsers.source import SPACE, Parse, Source

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CONSTRAIN, END, CALL = "<|constrain|>", "<|end|>", "<|call|>"
ENDS = (END, CALL, "<|return|>")
TO_FUNCTION = "to=functions."

_ALLOWED = {START: ("assistant",), CHANNEL: ("analysis", "commentary", "final")}
_PEOPLE = ("user", "assistant", "all")


@dataclass(slots=True)
class _Header:
    channel: str = ""
    called: bool = False
    whole: bool = False


class Harmony(Syntax):
    """gpt-oss' channels; see above."""

    name = "harmony"
    marks = (START, CHANNEL, *ENDS)
    leading_marks = (TO_FUNCTION,)
    repeats = False
    always = True
    thinks = True
    reasoning = Thinking(f"{CHANNEL}analysis{MESSAGE}", END, "", f"{START}assistant")
    tags = (CONSTRAIN,)

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        return (
            Trigger(f"{CHANNEL}commentary {TO_FUNCTION}"),
            Trigger(f" {TO_FUNCTION}", leading=True),
        )

    def matches(self, template: str, vocabulary: Container[str]) -> bool:
        return "<|channel|>analysis<|message|>" in template

    def read(self, source: Source, mark: str) -> Parse[None]:
        if mark in ENDS:
            return
        start = source.hold()
        header = yield from self._header(source, mark)
        if header is None:
            source.go_back(start)
            yield Content(mark)
        source.release()
        if header is None or not header.whole:
            return
        if header.called:
            yield from self._arguments(source)
        elif header.channel == "analysis":
            yield Thought("")
            yield from self._body(source, Thought)
            yield Content("")

    def _header(self, source: Source, mark: str) -> Parse[_Header | None]:
        """The header behind its first mark, and the call that it begins; None where it is
        none. What is cut off is one as far as it goes."""
        header, place = _Header(), mark
        if mark == TO_FUNCTION:
            yield from self._recipient(source, header)
        while True:
            yield from source.skip_space()
            tag = yield from source.accept(MESSAGE, CHANNEL, CONSTRAIN)
            if tag == MESSAGE:
                header.whole = True
                return header
            if tag is not None:
                place = tag
                continue
            if not header.called and (yield from source.accept("to=")):
                yield from source.accept("functions.")
                yield from self._recipient(source, header)
                continue
            word = yield from _word(source)
            allowed = _ALLOWED.get(place, ())
            if source.closed and _begins(word + source.rest, allowed):
                source.take(len(source.rest))
                return header
            # Behind the channel and the recipient there is at most the content's type.
            typed = word.isalpha() and (header.channel or header.called)
            if not (word in allowed if allowed else typed):
                source.go_back(source.position - len(word))
                return header if header.called else None
            if place == CHANNEL:
                header.channel = word
            place = MESSAGE if place == CHANNEL else CHANNEL if place == START else ""

    def _recipient(self, source: Source, header: _Header) -> Parse[None]:
        name = yield from _word(source)
        if name and name not in _PEOPLE and not source.ended:
            header.called = True
            yield CallStart(name)

    def _arguments(self, source: Source) -> Parse[None]:
        yield from source.skip_space()
        if (yield from source.next_is(*ENDS)):
            yield CallPiece("{}")
        elif (yield from source.next_is("{", '"')):
            yield from json_text.arguments(source)
        else:
            yield from self._body(source, CallPiece)
        yield from source.skip_space()

    def _body(self, source: Source, event: type[Thought | CallPiece]) -> Parse[None]:
        found = yield from source.until((*ENDS, START, CHANNEL), event, cut=True)
        if found in (START, CHANNEL):
            source.go_back(source.position - len(found))

    # ------------------------------------------------------------ grammar

    def section(self, lark: Lark, tools: Sequence[ToolRule], several: bool) -> str:
        calls = []
        for tool in tools:
            name = f"functions.{tool.name}"
            head = lark.either(
                (
                    lark.literal(f"{CHANNEL}commentary to={name} "),
                    lark.literal(f" to={name}{CHANNEL}commentary "),
                )
            )
            calls.append(f"{head} {self._json(lark)} {lark.arguments(tool)}")
        return f"{lark.either(calls)} {lark.literal(CALL)}"

    def _json(self, lark: Lark) -> str:
        kinds = (lark.literal(CONSTRAIN + "json"), lark.literal("json"))
        return f"{lark.either(kinds)} {lark.literal(MESSAGE)}"

    def answer(self, lark: Lark, body: str) -> str:
        return f"{lark.literal(f'{CHANNEL}final{MESSAGE}')} {body}"


def _word(source: Source) -> Parse[str]:
    """Text up to a blank or a tag."""
    word = ""
    while (character := (yield from source.peek())) and character not in SPACE + "<":
        word += source.take(1)
    return word


def _begins(text: str, allowed: Sequence[str]) -> bool:
    """Whether what stands at the end may go on as a header."""
    words = (*allowed, MESSAGE, CHANNEL, CONSTRAIN, "to=")
    return any(word.startswith(text) for word in words)
