"""Little programs with gaps, which become thousands of different ones.

The gaps: <f> <g> functions, <a> <b> parameters, <v> <w> variables, <C> a constant, <m> <n>
numbers, <s> <t> some words, <k> a word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from . import tool_words as words

ENDINGS = {"python": "py", "javascript": "js", "bash": "sh"}
PYTHON = (
    'print("<s>")',
    'def <f>():\n    print("<s>")',
    'def <f>():\n    return "<s>"\n\nprint(<f>())',
    "def <f>(<a>, <b>):\n    return <a> + <b>",
    "def <f>(<a>, <b>):\n    return <a> * <b> + <m>\n\nprint(<f>(<m>, <n>))",
    "<C> = <m>\n\ndef <f>(<a>):\n    return <a> * <C>",
    '<C> = <m>\n\ndef <f>(<a>):\n    if <a> > <C>:\n        return "<s>"\n    return "<t>"',
    'def <f>(<a>):\n    if <a> < <m>:\n        print("<s>")\n    else:\n        print("<t>")',
    "def <f>(<v>):\n    total = 0\n    for <a> in <v>:\n        total += <a>\n    return total",
    "<v> = <m>\n<w> = <n>\nif <v> == <w>:\n    print(<v>)",
    "for <v> in range(<m>):\n    print(<v>)",
    '<v> = ["<s>", "<t>"]\nfor <a> in <v>:\n    print(<a>)',
    "while <v> < <m>:\n    <v> = <v> + <n>\nprint(<v>)",
    'import os\n\n<C> = <m>\n\ndef <f>(<a>):\n    return os.path.join("<k>", <a>)',
    "class <K>:\n    def __init__(self, <a>):\n        self.<a> = <a>\n\n"
    '    def <f>(self):\n        return "<s>"',
    'def <f>(<a>, <b>):\n    if <b> == 0:\n        raise ValueError("<s>")\n    return <a> / <b>',
    "import json\n\ndef <f>(<a>):\n    with open(<a>) as file:\n        return json.load(file)",
    'def <f>(<a>):\n    print("<s>", <a>)\n\ndef <g>():\n    <f>(<m>)\n\n<g>()',
    "from flask import Flask\n\napp = Flask(__name__)\n<C> = <m>\napp.run(port=<C>)",
    "def test_<f>():\n    assert <f>(<m>) == <n>\n    assert <f>(<n>) > 0",
)
JAVASCRIPT = (
    'console.log("<s>");',
    'function <f>() {\n  console.log("<s>");\n}',
    "function <f>(<a>, <b>) {\n  return <a> + <b>;\n}",
    "const <C> = <m>;\n\nfunction <f>(<a>) {\n  return <a> * <C>;\n}",
    'function <f>(<a>) {\n  if (<a> > <m>) {\n    return "<s>";\n  }\n  return "<t>";\n}',
    "const <C> = <m>;\nfor (let i = 0; i < <C>; i++) {\n  console.log(i);\n}",
    'const <v> = ["<s>", "<t>"];\nfor (const <a> of <v>) {\n  console.log(<a>);\n}',
    'const <v> = { name: "<s>", size: <m> };\nconsole.log(<v>.name);',
    'function <f>(<a>) {\n  if (<a> === <m>) {\n    throw new Error("<s>");\n  }\n}\n\n<f>(<n>);',
    "const <C> = <m>;\nserver.listen(<C>);",
)
SHELL = (
    'echo "<s>"',
    '#!/bin/sh\n<C>=<m>\necho "<s> $<C>"',
    'for <v> in *.txt; do\n  echo "<s>: $<v>"\ndone',
    '<C>=<m>\nif [ "$1" -gt "$<C>" ]; then\n  echo "<s>"\nfi',
    '<f>() {\n  echo "<s>"\n}\n\n<f>',
    '#!/bin/bash\nset -e\n<C>=<m>\nsleep "$<C>"\necho "<s>"',
)
PROGRAMS = (("python", PYTHON),) * 3 + (("javascript", JAVASCRIPT), ("bash", SHELL))


@dataclass(frozen=True, slots=True)
class Program:
    """Code without a last line break, its language as a fence names it, its file."""

    language: str
    code: str
    file: str


def name(rng: random.Random) -> str:
    """A name that a programmer would choose."""
    first = ("get", "set", "make", "find", "load", "save", "print", "count", "check", "send", "run")
    return f"{rng.choice(first)}_{words.word(rng)}" if rng.random() < 0.6 else words.word(rng)


def variable(rng: random.Random) -> str:
    return rng.choice(("a", "b", "x", "y", "n", "value", "item", words.word(rng), words.word(rng)))


def number(rng: random.Random) -> str:
    return str(words.number(rng, 4))


GAPS: dict[str, Callable[[random.Random], str]] = {
    "f": name,
    "g": name,
    "a": variable,
    "b": variable,
    "v": words.identifier,
    "w": words.identifier,
    "C": lambda rng: words.identifier(rng).upper(),
    "K": lambda rng: words.word(rng).capitalize(),
    "m": number,
    "n": number,
    "s": lambda rng: words.phrase(rng, 1, 3),
    "t": lambda rng: words.phrase(rng, 1, 3),
    "k": words.word,
}
# What the programs use already.
TAKEN = {"total", "file", "i", "app", "test", "name", "size", "server"}


def program(rng: random.Random) -> Program:
    """A program whose gaps are filled, each name with another word."""
    language, forms = rng.choice(PROGRAMS)
    form = rng.choice(forms)
    filled: dict[str, str] = {}
    for gap in re.findall(r"<(\w)>", form):
        while gap not in filled:
            text = GAPS[gap](rng)
            if text not in TAKEN and text not in filled.values():
                filled[gap] = text
    code = re.sub(r"<(\w)>", lambda match: filled[match[1]], form)
    stem = rng.choice((words.word(rng), words.identifier(rng), "main", "app", "hello", "test"))
    folder = rng.choice(("", "", "", "src/", "lib/", f"{words.word(rng)}/"))
    return Program(language, code, f"{folder}{stem}.{ENDINGS[language]}")
