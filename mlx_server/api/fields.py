"""The values of body fields: what is accepted, and the one form in which the rest is refused.

A known field with a wrong type or range is a `RequestError` that names it by
its path (`messages[2].content`), with what is allowed and what came. Booleans
are not numbers, and 16.0 is an integer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PlainValidator

from mlx_server.api.described import Check, accepted, accepting, within
from mlx_server.errors import RequestError
from mlx_server.sampling_params import MAX_TOP_LOGPROBS

MAX_STOP_STRINGS = 16
MAX_BIASED_TOKENS = 1024
"""Every one of them is looked at again for every token of the reply."""

MAX_DEPTH = 64
"""Objects and lists inside one another, in a field that is passed on as it came."""

INT32_MAX = 2**31 - 1
LIMIT_ALLOWED = "must be an integer of at least 1, or -1 (until the context is full)"

_NUMBER = re.compile(r"-?[0-9]{1,18}")


# ---------------------------------------------------------------- errors


def wrong(param: str, reason: str, value: Any, tell: bool = True) -> RequestError:
    """The error that every wrong field is told with."""
    was = f", but got {got(value)}" if tell else ""
    return RequestError(f"`{param}` {reason}{was}.", param=param)


def path(location: tuple[str | int, ...]) -> str:
    """("messages", 2, "content") as the client would write it: messages[2].content."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).removeprefix(".")


def got(value: Any) -> str:
    """A value in a few words, whatever its size."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, str):
        return json.dumps(value[:40]) + ("…" if len(value) > 40 else "")
    words = json.dumps(value)
    return words[:40] + ("…" if len(words) > 40 else "")


def checked(check: Check, value: Any, *location: str | int) -> Any:
    """What the check makes of a value that is looked at by hand. Raises RequestError."""
    try:
        return check(value)
    except ValueError as error:
        raise wrong(path(location), str(error), value) from None


# ---------------------------------------------------------------- values
#
# A check returns the value it accepts and raises ValueError("must be …") for others.


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number within the bounds."""
    allowed = f"must be a number between {low:g} and {high:g}"
    if high == math.inf:
        allowed = f"must be a number of at least {low:g}"

    @accepting(within(float, low, high))
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(allowed)
        try:
            result = float(value)
        except OverflowError:
            raise ValueError(allowed) from None
        if not (math.isfinite(result) and low <= result <= high):
            raise ValueError(allowed)
        return result

    return check


def integer(low: int | None = None, high: int | None = None) -> Check:
    """An integer within the bounds; a float without a fraction is one."""
    allowed = "must be an integer"
    if low is not None and low == high:
        allowed = f"must be {low}"
    elif low is not None:
        allowed += f" of at least {low}" if high is None else f" between {low} and {high}"

    @accepting(within(int, low, high))
    def check(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(allowed)
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(allowed)
        return value

    return check


@accepting(bool)
def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


@accepting(str)
def text(value: Any) -> str:
    """A string that can be encoded: JSON's escapes can spell halves of a character."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, without lone surrogates") from None
    return value


@accepting(dict[str, Any])
def mapping(value: Any) -> dict[str, Any]:
    """A JSON object of bounded depth whose strings, wherever they are, can be encoded."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    # Level by level: recursion is what a deeper one would break, here and in a template.
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [c for group in children for c in group if isinstance(c, dict | list)]
    if level:
        raise ValueError(f"must not be nested too deeply (at most {MAX_DEPTH} levels)")
    text(json.dumps(value, ensure_ascii=False))
    return value


def one_of(*allowed: str) -> Check:
    """One of the words."""
    names = ", ".join(f'"{word}"' for word in allowed)

    @accepting(Literal[allowed])
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"must be {'one of ' if len(allowed) > 1 else ''}{names}")
        return value

    return check


@accepting(dict[str, str])
def text_mapping(value: Any) -> dict[str, str]:
    if not all(isinstance(item, str) for item in mapping(value).values()):
        raise ValueError("must be an object whose values are strings")
    return value


def at_most(limit: int) -> Check:
    """A list with at most so many entries; null is an empty one. Its entries are not looked at."""

    @accepting(Annotated[list[Any], Field(max_length=limit)] | None)
    def check(value: Any) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise ValueError("must be a list")
        if len(value) > limit:
            raise ValueError(f"must have at most {limit} entries")
        return value

    return check


