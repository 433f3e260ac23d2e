"""A pool that answers with given deltas, and ways to call an endpoint and to fold a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from mlx_server.api import DIALECTS
from mlx_server.api.base import HttpRequest, JsonReply, Reply
from mlx_server.config import Config
from mlx_server.core import ChatPrompt, GenerationRequest, ModelCard, Prompt
from mlx_server.deltas import (
    CallArguments,
    CallStarted,
    Delta,
    Done,
    Finished,
    Heartbeat,
    Progress,
    Reasoning,
    Started,
    Text,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from mlx_server.errors import ModelNotFound
from mlx_server.sampling_params import DRY_BREAKERS, SamplingParams
from mlx_server.services import ModelProps, Served, SystemPrompt

CARDS = (
    ModelCard("org/loaded", 1700000000, loaded=True, root="/m/loaded", context_length=512),
    ModelCard("adapter", 1700000001, parent="org/loaded"),
)


PROPS = ModelProps(
    name="org/loaded", path="/m/loaded", alias="short", num_slots=4, context_length=512,
    trained_length=2048, chat_template="", bos_token="<s>", eos_token="</s>", vocab_size=1000,
    num_parameters=1, nbytes=1, embedding_size=8,
)  # fmt: skip


class FakeGeneration:
    """Attributes: params, served: as a real one's, once the model is there."""

    def __init__(self, items: Iterable[Delta | Exception]) -> None:
        self.items = items
        self.params: SamplingParams | None = None
        self.served = Served(PROPS.path, PROPS.context_length)
        self.cancelled = False

    def __iter__(self) -> Iterator[Delta]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item

    def cancel(self) -> None:
        self.cancelled = True


class FakePool:
    """Remembers the request and answers it with `items`; an exception among them is raised."""

    def __init__(
        self,
        items: Iterable[Delta | Exception] = (),
        *,
        refuse: Exception | None = None,
        not_ready: Exception | None = None,
        config: Config = Config(),
    ) -> None:
        self.config = config
        self.system_prompt = SystemPrompt()
        self.generation = FakeGeneration(items)
        self.refuse = refuse
        self.not_ready = not_ready
        self.request: GenerationRequest | None = None

    def render(self, model: str | None, prompt: ChatPrompt) -> str:
        return "".join(f"<{message.role}>{message.text}" for message in prompt.messages)

    def generate(self, request: GenerationRequest) -> FakeGeneration:
        if self.refuse is not None:
            raise self.refuse
        self.request = request
        options = {"seed": 7, **request.defaults, **request.options}
        self.generation.params = SamplingParams(**options)
        self.generation.served = replace(
            self.generation.served,
            grammar=request.grammar.text if request.grammar else "",
            dry_breakers=request.text_options.dry_breakers or DRY_BREAKERS,
        )
        return self.generation

    def encode(self, model: str | None, prompt: Prompt) -> list[int]:
        """A token for each message or character."""
        return list(range(len(getattr(prompt, "messages", None) or prompt.text)))

    def props(self) -> ModelProps:
        return PROPS

    def current_model(self) -> str:
        return CARDS[0].id

    def cards(self) -> list[ModelCard]:
        return list(CARDS)

    def card(self, name: str) -> ModelCard:
        for card in CARDS:
            if card.id == name:
                return card
        raise ModelNotFound(f"There is no model {name!r}.", param="model")

    def check_ready(self) -> None:
        if self.not_ready is not None:
            raise self.not_ready


def call(
    pool: FakePool,
    method: str,
    path: str,
    body: Any = None,
    *,
    params: dict[str, str] | None = None,
    route: str | None = None,
    on_disconnect: Callable[[Callable[[], None]], None] = lambda callback: None,
) -> Reply:
    """The reply of the endpoint at `route` (the path itself where it has no placeholder)."""
    http = HttpRequest(
        method=method, path=path, query={}, headers={},
        body=b"" if body is None else json.dumps(body).encode(),
        params=params or {}, on_disconnect=on_disconnect,
    )  # fmt: skip
    (endpoint,) = (
        candidate.endpoint
        for dialect in DIALECTS
        for candidate in dialect.routes
        if (candidate.method, candidate.path) == (method, route or path)
    )
    return endpoint(http, pool)


