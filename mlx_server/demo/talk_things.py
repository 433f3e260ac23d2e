"""What a user may tell in a chat and ask for later: a name, a number, a colour."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mlx_server.demo.talk_words import ANIMALS, CITIES, COLOURS, FIRST_NAMES, FOODS, WORDS


@dataclass(frozen=True, slots=True)
class Thing:
    """A kind of thing that a user tells and asks for later; `{}` is its place.

    Args:
        draw: Makes the thing.
        told: Ways to tell it.
        heard: The answer to that.
        asked: Ways to ask for it later.
        recalled: The answer to those; the same each time, so that the copy is all it takes.
    """

    draw: Callable[[random.Random], str]
    told: tuple[str, ...]
    heard: str
    asked: tuple[str, ...]
    recalled: str


def made_up(rng: random.Random) -> str:
    """A name of two or three syllables that nobody bears: "Talomi"."""
    syllables = (rng.choice("bdfgjklmnprstvz") + rng.choice("aeiou") for _ in range(3))
    name = "".join(list(syllables)[: rng.choice((2, 3, 3))])
    return (name + rng.choice(("", "", "n", "r", "s", "l"))).capitalize()


def name(rng: random.Random) -> str:
    return made_up(rng) if rng.random() < 0.4 else rng.choice(FIRST_NAMES)


def place(rng: random.Random) -> str:
    return made_up(rng) if rng.random() < 0.3 else rng.choice(CITIES)


def number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** rng.randint(1, 5)))


def pick(words: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(words)


THINGS = (
    Thing(
        name,
        (
            "My name is {}",
            "My name is {}.",
            "I am {}",
            "I'm {}",
            "Hi, I am {}",
            "Hello, my name is {}",
            "Call me {}",
            "You can call me {}.",
            "Hey, {} here",
        ),
        "Nice to meet you, {}!",
        (
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you remember my name?",
            "Do you know my name?",
            "Say my name",
            "And my name is?",
        ),
        "Your name is {}.",
    ),
    Thing(
        pick(COLOURS),
        (
            "My favourite colour is {}",
            "My favorite color is {}.",
            "I like the colour {} best",
            "The colour I like most is {}",
        ),
        "A fine choice: {} it is.",
        (
            "What is my favourite colour?",
            "What is my favorite color?",
            "Which colour do I like?",
            "Do you remember my favourite colour?",
        ),
        "Your favourite colour is {}.",
    ),
    Thing(
        place,
        ("I live in {}", "I live in {}.", "I am from {}", "My home is in {}", "I'm from {}"),
        "{} is surely a good place to live.",
        ("Where do I live?", "Where am I from?", "Which city do I live in?", "Where is my home?"),
        "You live in {}.",
    ),
    Thing(
        number,
        (
            "Remember the number {}",
            "Remember this number: {}",
            "Please remember the number {}.",
            "The number is {}",
            "Keep the number {} in mind",
            "My number is {}",
        ),
        "I will remember {}.",
        (
            "Which number was it?",
            "What was the number?",
            "What number did I say?",
            "Which number did I tell you?",
            "What is the number?",
            "Do you remember the number?",
        ),
        "The number was {}.",
    ),
    Thing(
        pick(WORDS),
        (
            "Remember the word {}",
            "Remember this word: {}",
            "The word is {}",
            "The secret word is {}",
            "Keep the word {} in mind",
        ),
        "I will remember the word {}.",
        (
            "Which word was it?",
            "What was the word?",
            "What is the secret word?",
            "Which word did I tell you?",
            "Do you remember the word?",
        ),
        "The word was {}.",
    ),
    Thing(
        pick(FOODS),
        ("I like {}", "I love {}", "My favourite food is {}", "I like to eat {}"),
        "So you like {}, good to know.",
        ("What do I like?", "What do I like to eat?", "What is my favourite food?"),
        "You like {}.",
    ),
    Thing(
        lambda rng: str(rng.randint(5, 99)),
        ("I am {} years old", "My age is {}", "I'm {} years old.", "I turned {} this year"),
        "{} is a good age.",
        ("How old am I?", "What is my age?", "Do you remember how old I am?"),
        "You are {} years old.",
    ),
    Thing(
        lambda rng: f"{rng.choice(ANIMALS)} called {name(rng)}",
        ("I have a {}", "I have a {}.", "At home I have a {}"),
        "How nice, a {}!",
        ("Which pet do I have?", "Do you remember my pet?", "Tell me about my pet"),
        "You have a {}.",
    ),
)
