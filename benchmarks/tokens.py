"""Counting with the model's tokenizer; never while the clock runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks import metrics
from benchmarks.plan import Outcome


class Tokens:
    """The model's tokenizer, for counting only."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return self.encode(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )

    def needed(self, outcome: Outcome) -> int:
        """Prompt tokens to compute if no prefix is computed twice."""
        return metrics.needed_tokens(
            [self.prompt(e.messages) for e in outcome.exchanges],
            [self.encode(" " + e.reply.text.strip()) for e in outcome.exchanges],
        )