@accepting(Annotated[dict[str, Any], Field(json_schema_extra={"required": ["type"]})])
def typed_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError("must be an object with a `type`")
    return value


@accepting(str | Annotated[list[str], Field(max_length=MAX_STOP_STRINGS)])
def stop_strings(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOP_STRINGS
        or not all(isinstance(stop, str) and stop for stop in stops)
    ):
        raise ValueError(
            f"must be a non-empty string or a list of up to {MAX_STOP_STRINGS} non-empty strings"
        )
    return tuple(text(stop) for stop in stops)


class Biases(NamedTuple):
    """Biases on token ids, and on texts: every token of one gets its bias."""

    ids: tuple[tuple[int, float], ...]
    texts: tuple[tuple[str, float], ...] = ()


def biases(limit: float) -> Check:
    """`logit_bias` as OpenAI's object or llama.cpp's list of pairs. A key may be a text, and
    the bias `false`, which stands for never.

    Args:
        limit: The largest bias either way.
    """
    allowed = f"must map token ids or texts to numbers between {-limit:g} and {limit:g} or false"
    in_range = number(-limit, limit)

    def pairs(value: Any) -> Iterable[tuple[int | str, Any]]:
        if isinstance(value, dict):
            return [(int(key) if _NUMBER.fullmatch(key) else key, v) for key, v in value.items()]
        if not isinstance(value, list):
            raise ValueError(allowed)
        for i, item in enumerate(value):
            if not isinstance(item, list) or len(item) != 2:
                raise ValueError(f"{allowed}; item {i} of the list is no pair")
        return [(key, bias) for key, bias in value]

    amount = within(float, -limit, limit) | Literal[False]
    pair = Annotated[list[int | str | amount], Field(min_length=2, max_length=2)]

    @accepting(dict[str, amount] | Annotated[list[pair], Field(max_length=MAX_BIASED_TOKENS)])
    def check(value: Any) -> Biases:
        if isinstance(value, dict | list) and len(value) > MAX_BIASED_TOKENS:
            raise ValueError(f"must have at most {MAX_BIASED_TOKENS} entries")
        ids: dict[int, float] = {}
        texts: dict[str, float] = {}
        for key, bias in pairs(value):
            if bias is not False:
                try:
                    bias = in_range(bias)
                except ValueError:
                    raise ValueError(f"{allowed}; token {got(key)} has {got(bias)}") from None
            amount = -math.inf if bias is False else bias
            if isinstance(key, str) and key:
                texts[text(key)] = amount
            else:
                try:
                    ids[integer(0, INT32_MAX)(key)] = amount
                except ValueError:
                    raise ValueError(f"{allowed}; {got(key)} is not a token id") from None
        return Biases(tuple(ids.items()), tuple(texts.items()))

    return check


@accepting(within(int, -1))
def token_limit(value: Any) -> int:
    try:
        return integer(-1)(value)
    except ValueError:
        raise ValueError(LIMIT_ALLOWED) from None


@accepting(within(int, -1, INT32_MAX))
def top_k_or_all(value: Any) -> int:
    """-1 keeps all, as in vLLM, and so does 0."""
    return max(integer(-1, INT32_MAX)(value), 0)


def required(check: Check) -> PlainValidator:
    """The check as a field's validator."""
    return PlainValidator(check, json_schema_input_type=accepted(check))


def optional(check: Check) -> PlainValidator:
    """The check as a field's validator; null passes as None."""
    return PlainValidator(
        lambda value: None if value is None else check(value),
        json_schema_input_type=accepted(check) | None,
    )


def unchecked(kind: Any) -> PlainValidator:
    """For a field that is looked at by hand.

    Args:
        kind: What is accepted, for /openapi.json.
    """
    return PlainValidator(lambda value: value, json_schema_input_type=kind)


OptionalText = Annotated[str | None, optional(text)]
OptionalFlag = Annotated[bool | None, optional(flag)]
OptionalSize = Annotated[int | None, optional(integer(0, INT32_MAX))]
OptionalMapping = Annotated[dict[str, Any] | None, optional(mapping)]
TokenLimit = Annotated[int | None, optional(token_limit)]
Penalty = Annotated[float | None, optional(number(-2, 2))]
Probability = Annotated[float | None, optional(number(0, 1))]
TopLogprobs = Annotated[int | None, optional(integer(0, MAX_TOP_LOGPROBS))]
