"""A script for llama-server, as it is: only the address is another (standard library alone).

MLX_SERVER_URL=http://127.0.0.1:8080 python examples/llama_server.py
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.request import Request, urlopen

URL = os.environ.get("MLX_SERVER_URL", "http://127.0.0.1:8080")
HEADERS = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'not-needed')}"}


def get(path: str) -> Any:
    with urlopen(Request(URL + path, headers=HEADERS)) as reply:
        return json.load(reply)


def post(path: str, body: Any) -> Any:
    return json.load(send(path, body))


def send(path: str, body: Any) -> Any:
    return urlopen(Request(URL + path, json.dumps(body).encode(), HEADERS))


def main() -> None:
    props = get("/props")
    print(f"{props['model_path']}: {props['total_slots']} slots, context {props['n_ctx']}")

    prompt = "Building a website can be done in 10 simple steps:"
    tokens = post("/tokenize", {"content": prompt, "with_pieces": True})["tokens"]
    print("tokens:", " ".join(str(token["id"]) for token in tokens))

    options = {"prompt": prompt, "n_predict": 24, "mirostat": 2, "seed": 1, "n_probs": 2}
    whole = post("/completion", options)
    print("whole:", json.dumps(whole["content"]))
    print("speed:", round(whole["timings"]["predicted_per_second"]), "tokens a second")

    streamed = ""
    with send("/completion", {**options, "stream": True}) as events:
        for line in events:
            if line.startswith(b"data: "):
                streamed += json.loads(line[len(b"data: ") :])["content"]
    print("streamed:", "the same" if streamed == whole["content"] else json.dumps(streamed))

    steps = {"type": "integer", "minimum": 1, "maximum": 20}
    schema = {
        "type": "object",
        "properties": {"steps": steps},
        "required": ["steps"],
        "additionalProperties": False,
    }
    held = post("/completion", {"prompt": prompt, "json_schema": schema, "n_predict": 64})
    print("by a schema:", held["content"])

    slots = get("/slots")
    busy = sum(slot["is_processing"] for slot in slots)
    print(f"slots: {busy} of {len(slots)} at work")


if __name__ == "__main__":
    main()
