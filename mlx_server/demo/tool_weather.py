"""Questions about the weather: the call that nearly every client's first example makes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from .tool_offers import Offer, Use, spell, text
from .tool_words import place, several

WET = ("rainy", "stormy", "drizzling", "wet", "pouring")
DRY = several(
    """sunny cloudy clear windy foggy overcast snowy misty hazy dry icy warm cold mild humid bright
    grey freezing"""
)
NAMES = ("get_weather",) * 5 + ("get_current_weather",) * 3 + ("weather", "fetch_weather")
ABOUT = (
    "Get the current weather in a given location",
    "Get the current weather.",
    "Get the weather for a city",
    "Get current temperature for a given location.",
    "Returns the weather of a place",
)
PLACES = (
    "The city and state, e.g. San Francisco, CA",
    "The city and state, e.g. San Francisco, CA",
    "City name",
    "The city to get the weather for",
    "City and country e.g. Bogotá, Colombia",
)
QUESTIONS = (
    "What is the weather in {}?",
    "What is the weather in {}?",
    "What's the weather in {}?",
    "What's the weather like in {}?",
    "What is the weather like in {} today?",
    "what's the weather like in {} right now",
    "What is the current weather in {}?",
    "How is the weather in {}?",
    "How's the weather in {} today?",
    "weather in {}, please",
    "weather in {}",
    "Weather {}?",
    "Tell me the weather in {}.",
    "Check the weather in {}",
    "Get the weather for {}.",
    "Please look up the weather in {}.",
    "Can you tell me the weather in {}?",
    "I am in {}. What is the weather?",
    "I travel to {} today. How is the weather there?",
    "Use the tool to get the weather in {}.",
    "How warm is it in {}?",
    "How cold is it in {} now?",
    "What is the temperature in {}?",
    "Temperature in {}?",
)
UMBRELLA = (
    "Do I need an umbrella in {}?",
    "Is it raining in {}?",
    "Will I get wet in {}?",
    "Should I take an umbrella in {} today?",
)
FOLLOWS = ("And in {}?", "What about {}?", "And {}?", "How about {}?", "And now {}, please.")
IN_UNIT = (" in {}", " (in {})", ", in {}", " Use {}.", " In {}, please.")
UNIT_NAMES = (("celsius", "fahrenheit"),) * 6 + (("metric", "imperial"), ("C", "F"))
FAILURES = ("timeout", "no such place", "not found", "service unavailable", "rate limit reached")

Arguments = Callable[[str], dict[str, Any]]
"""A call's arguments for a place."""


def weather(rng: random.Random) -> Offer:
    """The tool in one of the spellings that clients use."""
    key = rng.choice(("location", "location", "city", "city", "place"))
    properties = {key: text(rng.choice(PLACES))}
    unit = rng.choice(("unit", "unit", "units", "format")) if rng.random() < 0.5 else ""
    units = rng.choice(UNIT_NAMES)
    if unit:
        properties[unit] = {"type": "string", "enum": list(units)}
        if rng.random() < 0.3:
            properties[unit]["description"] = "The temperature unit to use."
    optional = (unit,) if unit and rng.random() < 0.7 else ()
    tool = spell(rng, rng.choice(NAMES), rng.choice(ABOUT), properties, optional)

    def arguments(where: str, named: int | None) -> dict[str, Any]:
        made: dict[str, Any] = {key: where}
        if unit and (named is not None or not optional):
            made[unit] = units[named or 0]
        return made

    def ask(rng: random.Random) -> Use:
        named = rng.randrange(2) if unit and rng.random() < 0.4 else None
        said = "" if named is None else UNIT_NAMES[0][named]
        if rng.random() < 0.12:
            return ask_both(rng, said, lambda where: arguments(where, named))
        return ask_one(rng, said, lambda where: arguments(where, named))

    return Offer(tool, ask)


def ask_one(rng: random.Random, unit: str, arguments: Arguments) -> Use:
    """One place. `unit` is the one that the question names, or ""."""
    where, umbrella = place(rng), not unit and rng.random() < 0.15
    question = rng.choice(UMBRELLA if umbrella else QUESTIONS).format(where)
    question = casual(rng, in_unit(rng, question, unit))
    result, degrees, sky = report(rng, where)
    says = f"it is {degrees} degrees and {sky} in {where}."
    answer = "I" + says[1:]
    if umbrella:
        answer = f"{'Yes' if sky in WET else 'No'}, {says}"
    if rng.random() < 0.04:
        failure = rng.choice(FAILURES)
        result = f"error: {failure}" if rng.random() < 0.5 else json.dumps({"error": failure})
        answer = f"I could not get the weather in {where}: {failure}."
    follow = "" if unit else rng.choice(FOLLOWS).format(where)
    return Use(question, (arguments(where),), (result,), answer, follow)


def ask_both(rng: random.Random, unit: str, arguments: Arguments) -> Use:
    """Two places in one question, so two calls in one turn."""
    one, other = place(rng), place(rng)
    joined = rng.choice((f"{one} and {other}", f"{one} and in {other}"))
    asked = rng.choice(QUESTIONS).format(joined)
    first, second = report(rng, one), report(rng, other)
    answer = (
        f"It is {first[1]} degrees and {first[2]} in {one}, "
        f"and {second[1]} degrees and {second[2]} in {other}."
    )
    calls = (arguments(one), arguments(other))
    return Use(in_unit(rng, asked, unit), calls, (first[0], second[0]), answer)


def casual(rng: random.Random, question: str) -> str:
    """The question as people type it: with a greeting, without capitals or a question mark."""
    if rng.random() < 0.05:
        return rng.choice(("Hello! ", "Hi, ", "Please: ", "Hey! ", "Thanks! ")) + question
    if rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question.removesuffix("?") if rng.random() < 0.1 else question


def in_unit(rng: random.Random, question: str, unit: str) -> str:
    """The question with the unit that the user wants."""
    if not unit:
        return question
    asks = rng.choice(IN_UNIT).format(unit)
    if asks.endswith("."):
        return (question if question[-1] in ".?" else question + ".") + asks
    end = question[-1] if question[-1] in ".?" else ""
    return question.removesuffix(end) + asks + end


def report(rng: random.Random, where: str) -> tuple[str, int, str]:
    """What the tool returns, the temperature in it, and the sky."""
    degrees = rng.randint(-25, 105)
    sky = rng.choice(WET if rng.random() < 0.35 else DRY)
    temperature = rng.choice(("temperature", "temperature", "temp", "degrees", "temperature_c"))
    sky_key = rng.choice(("condition", "conditions", "sky", "description", "weather", "forecast"))
    fields: dict[str, Any] = {temperature: degrees, sky_key: sky}
    if rng.random() < 0.2:
        fields = {temperature: str(degrees), sky_key: sky}
    if rng.random() < 0.3:
        fields = {rng.choice(("location", "city")): where} | fields
    if rng.random() < 0.3:
        fields["humidity"] = rng.randint(10, 99)
    if rng.random() < 0.2:
        fields = dict(reversed(fields.items()))
    plain = (
        f"{degrees} degrees and {sky}",
        f"{sky}, {degrees} degrees",
        f"{degrees}°C, {sky}",
        f"{where}: {degrees} °, {sky}",
        f"It is {sky} and {degrees} degrees.",
    )
    return (rng.choice(plain) if rng.random() < 0.3 else json.dumps(fields)), degrees, sky
