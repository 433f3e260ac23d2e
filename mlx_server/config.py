"""Config: every setting of the server with its default, help text and environment name.

This is their only home. `cli.py` derives the flags from the fields, the README's
table is printed from them (`python -m mlx_server.config`), and nothing else
states a default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

ENV_PREFIX = "MLX_SERVER_"

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("expected true or false")


def json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object, for example '{\"enable_thinking\": false}'")
    return value


def string_list(text: str) -> tuple[str, ...]:
    """A JSON list of strings, or strings with commas between them."""
    if text.lstrip().startswith("["):
        value = json.loads(text)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ValueError("expected a JSON list of strings, for example '[\"*\"]'")
        return tuple(value)
    return tuple(part.strip() for part in text.split(",") if part.strip())


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def size(text: str) -> int:
    """Bytes, at least one, with an optional unit: 33554432, 32MiB, 4GB."""
    text = text.strip().lower().removesuffix("b")
    number = text.rstrip("kmgi ")
    unit = text[len(number) :].strip()
    if unit not in _UNITS:
        raise ValueError("expected bytes, as in 33554432, 32MiB or 4GB")
    value = float(number) * _UNITS[unit]
    if not 1 <= value < 2**63:
        raise ValueError("must be at least 1 byte and less than 2**63")
    return int(value)


def size_or_zero(text: str) -> int:
    return 0 if text.strip() == "0" else size(text)


def one_of(*values: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if value not in values:
            raise ValueError(f"must be {', '.join(map(str, values[:-1]))} or {values[-1]}")
        return value

    return convert


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("must be at least 0")
    return value


def port_number(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("must be between 0 and 65535")
    return value


def token_limit(text: str) -> int | None:
    """-1 means no limit but the context."""
    value = int(text)
    if value < -1 or value == 0:
        raise ValueError("must be -1 (until the context is full) or at least 1")
    return None if value == -1 else value


def thinking_limit(text: str) -> int | None:
    """-1 means no limit."""
    value = int(text)
    if value < -1:
        raise ValueError("must be -1 (no limit) or at least 0")
    return None if value == -1 else value


def within(low: float, high: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g}")
        return value

    return convert


def option(
    default: Any,
    help: str,
    convert: Callable[[str], Any] = str,
    *,
    repeat: bool = False,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    group: str = "server",
) -> Any:
    """A Config field. `convert` reads the text of a flag or environment variable;
    `repeat` collects every use of the flag in a tuple (the variable is a list)."""
    metadata = {
        "help": help,
        "convert": convert,
        "repeat": repeat,
        "choices": choices,
        "metavar": metavar,
        "group": group,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Settings of one server process. None means "not given" throughout."""

    # ---- model
    model: str | None = option(
        None, "Hugging Face repo id or local folder; the bundled demo model if left out",
        group="model",
    )  # fmt: skip
    revision: str | None = option(
        None, "branch, tag or commit of the repo to download", group="model"
    )
    alias: tuple[str, ...] = option(
        (), "other names that requests may use for the model (commas between several)",
        string_list, group="model",
    )  # fmt: skip
    adapter_path: str | None = option(
        None, "LoRA or DoRA adapter folder that applies unless a request names another",
        group="model",
    )  # fmt: skip
    lora: tuple[str, ...] = option(
        (), "adapter: NAME=PATH makes NAME a model id of its own, PATH alone applies to every "
        "request (repeatable; several are summed)",
        repeat=True, metavar="[NAME=]PATH", group="model",
    )  # fmt: skip
    chat_template: str | None = option(
        None, "chat template to use instead of the model's: a file or the template itself",
        group="model",
    )  # fmt: skip
    use_default_chat_template: bool = option(
        False, "use ChatML even where the model has a template", boolean, group="model"
    )
    chat_template_args: Mapping[str, Any] | None = option(
        None, "JSON object of variables for the chat template", json_object, group="model"
    )
    trust_remote_code: bool = option(
        False, "run code that comes with the model or its tokenizer", boolean, group="model"
    )
    max_models: int = option(
        1, "models kept in memory; the least recently used goes first", positive, group="model"
    )
    allow_download: bool = option(
        False, "let a request name a repo that is not in the local cache", boolean, group="model"
    )
    strict_model_names: bool = option(
        False, "answer 404 to unknown model names instead of using the loaded model", boolean,
        group="model",
    )  # fmt: skip

    # ---- sampling defaults; a request's own fields come first
    max_tokens: int | None = option(
        None, "default limit of generated tokens; -1 until the context is full", token_limit,
        group="sampling",
    )  # fmt: skip
    temp: float | None = option(
        None, "default temperature", within(0, 100), metavar="TEMP", group="sampling"
    )
    top_p: float | None = option(None, "default top-p", within(0, 1), group="sampling")
    top_k: int | None = option(None, "default top-k; 0 keeps all", not_negative, group="sampling")
    min_p: float | None = option(None, "default min-p", within(0, 1), group="sampling")

    reasoning_format: str = option(
        "auto", "what becomes of a model's reasoning: auto gives it as `reasoning_content`, none "
        "leaves it in the content", choices=("auto", "none"), group="sampling",
    )  # fmt: skip
    max_thinking_tokens: int | None = option(
        None, "default limit of reasoning tokens, after which a model has to answer; -1 sets none",
        thinking_limit, group="sampling",
    )  # fmt: skip

    # ---- engine
    max_batch_size: int = option(
        64, "sequences that run at the same time", positive, group="engine"
    )
    prefill_chunk_size: int = option(
        192, "prompt tokens computed per step beside other requests; four times as many for one "
        "that runs alone", positive, group="engine",
    )  # fmt: skip
    max_queue: int = option(
        256, "sequences that may wait for a place; further requests get 503", positive,
        group="engine",
    )  # fmt: skip
    max_kv_bytes: int | None = option(
        None, "memory for keys and values, as in 8GB; automatic if left out", size, group="engine"
    )
    prompt_cache_bytes: int | None = option(
        None, "how much of it may hold what ended requests have computed, for others to go on "
        "from; 0 turns that off, left out it is all that running ones do not need",
        size_or_zero, metavar="SIZE", group="engine",
    )  # fmt: skip
    prompt_cache_size: int = option(
        512, "how many ended requests' prompts and replies it may hold", not_negative,
        group="engine",
    )  # fmt: skip
    kv_bits: int | None = option(
        None, "store keys and values in so many bits: 4 or 8", one_of(4, 8), metavar="BITS",
        group="engine",
    )  # fmt: skip
    kv_group_size: int = option(
        64, "numbers that share a scale there: 32, 64 or 128", one_of(32, 64, 128), metavar="SIZE",
        group="engine",
    )  # fmt: skip
    quantized_kv_start: int = option(
        0, "tokens that a request has before its keys and values are quantised", not_negative,
        group="engine",
    )  # fmt: skip

    # ---- HTTP
    host: str = option("127.0.0.1", "address to listen on", group="http")
    port: int = option(8080, "port to listen on; 0 takes any free one", port_number, group="http")
    api_key: tuple[str, ...] = option(
        (), "key that clients must send as a bearer token (repeatable)", repeat=True, group="http"
    )
    allowed_origins: tuple[str, ...] = option(
        ("*",), "origins for CORS: a comma-separated or JSON list", string_list, group="http"
    )
    allow_credentials: bool = option(
        False, "let browsers send credentials (the origin is then echoed)", boolean, group="http"
    )
    max_request_bytes: int = option(
        32 * 2**20, "largest request body", size, metavar="SIZE", group="http"
    )
    max_connections: int = option(
        512, "open connections; further ones get 503", positive, group="http"
    )
    read_timeout: float = option(
        60.0, "seconds to wait for a client that is silent or slow", within(0.1, 86400),
        group="http",
    )  # fmt: skip
    request_timeout: float | None = option(
        None, "seconds after which a request is ended", within(0.1, 86400), group="http"
    )
    log_level: str = option(
        "INFO", "how much is logged", str.upper,
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), group="http",
    )  # fmt: skip

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> Config:
        """Settings from `given`, else from MLX_SERVER_… variables, else the defaults.

        Raises:
            ValueError: A variable does not parse; the message names it.
        """
        values = dict(given)
        for f in fields(cls):
            text = environ.get(env_name(f))
            if f.name not in values and text:
                values[f.name] = _read(f, text)
        return cls(**values)


def env_name(f: Field) -> str:
    return ENV_PREFIX + f.name.upper()


def flag_name(f: Field) -> str:
    return "--" + f.name.replace("_", "-")


def default_text(f: Field) -> str:
    """The default as help texts show it; empty where nothing is set."""
    if isinstance(f.default, bool):
        return "on" if f.default else "off"
    if isinstance(f.default, tuple):
        return ",".join(f.default)
    return "" if f.default is None else str(f.default)


def _read(f: Field, text: str) -> Any:
    convert = string_list if f.metadata["repeat"] else f.metadata["convert"]
    choices = f.metadata["choices"]
    try:
        value = convert(text)
        if choices and value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
    except ValueError as error:
        raise ValueError(f"{env_name(f)}={text!r}: {error}") from None
    return value


def table() -> str:
    """The settings as the Markdown table that README shows."""
    rows = ["| flag | environment | default | what it does |", "| --- | --- | --- | --- |"]
    for f in fields(Config):
        cells = (f"`{flag_name(f)}`", f"`{env_name(f)}`", default_text(f), f.metadata["help"])
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
