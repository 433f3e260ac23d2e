"""`mlx_server list`, or --list-models: what is in the local cache that this server can run."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlx_server.amounts import count, size
from mlx_server.commands.cache_scan import Listing, Row, bundled, scan
from mlx_server.flags import OneLineParser

NARROW = 24
"""Columns that a name keeps before whole columns are left out for it."""

HOW_TO_GET = (
    "The cache is empty. `mlx_server mlx-community/Qwen3-0.6B-4bit` fetches a model and serves "
    "it; `hf download OWNER/NAME` only fetches."
)


def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="mlx_server list",
        description="Show the models in the Hugging Face cache (HF_HOME, HF_HUB_CACHE) that this "
        "server can run, the last used first, below the bundled demo.",
        allow_abbrev=False,
    )
    result.add_argument("--json", action="store_true", help="as JSON, with sizes in bytes")
    return result


def main(argv: Sequence[str]) -> int:
    """Returns the exit code, which is 0 also where there is nothing."""
    args = parser().parse_args(argv)
    rows, listing = [bundled()], scan()
    rows += listing.rows
    if args.json:
        _print(json.dumps(as_json(rows, listing), indent=1, ensure_ascii=False))
        return 0
    width = shutil.get_terminal_size().columns if _is_fitted() else None
    _print(table(rows, width, time.time()))
    _print("\n" + footer(listing))
    return 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UnicodeEncodeError:
        print(text.encode("ascii", "replace").decode(), flush=True)


def _is_fitted() -> bool:
    return sys.stdout.isatty() or bool(os.environ.get("COLUMNS"))


# ---------------------------------------------------------------- the table


def table(rows: Sequence[Row], width: int | None, now: float) -> str:
    """The rows below their headings.

    Args:
        width: Columns of the terminal; None for as many as it takes.
        now: Unix seconds.
    """
    columns = [
        (title, [cell(row, now) for row in rows], to_right) for title, cell, to_right in COLUMNS
    ]
    if width is not None:
        for title in LEAVE_FIRST:
            if _total(columns) - _width(columns[0]) + NARROW <= width:
                break
            columns = [column for column in columns if column[0] != title]
        # What is left over goes to the name; its end tells more than its middle.
        room = max(width - (_total(columns) - _width(columns[0])), 8)
        title, names, to_right = columns[0]
        columns[0] = title, [_fitted(name, room) for name in names], to_right
    lines = [[title for title, _, _ in columns], *zip(*(c for _, c, _ in columns), strict=True)]
    return "\n".join(_line(cells, columns) for cells in lines)


Column = tuple[str, list[str], bool]


def _width(column: Column) -> int:
    title, cells, _ = column
    return max(len(title), *map(len, cells))


def _total(columns: Sequence[Column]) -> int:
    return sum(map(_width, columns)) + 2 * (len(columns) - 1)


def _line(cells: Sequence[str], columns: Sequence[Column]) -> str:
    padded = [
        cell.rjust(_width(column)) if column[2] else cell.ljust(_width(column))
        for cell, column in zip(cells, columns, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _fitted(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    head = (room - 1) // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


def _type(row: Row) -> str:
    if row.kind == "adapter":
        return "adapter"
    if row.facts is None:
        return "-"
    return row.facts.model_type + (" (embeds)" if row.kind == "embeddings" else "")


def _note(row: Row) -> str:
    notes = []
    if not row.complete:
        notes.append("partly downloaded")
    if row.revision is not None:
        notes.append(f"--revision {row.revision}")
    if row.kind == "demo":
        notes.append("bundled")
    if row.base_model is not None:
        notes.append(f"for {row.base_model}")
    return ", ".join(notes)


def _parameters(row: Row) -> str:
    number = row.facts.parameters if row.facts else None
    return "-" if number is None else count(number)


def context_text(tokens: int | None) -> str:
    if tokens is None:
        return "-"
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def ago(seconds: float) -> str:
    """How long since, in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


COLUMNS: tuple[tuple[str, Callable[[Row, float], str], bool], ...] = (
    ("MODEL", lambda row, now: row.id, False),
    ("TYPE", lambda row, now: _type(row), False),
    ("WEIGHTS", lambda row, now: (row.facts and row.facts.quantization) or "-", False),
    ("PARAMS", lambda row, now: _parameters(row), True),
    ("SIZE", lambda row, now: size(row.size), True),
    ("CONTEXT", lambda row, now: context_text(row.facts.context if row.facts else None), True),
    ("USED", lambda row, now: "-" if row.last_used is None else ago(now - row.last_used), True),
    ("", lambda row, now: _note(row), False),
)
"""Heading, the cell of a row, and whether it stands at the right."""

LEAVE_FIRST = ("PARAMS", "CONTEXT", "USED", "WEIGHTS", "TYPE")
"""What a narrow terminal does without, in this order."""


def footer(listing: Listing) -> str:
    """The total, and what was left out and why."""
    place = _home_short(listing.cache)
    if not listing.rows and not listing.left_out:
        return f"{HOW_TO_GET} ({place})"
    total = sum(row.size for row in listing.rows)
    number = len(listing.rows)
    text = f"{number} {'entry' if number == 1 else 'entries'}, {size(total)} in {place}"
    if any(row.kind == "adapter" for row in listing.rows):
        text += "\nadapters are given to --lora by their folders, which --json tells"
    if listing.left_out:
        parts = ", ".join(f"{n} {why}" for why, n in sorted(listing.left_out.items()))
        text += f"\nleft out, as this server cannot run them: {parts}"
    return text


def _home_short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)


# ---------------------------------------------------------------- for scripts


def as_json(rows: Sequence[Row], listing: Listing) -> dict[str, Any]:
    """Everything, with sizes in bytes and times in UTC."""
    return {
        "cache": str(listing.cache),
        "models": [_row_json(row) for row in rows],
        "size": sum(row.size for row in listing.rows),
        "left_out": dict(sorted(listing.left_out.items())),
    }


def _row_json(row: Row) -> dict[str, Any]:
    facts = {"model_type": None, "quantization": None, "bits": None, "parameters": None,
             "context": None}  # fmt: skip
    if row.facts is not None:
        facts = asdict(row.facts)
    used = None if row.last_used is None else datetime.fromtimestamp(int(row.last_used), UTC)
    return {
        "id": row.id,
        "kind": row.kind,
        "path": str(row.path),
        "size": row.size,
        **facts,
        "last_used": None if used is None else used.isoformat(),
        "complete": row.complete,
        "revision": row.revision,
        "base_model": row.base_model,
    }
