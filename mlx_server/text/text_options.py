"""Sampling options that are written as text, as tokens.

After llama.cpp: a text's bias counts for every token of it, and a text that repetition does
not go across is every way in which tokens may hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mlx_server.core import TextOptions

MAX_BREAKER_BYTES = 40
MAX_BREAKER_TAIL = 20
"""How much of a breaker is looked at, in bytes, and in tokens behind the first (llama.cpp)."""

TokenSequence = tuple[int, ...]


class TextOptionsTokenizer(Protocol):
    """What of a tokenizer turns the options into tokens."""

    @property
    def table(self) -> Sequence[bytes]: ...

    @property
    def newline_ids(self) -> tuple[int, ...]: ...

    def encode(
        self, text: str, add_special_tokens: bool = True, *, markup: bool = True
    ) -> list[int]: ...

    def breakers(self, text: str) -> tuple[TokenSequence, ...]: ...


def resolve(tokenizer: TextOptionsTokenizer, options: TextOptions) -> dict[str, Any]:
    """The `SamplingParams` fields `logit_bias` (of the texts alone), `dry_breakers` and
    `unpenalized`."""
    biases = [
        (token_id, bias)
        for text, bias in options.logit_bias
        for token_id in tokenizer.encode(text, False, markup=False)
    ]
    sequences = [s for text in options.dry_breakers or () for s in tokenizer.breakers(text)]
    return {
        "logit_bias": tuple(biases),
        "dry_breakers": tuple(dict.fromkeys(sequences)),
        "unpenalized": tokenizer.newline_ids if options.penalize_nl is False else (),
    }


def find_breakers(
    table: Sequence[bytes], spell: Callable[[bytes], Sequence[int]], text: str
) -> tuple[TokenSequence, ...]:
    """The token sequences that hold a text, or begin within a token and end with it.

        text ":\\n\\n"    tokens  "a:⏎⏎b" → (it,)    "a:" → (it, *spell("⏎⏎"))

    Args:
        table: The bytes of every token, by id.
        spell: The tokens of a text as it stands within another.
    """
    wanted = text.encode("utf-8", "replace")[:MAX_BREAKER_BYTES]
    if not wanted:
        return ()
    beginnings = tuple(wanted[:size] for size in range(len(wanted) - 1, 0, -1))
    found: dict[tuple[int, ...], None] = {
        (i,): None for i, word in enumerate(table) if wanted in word
    }
    tails = {b: tuple(spell(wanted[len(b) :]))[:MAX_BREAKER_TAIL] for b in beginnings}
    for i, word in enumerate(table):
        # A vocabulary is large, and this one call tells nearly all of it apart.
        if word.endswith(beginnings) and (i,) not in found:
            found |= {(i, *tails[b]): None for b in beginnings if word.endswith(b)}
    return tuple(found)
