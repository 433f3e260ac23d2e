"""GET /engine/figures: what runs now, in numbers, for the page at /engine/ and for scripts.

It answers whether or not --metrics and --slots are on, since it shows nobody's text; like
other routes it needs the key where there is one.
"""

from __future__ import annotations

from mlx_server.api.base import HttpRequest, Json, JsonReply, Pool, Route
from mlx_server.api.openai import OpenAIDialect
from mlx_server.services import LoadedModel, RowInfo


class EngineFigures(OpenAIDialect):
    def __init__(self) -> None:
        self.routes = (
            Route("GET", "/engine/figures", self.figures, "What runs now, in numbers: no text"),
        )

    def figures(self, http: HttpRequest, pool: Pool) -> JsonReply:
        """Seconds, bytes and tokens. `engine` has every figure of the engines; the counters among
        them only grow, so that a speed is the difference of two replies over that of their
        `uptime`."""
        found = pool.figures()
        body = {
            "version": found.version,
            "uptime": round(found.uptime, 3),
            "status": found.status,
            "device": found.device,
            "models": [model_body(model) for model in found.models],
            "engine": dict(found.engine),
            "outcomes": dict(found.outcomes),
            "rows": [row_body(row) for row in found.rows],
        }
        # Two readings are two states: none may be shown for another.
        return JsonReply(body, headers={"Cache-Control": "no-store"})


def model_body(model: LoadedModel) -> Json:
    return {
        "id": model.id,
        "kind": model.kind,
        "parameters": model.num_parameters,
        "bytes": model.nbytes,
        "context_length": model.context_length,
        "slots": model.num_slots,
        "adapters": [
            {"id": a.id, "name": a.name, "path": a.path, "scale": a.scale} for a in model.adapters
        ],
    }


def row_body(row: RowInfo) -> Json:
    return {
        "slot": row.slot,
        "model": row.model,
        "state": row.state,
        "prompt_tokens": row.num_prompt_tokens,
        "cached_tokens": row.num_cached_tokens,
        "prompt_tokens_done": row.num_prompt_done,
        "decoded_tokens": row.num_decoded,
        "tokens_left": row.num_left,
        "seconds": round(row.seconds, 3),
        "tokens_per_second": None if row.speed is None else round(row.speed, 2),
    }
