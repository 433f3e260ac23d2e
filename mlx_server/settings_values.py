"""How the text of a flag or environment variable becomes a setting's value.

Each function takes the text and raises ValueError with a message that says what was
expected; whoever calls it adds the name of the flag or variable.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_server.sampler_names import named

_TRUE = {"1", "true", "yes", "on", "enabled"}
_FALSE = {"0", "false", "no", "off", "disabled"}

CACHE_TYPES = {"f32": None, "f16": None, "bf16": None, "q8_0": 8, "q4_0": 4}
"""llama.cpp's types of stored keys and values → bits; None stores them as they are computed."""


def boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("expected true or false")


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object, for example '{\"enable_thinking\": false}'")
    return value


def json_schema(text: str) -> str:
    """The text, which is a JSON Schema's: an object, or true or false."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from None
    if not isinstance(value, (dict, bool)):
        raise ValueError('expected a JSON schema, for example \'{"type": "object"}\'')
    return text


def string_list(text: str) -> tuple[str, ...]:
    """A JSON list of strings, or strings with commas between them."""
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ValueError("expected a JSON list of strings, for example '[\"*\"]'")
        return tuple(value)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def comma_list(text: str) -> tuple[str, ...]:
    """Strings with commas between them. Never fails, so that no message quotes a secret."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


# ---------------------------------------------------------------- numbers

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None


def real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number") from None


def size(text: str) -> int:
    """Bytes, at least one, with an optional unit: 33554432, 32MiB, 4GB."""
    text = text.strip().lower().removesuffix("b")
    number = text.rstrip("kmgi ")
    unit = text[len(number) :].strip()
    if unit not in _UNITS:
        raise ValueError("expected bytes, as in 33554432, 32MiB or 4GB")
    value = real(number) * _UNITS[unit]
    if not 1 <= value < 2**63:
        raise ValueError("must be at least 1 byte and less than 2**63")
    return int(value)


def size_or_zero(text: str) -> int:
    return 0 if text.strip() == "0" else size(text)


def mebibytes(text: str) -> int | None:
    """llama.cpp's --cache-ram: MiB; -1 means no limit."""
    value = whole(text)
    if value < -1:
        raise ValueError("must be -1 (no limit) or at least 0")
    return None if value == -1 else value * 2**20


