"""The demo model's corpus: the files in `corpus/`, and the chats that are made from them.

A file is blocks of lines: `Q:` questions with " | " between them, then `A:` their answer
(\\n is a new line); `S:` a system message; `W:` words for a `{}` in a question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_server.demo.chats import Chat, Source, assistant, system, user
from mlx_server.demo.code_chats import code_chat
from mlx_server.demo.json_chats import json_chat
from mlx_server.demo.talk_chats import follow_up
from mlx_server.demo.tool_chats import tool_chat

FOLDER = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Corpus:
    """
    Args:
        answers: Each with the questions that it answers; a `{}` in one stands for one of `words`.
    """

    answers: tuple[tuple[str, tuple[str, ...]], ...]
    systems: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every question with its answer."""
        for answer, questions in self.answers:
            for question in questions:
                yield question, answer

    @property
    def open(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The answers to what nobody wrote down: their questions have a `{}`."""
        return tuple(row for row in self.answers if any("{}" in text for text in row[1]))

    def texts(self) -> Iterator[str]:
        """Everything that is written there."""
        yield from self.systems
        yield from self.words
        for answer, questions in self.answers:
            yield answer
            yield from questions


def read(*files: Path) -> Corpus:
    """Raises ValueError: a line is none of the four kinds, or an answer has no question."""
    answers: dict[str, list[str]] = {}
    systems, words, questions = [], [], []
    for file in files:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            kind, _, text = line.partition(": ")
            if kind == "Q":
                questions += text.split(" | ")
            elif kind == "A" and questions:
                answers.setdefault(text.replace("\\n", "\n"), []).extend(questions)
                questions = []
            elif kind == "S":
                systems.append(text.replace("\\n", "\n"))
            elif kind == "W":
                words += text.split()
            elif line and not line.startswith("#"):
                raise ValueError(f"{file.name}:{number}: {line!r} is no line of a corpus")
    rows = tuple((answer, tuple(asked)) for answer, asked in answers.items())
    return Corpus(rows, tuple(systems), tuple(words))


def load() -> tuple[Corpus, Corpus, Corpus]:
    """What is known about the server, about its settings, and small talk with all system
    messages and words."""
    server, settings, talk = (
        read(FOLDER / f"{name}.txt") for name in ("server", "settings", "talk")
    )
    return server, settings, talk


def sources(server: Corpus, settings: Corpus, talk: Corpus) -> tuple[tuple[Source, float], ...]:
    """What chats are drawn from, each with its share of them."""
    parts = (server.answers, settings.answers, talk.answers, talk.open)

    def questions(rng: random.Random) -> Chat:
        """One to three questions, under system messages that are about something else."""
        messages = [system(rng.choice(talk.systems)) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))]
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
            # Every answer as often as any other, however many ways there are to ask for it.
            answer, asked = rng.choice(rng.choices(parts, (40, 27, 29, 4))[0])
            question = rng.choice(asked).replace("{}", rng.choice(talk.words))
            messages += [user(vary(question, rng)), assistant(answer)]
        return Chat(tuple(messages))

    # A chat with tools is four times as long as another.
    return (
        (questions, 0.68),
        (tool_chat, 0.12),
        (follow_up, 0.10),
        (code_chat, 0.05),
        (json_chat, 0.05),
    )


def vary(text: str, rng: random.Random) -> str:
    """The question as a hurried person might type it."""
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?!.")
    return text
