"""Chat: what the demo model is trained on, in the form that requests have."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as OpenAI's API writes it; the model learns every turn of the assistant.

    Args:
        messages: `role` and `content`, of an assistant also `tool_calls` (each with a
            `function` of `name` and `arguments`, here an object), of a tool its result as text.
        tools: As in a request: `{"type": "function", "function": {…}}`.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Source = Callable[[random.Random], Chat]
"""Makes a chat; all its draws come from the generator it is given."""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}
