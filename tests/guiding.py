"""A small vocabulary for guides and grammars: single bytes, a few longer tokens, markup."""

from __future__ import annotations

import json

from mlx_server.core import Grammar
from mlx_server.sampling.grammar import Grammars, Vocabulary
from mlx_server.sampling.notations import json_grammar, lark_grammar

SPECIALS = {"<think>": 256, "</think>": 257, "<call>": 258, "</call>": 259, "<end>": 260}
LONGER = [b'{"', b'"}', b'": ', b"\n\n", b">!", b"</answer", b"name", b"true"]
EOS = 260
WIDTH = 300
"""Of the logits: models have some that no token belongs to."""

TOKENS = [bytes([i]) for i in range(256)]
TOKENS += [text.encode() for text in SPECIALS] + LONGER


def encode(text: str) -> list[int]:
    """Longer tokens where they fit."""
    ids, data = [], text.encode()
    while data:
        token = next((t for t in LONGER if data.startswith(t)), data[:1])
        ids.append(TOKENS.index(token))
        data = data[len(token) :]
    return ids


def decode(ids: list[int]) -> str:
    return b"".join(TOKENS[i] for i in ids if i < len(TOKENS)).decode("utf-8", "replace")


def make_grammars() -> Grammars:
    return Grammars(Vocabulary(TOKENS, SPECIALS, frozenset({EOS}), WIDTH, encode))


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def schema(value: dict) -> str:
    return json_grammar(value)


def lark(text: str) -> str:
    return lark_grammar(text)


def client(kind: str, text: str | dict, param: str = "grammar") -> Grammar:
    return Grammar(kind, text if isinstance(text, str) else json.dumps(text), param)
