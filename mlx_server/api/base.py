"""The Dialect contract: how a wire format meets the rest of the house.

A dialect is one file in `api/` and one line in `APIS`. It owns its routes,
reads bodies into `GenerationRequest`s, and gives a `Formatter` that turns the
deltas into wire events. Nothing below `api/` knows a wire field.

    body ──parse()──> GenerationRequest ──pool.get(model).generate()──> Delta…
    Delta… ──formatter.delta()/finish()──> SSE events      (stream)
    Delta… ──formatter.collect()──> one JSON body          (the fold of the same deltas)
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_server.api.account import Account
from mlx_server.api.pool import Generation, Listenable, Pool
from mlx_server.core import GenerationRequest
from mlx_server.deltas import Delta, Heartbeat, Lull
from mlx_server.errors import MethodNotAllowed, RequestError, ServerError

log = logging.getLogger(__name__)

Json = dict[str, Any]

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""How JSON is written wherever it is."""


# ---------------------------------------------------------------- what a dialect is handed


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A parsed HTTP request.

    Args:
        method, path: As sent; the path is percent-decoded, without its query.
        query: The query's parameters, each a list of values.
        headers: Names in lower case.
        body: The raw body, already within its bound.
        params: What the route's placeholders matched.
        on_disconnect: Registers a function to call once when the client is gone.
        account: Where it is noted what the answer takes.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    params: Mapping[str, str] = field(default_factory=dict)
    on_disconnect: Callable[[Callable[[], None]], None] = lambda callback: None
    account: Account = field(default_factory=Account)

    def json(self) -> Json:
        """The body as a JSON object. Raises RequestError that says what is wrong with it."""
        if not self.body.strip():
            raise RequestError("The request has no body; send a JSON object.")
        try:
            value = json.loads(self.body)
        except RecursionError:
            raise RequestError("The body is nested too deeply.") from None
        except ValueError as error:
            reason = "a number has too many digits" if "set_int_max" in str(error) else error
            raise RequestError(f"The body is not valid JSON: {reason}.") from None
        if not isinstance(value, dict):
            raise RequestError("The body must be a JSON object.")
        return value


# ---------------------------------------------------------------- what a dialect gives back


@dataclass(frozen=True, slots=True)
class JsonReply:
    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamReply:
    """Server-sent events. Each item is one event's payload (a JSON value, or a string
    that is sent as it is: "[DONE]", or JSON already), or None for a keep-alive comment.

    Args:
        source: Where the events come from, if it can tell of news. While somebody
            listens to it, an item may be a Lull: there is nothing more yet.
    """

    events: Iterator[Json | str | Lull | None]
    headers: Mapping[str, str] = field(default_factory=dict)
    source: Listenable | None = None


@dataclass(frozen=True, slots=True)
class RawReply:
    """A body that is no JSON: a page, a script, metrics."""

    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Reply = JsonReply | StreamReply | RawReply
Endpoint = Callable[[HttpRequest, Pool], Reply]


@dataclass(frozen=True, slots=True)
class Route:
    """
    Args:
        path: May hold `{name}` (one segment) or `{name:path}` (the rest of the path).
        summary: What it does, for /docs; routes without one are not listed there.
        body: The pydantic model of its JSON body.
        query: The parameters that its query may have.
        may_be_empty: Whether it can be asked for without a body as well.
    """

    method: str
    path: str
    endpoint: Endpoint
    summary: str = ""
    body: Any = None
    query: tuple[str, ...] = ()
    may_be_empty: bool = False


def also_get(endpoint: Endpoint) -> Endpoint:
    """For GET on a route that takes a body: the older servers' documents list it so."""

    def answer(http: HttpRequest, pool: Pool) -> Reply:
        if not http.body.strip():
            raise MethodNotAllowed(
                f"{http.path} takes a JSON body; send it with POST.", allow=("POST", "OPTIONS")
            )
        return endpoint(http, pool)

    return answer


class Formatter(ABC):
    """Turns one request's deltas into the dialect's wire form."""

    @abstractmethod
    def delta(self, delta: Delta) -> Iterable[Json | str]:
        """The events for one delta; none if the dialect does not show it."""

    @abstractmethod
    def finish(self) -> Iterable[Json | str]:
        """The events that end a stream."""

    @abstractmethod
    def collect(self, deltas: Iterable[Delta]) -> Json:
        """The whole reply: the fold of the same deltas."""


class Dialect(ABC):
    """One API. Stateless: one instance serves all requests."""

    routes: tuple[Route, ...] = ()

    @abstractmethod
    def error(self, error: ServerError) -> Json:
        """The body that tells the client of an error."""

    def respond(
        self, http: HttpRequest, pool: Pool, request: GenerationRequest, formatter: Formatter
    ) -> Reply:
        """Run a generation request: a stream of events, or their fold.

        Errors before the first delta are raised (and get a status line of their
        own); an error after it becomes an error event and a clean end.
        """
        generation = pool.generate(request)
        http.on_disconnect(generation.cancel)
        return self._reply(http, request, generation, generation, formatter)

    def _reply(
        self,
        http: HttpRequest,
        request: GenerationRequest,
        generation: Generation,
        deltas: Iterable[Delta],
        formatter: Formatter,
    ) -> Reply:
        """
        Args:
            deltas: The generation's, or what the dialect makes of them.
        """
        deltas = http.account.watch(generation, deltas, asked=request.model)
        if request.stream:
            source = generation if isinstance(generation, Listenable) else None
            return StreamReply(self._events(generation, deltas, formatter), source=source)
        return JsonReply(formatter.collect(deltas))

    def _events(
        self, generation: Generation, deltas: Iterable[Delta], formatter: Formatter
    ) -> Iterator[Json | str | Lull | None]:
        try:
            for delta in deltas:
                if isinstance(delta, Heartbeat):
                    yield None
                elif isinstance(delta, Lull):
                    yield delta
                else:
                    yield from formatter.delta(delta)
            yield from formatter.finish()
        except ServerError as error:
            yield self.error(error)
        except Exception:
            log.exception("a stream failed")
            yield self.error(ServerError("The server failed while generating the reply."))
        finally:
            generation.cancel()