def one_of(*values: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = whole(text)
        if value not in values:
            raise ValueError(f"must be {', '.join(map(str, values[:-1]))} or {values[-1]}")
        return value

    return convert


def positive(text: str) -> int:
    value = whole(text)
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def not_negative(text: str) -> int:
    value = whole(text)
    if value < 0:
        raise ValueError("must be at least 0")
    return value


def not_below_minus_one(text: str) -> int:
    value = whole(text)
    if value < -1:
        raise ValueError("must be at least -1")
    return value


def positive_or_none(text: str) -> int | None:
    """A number, or MLC's None: automatic."""
    return None if text.strip().lower() in ("none", "auto") else positive(text)


def positive_or_automatic(text: str) -> int | None:
    """A number; -1 means automatic."""
    return None if text.strip() == "-1" else positive(text)


def port_number(text: str) -> int:
    value = whole(text)
    if not 0 <= value <= 65535:
        raise ValueError("must be between 0 and 65535")
    return value


def token_limit(text: str) -> int | None:
    """-1 means no limit; -2, none but the context, also where it could make room."""
    value = whole(text)
    if value < -2 or value == 0:
        raise ValueError("must be -1 or -2 (until the context is full) or at least 1")
    return None if value == -1 else value


def thinking_limit(text: str) -> int | None:
    """-1 means no limit."""
    value = whole(text)
    if value < -1:
        raise ValueError("must be -1 (no limit) or at least 0")
    return None if value == -1 else value


def within(low: float, high: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = real(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g}")
        return value

    return convert


finite = within(-1e9, 1e9)


def temperature(text: str) -> float:
    """llama.cpp takes a negative one for greedy, which is what 0 says."""
    return max(0.0, within(-100, 100)(text))


def layer_range(text: str) -> tuple[int, int]:
    """START END, both inclusive, from 1."""
    parts = text.replace(",", " ").split()
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError("expected the first and the last layer, as in 10 20")
    first, last = map(int, parts)
    if not 1 <= first <= last:
        raise ValueError("expected layers from 1 on, the first not behind the last")
    return first, last


# ---------------------------------------------------------------- names


def device(text: str) -> str:
    """A device as `kind` or `kind:id`, in small letters.

    llama-server's names do as well: CUDA0, MTL0, none.
    """
    match = re.fullmatch(r"([a-z]+?)(?::?(\d{1,3}))?", text.strip().lower())
    kind, number = match.groups() if match else (text.strip().lower(), None)
    kind = {"mtl": "metal", "none": "cpu"}.get(kind, kind)
    if kind in ("vulkan", "rocm", "hip", "opencl", "sycl", "cann", "musa"):
        raise ValueError(f"MLX computes on Metal, CUDA and CPUs, not with {kind}")
    if kind not in ("auto", "cpu", "gpu", "metal", "cuda"):
        raise ValueError("expected one of auto, cpu, gpu, metal or cuda, with an id as in cuda:1")
    return kind if number is None else f"{kind}:{int(number)}"


def cache_type(text: str) -> str:
    value = text.strip().lower()
    if value not in CACHE_TYPES:
        raise ValueError(f"expected one of {', '.join(CACHE_TYPES)}; MLX has no other types")
    return value


def reasoning_format(text: str) -> str:
    """llama.cpp's `deepseek` is what is done here whenever there is reasoning."""
    return "auto" if text == "deepseek" else text


def hf_repo(text: str) -> str:
    repo, colon, quant = text.partition(":")
    if colon:
        raise ValueError(
            f"the quantisation {quant!r} names no file; give the repo, and a .gguf with --hf-file"
        )
    return repo


def sampler_names(text: str) -> tuple[str, ...]:
    """Names with semicolons between them, in the order in which they are applied."""
    return named(re.split("[;,]", text))


def logit_bias(text: str) -> str:
    """TOKEN_ID(+/-)BIAS, as it is written."""
    match = re.fullmatch(r"\d{1,10}([+-].+)", text.strip())
    try:
        if match is None or not abs(float(match[1])) >= 0:
            raise ValueError
    except ValueError:
        raise ValueError("expected a token id and a bias, as in 15043+1 or 15043-1") from None
    return text.strip()


def scaled_paths(text: str) -> tuple[tuple[str, float], ...]:
    """`PATH SCALE`, or today's `PATH:SCALE,PATH:SCALE`."""
    for parts in (text.split(","), [text]):  # a path may have a comma
        found = [re.fullmatch(r"(.+)[\s:]([^\s:]+)", part.strip()) for part in parts]
        if None not in found:
            with contextlib.suppress(ValueError):
                return tuple((match[1].strip(), finite(match[2])) for match in found if match)
    raise ValueError("expected a path and a scale, as in adapter.gguf 0.5")


LISTS = (string_list, comma_list, scaled_paths)
"""Those that give all the values of a text, for a setting that may be given several times."""


def verbosity(text: str) -> str:
    """llama.cpp's numbers: 0 is what is usual, more is more."""
    return "DEBUG" if whole(text) >= 1 else "INFO"


def log_threshold(text: str) -> str:
    """Today's llama-server: 1 error, 2 warning, 3 info, 4 and 5 more."""
    return ("ERROR", "WARNING", "INFO", "DEBUG")[min(max(whole(text), 1), 4) - 1]


# ---------------------------------------------------------------- files and escapes


def file_text(path: str) -> str:
    """The content of a text file."""
    try:
        return Path(os.path.expanduser(path)).read_text("utf-8")
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8 text") from None


def file_schema(path: str) -> str:
    return json_schema(file_text(path))


def file_keys(path: str) -> tuple[str, ...]:
    """API keys, one on each line; lines that begin with # are comments."""
    lines = (line.strip() for line in file_text(path).splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        # Otherwise the server would be open, against what was asked for.
        raise ValueError("the file holds no key")
    return keys


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def unescape(text: str) -> str:
    r"""Replace \n, \r, \t, \', \", \\ and \xHH; other backslashes stay."""

    def replace(match: re.Match[str]) -> str:
        found = match[1]
        return chr(int(found[1:], 16)) if found[0] == "x" else _ESCAPES[found]

    return re.sub(r"\\(x[0-9A-Fa-f]{2}|[nrt'\"\\])", replace, text)
