r"""The strings of a JSON Schema: `pattern` and `format`, in a form that means one thing.

A pattern is read by many engines: JSON Schema's is ECMAScript's, pydantic's is Rust's,
jsonschema's is Python's, and each has its own idea of `\w`, `\s` and `.`. What is written
here is what all of them accept.
"""

from __future__ import annotations

import re

_SMALL = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\x0b\x0c\r "}
"""What `\\d`, `\\w` and `\\s` are to every engine."""

_LARGE = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{N}\p{M}\p{Pc}\p{Alphabetic}\p{Join_Control}",
    "s": r"\s\x1c-\x1f\x85\ufeff",
}
"""What they are to some engine."""

_ANY_CHARACTER = re.compile(r"\[\\([dws])\\(?!\1)(?i:\1)\]|\[\\([DWS])\\(?!\2)(?i:\2)\]")
_NOT_LINE_END = r"[^\n\r\x{2028}\x{2029}]"
_COUNT = re.compile(r"\{[0-9]+(,[0-9]*)?\}")
_BRACED = re.compile(r"[pPu]\{[^}]*\}")
_KNOWN_LETTERS = "tnrfvbBxupPk"
_GROUPS = re.compile(r"\(\?(?::|P?<(?![=!]))")


def portable_pattern(pattern: str) -> str:
    """A `pattern` whose matches every engine's reading of the given one accepts.

    It is no larger than any of their readings, and on ASCII text the same but for rarities
    (a `.` matches no carriage return, for example).

    Raises:
        ValueError: The engines differ on what it means. What no engine knows is left for
            llguidance to refuse.
    """
    return _Pattern(pattern).rewritten()


class _Pattern:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._quantified = False  # a quantifier came last

    def rewritten(self) -> str:
        out = []
        while self._at < len(self._text):
            out.append(self._next())
        return "".join(out)

    def _next(self) -> str:
        char, quantified = self._text[self._at], self._quantified
        self._quantified = False
        if found := _ANY_CHARACTER.match(self._text, self._at):
            self._at = found.end()
            return "(?s:.)"
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape(None)
        if char == "(" and self._text.startswith("(?", self._at):
            return self._group()
        if char == "+" and quantified:
            raise ValueError("a `+` behind another quantifier")
        if found := _COUNT.match(self._text, self._at):
            self._at, self._quantified = found.end(), True
            return found.group()
        self._at += 1
        self._quantified = char in "*+?"
        return _NOT_LINE_END if char == "." else char

    def _group(self) -> str:
        found = _GROUPS.match(self._text, self._at)
        if found is None:
            start = self._text[self._at : self._at + 4]
            kind = "a look-around" if start[2:3] in ("=", "!", "<") else "a flag"
            raise ValueError(f"{kind} (`{start}…`)")
        self._at = found.end()
        return found.group()

    def _class(self) -> str:
        negated = self._text.startswith("[^", self._at)
        self._at += 2 if negated else 1
        if self._text.startswith("]", self._at):
            raise ValueError("a character class that begins with `]`; write `\\]`")
        out = ["[^" if negated else "["]
        while not self._text.startswith("]", self._at):
            if self._at >= len(self._text):
                raise ValueError("a character class without its `]`")
            out.append(self._member(negated, out[-1]))
        self._at += 1
        return "".join(out) + "]"

    def _member(self, negated: bool, before: str) -> str:
        char = self._text[self._at]
        if char == "\\":
            return self._escape(negated)
        self._at += 1
        # To Rust's engine these are operators; a hyphen there is none beside a whole set.
        beside_set = before.startswith("[") or self._text.startswith("]", self._at)
        return "\\" + char if char in "[&~" or (char == "-" and beside_set) else char

    def _escape(self, negated: bool | None) -> str:
        """
        Args:
            negated: Of the class that it stands in; None: in none.
        """
        if self._at + 1 >= len(self._text):
            raise ValueError("a `\\` at the end")
        char = self._text[self._at + 1]
        self._at += 2
        if char in "dws":
            return f"[{(_LARGE if negated else _SMALL)[char]}]"
        if char in "DWS":
            return f"[^{(_SMALL if negated else _LARGE)[char.lower()]}]"
        if char == "b" and negated is not None:
            return r"\x08"
        if found := _BRACED.match(self._text, self._at - 1):
            self._at = found.end()
            return "\\" + found.group()
        if char == "x" and not re.match(r"[0-9a-fA-F]{2}", self._text[self._at :][:2]):
            raise ValueError("a `\\x` without its two digits")
        if char.isascii() and char.isalpha() and char not in _KNOWN_LETTERS:
            raise ValueError(f"`\\{char}`, which ECMAScript does not know")
        if not char.isalnum() and char.isascii():
            return f"\\x{ord(char):02x}"
        return "\\" + char


# ---------------------------------------------------------------- formats

_HOUR = "(?:[01][0-9]|2[0-3])"
_TIME = f"{_HOUR}:[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{{1,9}})?(?:Z|[+-]{_HOUR}:[0-5][0-9])"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_DAY = f"(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29"
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_DAY})"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
_URI_CHARACTER = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_URI_START = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=@]|%[0-9A-Fa-f]{2})"

FORMAT_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$",
    "uri-reference": (
        f"^(?:{_URI_START}+)?(?:/{_URI_CHARACTER}+)*/?"
        f"(?:\\?(?:{_URI_CHARACTER}|[/?])*)?(?:#(?:{_URI_CHARACTER}|[/?])*)?$"
    ),
}
"""Formats that are held by a pattern. Days are those of the calendar (RFC 3339), leap seconds
and the year 0, which most readers refuse, are left out; so are absolute references."""

FORMATS_OF_LLGUIDANCE = {
    "duration": "duration",
    "email": "email",
    "hostname": "hostname",
    "ipv4": "ipv4",
    "ipv6": "ipv6",
    "uri": "uri",
    "uuid": "uuid",
    # Each e-mail address and URI is one of these as well.
    "idn-email": "email",
    "iri": "uri",
}

REFUSED_FORMATS = frozenset({"idn-hostname", "iri-reference", "uri-template", "regex"})
"""Formats of JSON Schema that nothing here holds. Any other name is an annotation."""
