"""The code of docs/extending.md: its blocks by name, run where the page says they go."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S))


def run(name: str, module: types.ModuleType | None = None) -> dict[str, Any]:
    """What a block of the page defines.

    Args:
        module: The one whose names it may use, as it is to stand there.
    """
    names = {} if module is None else dict(vars(module))
    names["__name__"] = f"extending_{name}"
    sys.modules[names["__name__"]] = defined = types.ModuleType(names["__name__"])
    exec(compile(BLOCKS[name], f"{PAGE}:{name}", "exec"), names)
    vars(defined).update(names)
    return names


def with_fields(base: type, name: str) -> Any:
    """A frozen dataclass with the fields of a block besides those of the base."""
    body = "".join(f"    {line}\n" for line in BLOCKS[name].splitlines())
    names = dict(vars(sys.modules[base.__module__]))
    exec(f"class Extended(Base):\n{body}", names | {"Base": base}, found := {})
    return dataclasses.dataclass(frozen=True)(found["Extended"])


def value(name: str, module: types.ModuleType) -> Any:
    """What a block that is an expression is worth in a module."""
    return eval(BLOCKS[name].strip(), dict(vars(module)))
