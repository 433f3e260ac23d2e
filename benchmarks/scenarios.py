"""What is measured: the requests of each scenario, and what is claimed of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.corpus import prose, prose_of_tokens
from benchmarks.drive import all_at_once, converse, held_and_free, interrupt, vanish
from benchmarks.plan import Body, Check, Inputs, Scenario

# ---------------------------------------------------------------- bodies


def body(text: str, max_tokens: int, system: str | None = None, **fields: Any) -> Body:
    messages = [{"role": "system", "content": system}] if system else []
    return {
        "messages": [*messages, {"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | fields


def one(inputs: Inputs) -> list[Body]:
    return [body(prose(inputs.rng, inputs.size(40)), inputs.size(96))]


def mixture(clients: int) -> Callable[[Inputs], list[Body]]:
    """Prompts of 20 to 240 words, 32 to 96 tokens out, spread evenly and shuffled apart."""

    def make(inputs: Inputs) -> list[Body]:
        steps = max(1, clients - 1)
        words = [inputs.size(20 + 220 * i // steps) for i in range(clients)]
        tokens = [inputs.size(32 + 64 * i // steps) for i in range(clients)]
        inputs.rng.shuffle(words)
        inputs.rng.shuffle(tokens)
        return [body(prose(inputs.rng, w), t) for w, t in zip(words, tokens, strict=True)]

    return make


def seeded(inputs: Inputs) -> list[Body]:
    bodies = mixture(8)(inputs)
    return [b | {"temperature": 0.8, "seed": 100 + i} for i, b in enumerate(bodies)]


def logprobs(stream: bool) -> Callable[[Inputs], list[Body]]:
    def make(inputs: Inputs) -> list[Body]:
        fields: Body = {"logprobs": True, "top_logprobs": 5, "stream": stream}
        if not stream:
            fields["stream_options"] = None
        made = [
            body(prose(inputs.rng, inputs.size(100)), inputs.size(64), **fields) for _ in range(8)
        ]
        return [{k: v for k, v in b.items() if v is not None} for b in made]

    return make


def interruption(inputs: Inputs) -> list[Body]:
    """Four streams, then the long prompt that arrives while they decode."""
    streams = [body(prose(inputs.rng, inputs.size(60)), inputs.size(160, 40)) for _ in range(4)]
    return [*streams, body(prose(inputs.rng, inputs.size(900)), inputs.size(16))]


def conversations(inputs: Inputs) -> list[Body]:
    """For each of three conversations six bodies that hold the system prompt and one turn."""
    system = prose(inputs.rng, inputs.size(500))
    return [
        body(prose(inputs.rng, inputs.size(30)), inputs.size(32), system=system) for _ in range(18)
    ]


def prefix(inputs: Inputs) -> list[Body]:
    system = prose_of_tokens(inputs.rng, inputs.count, inputs.size(2000, 40))
    return [
        body(prose(inputs.rng, inputs.size(20)), inputs.size(32), system=system) for _ in range(8)
    ]


RECORD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 20},
            "minItems": 2,
            "maxItems": 4,
        },
        "tame": {"type": "boolean"},
    },
    "required": ["name", "age", "kind", "tags", "tame"],
    "additionalProperties": False,
}


def records(inputs: Inputs) -> list[Body]:
    """Eight replies held to a schema, then as many free ones."""
    form = {"type": "json_schema", "json_schema": {"name": "record", "schema": RECORD}}
    made = [
        body(prose(inputs.rng, inputs.size(60)), 400, temperature=0.8, seed=i) for i in range(16)
    ]
    return [b | {"response_format": form} for b in made[:8]] + made[8:]


def vanishing(inputs: Inputs) -> list[Body]:
    """Three requests on the idle server, three after, and 40 that leave in between."""
    single = [body(prose(inputs.rng, inputs.size(80)), 4) for _ in range(6)]
    return [*single, *(body(prose(inputs.rng, inputs.size(40)), 1000) for _ in range(40))]


# ---------------------------------------------------------------- the table


SHARE = Check("ideal_share", "share of the ideal", at_least=0.85)
NO_ERRORS = Check("errors", "failed requests", at_most=0)


def speed(at_least: float) -> Check:
    return Check("speed_ratio", "tokens/s against the peer", at_least=at_least)


ONCE = Check("computed_ratio", "prompt tokens computed / new", at_most=1.05)
DECODE = Check("decode_share", "decode against the bare loop", at_least=0.85)

SCENARIOS = (
    Scenario(
        "one",
        "one stream, 96 tokens",
        1,
        one,
        all_at_once,
        (speed(1.0), Check("ideal_share", "share of the bare loop", at_least=0.95), NO_ERRORS),
    ),
    Scenario(
        "mixed8",
        "8 clients, mixed prompts",
        8,
        mixture(8),
        all_at_once,
        (speed(1.8), DECODE, SHARE, NO_ERRORS),
    ),
    Scenario(
        "mixed32",
        "32 clients, mixed prompts",
        32,
        mixture(32),
        all_at_once,
        (speed(1.8), SHARE, NO_ERRORS),
    ),
    Scenario(
        "seeded",
        "8 clients, seeds, temperature 0.8",
        8,
        seeded,
        all_at_once,
        (speed(3.0), SHARE, NO_ERRORS),
    ),
    Scenario(
        "logprobs",
        "8 clients, top_logprobs 5, equal lengths",
        8,
        logprobs(True),
        all_at_once,
        (speed(1.0), SHARE, NO_ERRORS),
    ),
    Scenario(
        "logprobs_whole",
        "the same, not streamed",
        8,
        logprobs(False),
        all_at_once,
        (speed(1.0), SHARE, NO_ERRORS),
    ),
    Scenario(
        "interrupt",
        "4 streams decode, a 900-word prompt arrives",
        4,
        interruption,
        interrupt,
        (
            Check("gap_ratio", "longest gap against the peer", at_most=0.125),
            speed(1.0),
            SHARE,
            NO_ERRORS,
        ),
    ),
    Scenario(
        "conversations",
        "3 conversations × 6 turns, 500-word system prompt",
        3,
        conversations,
        converse,
        (
            ONCE,
            Check("time_ratio", "total time against the peer", at_most=0.75),
            Check("first_ratio", "median first token against the peer", at_most=0.4),
            SHARE,
            NO_ERRORS,
        ),
    ),
    Scenario(
        "prefix",
        "8 requests, one 2,000-token prefix",
        8,
        prefix,
        all_at_once,
        (ONCE, SHARE, NO_ERRORS),
    ),
    Scenario(
        "records",
        "8 clients held to a schema, and 8 free",
        0,
        records,
        held_and_free,
        (Check("held_ratio", "tokens/s of held against free clients", at_least=0.9), NO_ERRORS),
    ),
    Scenario(
        "vanish",
        "40 clients vanish mid-stream",
        0,
        vanishing,
        vanish,
        (
            Check("freed_seconds", "seconds until all rows are free", at_most=0.5),
            Check("next_first_ratio", "next first token against an idle server's", at_most=1.25),
            NO_ERRORS,
        ),
    ),
)
