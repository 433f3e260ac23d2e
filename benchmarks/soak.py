"""Thousands of mixed requests, some of whose clients vanish: does anything grow?

    python -m benchmarks.soak [--rounds 5] [--requests 600] [--model FOLDER]

Prints after each round the server's memory, threads, open files and its own numbers. The
memory for keys and values is kept small, so that the prefix cache evicts and rows wait.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.client import exchange, parse
from benchmarks.servers import Server, start_ours

CLIENTS = 24
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


def one_round(server: Server, number: int, requests: int) -> Counter[str]:
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

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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
    args = parser.parse_args()
    if args.model is None:
        from mlx_server import demo

        args.model = demo.path()
    with tempfile.TemporaryDirectory() as log:
        server = start_ours(args.model, Path(log), ["--max-kv-bytes", args.max_kv_bytes])
        try:
            server.wait_ready()
            for number in range(args.rounds):
                started = time.perf_counter()
                found = one_round(server, number, args.requests)
                seconds = time.perf_counter() - started
                time.sleep(1.0)
                assert server.child
                print(f"round {number + 1}: {dict(found)} in {seconds:.0f} s")
                print(f"    {process(server.child.process.pid)}")
                print(f"    {server.stats()}", flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
