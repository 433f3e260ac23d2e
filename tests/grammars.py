"""Grammars without a model: a vocabulary of single bytes and special tokens."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Bytes:
    """256 bytes, then the special tokens, then an end token."""

    def __init__(self, specials: Sequence[str] = ()) -> None:
        self.specials = {text: 256 + i for i, text in enumerate(specials)}
        self.eos_token_id = 256 + len(self.specials)
        self.bos_token_id = None
        self.tokens = [bytes([i]) for i in range(256)]
        self.tokens += [b"\xff" + text.encode() for text in self.specials] + [b"\xff<end>"]
        self.special_token_ids = list(range(256, self.eos_token_id + 1))
        self._tokenizer = LLTokenizer(TokenizerWrapper(self))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)

    def encode(self, text: str) -> list[int]:
        names = sorted(self.specials, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
        ids: list[int] = []
        for part in parts:
            ids += [self.specials[part]] if part in self.specials else part.encode()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        texts = {i: text.encode() for text, i in self.specials.items()}
        return b"".join(texts.get(i) or bytes([i]) for i in ids).decode("utf-8", "replace")

    def matcher(self, lark: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        assert not matcher.is_error(), f"{matcher.get_error()}\n{lark}"
        return matcher

    def accepts(self, lark: str, text: str) -> bool:
        """Whether the whole text follows the grammar."""
        matcher, ids = self.matcher(lark), self.encode(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def accepted(self, lark: str, text: str) -> str:
        """As much of the text as follows the grammar: what a failed test should show."""
        ids = self.encode(text)
        return self.decode(ids[: self.matcher(lark).try_consume_tokens(ids)])

    def walk(self, lark: str, seed: int, most: int = 4000) -> str:
        """A text made by choosing at random among what the grammar allows."""
        matcher, rng, ids = self.matcher(lark), random.Random(seed), []
        while not matcher.is_stopped():
            assert len(ids) < most, self.decode(ids)
            mask = matcher.compute_bitmask()
            allowed = [i for i in range(self.eos_token_id + 1) if mask[i >> 3] >> (i & 7) & 1]
            # Printable characters and ends more often than the others.
            good = [i for i in allowed if i >= 256 or i in b'"}]>,' or chr(i).isalnum()]
            token = rng.choice(good if good and rng.random() < 0.9 else allowed)
            if token == self.eos_token_id:
                break
            assert matcher.consume_token(token)
            ids.append(token)
        return self.decode(ids)


def rendered(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    """A conversation as the template has it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template([messages], chat_template=template, **variables)
    return text


def emitted(template: str, turn: dict[str, Any], **variables: Any) -> str:
    """What a model that was trained on the template writes for the turn: the rendering of
    it in a conversation, without what stands in the prompt already. The end of the turn
    is still there."""
    user = [{"role": "user", "content": "Question"}]
    prompt = rendered(template, user, add_generation_prompt=True, **variables)
    whole = rendered(template, [*user, turn], **variables)
    same = 0
    while same < min(len(prompt), len(whole)) and prompt[same] == whole[same]:
        same += 1
    if same < len(prompt):
        # Not from within a mark or word that begins like the one in the prompt.
        same -= len(re.search(r"[\w<|/\[]*\Z", whole[:same]).group())
    return whole[same:]


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "description": f"Does {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


def call(name: str, arguments: dict[str, Any], *, as_text: bool = False) -> dict[str, Any]:
    """A call in a turn of the history."""
    given = json.dumps(arguments) if as_text else arguments
    return {
        "id": "abcdef123",
        "type": "function",
        "function": {"name": name, "arguments": given},
    }
