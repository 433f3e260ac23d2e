"""Text of this machine: the Python standard library's sources."""

from __future__ import annotations

import random
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path


def texts(limit: int) -> Iterator[str]:
    """The standard library's sources in a fixed order, up to `limit` characters."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "dist-packages", "__pycache__"} & set(path.parts):
            continue
        try:
            text = path.read_text("utf-8")[:limit]
        except (OSError, UnicodeDecodeError):
            continue
        yield text
        limit -= len(text)
        if limit <= 0:
            return


@lru_cache(maxsize=1)
def words(count: int = 4000) -> tuple[str, ...]:
    """The commonest words of three to ten letters."""
    found: Counter[str] = Counter()
    for text in texts(3_000_000):
        found.update(re.findall(r"\b[a-z]{3,10}\b", text))
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word for word, _ in ranked[:count])


def prose(rng: random.Random, num_words: int) -> str:
    """So many random words, in sentences."""
    chosen = rng.choices(words(), k=num_words)
    marks = [". " if rng.random() < 0.08 else " " for _ in chosen]
    return "".join(word + mark for word, mark in zip(chosen, marks, strict=True)).strip()


def prose_of_tokens(rng: random.Random, count: Callable[[str], int], num_tokens: int) -> str:
    """Random words that make about so many tokens, never more."""
    chosen = prose(rng, num_tokens).split(" ")
    low, high = 0, len(chosen)
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(chosen[:middle])) <= num_tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(chosen[:low])
