"""The forms of a prompt that is no chat, the same wherever one is given.

OpenAI's (a text, token ids, or a list of either) and llama.cpp's (texts and ids in turns, and
{"prompt_string": …}).
"""

from __future__ import annotations

from typing import Any

from mlx_server.api.fields import INT32_MAX, checked, integer, path, text, wrong
from mlx_server.core import MixedPrompt, Prompt, TextPrompt, TokenPrompt
from mlx_server.errors import NotSupported

_ALLOWED = (
    "must be a string, a list of token ids and strings, an object with a `prompt_string`, "
    "or a non-empty list of these"
)


def is_single(value: Any) -> bool:
    """Whether it is one prompt: all but a list, and a list that has a number in it."""
    return not isinstance(value, list) or any(isinstance(item, int | float) for item in value)


def read_prompts(value: Any, name: str = "prompt") -> tuple[Prompt, ...]:
    """One prompt or several.

    Args:
        name: The field, for errors.

    Raises:
        RequestError: It is none of what is allowed; the element is named.
        NotSupported: It has images or sounds.
    """
    if is_single(value):
        return (_prompt(value, name),)
    if not value:
        raise wrong(name, _ALLOWED, value)
    return tuple(_prompt(item, name, i) for i, item in enumerate(value))


def _prompt(value: Any, *location: str | int) -> Prompt:
    if isinstance(value, str):
        return TextPrompt(checked(text, value, *location))
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            param = path((*location, "multimodal_data"))
            raise NotSupported(
                f"This server does not support images or sound; leave `{param}` out.", param=param
            )
        return TextPrompt(checked(text, value.get("prompt_string"), *location, "prompt_string"))
    if not isinstance(value, list) or not value:
        raise wrong(path(location), _ALLOWED, value)
    parts = tuple(_part(item, *location, i) for i, item in enumerate(value))
    ids = tuple(part for part in parts if isinstance(part, int))
    return TokenPrompt(ids) if len(ids) == len(parts) else MixedPrompt(parts)


def _part(value: Any, *location: str | int) -> str | int:
    if isinstance(value, str):
        return checked(text, value, *location)
    try:
        return integer(0, INT32_MAX)(value)
    except ValueError:
        raise wrong(path(location), "must be a string or a token id", value) from None