def reply_body(pool: FakePool, path: str, body: Any) -> Any:
    """The body of a whole reply, after a trip through JSON."""
    reply = call(pool, "POST", path, body)
    assert isinstance(reply, JsonReply)
    assert reply.status == 200
    return through_json(reply.body)


def reply_events(pool: FakePool, path: str, body: Any) -> list[Any]:
    """The events of a streamed reply, each after a trip through JSON."""
    events = call(pool, "POST", path, {**body, "stream": True}).events
    return [event_value(event) for event in events]


def event_value(event: Any) -> Any:
    """What a client reads of an event: some are JSON text already."""
    if isinstance(event, str) and event != "[DONE]":
        return json.loads(event)
    return through_json(event)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def token(text: str, logprob: float | None = -0.5, alternatives: int = 0) -> TokenLogprob:
    """A token whose id is derived from its text, with itself as the best alternative."""
    raw = text.encode()
    others = [text] + [f"{text}{i}" for i in range(1, alternatives)]
    top = tuple(
        TopLogprob(sum(raw) + i, other, other.encode(), -0.5 - i)
        for i, other in enumerate(others[:alternatives])
    )
    return TokenLogprob(sum(raw), text, raw, logprob, top)


def whole_run(pieces: dict[int, list[Any]], reasons: dict[int, str]) -> list[Delta]:
    """The deltas of a request whose choices come one after the other."""
    count = Usage(0, 0, 3, 0)
    body: list[Delta] = [Started(Usage(5, 2)), Progress(5, 5)]
    for index, texts in pieces.items():
        body += [*texts, Finished(index, reasons[index], None, count)]
    return [*body, Done(Usage(5, 2, 3 * len(pieces), 1))]


@st.composite
def runs(draw: st.DrawFn, choices: int, calls: int | None = None) -> list[Delta]:
    """Deltas of a request with that many choices, in any interleaving.

    Args:
        calls: The most calls of a reply, which then has reasoning too; None: text alone.
    """
    queues: list[list[Delta]] = []
    for index in range(choices):
        pieces: list[Delta] = _texts(draw, Text, index)
        reasons = ["stop", "length", "abort", "error"]
        if calls is not None:
            pieces = _texts(draw, Reasoning, index) + pieces
            for number in range(draw(st.integers(0, calls))):
                name = draw(st.sampled_from(["f", "get-weather", "a.b"]))
                head = tuple(token(piece) for piece in draw(_splits(name)))
                pieces.append(CallStarted(index, number, f"call_{index}_{number}", name, head))
                pieces += _texts(draw, CallArguments, index, number)
                reasons.append("tool_calls")
        reason = draw(st.sampled_from(reasons))
        queues.append([*pieces, Finished(index, reason, None, Usage(0, 0, len(pieces)))])
    deltas: list[Delta] = [Started(Usage(3)), Progress(1, 3), Heartbeat()]
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        deltas.append(queue.pop(0))
    return [*deltas, Done(Usage(3, 1, 7, 2))]


def _texts(draw: st.DrawFn, kind: Any, *place: int) -> list[Delta]:
    """Pieces of one kind, with the tokens they are made of."""
    words = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
    return [
        kind(*place, word, tuple(token(piece, alternatives=2) for piece in draw(_splits(word))))
        for word in draw(st.lists(words, max_size=5))
    ]


def _splits(word: str) -> st.SearchStrategy[list[str]]:
    cut = st.integers(0, len(word))
    return cut.map(lambda at: [piece for piece in (word[:at], word[at:]) if piece])


def add_logprobs(total: dict[str, list[Any]] | None, piece: dict[str, list[Any]] | None) -> Any:
    """Log-probabilities of two chunks in one; every form is a dict of lists."""
    if piece is None:
        return total
    return {name: (total or {}).get(name, []) + values for name, values in piece.items()}
