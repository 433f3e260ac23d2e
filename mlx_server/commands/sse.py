"""Server-sent events, read from bytes as they come. No input or output here.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, lines that end with
LF or CRLF.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_server.commands.failures import ChatError

MAX_EVENT_BYTES = 32 << 20
"""More without a line's end is no event of an LLM server."""


@dataclass(frozen=True, slots=True)
class Event:
    """
    Args:
        name: Of the `event:` line; "message" where there is none.
        data: The `data:` lines, joined.
    """

    name: str
    data: str


class EventReader:
    """Bytes in, events out, however the bytes are cut."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete with `data`.

        Raises:
            ChatError: A line has no end.
        """
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        if len(rest) > MAX_EVENT_BYTES:
            raise ChatError("The server sent a line without end, which is no event stream.")
        found = (self._line(line.removesuffix(b"\r").decode("utf-8", "replace")) for line in lines)
        return [event for event in found if event is not None]

    def flush(self) -> list[Event]:
        """The event that the stream ended in without an empty line behind it, if it has data."""
        return self.feed(b"\n\n") if self._rest or self._data else []

    def _line(self, line: str) -> Event | None:
        if not line:
            event = Event(self._name or "message", "\n".join(self._data))
            complete = bool(self._data)
            self._name, self._data = "", []
            return event if complete else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "error":  # as older llama-servers tell one
            self._name = "error"
            self._data.append(value)
        return None
