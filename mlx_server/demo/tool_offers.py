"""Tools as clients spell them, and what is asked of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Use:
    """One question that a tool answers.

    Args:
        question: What the user writes.
        calls: The arguments of each call, in the order of the question; rarely more than one.
        results: What each call returns, as text.
        answer: What the assistant says after it has read the results.
        follow: Another way to ask it where the turn before used the same tool, or "".
    """

    question: str
    calls: tuple[Mapping[str, Any], ...]
    results: tuple[str, ...]
    answer: str
    follow: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool as a request lists it, and `ask`, which makes questions for just this spelling."""

    tool: Mapping[str, Any]
    ask: Callable[[random.Random], Use]

    @property
    def name(self) -> str:
        return self.tool["function"]["name"]


def spell(
    rng: random.Random,
    name: str,
    description: str,
    properties: Mapping[str, Mapping[str, Any]],
    optional: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The tool with or without its descriptions, `additionalProperties` and `strict`.

    Args:
        rng: Decides which of them are there.
        name: The function's name.
        description: What it does.
        properties: By name: the JSON schema of an argument, in the order of the calls.
        optional: The arguments that calls may leave out.
    """
    described = rng.random() < 0.6
    shown = {
        key: {k: v for k, v in schema.items() if described or k != "description"}
        for key, schema in properties.items()
    }
    required = [key for key in properties if key not in optional]
    parameters: dict[str, Any] = {"type": "object", "properties": shown}
    if required:
        parameters["required"] = required
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.8:
        function["description"] = description
    function["parameters"] = parameters
    if rng.random() < 0.3:
        parameters["additionalProperties"] = False
        # OpenAI's strict mode wants each property to be required.
        if not optional and rng.random() < 0.6:
            function["strict"] = True
    return {"type": "function", "function": function}


def text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def whole(description: str) -> dict[str, Any]:
    return {"type": "integer", "description": description}
