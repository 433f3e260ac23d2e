"""What MLC-LLM's and MLC-Chat's servers have beside the OpenAI routes.

/chat/reset ends a conversation there; here every request carries its own, so what it
resets are the figures that /stats tells.
"""

from __future__ import annotations

from mlx_server.api.base import HttpRequest, JsonReply, Pool, Route
from mlx_server.api.openai import OpenAIDialect


class Mlc(OpenAIDialect):
    def __init__(self) -> None:
        reset, trace = "Start the figures of /stats anew", "Trace of the engine, for Perfetto"
        self.routes = (
            Route("POST", "/chat/reset", self.reset, reset),
            Route("GET", "/chat/reset", self.reset, reset),
            Route("GET", "/stats", self.stats, "Speed of the last requests in one line"),
            Route("GET", "/verbose_stats", self.verbose_stats, "The same at length"),
            Route("GET", "/debug/dump_event_trace", self.trace, trace),
            Route("POST", "/debug/dump_event_trace", self.trace, trace),
        )

    def reset(self, http: HttpRequest, pool: Pool) -> JsonReply:
        pool.reset()
        return JsonReply({})

    def stats(self, http: HttpRequest, pool: Pool) -> JsonReply:
        now = pool.runtime()
        prefill = _speed(now.prompt_tokens, now.prompt_seconds)
        decode = _speed(now.completion_tokens, now.completion_seconds)
        return JsonReply(f"prefill: {prefill:.1f} tok/s, decode: {decode:.1f} tok/s")

    def verbose_stats(self, http: HttpRequest, pool: Pool) -> JsonReply:
        now = pool.runtime()
        parts = (
            _part("prefill", now.prompt_tokens, now.prompt_seconds),
            _part("decode", now.completion_tokens, now.completion_seconds),
            f"total runtime: {now.total_seconds:.3f} s\nrequests: {now.requests}\n",
        )
        return JsonReply("".join(parts))

    def trace(self, http: HttpRequest, pool: Pool) -> JsonReply:
        return JsonReply(pool.trace())


def _part(name: str, tokens: int, seconds: float) -> str:
    return (
        f"{f' {name} ':-^31}\n"
        f"throughput: {_speed(tokens, seconds):.1f} tok/s\n"
        f"total tokens: {tokens} tok\n"
        f"total time: {seconds:.3f} s\n"
    )


def _speed(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0
