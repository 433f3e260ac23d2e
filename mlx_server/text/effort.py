"""How much a model is to think, in the variables that its chat template knows.

A client names one of OpenAI's levels. Templates have a variable for the level under one of
several names, or a switch that turns thinking on and off, or both, or neither.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_LADDER = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_USUAL = ("low", "medium", "high")
_SPELLINGS = {"no_think": "none"}
_LEVELS = ("reasoning_effort", "thinking_effort", "reasoning_strength")
SWITCHES = ("enable_thinking", "thinking")
"""Variables that turn thinking on and off."""

_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_TAG = re.compile(r"\{[{%](?:" + _STRING + r"|[^'\"])*?[%}]\}", re.DOTALL)
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


def template_variables(source: str, effort: str | None) -> dict[str, Any]:
    """The variables that tell a template how much the model is to think.

    A level that the template does not know becomes the nearest one that it knows, the
    higher of two that are equally near. A level that no one knows is passed on as it is.

    Args:
        source: The Jinja template.
        effort: "none", "minimal", "low", "medium", "high", "xhigh", "max"; None: nothing is said.
    """
    if effort is None:
        return {}
    names, levels = _read(source)
    variables: dict[str, Any] = {
        name: _nearest(effort, known) for name, known in levels.items() if name in names
    }
    variables |= {name: effort != "none" for name in SWITCHES if name in names}
    if "thinking_mode" in names:  # MiniMax
        variables["thinking_mode"] = "disabled" if effort == "none" else "enabled"
    if "thinking_budget" in names and effort == "none":  # ByteDance's, in tokens
        variables["thinking_budget"] = 0
    return variables


@lru_cache(maxsize=64)
def _read(source: str) -> tuple[frozenset[str], dict[str, dict[str, str]]]:
    """The names in a template's code, and for each variable of levels what those are
    called there, by the ladder's names."""
    tags = [match.group() for match in _TAG.finditer(_COMMENT.sub("", source))]
    names = frozenset(name for tag in tags for name in _NAME.findall(re.sub(_STRING, "''", tag)))
    levels = {}
    for variable in _LEVELS:
        about = [tag for tag in tags if re.search(rf"(?<![\w.]){variable}\b", tag)]
        words = [text[1:-1] for tag in about for text in re.findall(_STRING, tag)]
        known = {_SPELLINGS.get(word, word): word for word in words}
        # A list of what is allowed is complete; else templates take the usual levels as text.
        allowed = {} if any("not in" in tag for tag in about) else {word: word for word in _USUAL}
        levels[variable] = allowed | {k: word for k, word in known.items() if k in _LADDER}
    return names, levels


def _nearest(effort: str, known: dict[str, str]) -> str:
    if effort not in _LADDER or not known:
        return effort
    wanted = _LADDER.index(effort)
    best = min(known, key=lambda k: (abs(_LADDER.index(k) - wanted), -_LADDER.index(k)))
    return known[best]
