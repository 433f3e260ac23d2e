"""Chats that ask for JSON and get JSON, with nothing around it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from . import tool_words as words
from .chats import Chat, assistant, system, user
from .tool_words import several

SYSTEMS = (
    "Answer in JSON only.",
    "Answer in JSON.",
    "You reply with JSON and nothing else.",
    "You output JSON.",
    "Return only valid JSON.",
)
IN_JSON = (
    " Answer in JSON.",
    " Answer in JSON.",
    " Reply in JSON only.",
    " Return JSON.",
    " Give it as JSON.",
    " JSON only, please.",
)
COUNTS = ("two", "three", "four", "five")
KINDS: dict[str, tuple[str, ...]] = {
    "colours": several("red green blue yellow black white orange purple pink brown grey"),
    "colors": several("red green blue yellow black white orange purple pink brown gray"),
    "fruits": several("apple banana cherry lemon orange pear plum peach mango grape"),
    "animals": several("cat dog horse tiger rabbit monkey eagle dolphin spider cow sheep"),
    "countries": several("France Japan Spain Italy Norway Canada Brazil India Kenya Peru"),
    "planets": several("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune"),
    "languages": ("Python", "JavaScript", "Rust", "Go", "Java", "C", "Ruby", "Swift"),
    "days": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
}
GOOD = ("great", "good", "lovely", "excellent")
BAD = ("bad", "awful", "terrible", "poor")
Field = Callable[[random.Random], Any]
FIELDS: dict[str, Field] = {
    "name": words.person,
    "age": lambda rng: rng.randint(1, 99),
    "city": words.city,
    "email": words.email,
    "title": words.phrase,
    "price": lambda rng: round(rng.uniform(1, 500), 2),
    "count": lambda rng: words.number(rng, 3),
    "id": words.number,
    "color": lambda rng: rng.choice(KINDS["colors"]),
    "active": lambda rng: rng.random() < 0.5,
    "year": lambda rng: rng.randint(1900, 2030),
    "tags": lambda rng: [words.word(rng) for _ in range(2)],
}
Pair = tuple[str, Any]


def json_chat(rng: random.Random) -> Chat:
    """One request; the answer is one JSON value, written as `json.dumps` does."""
    ask = rng.choice((make_object, make_list, extract, extract, answer_form, assignments, choose))
    question, value = ask(rng)
    messages = [user(question), assistant(json.dumps(value, ensure_ascii=False))]
    if rng.random() < 0.3:
        messages.insert(0, system(rng.choice(SYSTEMS)))
    return Chat(tuple(messages))


def joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def article(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def make_object(rng: random.Random) -> Pair:
    """The model makes up the values."""
    names = rng.sample(list(FIELDS), rng.randint(1, 3))
    forms = (
        "Give me a JSON object with {}.",
        "Write a JSON object with {}",
        "Make a JSON object with {}",
        "JSON with {}",
        "Reply with a JSON object that has {}.",
    )
    question = rng.choice(forms).format(joined([article(name) for name in names]))
    if rng.random() < 0.3:
        question = rng.choice(("Create a user", "Describe a product", "Make up a person"))
        question += f" as JSON with the keys {joined(names)}."
    return question, {name: FIELDS[name](rng) for name in names}


def make_list(rng: random.Random) -> Pair:
    kind = rng.choice(list(KINDS))
    size = rng.randint(2, 5)
    forms = (
        "List {} {} as a JSON array",
        "Give me {} {} as a JSON array.",
        "Name {} {} as JSON.",
        "A JSON list of {} {}, please.",
        "Return a JSON array of {} {}.",
    )
    count = COUNTS[size - 2] if rng.random() < 0.7 else str(size)
    return rng.choice(forms).format(count, kind), rng.sample(KINDS[kind], size)


def extract(rng: random.Random) -> Pair:
    """Values out of a sentence."""
    who, where, old = words.person(rng), words.city(rng), rng.randint(2, 99)
    mail, thing, count = words.email(rng), words.phrase(rng, 2, 2), words.number(rng, 3)
    sentence, found = rng.choice(
        (
            (f"{who} lives in {where}", {"name": who, "city": where}),
            (f"{who} is {old} years old", {"name": who, "age": old}),
            (
                f"{who} is {old} and lives in {where}",
                {"name": who, "age": old, "city": where},
            ),
            (f"Write to {who} at {mail}", {"name": who, "email": mail}),
            (f"{who} bought {count} units of {thing}", {"name": who, "count": count}),
            (f"The {thing} costs {count} dollars", {"product": thing, "price": count}),
            (f"{who} flies to {where}", {"name": who, "city": where}),
        )
    )
    keys = list(found)
    if rng.random() < 0.3:
        keys = keys[::-1]
    names = joined([f"the {key}" for key in keys])
    ends = rng.choice(IN_JSON)
    forms = (
        f"Extract {names} from: {sentence}.{ends}",
        f'Extract {names} from "{sentence}".{ends}',
        f"{sentence}. Extract {names} as JSON.",
        f"Turn this into JSON with the keys {joined(keys)}: {sentence}.",
    )
    return rng.choice(forms), {key: found[key] for key in keys}


def answer_form(rng: random.Random) -> Pair:
    """The form is given, with dots for the value."""
    a, b = words.number(rng, 2), words.number(rng, 2)
    who, where = words.person(rng), words.city(rng)
    question, key, value = rng.choice(
        (
            (f"What is {a} + {b}?", "answer", a + b),
            (f"{who} lives in {where}. Where does {who} live?", "answer", where),
            (f"{who} lives in {where}. Who lives in {where}?", "answer", who),
            (f"Is {a} greater than {b}?", "answer", a > b),
            (f"Which is greater, {a} or {b}?", "answer", max(a, b)),
            (f"Say hello to {who}.", "text", f"Hello, {who}!"),
            (f"Repeat: {words.phrase(rng)}", "text", ""),
        )
    )
    if value == "":
        value = question.removeprefix("Repeat: ")
    key = rng.choice((key, key, "result", "reply"))
    shape = f'{{"{key}": …}}' if rng.random() < 0.6 else f'{{"{key}": "..."}}'
    forms = (
        f"{question} Reply with JSON: {shape}",
        f"{question} Answer as {shape}.",
        f"Reply with JSON: {shape}\n{question}",
    )
    return rng.choice(forms), {key: value}


def assignments(rng: random.Random) -> Pair:
    """Values are given, only the form changes."""
    names = rng.sample(list(FIELDS), rng.randint(2, 3))
    found = {name: FIELDS[name](rng) for name in names if name not in ("tags", "active")}
    found = found or {"name": words.person(rng)}
    between, end = rng.choice(((": ", "\n"), (" = ", "\n"), (" is ", ", "), (": ", ", ")))
    text = end.join(f"{key}{between}{value}" for key, value in found.items())
    forms = ("Convert to JSON:\n{}", "As JSON: {}", "Make JSON of this: {}", "{}\nAnswer in JSON.")
    return rng.choice(forms).format(text), found


def choose(rng: random.Random) -> Pair:
    """A label for a sentence, as classifiers are asked."""
    good = rng.random() < 0.5
    mood = rng.choice(GOOD if good else BAD)
    label = "positive" if good else "negative"
    sentence = f"The {rng.choice(words.NOUNS)} is {mood}"
    if rng.random() < 0.5:
        sentence = f"{words.person(rng)} says the {rng.choice(words.NOUNS)} was {mood}"
    forms = (
        'Classify the sentiment of "{}" as positive or negative.',
        'Is "{}" positive or negative?',
        "Sentiment of: {}. Positive or negative?",
    )
    question = rng.choice(forms).format(sentence)
    return question + rng.choice(IN_JSON), {"sentiment": label}
