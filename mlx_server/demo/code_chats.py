"""Chats about code: one thing changed in a small program, or a short function written."""

from __future__ import annotations

import random

from .chats import Chat, assistant, system, user
from .code_edits import Edit, block, edit
from .code_programs import Program, program
from .code_snippets import SNIPPETS

SHOWN = {"python": "Python", "javascript": "JavaScript", "bash": "shell"}
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a coding assistant.",
    "Act as an expert software developer.",
    "Act as an expert software developer. Always use best practices when coding.",
    "You are an expert programmer. Be brief.",
)
BLOCKS = (
    "Act as an expert software developer. Answer with *SEARCH/REPLACE* blocks.",
    "Make each change with a *SEARCH/REPLACE* block.",
    "Every change to a file must use the *SEARCH/REPLACE block* format.",
)
WRITE = (
    "Write a {lang} function that {task}.",
    "Write a {lang} function that {task}",
    "write a function in {lang} that {task}",
    "{lang} function that {task}?",
    "How do I write a {lang} function that {task}?",
    "Show me a {lang} function that {task}.",
    "Give me {lang} code that {task}.",
    "I need a {lang} function that {task}.",
)


def code_chat(rng: random.Random) -> Chat:
    """A program is edited (whole or as a search/replace block), or a snippet written."""
    kind = rng.random()
    if kind < 0.15:
        return written(rng)
    found, made = edited(rng)
    return patched(rng, found, made) if kind < 0.55 else rewritten(rng, found, made)


def edited(rng: random.Random) -> tuple[Program, Edit]:
    while True:
        found = program(rng)
        made = edit(rng, found)
        if made is not None:
            return found, made


def fence(code: str, language: str = "") -> str:
    return f"```{language}\n{code}\n```"


def started(rng: random.Random, systems: tuple[str, ...], share: float) -> list[dict[str, str]]:
    return [system(rng.choice(systems))] if rng.random() < share else []


def written(rng: random.Random) -> Chat:
    language, task, code = rng.choice(SNIPPETS)
    forms: tuple[str, ...] = WRITE
    if language == "python" and rng.random() < 0.3:
        # Where no language is named it is Python.
        forms = ("Write a function that {task}.", "A function that {task}, please.")
    question = rng.choice(forms).format(lang=SHOWN[language], task=task)
    answer = f"This {SHOWN[language]} code {task}:\n\n{fence(code, language)}"
    return Chat((*started(rng, SYSTEMS, 0.25), user(question), assistant(answer)))


def rewritten(rng: random.Random, found: Program, made: Edit) -> Chat:
    """The answer is a sentence and the whole program."""
    shown = fence(made.before, rng.choice((found.language, found.language, "")))
    forms = ("{request}\n\n{code}", "{request}\n{code}", "{code}\n{request}", "{code}\n\n{request}")
    question = rng.choice(forms).format(request=made.request, code=shown)
    answer = f"{made.done}\n\n{fence(made.after, found.language)}"
    return Chat((*started(rng, SYSTEMS, 0.25), user(question), assistant(answer)))


def patched(rng: random.Random, found: Program, made: Edit) -> Chat:
    """The answer is a sentence, the file's name and a search/replace block."""
    shown = f"{found.file}\n{fence(made.before, rng.choice(('', found.language)))}"
    messages = started(rng, BLOCKS, 0.6)
    asks = "" if messages else rng.choice((" Use a SEARCH/REPLACE block.", " Reply with an edit."))
    if rng.random() < 0.5:
        # aider's way: the files come in a turn of their own.
        given = rng.choice(("I added these files to the chat:", "These are the files:"))
        messages += [user(f"{given}\n\n{shown}"), assistant("Ok.")]
        messages.append(user(made.request + asks))
    else:
        messages.append(user(f"{shown}\n\n{made.request}{asks}"))
    search, replace = block(made)
    body = f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE"
    said = f"{made.done}\n\n{found.file}\n{fence(body, found.language)}"
    return Chat((*messages, assistant(said)))
