"""Two texts in one input, as cross-encoders read them."""

from __future__ import annotations

from mlx_server.text.tokenizer import Tokenizer


def encode_pair(tokenizer: Tokenizer, first: str, second: str) -> tuple[list[int], list[int]]:
    """The tokens of both texts, valid Unicode, with the model's own marks around them, and
    which of the two each belongs to (0 or 1)."""
    if tokenizer._backend is not None:
        encoding = tokenizer._backend.encode(first, second)
        return encoding.ids, encoding.type_ids
    with tokenizer._lock:  # one written in Python
        found = tokenizer._hf(first, second, return_token_type_ids=True)
    return list(found["input_ids"]), list(found["token_type_ids"])
