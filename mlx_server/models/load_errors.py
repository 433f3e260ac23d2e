"""Failures of other libraries while a model is loaded, in one line."""

from __future__ import annotations

import re

from mlx_server.models.model_files import first_names

MAX_REASON = 200
"""Characters of another library's message that are passed on."""


def explain(error: Exception) -> str:
    """What mlx-lm's loading raised, in one line with the mend."""
    text = str(error)
    listing = re.match(r"(Missing|Received) \d+ parameters.*?: *\n(.*)\.$", text, re.DOTALL)
    if listing:
        names = [name.strip() for name in listing[2].split(",")]
        if listing[1] == "Missing":
            return (
                f"the weights lack {len(names)} tensors that config.json calls for "
                f"({first_names(names)}); fetch them again, or use the matching config.json."
            )
        return (
            f"the weights hold {len(names)} tensors that config.json has no place for "
            f"({first_names(names)}); use the config.json that belongs to them."
        )
    shapes = re.match(r"Expected shape (\(.*?\)) but received shape (\(.*?\)) for .* (\S+)$", text)
    if shapes:
        return (
            f"the tensor {shapes[3]} has shape {shapes[2]} where config.json calls for "
            f"{shapes[1]}; use the config.json that belongs to the weights."
        )
    if isinstance(error, KeyError):
        return (
            f"a tensor or setting named {text} is missing; mend config.json or fetch the model "
            "again."
        )
    if isinstance(error, MemoryError) or "allocate" in text:
        return "it does not fit into memory; choose a smaller or a quantised model."
    return f"{type(error).__name__}: {short(error)}"


def short(error: Exception) -> str:
    """The first line of an error's message, at a bearable length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(lines[0].split())
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}…"
