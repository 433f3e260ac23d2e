"""Starting, pausing and stopping what is measured."""

from __future__ import annotations

import json
import os
import platform
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from benchmarks.client import Endpoint, exchange, parse
from benchmarks.metrics import Bare

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT = 300.0


def openblas() -> str | None:
    """What LD_PRELOAD needs for OpenBLAS on Debian and Ubuntu; None where it is absent."""
    folder = Path(f"/usr/lib/{platform.machine()}-linux-gnu/openblas-pthread")
    files = [folder / "libblas.so.3", folder / "libopenblas.so.0"]
    return ":".join(map(str, files)) if all(f.exists() for f in files) else None


def environment(root: Path = ROOT) -> dict[str, str]:
    """Alike for all that is measured."""
    env = dict(os.environ, PYTHONPATH=str(root), HF_HUB_OFFLINE="1", PYTHONUNBUFFERED="1")
    preload = openblas() if sys.platform == "linux" else None
    if preload:
        env["LD_PRELOAD"] = preload
    return env


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Child:
    """A process of ours: it sleeps while it is not its turn, and dies with us.

    Args:
        log: What it prints on stderr goes there, but for lines with `stats {...}`.
        root: The checkout that it runs in.
    """

    def __init__(
        self, command: list[str], log: Path, root: Path = ROOT, stdin: int | None = None
    ) -> None:
        self.log = log
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env=environment(root),
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.stats: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read_log, daemon=True).start()

    def _read_log(self) -> None:
        assert self.process.stderr
        with self.log.open("w") as out:
            for line in self.process.stderr:
                found = re.search(r"\bstats (\{.*\})", line)
                if found:
                    self.stats.put(json.loads(found[1]))
                else:
                    out.write(line)
                    out.flush()

    def pause(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def tail(self) -> str:
        return self.log.read_text()[-2000:]


class Server:
    """One server under measurement; `child` is None for one that somebody else runs."""

    def __init__(self, name: str, endpoint: Endpoint, child: Child | None = None) -> None:
        self.name = name
        self.endpoint = endpoint
        self.child = child
        self._tells = True

    def wait_ready(self) -> None:
        """Until it answers a request.

        Raises:
            RuntimeError: It ended, or takes too long.
        """
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            reply = parse(exchange(self.endpoint, body))
            if reply.error is None:
                return
            if self.child and self.child.process.poll() is not None:
                break
            time.sleep(0.2)
        raise RuntimeError(
            f"{self.name} does not answer. {self.child.tail() if self.child else ''}"
        )

    def stats(self, timeout: float = 1.0) -> dict[str, Any] | None:
        """What our server logs on SIGUSR1; None for any other, or if it does not."""
        if self.child is None or not self._tells or not _handles_usr1(self.child.process.pid):
            return None
        while not self.child.stats.empty():
            self.child.stats.get()
        self.child.process.send_signal(signal.SIGUSR1)
        try:
            return self.child.stats.get(timeout=timeout)
        except queue.Empty:
            self._tells = False
            return None

    def pause(self) -> None:
        if self.child:
            self.child.pause()

    def resume(self) -> None:
        if self.child:
            self.child.resume()

    def stop(self) -> None:
        if self.child:
            self.child.stop()


def _handles_usr1(pid: int) -> bool:
    """Whether the process has a handler; without one the signal would kill it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return sys.platform == "darwin"
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(found and int(found[1], 16) >> (signal.SIGUSR1 - 1) & 1)


# ---------------------------------------------------------------- the three kinds


def start_ours(model: Path, log: Path, extra: list[str], root: Path = ROOT) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "mlx_server", "--model", str(model), "--port", str(port)]
    child = Child([*command, *extra], log / "ours.log", root)
    return Server("ours", Endpoint("127.0.0.1", port), child)


def start_peer(model: Path, log: Path) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model)]
    child = Child([*command, "--host", "127.0.0.1", "--port", str(port)], log / "peer.log")
    return Server("peer", Endpoint("127.0.0.1", port), child)


def running_peer(url: str) -> Server:
    """Any OpenAI-compatible server, `http://host:port` with or without `/v1`."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    endpoint = Endpoint(
        parts.hostname or "127.0.0.1", parts.port or 80, prefix=parts.path.rstrip("/") or "/v1"
    )
    base = f"http://{endpoint.host}:{endpoint.port}{endpoint.prefix}"
    with urlopen(f"{base}/models", timeout=10) as reply:
        models = json.load(reply)["data"]
    return Server("peer", replace(endpoint, model=models[0]["id"]) if models else endpoint)


class BareLoop:
    """The bare loop in a process of its own, which keeps the model loaded."""

    def __init__(self, model: Path, log: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.bare", "--model", str(model), "--serve"]
        self.child = Child(command, log / "bare.log", stdin=subprocess.PIPE)

    def measure(self, batch: int, prompt: int, context: int, steps: int) -> Bare:
        """Args: rows, the prompt's tokens, the context's tokens, decode steps to time."""
        process = self.child.process
        assert process.stdin and process.stdout
        wanted = {"batch": batch, "prompt": prompt, "context": context, "steps": steps}
        self.child.resume()
        process.stdin.write(json.dumps(wanted) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare loop ended. {self.child.tail()}")
        self.child.pause()
        return Bare(**json.loads(line))

    def stop(self) -> None:
        self.child.stop()
