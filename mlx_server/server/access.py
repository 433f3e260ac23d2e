"""The access line: one for each request, once it has ended.

POST /v1/chat/completions 200 1.24s  812 prompt (768 cached), 96 reply tokens, first after
0.18s, 90.6 tok/s, stop                                                        (one line)
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_server.api.account import Figures

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""For the log only, as nginx writes it."""

PROBES = frozenset({"/health", "/v1/health", "/metrics", "/engine/figures"})
"""Routes that programs ask every few seconds; with files they are logged at DEBUG."""


@dataclass(frozen=True, slots=True)
class Access:
    """
    Args:
        method, path: As sent, fit for a terminal.
        status: Of the reply; 499 where the client left before its end, 0 where there was none.
        seconds: From the request's first byte to the reply's last.
        nbytes: Of the reply, with its head.
        figures: What it used, where a model was asked.
    """

    method: str
    path: str
    status: int
    seconds: float
    nbytes: int
    figures: Figures | None = None

    def fields(self) -> dict[str, Any]:
        """All of it, as JSON has it; what there is nothing to say of is left out."""
        found: dict[str, Any] = {
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "seconds": round(self.seconds, 4),
            "bytes": self.nbytes,
        }
        if self.figures is not None:
            found |= _fields(self.figures)
            if self.figures.error is not None and self.status != CLIENT_GONE:
                found["error"] = self.figures.error
        return found

    def text(self, default_model: str) -> str:
        """As people read it.

        Args:
            default_model: The model that is not named, since it nearly always answers.
        """
        parts: list[str] = []
        if self.figures is None:
            parts.append(f"{self.nbytes} B")
        else:
            parts += _parts(self.figures)
            if self.figures.model != default_model:
                parts.append(self.figures.model)
        if self.status == CLIENT_GONE:
            parts.append("the client left")
        elif self.figures is not None and self.figures.error is not None:
            parts.append(f"broken off: {self.figures.error}")
        line = f"{self.method} {self.path} {self.status} {_seconds(self.seconds)}"
        return f"{line}  {', '.join(parts)}"


def write(access: Access, default_model: str, *, quiet: bool) -> None:
    """Log it.

    Args:
        quiet: It is one of many that tell nothing.
    """
    level = logging.DEBUG if quiet else logging.INFO
    if log.isEnabledFor(level):
        log.log(level, "%s", access.text(default_model), extra={"fields": access.fields()})


def _fields(figures: Figures) -> dict[str, Any]:
    usage = figures.usage
    found: dict[str, Any] = {"model": figures.model, "prompt_tokens": usage.prompt_tokens}
    if figures.asked not in (None, figures.model):
        found["asked_model"] = figures.asked
    if not figures.generated:
        return found
    found |= {
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "finish_reasons": list(figures.finish_reasons),
    }
    if usage.reasoning_tokens:
        found["reasoning_tokens"] = usage.reasoning_tokens
    if figures.first_token_seconds is not None:
        found["first_token_seconds"] = round(figures.first_token_seconds, 4)
    if figures.tokens_per_second is not None:
        found["tokens_per_second"] = round(figures.tokens_per_second, 2)
    return found


def _parts(figures: Figures) -> list[str]:
    usage = figures.usage
    if not figures.generated:
        return [_tokens(usage.prompt_tokens, "token")]
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    reply = _tokens(usage.completion_tokens, "reply token")
    parts = [f"{usage.prompt_tokens} prompt{cached}", reply]
    if figures.first_token_seconds is not None:
        parts.append(f"first after {_seconds(figures.first_token_seconds)}")
    if figures.tokens_per_second is not None:
        parts.append(f"{figures.tokens_per_second:.1f} tok/s")
    return parts + _reasons(figures.finish_reasons)


def _reasons(reasons: Sequence[str]) -> list[str]:
    """ "stop", or of several replies "2 stop, 1 length"."""
    if len(reasons) == 1:
        return [reasons[0]]
    return [f"{number} {reason}" for reason, number in Counter(reasons).items()]


def _tokens(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}s" if seconds < 0.0995 else f"{seconds:.2f}s"
