"""mlx-lm's caches of one row as arrays with names, and back.

A cache is what its attributes are: arrays, numbers, and lists of them. They are taken as
they are and put into fresh caches of the same classes, so that every kind of cache comes
through, windows and recurrent states included, whatever its `state` tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from mlx_server.cache.zoo_state import leaves


def pack(caches: Sequence[Any]) -> tuple[dict[str, mx.array], str]:
    """
    Args:
        caches: Of batch 1; their arrays are shared, not copied.

    Returns:
        The arrays by name, and JSON that says where each belongs: per leaf, its class and
        its attributes.

    Raises:
        ValueError: An attribute is none of the kinds above.
    """
    arrays: dict[str, mx.array] = {}
    described = [
        [
            type(leaf).__name__,
            {
                name: _described(value, f"{number}.{name}", arrays)
                for name, value in vars(leaf).items()
            },
        ]
        for number, leaf in enumerate(leaves(caches))
    ]
    return arrays, json.dumps(described)


def unpack(caches: Sequence[Any], arrays: Mapping[str, mx.array], described: str) -> None:
    """Give fresh caches the attributes that `pack` found.

    Raises:
        ValueError: They are not of the same classes, or an array is missing.
    """
    try:
        found = json.loads(described)
        kinds = [(kind, sorted(attributes)) for kind, attributes in found]
    except (ValueError, TypeError) as error:
        raise ValueError("the layers' caches are not described") from error
    fresh = leaves(caches)
    expected = [(type(leaf).__name__, sorted(vars(leaf))) for leaf in fresh]
    if kinds != expected:
        raise ValueError("the layers' caches are of other kinds (another version of mlx-lm?)")
    for leaf, (_, attributes) in zip(fresh, found, strict=True):
        for name, value in attributes.items():
            setattr(leaf, name, _restored(value, arrays))


def _described(value: Any, name: str, arrays: dict[str, mx.array]) -> Any:
    if isinstance(value, mx.array):
        arrays[name] = value
        return {"array": name}
    if isinstance(value, list | tuple):
        parts = [_described(part, f"{name}.{i}", arrays) for i, part in enumerate(value)]
        return {type(value).__name__: parts}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"a cache's {name.partition('.')[2]} is a {type(value).__name__}")


def _restored(value: Any, arrays: Mapping[str, mx.array]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind != "array":
        parts = [_restored(part, arrays) for part in content]
        return tuple(parts) if kind == "tuple" else parts
    if content not in arrays:
        raise ValueError(f"the array {content} is missing")
    return arrays[content]
