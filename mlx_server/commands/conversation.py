"""A conversation as the server is sent it, and a reply as it comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_server.settings_values import not_negative, whole, within

Json = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")


def _max_tokens(text: str) -> int:
    value = whole(text)
    if value < 1 and value != -1:
        raise ValueError("must be at least 1, or -1 (until the context is full)")
    return value


def _stop(text: str) -> list[str]:
    """A JSON list of strings, or one string as it is."""
    if not text.startswith("["):
        return [text]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError('expected a text, or a JSON list of them as in ["END", "\\n\\n"]')
    return value


SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": within(0, 100),
    "top_p": within(0, 1),
    "top_k": not_negative,
    "min_p": within(0, 1),
    "max_tokens": _max_tokens,
    "seed": whole,
    "stop": _stop,
    "repetition_penalty": within(0.01, 100),
    "presence_penalty": within(-2, 2),
    "frequency_penalty": within(-2, 2),
    "reasoning_effort": str,
}
"""Fields of the request's body that /set sets, and how their text is read."""


@dataclass(slots=True)
class Conversation:
    """
    Args:
        system: The system message; None for none.
        messages: The others, in the API's form.
        settings: Fields of the body, by SETTINGS' names.
    """

    model: str | None = None
    system: str | None = None
    messages: list[Json] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    stream: bool = True

    def body(self) -> Json:
        """What /v1/chat/completions is sent."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        body: Json = {"messages": [*first, *self.messages], **self.settings}
        if self.model is not None:
            body["model"] = self.model
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def undo(self) -> str | None:
        """Take the last question and what came after it back; returns its text."""
        for index in reversed(range(len(self.messages))):
            if self.messages[index]["role"] == "user":
                text = self.messages[index]["content"]
                del self.messages[index:]
                return text
        return None

    def saved(self) -> Json:
        return {
            "model": self.model,
            "system": self.system,
            "settings": self.settings,
            "messages": self.messages,
        }

    def restore(self, saved: Any) -> None:
        """Take over what `saved` made. The model stays where it names none.

        Raises:
            ValueError: It is something else, and nothing is changed.
        """
        if not isinstance(saved, dict) or not isinstance(saved.get("messages"), list):
            raise ValueError("it is no conversation that /save wrote: it has no messages")
        messages = [_message(m, i) for i, m in enumerate(saved["messages"])]
        for name in ("model", "system"):
            if not isinstance(saved.get(name), str | None):
                raise ValueError(f"its {name} is no text")
        settings = saved.get("settings") or {}
        if not isinstance(settings, dict) or settings.keys() - SETTINGS.keys():
            raise ValueError(f"its settings must be among {', '.join(SETTINGS)}")
        self.model = saved.get("model") or self.model
        self.system, self.messages, self.settings = saved.get("system"), messages, settings


def _message(value: Any, index: int) -> Json:
    if not isinstance(value, dict) or value.get("role") not in ROLES:
        raise ValueError(f"its messages[{index}] has no role of {', '.join(ROLES)}")
    if not isinstance(value.get("content"), str) and not value.get("tool_calls"):
        raise ValueError(f"its messages[{index}] has no text as content")
    return value


# ---------------------------------------------------------------- the reply


@dataclass(frozen=True, slots=True)
class Piece:
    """Something of the reply to be shown.

    Args:
        kind: "call" is a call's name, "arguments" a piece of what it is called with.
    """

    kind: Literal["text", "reasoning", "call", "arguments"]
    text: str


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Reply:
    """A reply while it comes: the fold of its chunks. Times are of time.monotonic()."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, _Call] = field(default_factory=dict)
    reason: str | None = None
    model: str | None = None
    usage: Json = field(default_factory=dict)
    timings: Json = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float | None = None

    def add(self, chunk: Json) -> list[Piece]:
        """Take a chunk of a stream, or a whole reply's body; returns what it brings."""
        for name in ("usage", "timings"):
            if isinstance(chunk.get(name), dict):
                setattr(self, name, chunk[name])
        if isinstance(chunk.get("model"), str):
            self.model = chunk["model"]
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return []
        if choices[0].get("finish_reason"):
            self.reason = str(choices[0]["finish_reason"])
        delta = choices[0].get("delta") or choices[0].get("message")
        pieces = list(self._pieces(delta)) if isinstance(delta, dict) else []
        if pieces and self.first is None:
            self.first = time.monotonic()
        return pieces

    def _pieces(self, delta: Json) -> list[Piece]:
        pieces = []
        # Servers name it either way, and some both.
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str) and reasoning:
            self.reasoning += reasoning
            pieces.append(Piece("reasoning", reasoning))
        if isinstance(delta.get("content"), str) and delta["content"]:
            self.text += delta["content"]
            pieces.append(Piece("text", delta["content"]))
        calls = delta.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(call, dict):
                pieces += self._call(call, number)
        return pieces

    def _call(self, given: Json, number: int) -> list[Piece]:
        pieces = []
        index = given.get("index")
        call = self.calls.setdefault(index if isinstance(index, int) else number, _Call())
        call.id = given.get("id") or call.id
        function = given.get("function")
        function = function if isinstance(function, dict) else {}
        if isinstance(function.get("name"), str) and not call.name:
            call.name = function["name"]
            pieces.append(Piece("call", call.name))
        if isinstance(function.get("arguments"), str) and function["arguments"]:
            call.arguments += function["arguments"]
            pieces.append(Piece("arguments", function["arguments"]))
        return pieces

    def end(self) -> None:
        self.ended = time.monotonic()

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.reasoning or self.calls)

    def message(self) -> Json:
        """It as a message of the conversation. Calls go as text: nobody here answers them, and
        servers ask for an answer to each."""
        calls = [f"{call.name} {call.arguments}".strip() for call in self.calls.values()]
        message: Json = {
            "role": "assistant",
            "content": "\n".join([self.text, *calls] if self.text else calls) or self.text,
        }
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        return message

    # ------------------------------------------------------------ figures

    @property
    def prompt_tokens(self) -> int:
        return _count(self.usage, "prompt_tokens")

    @property
    def completion_tokens(self) -> int:
        return _count(self.usage, "completion_tokens")

    @property
    def cached_tokens(self) -> int:
        details = self.usage.get("prompt_tokens_details")
        return _count(details, "cached_tokens") if isinstance(details, dict) else 0

    def speed(self) -> float | None:
        """Tokens per second: the server's own figure, else as they came here."""
        told = self.timings.get("predicted_per_second")
        if isinstance(told, int | float) and told > 0:
            return float(told)
        if self.first is None or self.ended is None or self.completion_tokens < 2:
            return None
        seconds = self.ended - self.first
        return (self.completion_tokens - 1) / seconds if seconds > 0 else None

    def figures(self, stream: bool = True) -> str:
        """Tokens, time and speed in a line; without usage, what is known.

        Args:
            stream: It came piece by piece, so there was a first token to wait for.
        """
        parts = []
        if self.usage:
            cached = f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
            parts += [f"{self.completion_tokens} tokens", f"prompt {self.prompt_tokens}{cached}"]
        if stream and self.first is not None:
            parts.append(f"first token {self.first - self.started:.2f} s")
        elif self.ended is not None:
            parts.append(f"{self.ended - self.started:.2f} s")
        if (speed := self.speed()) is not None:
            parts.append(f"{speed:.1f} tok/s")
        return ", ".join(parts)


def _count(counts: Json, name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0
