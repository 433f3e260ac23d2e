"""What a parser finds in a reply. Frozen; the pieces of one kind, joined, are the whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins. `id`: where the family's models write one of their own."""

    name: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of the arguments' JSON text of the call that began last."""

    text: str


Event = Content | Thought | CallStart | CallPiece
