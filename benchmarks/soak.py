"""Thousands of mixed requests, some of whose clients vanish: does anything grow?

    python -m benchmarks.soak [--rounds 5] [--requests 600] [--model FOLDER]
    python -m benchmarks.soak --short --rounds 5 --requests 1000 --clients 64

With --short they are short ones to nearly all endpoints, over connections that are kept;
some are refused, as the counts by status show: a model without fill-in-the-middle tokens
answers /infill with 501, one that is no cross-encoder /rerank.
Prints after each round the server's memory, threads, open files and its own numbers. The
memory for keys and values is kept small, so that the prefix cache evicts and rows wait.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.client import exchange, parse
from benchmarks.servers import Server, start_ours

WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "moon", "while", "it"),
    *("rained", "in", "old", "town"),
)


def body(rng: random.Random, shared: Sequence[str]) -> dict[str, Any]:
    """A request of any kind that the server knows."""
    text = rng.choice(shared) + " ".join(rng.choices(WORDS, k=rng.choice([1, 5, 40, 150])))
    options: dict[str, Any] = {
        "temperature": rng.choice([0, 0.8]),
        "n": rng.choice([1, 1, 1, 3]),
        "seed": rng.randrange(100),
        "logprobs": rng.random() < 0.2,
        "frequency_penalty": rng.choice([0, 0.5]),
        "stop": rng.choice([None, ["moon"]]),
    }
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": rng.choice([1, 8, 40]),
        "stream": True,
    } | options


def one_round(server: Server, number: int, requests: int, clients: int) -> Counter[str]:
    """How the round's requests ended."""
    rng = random.Random(number)
    shared = ["", *(" ".join(rng.choices(WORDS, k=n)) + " " for n in (20, 60, 120))]
    bodies = [body(rng, shared) for _ in range(requests)]
    vanishing = [rng.random() < 1 / 6 for _ in bodies]
    found: Counter[str] = Counter()
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                if not bodies:
                    return
                request, leaves = bodies.pop(), vanishing.pop()
            watch = (lambda events: events >= 2) if leaves else None
            reply = parse(exchange(server.endpoint, request, watch))
            with lock:
                found["vanished" if leaves else reply.error or "answered"] += 1

    in_threads(client, clients)
    return found


def in_threads(client: Callable[[], None], number: int) -> None:
    threads = [threading.Thread(target=client) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---------------------------------------------------------------- short ones, connections kept


Asked = tuple[str, str, Any]
"""Method, path and body of a request."""


def short(rng: random.Random) -> Asked:
    """A request that costs a few tokens at most."""
    text = " ".join(rng.choices(WORDS, k=rng.choice([1, 3, 10])))
    return rng.choice(rng.choice([replies(rng, text), conversions(text), states(rng)]))


def replies(rng: random.Random, text: str) -> list[Asked]:
    stream, seed = rng.random() < 0.5, rng.randrange(100)
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "stream": stream}
    known = rng.random() < 0.5
    return [
        ("POST", "/completion", {"prompt": text, "n_predict": 2, "stream": stream, "seed": seed,
                                 "cache_prompt": known}),
        ("POST", "/completion", {"prompt": text, "n_predict": 2, "id_slot": rng.randrange(8)}),
        ("POST", "/completion", {"prompt": [text, text], "n_predict": 1, "n_probs": 2}),
        ("POST", "/completion", {"prompt": text, "n_predict": 2, "mirostat": 2, "seed": seed}),
        ("POST", "/completion", {"prompt": text, "n_predict": 0}),
        ("POST", "/completion", {"prompt": text, "n_predict": "many"}),  # refused
        ("GET", "/completion", {"prompt": text, "n_predict": 1}),
        ("POST", "/infill", {"input_prefix": text, "input_suffix": text, "n_predict": 2}),
        ("POST", "/v1/completions", {"prompt": text, "max_tokens": 2, "stream": stream}),
        ("POST", "/v1/chat/completions", chat | {"seed": seed}),
        ("POST", "/v1/chat/completions/input_tokens", chat),
    ]  # fmt: skip


