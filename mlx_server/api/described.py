"""What a check accepts, told to /openapi.json: nothing here changes what is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, Field

Check = Callable[[Any], Any]


def accepting(kind: Any) -> Callable[[Check], Check]:
    """Writes down on a check what it accepts.

    Args:
        kind: A type as pydantic describes it. It may be wider than the check, not narrower.
    """

    def note(check: Check) -> Check:
        check.accepts = kind  # type: ignore[attr-defined]
        return check

    return note


def accepted(check: Check) -> Any:
    """What `accepting` wrote down."""
    return getattr(check, "accepts")  # noqa: B009


def within(kind: Any, low: float | None = None, high: float | None = None) -> Any:
    """The type of numbers within the bounds; None and infinity are no bounds."""
    least, most = (None if end is None or math.isinf(end) else end for end in (low, high))
    return kind if least is most is None else Annotated[kind, Field(ge=least, le=most)]


class PromptString(BaseModel):
    """llama.cpp's object around a text."""

    prompt_string: str


PromptType = str | Annotated[list[str | within(int, 0)], Field(min_length=1)] | PromptString
"""One prompt: a text, or token ids, or both in turns."""

PromptsType = PromptType | Annotated[list[PromptType], Field(min_length=1)]
"""One prompt or several, as prompts.py reads them."""
