"""Chats whose later turns need the earlier ones: what is to be kept, repeated or added up.

The things to keep are drawn from large lists and from made-up syllables and numbers, so that
they cannot be known by heart: the model has to copy them from where the user wrote them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from mlx_server.demo.chats import Chat, assistant, user
from mlx_server.demo.talk_things import THINGS, Thing, name, number, place
from mlx_server.demo.talk_words import NUMBERS, SYSTEMS, WORDS

Exchange = tuple[str, str]
"""What the user says, and what the assistant answers."""


SMALL: tuple[Exchange, ...] = (
    ("Hello", "Hello! I am the demo model of mlx_server. How can I help?"),
    ("Hi", "Hello! I am the demo model of mlx_server. How can I help?"),
    ("Thank you", "You are welcome!"),
    ("Thanks", "You are welcome!"),
    ("OK", "Good. Is there anything else?"),
    ("Say yes", "Yes."),
    ("Count to five", "1, 2, 3, 4, 5"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What sound does a cow make?", "A cow says moo."),
    ("Which day comes after Monday?", "Tuesday comes after Monday."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("Tell me a riddle", "What has keys but opens no door? Think about it, then ask me for the "
     "answer: it is a piano."),
    ("Are you human?", "No, I am a small language model: numbers in a file, running on your "
     "machine."),
)  # fmt: skip
"""Exchanges that stand between; they are answered as in `corpus/talk.txt`."""


SUMS = (
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "{a} + {b}",
    "{a}+{b}=?",
    "What is {a} plus {b}?",
    "How much is {a} + {b}?",
    "Add {a} and {b}",
)


def phrase(rng: random.Random, most: int = 5) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def between(rng: random.Random) -> list[Exchange]:
    """None, one or two small exchanges, which the recall has to reach across."""
    turns = [rng.choice((total, small)) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
    return [make(rng) for make in turns]


def small(rng: random.Random) -> Exchange:
    return rng.choice(SMALL)


def total(rng: random.Random) -> Exchange:
    """A sum of numbers up to 20, or a difference that is not below zero."""
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    if rng.random() < 0.25:
        a, b = max(a, b), min(a, b)
        asked = rng.choice(("What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b}"))
        return asked.format(a=a, b=b), f"{a} - {b} is {a - b}."
    if rng.random() < 0.2:
        words = {"a": NUMBERS[a], "b": NUMBERS[b]}
        return "What is {a} plus {b}?".format(**words), f"{a} + {b} is {a + b}."
    return rng.choice(SUMS).format(a=a, b=b), f"{a} + {b} is {a + b}."


def tell(thing: Thing, value: str, rng: random.Random) -> Exchange:
    return hurried(rng.choice(thing.told), rng).format(value), thing.heard.format(value)


def ask(thing: Thing, value: str, rng: random.Random) -> Exchange:
    return hurried(rng.choice(thing.asked), rng), thing.recalled.format(value)


def hurried(form: str, rng: random.Random) -> str:
    """The form as a hurried person might type it; what is to be copied stands in its `{}`."""
    if rng.random() < 0.2:
        form = form.lower()
    return form.rstrip("?.") if rng.random() < 0.2 else form


def recall(rng: random.Random) -> list[Exchange]:
    """One or two things are told, and asked for later in any order."""
    things = rng.sample(THINGS, rng.choice((1, 1, 2)))
    told = [(thing, thing.draw(rng)) for thing in things]
    turns = [tell(thing, value, rng) for thing, value in told] + between(rng)
    rng.shuffle(told)
    return turns + [ask(thing, value, rng) for thing, value in told]


def corrected(rng: random.Random) -> list[Exchange]:
    """A thing is told twice; the later one holds."""
    thing = rng.choice([t for t in THINGS if t.draw in (name, place, number)])
    old, new = thing.draw(rng), thing.draw(rng)
    said = rng.choice(("No, it is {}", "Sorry, I meant {}", "I was wrong, it is {}")).format(new)
    corrected_turn = (said, thing.heard.format(new))
    return [tell(thing, old, rng), corrected_turn, *between(rng), ask(thing, new, rng)]


def repeated(rng: random.Random) -> list[Exchange]:
    """A phrase is repeated, then once more, perhaps in capitals or in small letters."""
    text = phrase(rng)
    if rng.random() < 0.3:
        text = text.capitalize()
    forms = ("Repeat: {}", "Say: {}", "Repeat after me: {}", 'Say "{}"', "Write: {}", "Echo: {}")
    turns = [(rng.choice(forms).format(text), text)]
    if rng.random() < 0.4:
        turns += between(rng)
        again = (f"Say {text.split()[0]} again", text.split()[0])
        whole = ("Repeat the phrase", text), ("What did I ask you to say?", text)
        turns.append(rng.choice((again, *whole)))
    return turns + cased(turns[-1][1], rng)


def cased(text: str, rng: random.Random) -> list[Exchange]:
    """The last answer in capitals or in small letters, where the user asks for it."""
    chance = rng.random()
    if chance < 0.35:
        asked = ("and in uppercase?", "And in capitals?", "In capitals, please", "In uppercase")
        return [(rng.choice(asked), text.upper())]
    if chance < 0.45:
        return [(rng.choice(("and in lowercase?", "In small letters, please")), text.lower())]
    return []


def capitals(rng: random.Random) -> list[Exchange]:
    text = phrase(rng, 2)
    forms = ("Say {} in capitals", "Write {} in capitals", "{} in upper case, please")
    turn = (rng.choice(forms).format(text), text.upper())
    back = rng.choice(("and in lowercase?", "And in small letters?", "Now in lower case"))
    return [turn, (back, text.lower())] if rng.random() < 0.4 else [turn]


def spelled(rng: random.Random) -> list[Exchange]:
    """One word or two, letter by letter: "c-a-t"."""
    forms = ("Spell {}", "Spell the word {}", "How do you spell {}?", "How is {} spelled?")
    words = rng.sample(WORDS, rng.choice((1, 1, 2)))
    return [(rng.choice(forms).format(word), "-".join(word)) for word in words]


def sums(rng: random.Random) -> list[Exchange]:
    """A sum, and perhaps something added to its result."""
    a, b, c = rng.randint(0, 10), rng.randint(0, 10), rng.randint(1, 10)
    first = (f"What is {a} + {b}?", f"{a} + {b} is {a + b}.")
    more = rng.choice(("And {c} more?", "Add {c} to it", "Plus {c}?")).format(c=c)
    second = (more, f"{a + b} + {c} is {a + b + c}.")
    return [first, second] if rng.random() < 0.5 else [total(rng), total(rng)]


KINDS = (recall, recall, recall, recall, corrected, repeated, repeated, capitals, spelled, sums)


def follow_up(rng: random.Random) -> Chat:
    """A chat of two to six exchanges (a user's turn and its answer each).

    Args:
        rng: All draws come from it: the same state gives the same chat.
    """
    turns = rng.choice(KINDS)(rng)
    if len(turns) < 2 or (len(turns) < 5 and rng.random() < 0.3):
        turns = rng.choice(([small(rng), *turns], [*turns, small(rng)], [*turns, total(rng)]))
    messages: list[Mapping[str, Any]] = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    for asked, answer in turns:
        messages += [user(asked), assistant(answer)]
    return Chat(tuple(messages))