def conversions(text: str) -> list[Asked]:
    return [
        ("POST", "/tokenize", {"content": text, "with_pieces": True}),
        ("POST", "/detokenize", {"tokens": [65, 66, 67]}),
        ("POST", "/apply-template", {"messages": [{"role": "user", "content": text}]}),
        ("POST", "/embedding", {"content": text}),
        ("POST", "/v1/embeddings", {"input": [text, "the end"], "encoding_format": "base64"}),
        ("POST", "/rerank", {"query": text, "documents": [text]}),
    ]


def states(rng: random.Random) -> list[Asked]:
    slot, file = rng.randrange(8), {"filename": f"{rng.randrange(4)}.bin"}
    return [
        ("GET", "/slots", None),
        ("POST", f"/slots/{slot}?action=save", file),  # refused of a slot that had nothing yet
        ("POST", f"/slots/{slot}?action=restore", file),
        ("POST", f"/slots/{slot}?action=erase", {}),
        ("POST", "/lora-adapters", []),
        ("GET", "/lora-adapters", None),
        ("GET", "/health", None),
        ("GET", "/props", None),
        ("GET", "/metrics", None),
        ("GET", "/stats", None),
        ("POST", "/chat/reset", {}),
        ("GET", "/v1/models", None),
        ("GET", "/completion.js", None),
        ("GET", "/docs", None),
        ("GET", "/openapi.json", None),
        ("GET", "/nowhere", None),
    ]


def short_round(server: Server, number: int, requests: int, clients: int) -> Counter[str]:
    """How the round's requests ended, each counted by its path and status."""
    rng = random.Random(number)
    wanted = [(*short(rng), rng.random() < 1 / 16) for _ in range(requests)]
    found: Counter[str] = Counter()
    lock = threading.Lock()

    def client() -> None:
        link = http.client.HTTPConnection(server.endpoint.host, server.endpoint.port, timeout=120)
        while True:
            with lock:
                if not wanted:
                    break
                method, path, fields, leaves = wanted.pop()
            kind = re.sub(r"\d+\?action=", "", path)
            try:
                link.request(method, path, None if fields is None else json.dumps(fields))
                if leaves:
                    ended = "vanished"
                    link.close()
                else:
                    reply = link.getresponse()
                    reply.read()
                    ended = f"{kind} {reply.status}"
            except (OSError, http.client.HTTPException) as error:
                ended = f"{kind} {type(error).__name__}"
                link.close()
            with lock:
                found[ended] += 1
        link.close()

    in_threads(client, clients)
    return found


def process(pid: int) -> str:
    """Memory, threads and open files; empty where the system does not tell (macOS)."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return ""
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resident = int(fields["VmRSS"].split()[0]) / 1024
    return f"{resident:.0f} MB, {fields['Threads'].strip()} threads, {files} files"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=600, help="per round")
    parser.add_argument("--model", type=Path, help="the bundled demo model if left out")
    parser.add_argument("--max-kv-bytes", default="64MB")
    parser.add_argument("--clients", type=int, default=24, help="at the same time")
    parser.add_argument("--short", action="store_true", help="short requests, connections kept")
    args = parser.parse_args()
    if args.model is None:
        from mlx_server import demo

        args.model = demo.path()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max-kv-bytes", args.max_kv_bytes, "--metrics", "--slot-save-path", folder]
        server = start_ours(args.model, Path(folder), flags)
        try:
            server.wait_ready()
            for number in range(args.rounds):
                started = time.perf_counter()
                run = short_round if args.short else one_round
                found = run(server, number, args.requests, args.clients)
                seconds = time.perf_counter() - started
                time.sleep(1.0)
                assert server.child
                print(f"round {number + 1}: {dict(sorted(found.items()))} in {seconds:.0f} s")
                print(f"    {process(server.child.process.pid)}")
                print(f"    {server.stats()}", flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
