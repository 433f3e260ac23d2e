"""Limits of a reply that its text decides: llama.cpp's `n_indent` and `t_max_predict_ms`.

The engine knows tokens only, so they are seen here, where the deltas pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mlx_server.api.base import (
    Dialect,
    Formatter,
    Generation,
    HttpRequest,
    Pool,
    Reply,
)
from mlx_server.core import GenerationRequest
from mlx_server.deltas import (
    CallArguments,
    CallStarted,
    Delta,
    Done,
    Finished,
    Progress,
    Reasoning,
    Text,
    Timings,
    Usage,
)
from mlx_server.sampling_params import SamplingParams
from mlx_server.services import Served


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Args:
        indent: Blanks and tabs that every line but the first begins with at least; a reply
            ends before the first other character of one that has fewer.
        predict_ms: Milliseconds since the first token after which a reply ends that has a
            newline; 0 is none.
    """

    indent: int = 0
    predict_ms: float = 0.0

    @property
    def any(self) -> bool:
        return self.indent > 0 or self.predict_ms > 0


NO_LIMITS = Limits()


class LineEnds:
    """One reply's text as it comes, against its limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._newline = False
        self._width: int | None = None  # of the line's indentation while it lasts

    def feed(self, text: str, timings: Timings | None) -> int | None:
        """The characters of this piece with which the reply ends; None: it goes on."""
        if self._limits.indent:
            for i, char in enumerate(text):
                if self._width is not None:
                    if char in " \t":
                        self._width += 1
                        continue
                    if self._width < self._limits.indent:
                        return i
                    self._width = None
                if char == "\n":
                    self._width = 0
        self._newline = self._newline or "\n" in text
        elapsed = 0.0 if timings is None else timings.predicted_ms
        late = 0 < self._limits.predict_ms < elapsed
        return len(text) if late and self._newline else None


class Limited:
    """A generation whose replies end where their limits say, with the reason "length".

    The request must ask for timings: they tell how much a reply that is cut has used.
    """

    def __init__(self, generation: Generation, request: GenerationRequest, limits: Limits) -> None:
        self._generation = generation
        self._copies = request.n
        self._slots: dict[int, int | None] = {}
        choices = range(len(request.prompts) * request.n)
        self._lines = {index: LineEnds(limits) for index in choices}
        self._usages: dict[int, Usage] = {}

    @property
    def model(self) -> str:
        return self._generation.model

    @property
    def usage(self) -> Usage:
        return self._generation.usage

    @property
    def timings(self) -> tuple[Timings, ...]:
        return self._generation.timings

    @property
    def params(self) -> SamplingParams | None:
        return self._generation.params

    @property
    def served(self) -> Served | None:
        return self._generation.served

    def cancel(self) -> None:
        self._generation.cancel()

    def __iter__(self) -> Iterator[Delta]:
        for delta in self._generation:
            if isinstance(delta, Done):
                break
            if isinstance(delta, Text | Reasoning | CallStarted | CallArguments | Finished):
                if delta.index in self._usages:
                    continue  # it has ended already
                if isinstance(delta, Finished):
                    self._usages[delta.index] = delta.usage
                if isinstance(delta, Text):
                    yield from self._text(delta)
                    if len(self._usages) == len(self._lines):
                        break
                    continue
            if isinstance(delta, Progress):
                self._slots[delta.index] = delta.slot
            yield delta
        self._generation.cancel()
        yield Done(self._total())

    def _text(self, delta: Text) -> Iterator[Delta]:
        end = self._lines[delta.index].feed(delta.text, delta.timings)
        if end is None:
            yield delta
            return
        yield replace(delta, text=delta.text[:end])
        used = delta.timings or Timings()
        usage = Usage(used.prompt_n + used.cache_n, used.cache_n, used.predicted_n)
        self._usages[delta.index] = usage
        truncated = self.served is not None and usage.total_tokens > self.served.context_length
        slot = self._slots.get(delta.index)
        yield Finished(delta.index, "length", None, usage, used, truncated, slot)

    def _total(self) -> Usage:
        """Each prompt counts once, however many replies it got."""
        total = Usage()
        for index, usage in self._usages.items():
            if index % self._copies:
                usage = replace(usage, prompt_tokens=0, cached_tokens=0)
            total += usage
        return total


class LimitedDialect(Dialect):
    """A dialect whose replies may have limits, and whose formatters look at the generation."""

    def limits(self, request: GenerationRequest) -> Limits:
        """The request's."""
        raise NotImplementedError

    def respond(
        self, http: HttpRequest, pool: Pool, request: GenerationRequest, formatter: Formatter
    ) -> Reply:
        generation = pool.generate(request)
        http.on_disconnect(generation.cancel)
        limits = self.limits(request)
        deltas: Generation = generation
        if limits.any:
            deltas = Limited(generation, request, limits)
        if isinstance(formatter, Watching):
            formatter.generation = deltas
        return self._reply(http, request, generation, deltas, formatter)


class Watching(Formatter):
    """A formatter that tells how the tokens were chosen.

    Attributes:
        generation: What it formats; None until it is known.
    """

    generation: Generation | None = None

    @property
    def params(self) -> SamplingParams | None:
        """Resolved, once the model is there."""
        return None if self.generation is None else self.generation.params

    @property
    def served(self) -> Served:
        """The model that answers, which is known when a reply begins."""
        assert self.generation is not None and self.generation.served is not None
        return self.generation.served
