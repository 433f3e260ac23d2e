"""Sending a scenario's requests to one server."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from statistics import median

from benchmarks.client import Raw, exchange, in_threads, parse, together
from benchmarks.metrics import tokens_per_second
from benchmarks.plan import Body, Exchange, Outcome
from benchmarks.servers import Server

FREED_LIMIT = 2.0
"""Seconds for which we look whether the rows of vanished clients are freed."""


def pair(bodies: Sequence[Body], raws: Sequence[Raw]) -> list[Exchange]:
    return [Exchange(b["messages"], parse(raw)) for b, raw in zip(bodies, raws, strict=True)]


def all_at_once(server: Server, bodies: list[Body]) -> Outcome:
    return Outcome(pair(bodies, together(server.endpoint, bodies)))


def interrupt(server: Server, bodies: list[Body]) -> Outcome:
    """The last body is sent when the first stream has a quarter of its tokens."""
    *streams, late = bodies
    begun = threading.Event()

    def watch(events: int) -> bool:
        if events > late_after:
            begun.set()
        return False

    def send_late() -> Raw:
        begun.wait(60)
        return exchange(server.endpoint, late)

    late_after = streams[0]["max_tokens"] // 4
    tasks = [lambda b=b: exchange(server.endpoint, b) for b in streams[1:]]
    first = lambda: exchange(server.endpoint, streams[0], watch)  # noqa: E731
    found = pair(bodies, in_threads([first, *tasks, send_late]))
    replies = [e.reply for e in found]
    return Outcome(found, replies[:-1], replies[-1].started)


def converse(server: Server, bodies: list[Body]) -> Outcome:
    """Three conversations at once; each turn holds all that was said before."""

    def talk(turns: Sequence[Body]) -> list[Exchange]:
        history: list[dict[str, str]] = turns[0]["messages"][:1]
        found: list[Exchange] = []
        for turn in turns:
            history = [*history, turn["messages"][-1]]
            reply = parse(exchange(server.endpoint, turn | {"messages": history}))
            found.append(Exchange(history, reply))
            # As it came: that is what a client sends back.
            history = [*history, {"role": "assistant", "content": reply.text}]
        return found

    turns = len(bodies) // 3
    parts = [bodies[i * turns : (i + 1) * turns] for i in range(3)]
    found = in_threads([lambda part=part: talk(part) for part in parts])
    every = sorted((e for part in found for e in part), key=lambda e: e.reply.started)
    return Outcome(every)


def held_and_free(server: Server, bodies: list[Body]) -> Outcome:
    """The first half is held to a form; the second half, free, generates as many tokens. Who
    goes first changes with the prompt, so that neither has the warmer machine."""
    half = len(bodies) // 2
    held, free = bodies[:half], bodies[half:]
    # Lengths have to be known before: a pass that is not measured, of the same replies.
    first = pair(held, together(server.endpoint, held))
    # The same prompts again would be found in the cache, so each gets a word of its own.
    again = [_renamed(b, "held") for b in held]
    free = [
        b | {"max_tokens": max(1, e.reply.tokens), "ignore_eos": True}
        for b, e in zip(free, first, strict=True)
    ]
    order = [again, free] if len(held[0]["messages"][-1]["content"]) % 2 else [free, again]
    found = {id(part): pair(part, together(server.endpoint, part)) for part in order}
    rates = {key: tokens_per_second([e.reply for e in part]) for key, part in found.items()}
    broken = sum(e.reply.finish_reason != "stop" for e in found[id(again)])
    figures = {
        "held_rate": rates[id(again)],
        "free_rate": rates[id(free)],
        "held_ratio": rates[id(again)] / rates[id(free)],
        "errors": float(broken + sum(e.reply.error is not None for p in found.values() for e in p)),
    }
    return Outcome([*first, *(e for part in order for e in found[id(part)])], figures=figures)


def _renamed(body: Body, word: str) -> Body:
    """The same request with one word more at its very beginning."""
    first, *others = body["messages"]
    return body | {"messages": [{**first, "content": f"{word} {first['content']}"}, *others]}


def vanish(server: Server, bodies: list[Body]) -> Outcome:
    """40 clients leave together once each has a few tokens, or after six seconds."""
    before, after, leaving = bodies[:3], bodies[3:6], bodies[6:]
    idle = [parse(exchange(server.endpoint, b)) for b in before]
    lock, ready = threading.Lock(), threading.Event()
    counted: dict[int, bool] = {}
    deadline = time.perf_counter() + 6.0

    def watch(events: int) -> bool:
        if events >= 3 and threading.get_ident() not in counted:
            with lock:
                counted[threading.get_ident()] = True
                if len(counted) == len(leaving):
                    ready.set()
        return ready.is_set() or time.perf_counter() > deadline

    gone = together(server.endpoint, leaving, watch)
    left_at = time.perf_counter()
    freed = _rows_freed(server, left_at)
    time.sleep(max(0.0, 0.5 - (time.perf_counter() - left_at)))
    later = [parse(exchange(server.endpoint, b)) for b in after]
    idle_first = median(r.first_after or float("inf") for r in idle)
    next_first = later[0].first_after
    figures = {
        "freed_seconds": freed,
        "idle_first": idle_first,
        "next_first": next_first,
        "next_first_ratio": next_first / idle_first if next_first else None,
        "streams_begun": float(len(counted)),
        "errors": float(sum(r.error is not None for r in [*gone, *idle, *later])),
    }
    singles = [Exchange(b["messages"], r) for b, r in zip(bodies[:6], idle + later, strict=True)]
    return Outcome(singles, figures=figures)


def _rows_freed(server: Server, since: float) -> float | None:
    """Seconds until the server has no row left; None if it does not say."""
    while time.perf_counter() - since < FREED_LIMIT:
        stats = server.stats()
        if stats is None:
            return None
        if stats["running"] == stats["waiting"] == 0:
            return time.perf_counter() - since
        time.sleep(0.02)
    return float("inf")
