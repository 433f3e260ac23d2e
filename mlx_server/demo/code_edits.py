"""Edits of a little program: each changes one thing and keeps every line in its place."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from . import tool_words as words
from .code_programs import Program, name

STRING = re.compile(r'"[^"]+"')
OPPOSITES = {"<": ">=", ">": "<=", "==": "!=", "===": "!==", "-gt": "-le"}
SLIPS = {
    "print": ("prnt", "pritn", "prin"),
    "return": ("retrun", "retun", "reutrn"),
    "import": ("improt", "imprt"),
    "range": ("rnage", "rang"),
    "while": ("whlie", "whille"),
    "function": ("fucntion", "funtion"),
    "console": ("consle", "cosnole"),
    "const": ("cosnt", "conts"),
    "echo": ("ehco", "ecoh"),
    "class": ("clas", "calss"),
    "raise": ("rasie", "riase"),
}


@dataclass(frozen=True, slots=True)
class Edit:
    """Code before and after, what the user asks, and the sentence that says what was done."""

    before: str
    after: str
    request: str
    done: str


Editor = Callable[[random.Random, Program], Edit | None]
"""Makes an edit, or None where the program has nothing of the kind."""


def swapped(code: str, old: str, new: str) -> str:
    """`code` with the name `old` replaced wherever it stands alone."""
    return re.sub(rf"\b{re.escape(old)}\b", lambda _: new, code)


def misspelt(rng: random.Random, text: str) -> str:
    """`text` with a letter lost, doubled or in the wrong place, never the first one."""
    at = rng.randrange(1, len(text) - 1)
    wrong = (
        text[:at] + text[at + 1 :],
        text[:at] + text[at] + text[at:],
        text[:at] + text[at + 1] + text[at] + text[at + 2 :],
    )
    return next(w for w in (rng.choice(wrong), *wrong) if w != text)


def fix_string(rng: random.Random, program: Program) -> Edit | None:
    """A misspelt word in a string."""
    texts = STRING.findall(program.code)
    found = [word for text in texts for word in re.findall(r"(?<![\w$])[a-z]{4,}\b", text)]
    if not found:
        return None
    right = rng.choice(found)
    wrong = misspelt(rng, right)
    if re.search(rf"\b{wrong}\b", program.code):
        return None
    requests = (
        f"Fix the typo: {wrong} should be {right}.",
        f"There is a typo in the string, {wrong} instead of {right}. Fix it.",
        f"It prints {wrong}, it should be {right}.",
        f'Correct the spelling of "{wrong}" to "{right}"',
        f"Replace {wrong} by {right}.",
    )
    before = STRING.sub(lambda text: swapped(text[0], right, wrong), program.code)
    return Edit(before, program.code, rng.choice(requests), f"I changed {wrong} to {right}.")


def fix_keyword(rng: random.Random, program: Program) -> Edit | None:
    """A misspelt word of the language; the user need not say which."""
    found = [w for w in SLIPS if re.search(rf"\b{w}\b", program.code)]
    if not found:
        return None
    right = rng.choice(found)
    wrong = rng.choice(SLIPS[right])
    before = re.sub(rf"\b{right}\b", wrong, program.code, count=1)
    requests = (
        "Fix the typo.",
        "Fix the bug.",
        "This does not run. Fix it.",
        "What is wrong here? Fix it.",
        "Fix the error.",
        f"Fix the typo in {wrong}.",
    )
    return Edit(before, program.code, rng.choice(requests), f"I changed {wrong} to {right}.")


def rename(rng: random.Random, program: Program) -> Edit | None:
    """A function gets another name, in all its places."""
    found = re.findall(r"(?:def|function) (\w+)\(|^(\w+)\(\) \{", program.code, re.MULTILINE)
    names = [a or b for a, b in found if not a.startswith("__")]
    if not names:
        return None
    old, new = rng.choice(names), name(rng)
    if re.search(rf"\b{new}\b", program.code):
        return None
    requests = (
        f"Rename {old} to {new}.",
        f"Rename the function {old} to {new}",
        f"Call the function {new} instead of {old}.",
        f"The function should be named {new}, not {old}.",
    )
    after = swapped(program.code, old, new)
    return Edit(program.code, after, rng.choice(requests), f"I renamed {old} to {new}.")


def constant(rng: random.Random, program: Program) -> Edit | None:
    """A named number gets another value."""
    found = re.findall(r"^(?:const )?([A-Z_a-z]+) ?= ?(\d+);?$", program.code, re.MULTILINE)
    if not found:
        return None
    (key, old), new = rng.choice(found), str(words.number(rng))
    if old == new:
        return None
    requests = (
        f"Change {key} to {new}.",
        f"Set {key} to {new}",
        f"{key} should be {new}, not {old}.",
        f"Make {key} {new}.",
        f"Change {key} from {old} to {new}.",
    )
    after = re.sub(rf"\b({key} ?= ?){old}\b", rf"\g<1>{new}", program.code)
    return Edit(program.code, after, rng.choice(requests), f"I set {key} to {new}.")


def string(rng: random.Random, program: Program) -> Edit | None:
    """A string says something else."""
    found = re.findall(r'"([a-z ]{3,})"', program.code)
    if not found:
        return None
    old, new = rng.choice(found), words.phrase(rng, 1, 3)
    if old == new:
        return None
    requests = (
        f'Change "{old}" to "{new}".',
        f'Replace the text "{old}" by "{new}"',
        f'It should say "{new}" instead of "{old}".',
        f'Use "{new}", not "{old}".',
    )
    after = program.code.replace(f'"{old}"', f'"{new}"')
    return Edit(program.code, after, rng.choice(requests), f'I changed "{old}" to "{new}".')


def default(rng: random.Random, program: Program) -> Edit | None:
    """The last parameter gets a default."""
    found = re.search(r"(?:def|function) (\w+)\((?:\w+, )*(\w+)\)", program.code)
    if not found or found[2] == "self":
        return None
    value = str(words.number(rng, 3))
    equals = "=" if program.language == "python" else " = "
    end = found.end(2)
    after = f"{program.code[:end]}{equals}{value}{program.code[end:]}"
    requests = (
        f"Give {found[2]} the default {value}.",
        f"Give the parameter {found[2]} of {found[1]} a default of {value}",
        f"Make {found[2]} optional with the default {value}.",
        f"{found[2]} should default to {value}.",
    )
    done = f"{found[2]} is {value} now where it is not given."
    return Edit(program.code, after, rng.choice(requests), done)


def reverse(rng: random.Random, program: Program) -> Edit | None:
    """A condition becomes its opposite."""
    found = re.search(r"(if|while)\b.* (<|>|===?|-gt) ", program.code)
    if not found:
        return None
    start, end = found.span(2)
    after = f"{program.code[:start]}{OPPOSITES[found[2]]}{program.code[end:]}"
    requests = (
        "Reverse the condition.",
        "The condition is the wrong way round. Fix it.",
        "Negate the condition",
        f"The {found[1]} is wrong, it should be the opposite.",
    )
    done = f"I changed {found[2]} to {OPPOSITES[found[2]]}."
    return Edit(program.code, after, rng.choice(requests), done)


EDITORS: tuple[Editor, ...] = (
    fix_string,
    fix_string,
    fix_keyword,
    rename,
    rename,
    constant,
    string,
    default,
    reverse,
)


def edit(rng: random.Random, program: Program) -> Edit | None:
    """An edit that the program has a place for; None if no kind has one."""
    for editor in rng.sample(EDITORS, len(EDITORS)):
        made = editor(rng, program)
        if made is not None:
            return made
    return None


def block(made: Edit) -> tuple[str, str]:
    """The changed lines before and after, with lines above until they occur only once."""
    old, new = made.before.split("\n"), made.after.split("\n")
    changed = [n for n, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    first, last = changed[0], changed[-1] + 1
    while first and f"\n{made.before}\n".count("\n" + "\n".join(old[first:last]) + "\n") > 1:
        first -= 1
    return "\n".join(old[first:last]), "\n".join(new[first:last])
