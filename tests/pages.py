"""The Markdown pages of the repository, and what stands in them: links, headings, code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})([\w-]*)[^`]*$")
_LINK = re.compile(r"\]\(([^()\s]+)\)|\b(?:src|srcset|href)=\"([^\"\s]+)\"")
_ENDS_COMMAND = {"|", "||", "&&", ";", "&"}
_REDIRECTS = re.compile(r"\d?[<>]+&?\d?")


@dataclass(frozen=True)
class Block:
    """
    Args:
        line: Of the page, of its first line.
        language: As behind the fence; empty where nothing is said, or it is only indented.
    """

    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Page:
    """
    Args:
        prose: What is no code block, line by line; a block's lines are empty.
    """

    path: Path
    prose: str
    blocks: tuple[Block, ...]

    @classmethod
    def read(cls, path: Path) -> Page:
        lines = path.read_text("utf-8").splitlines()
        blocks = tuple(_blocks(lines))
        prose = list(lines)
        for block in blocks:
            size = block.text.count("\n") + 1
            prose[block.line - 1 : block.line - 1 + size] = [""] * size
        return cls(path, "\n".join(prose), blocks)

    def links(self) -> list[str]:
        prose = re.sub(r"(`+).*?\1", "", self.prose)
        return [a or b for a, b in _LINK.findall(prose)]

    def anchors(self) -> set[str]:
        """Those that GitHub gives the headings: a second one of a name ends in -1."""
        found: set[str] = set()
        for title in re.findall(r"^#{1,6} +(.+?) *#*$", self.prose, re.MULTILINE):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
            slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            number, name = 0, slug
            while name in found:
                number += 1
                name = f"{slug}-{number}"
            found.add(name)
        return found

    def code(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]


def _blocks(lines: list[str]) -> Iterator[Block]:
    at, in_list = 0, False
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        start = at + 1
        if fence:
            indent, mark, language = fence.groups()
            end = start
            while end < len(lines) and lines[end].strip() != mark:
                end += 1
            text = "\n".join(line.removeprefix(indent) for line in lines[start:end])
            yield Block(start + 1, language, text)
            at = end + 1
            continue
        is_code = lines[at].startswith("    ") and not in_list
        if is_code and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(line[4:] for line in lines[at:end]).rstrip()
            yield Block(at + 1, "", text)
            at = end
            continue
        if lines[at].strip() and not lines[at].startswith(" "):
            in_list = re.match(r"([-*+]|\d+\.) ", lines[at]) is not None
        at += 1


# ---------------------------------------------------------------- commands

SHELLS = ("", "sh", "bash", "console")
"""Languages of blocks that hold commands; without one a block may hold anything."""


@dataclass(frozen=True)
class Command:
    """
    Args:
        words: From the program's name on, without redirections.
        remark: The comment behind it.
    """

    line: int
    words: tuple[str, ...]
    remark: str


def commands(block: Block, program: str) -> list[Command]:
    """The calls of a program in a shell's block."""
    found, text, first = [], "", block.line
    for number, line in enumerate(block.text.split("\n"), block.line):
        if not text and program not in line:
            continue
        first = first if text else number
        text += ("\n" if text else "") + line.removeprefix("$ ")
        if text.endswith("\\"):
            text = text[:-1]
            continue
        try:
            words = _words(text)
        except ValueError:  # a quotation that goes on
            continue
        remark = text.rpartition(" # ")[2].strip() if " # " in text.split("\n")[-1] else ""
        found += [Command(first, call, remark) for call in _calls(words, program)]
        text = ""
    assert not text, f"line {first}: {text!r} does not end"
    return found


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def _calls(words: list[str], program: str) -> Iterator[tuple[str, ...]]:
    """The program stands at the beginning, behind variables or behind another command."""
    call: list[str] = []
    for word in [*words, ";"]:
        if word in _ENDS_COMMAND:
            while call and re.fullmatch(r"\w+=.*", call[0], re.DOTALL):
                call.pop(0)
            cut = next((i for i, w in enumerate(call) if _REDIRECTS.fullmatch(w)), len(call))
            if call and call[0] == program:
                yield tuple(call[:cut])
            call = []
        else:
            call.append(word)
