"""A reply in llama.cpp's form: as chunks, or as their fold.

Every body has the document's names and today's: `stopped_eos` beside `stop_type`, and of a
token's probabilities `probs` beside `top_logprobs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mlx_server.api.base import Json
from mlx_server.api.llama_fields import UNTIL_FULL
from mlx_server.api.llama_limits import Watching
from mlx_server.api.llama_options import LlamaView, settings_body
from mlx_server.core import GenerationRequest
from mlx_server.deltas import Delta, Finished, Progress, Started, Text, Timings, TokenLogprob

LOWEST_LOGPROB = -3.4028234663852886e38
"""Stands for minus infinity, which JSON lacks: the least float, as in llama-server."""

_STOP_TYPES = {"stop": "eos", "tool_calls": "eos", "length": "limit"}


@dataclass(slots=True)
class _Reply:
    """One choice as far as it has come."""

    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    probabilities: list[Json] = field(default_factory=list)
    newline: bool = False


class LlamaFormatter(Watching):
    """
    Args:
        max_tokens: The command line's.
    """

    def __init__(
        self, request: GenerationRequest, view: LlamaView, max_tokens: int | None = None
    ) -> None:
        self._request = request
        self._view = view
        self._max_tokens = max_tokens
        self._replies = [_Reply() for _ in range(len(request.prompts) * request.n)]
        self._prompt_tokens = 0
        self._slots: dict[int, int] = {}

    # ------------------------------------------------------------ a stream

    def delta(self, delta: Delta) -> Iterable[Json]:
        if isinstance(delta, Text):
            if delta.text or delta.tokens or delta.ids:
                yield self.piece(delta)
        elif isinstance(delta, Finished):
            yield self._chosen(self.last(delta))
        elif isinstance(delta, Started):
            self.start(delta)
        elif isinstance(delta, Progress):
            if delta.slot is not None:
                self._slots[delta.index] = delta.slot
            if self._view.progress:
                chunk = self._chunk(delta.index)
                yield {**chunk, "tokens_evaluated": delta.total, **progress_body(delta)}

    def finish(self) -> Iterable[Json | str]:
        return ()  # the last body says `stop`

    def start(self, delta: Started) -> None:
        if len(self._request.prompts) == 1:
            self._prompt_tokens = delta.usage.prompt_tokens

    def piece(self, delta: Text) -> Json:
        """The chunk that carries a piece."""
        first = len(self._replies[delta.index].probabilities)
        self.take(delta)
        body = self._chunk(delta.index)
        body["content"] = delta.text
        body["tokens"] = list(delta.ids)
        if delta.timings is not None:
            body["tokens_evaluated"] = delta.timings.prompt_n + delta.timings.cache_n
            if self._view.timings:
                body["timings"] = timings_body(delta.timings)
        if self._view.num_probs:
            body["completion_probabilities"] = self._replies[delta.index].probabilities[first:]
        return body

    def _chunk(self, index: int) -> Json:
        request = self._request
        return {
            "index": index,
            "content": "",
            "tokens": [],
            "stop": False,
            "id_slot": self._slots.get(index, -1 if request.slot is None else request.slot),
            "tokens_predicted": len(self._replies[index].ids),
            "tokens_evaluated": self._prompt_tokens,
        }

    # ------------------------------------------------------------ the whole

    def take(self, delta: Text) -> None:
        """Remember a piece."""
        reply = self._replies[delta.index]
        reply.newline = reply.newline or "\n" in delta.text
        reply.texts.append(delta.text)
        reply.ids += delta.ids
        if self._view.num_probs:
            reply.probabilities += self.probabilities(delta.tokens)

    def collect(self, deltas: Iterable[Delta]) -> Any:
        """One body, or a list of them where there are several prompts or choices."""
        bodies: list[Json] = [{} for _ in self._replies]
        for delta in deltas:
            if isinstance(delta, Text):
                self.take(delta)
            elif isinstance(delta, Finished):
                bodies[delta.index] = self._chosen(self.last(delta, whole=True))
        return bodies[0] if len(bodies) == 1 else bodies

    def last(self, delta: Finished, whole: bool = False) -> Json:
        """The body that ends a reply.

        Args:
            whole: It has all of the reply's text; else that came before.
        """
        reply, request, view = self._replies[delta.index], self._request, self._view
        word = delta.stop_sequence is not None
        kind = "word" if word else _STOP_TYPES.get(delta.reason, "limit")
        place = delta.index // request.n
        body: Json = {
            "index": delta.index,
            "content": "".join(reply.texts) if whole else "",
            "tokens": reply.ids if whole and view.tokens else [],
            "id_slot": -1 if delta.slot is None else delta.slot,
            "stop": True,
            "model": self.served.path,
            "tokens_predicted": delta.usage.completion_tokens,
            "tokens_evaluated": delta.usage.prompt_tokens,
            "generation_settings": self._settings(),
            "prompt": view.prompts[place] if view.prompts else "",
            "has_new_line": reply.newline,
            "truncated": delta.truncated,
            "stop_type": kind,
            "stopped_eos": kind == "eos",
            "stopped_limit": kind == "limit",
            "stopped_word": word,
            "stopping_word": delta.stop_sequence or "",
            "tokens_cached": delta.usage.cached_tokens,
            "timings": timings_body(delta.timings),
        }
        if whole and view.num_probs:
            body["completion_probabilities"] = reply.probabilities
        return body

    def _settings(self) -> Json:
        request, view = self._request, self._view
        named = {**request.defaults, **request.options}
        # What was asked for; the resolved one is cut to the room there is.
        limit = request.options.get("max_tokens", self._max_tokens)
        if limit is None:
            limit = UNTIL_FULL if request.options.get("n_keep", 0) is None else -1
        return settings_body(
            self.params or named,
            context_length=self.served.context_length,
            model=self.served.path,
            n_predict=limit,
            max_tokens=limit,
            n_keep=named.get("n_keep"),
            n_probs=view.num_probs,
            post_sampling_probs=view.post_sampling,
            n_indent=view.limits.indent,
            t_max_predict_ms=view.limits.predict_ms,
            timings_per_token=view.timings,
            return_tokens=view.tokens,
            stream=request.stream,
            cache_prompt=request.reuse,
            grammar=self.served.grammar,
            penalize_nl=request.text_options.penalize_nl,
            dry_sequence_breakers=list(self.served.dry_breakers),
            lora=[{"id": i, "scale": scale} for i, scale in request.adapter_scales or ()],
        )

    def _chosen(self, body: Json) -> Json:
        """What of it was asked for: `a/b` is what is within `a`, and is called so."""
        if not self._view.fields:
            return body
        chosen: Json = {}
        for name in self._view.fields:
            value: Any = body
            for step in name.split("/"):
                value = value.get(step, _MISSING) if isinstance(value, dict) else _MISSING
            if value is not _MISSING:
                chosen[name] = value
        return chosen

    # ------------------------------------------------------------ probabilities

    def probabilities(self, tokens: tuple[TokenLogprob, ...]) -> list[Json]:
        """`completion_probabilities` of some tokens."""
        params = self.params
        greedy = params is not None and params.temperature <= 0
        return [token_body(token, self._view, greedy) for token in tokens]


_MISSING = object()


def token_body(token: TokenLogprob, view: LlamaView, greedy: bool) -> Json:
    """A token with its probability and those of the most likely ones.

    Args:
        greedy: What the token was sampled from says nothing: `probs` are the model's own.
    """
    body: Json = {"id": token.id, "token": token.token, "bytes": list(token.bytes)}
    model_probs = [(top, math.exp(top.logprob)) for top in token.top]
    sampled = _filled(token)
    shown = model_probs if greedy and not view.post_sampling else sampled
    if view.post_sampling:
        body["prob"] = token.prob
        body["top_probs"] = [{**_plain(top), "prob": prob} for top, prob in sampled]
    else:
        body["logprob"] = _finite(token.logprob)
        body["top_logprobs"] = [
            {**_plain(top), "logprob": _finite(top.logprob)} for top, _ in model_probs
        ]
    body["content"] = token.token
    body["probs"] = [{"tok_str": top.token, "prob": prob} for top, prob in shown]
    return body


def _filled(token: TokenLogprob) -> list[tuple[Any, float]]:
    """The likeliest of what it was sampled from; as in llama.cpp as many as were asked for,
    the samplers' leavings filled up with what they dropped."""
    left: list[tuple[Any, float]] = [(top, top.prob) for top in token.top_probs if top.prob > 0]
    known = {top.id for top, _ in left}
    dropped = [(top, 0.0) for top in token.top if top.id not in known]
    return (left + dropped)[: len(token.top_probs)]


def _plain(top: Any) -> Json:
    return {"id": top.id, "token": top.token, "bytes": list(top.bytes)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)


def timings_body(timings: Timings) -> Json:
    return {
        "cache_n": timings.cache_n,
        **_speed("prompt", timings.prompt_n, timings.prompt_ms),
        **_speed("predicted", timings.predicted_n, timings.predicted_ms),
    }


def _speed(name: str, count: int, ms: float) -> Json:
    return {
        f"{name}_n": count,
        f"{name}_ms": ms,
        f"{name}_per_token_ms": ms / count if count else 0.0,
        f"{name}_per_second": 1000.0 * count / ms if ms > 0 else 0.0,
    }


def progress_body(delta: Progress) -> Json:
    """How much of the prompt has been computed."""
    progress = {
        "total": delta.total,
        "cache": delta.cached,
        "processed": delta.processed,
        "time_ms": round(delta.ms),
    }
    return {"prompt_progress": progress}
