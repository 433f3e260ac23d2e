"""Clients' grammars in the notations that llguidance reads: JSON Schema and Lark.

llama.cpp's GBNF is translated by llguidance's translator, and mended where that falls short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlx_server.core import Grammar
from mlx_server.sampling.schema import exact_schema

JSON_STYLE = {
    "whitespace_flexible": False,  # a small model would write blanks until it is stopped
    "item_separator": ", ",
    "key_separator": ": ",
    # None by a code point: with "\\u0061" a name could be written again, and go unnoticed.
    "json_allowed_escapes": 'nrbtf\\"',
}
"""JSON is spaced as in the text that models have seen most, and in no other way."""

MAX_CHARACTERS = {"regex": 2**16, "gbnf": 2**18, "lark": 2**18}
"""Of grammars that take seconds to compile beyond that."""

NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Behind a client's rules, where it overrules theirs: in `/a+/ "a"` more and more must follow,
since a terminal takes all that it can, and looking for what does would never end."""


def translated(grammar: Grammar) -> dict[str, Any]:
    """One grammar of several in llguidance's form. Raises ValueError with what is wrong."""
    most = MAX_CHARACTERS.get(grammar.kind)
    if most is not None and len(grammar.text) > most:
        raise ValueError(f"it may have at most {most} characters as {grammar.kind}.")
    match grammar.kind:
        case "json_schema":
            schema = exact_schema(json.loads(grammar.text))
            if schema is False:
                raise ValueError("nothing follows the schema; say what is allowed.")
            return _json_part(schema, JSON_STYLE)
        case "regex":
            from llguidance import LLMatcher

            (part,) = json.loads(LLMatcher.grammar_from_regex(grammar.text))["grammars"]
            return {"lark_grammar": part["lark_grammar"]}
        case "gbnf":
            return {"lark_grammar": gbnf_to_lark(grammar.text) + NO_FORCING}
        case "lark":
            return {"lark_grammar": grammar.text + NO_FORCING}


def _json_part(schema: Mapping[str, Any] | bool, style: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return {"json_schema": {**schema, "x-guidance": style}}


def json_grammar(schema: Mapping[str, Any], style: Mapping[str, Any] = JSON_STYLE) -> str:
    """The grammar of JSON text that a schema accepts, in llguidance's form."""
    return together(_json_part(schema, style))


def lark_grammar(text: str) -> str:
    """A Lark grammar in llguidance's form."""
    return together({"lark_grammar": text})


def together(*parts: Mapping[str, Any]) -> str:
    """Grammars that refer to one another, in llguidance's JSON form."""
    return json.dumps({"grammars": parts})


# ---------------------------------------------------------------- GBNF

_CODE_POINT = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)


def _character(escape: re.Match[str]) -> str:
    """A character that GBNF names by its code point, as the translator takes it."""
    digits = escape[1] or escape[2]
    if digits is None:
        return escape[0]
    char = chr(int(digits, 16))
    return char if char.isalnum() or ord(char) > 0x9F else f"\\x{ord(char):02x}"


def gbnf_to_lark(text: str) -> str:
    """
    Args:
        text: Rules as llama.cpp reads them
            (https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md).

    Raises:
        ValueError: They are wrong, or the translator does not know what they use.
    """
    from llguidance.gbnf_to_lark import gbnf_to_lark as translate

    try:
        lark = translate(_CODE_POINT.sub(_character, text))
    # The translator raises its own kind, and whatever its parser stumbles over.
    except Exception as error:
        raise ValueError(f"as GBNF it is wrong: {' '.join(str(error).split())[:300]}") from None
    names = re.findall(r"^(\w+):", lark, re.MULTILINE)
    if all(name == "start" or name.isupper() for name in names) and lark.count("start") == 1:
        # Without recursion all of it can be one terminal. Of several each takes all that it
        # can, and in `[a-z]+ "."` or `[a-z]+ "end"` that makes the difference.
        lark = lark.replace("start:", "start: WHOLE_\nWHOLE_:")
    return lark
