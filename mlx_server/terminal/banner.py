"""What the server says of itself once it is ready: a block on a terminal, lines in a log.

The lines to paste begin in the first column, hold nothing but themselves and are never wrapped
by us, so that what is copied is what is run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from mlx_server import __version__
from mlx_server.amounts import count, size

REAL_MODEL = "mlx-community/Llama-3.2-3B-Instruct-4bit"
KEY = "YOUR_API_KEY"
"""Stands for the key, which belongs on no screen and in no log. A word, since a shell reads
`<key>` as a file."""

_HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
_INPUT = {"input": "Hello"}

Paint = Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class Facts:
    """
    Args:
        url: Where a client on this machine reaches the server, without a path.
        listening: The address and port it listens on, where that is another.
        has_page: Whether there is a page at /.
        model: Its id; `name`: what clients may call it, where that is shorter.
        bits: Of a quantised weight; None: they are not quantised.
        kv_bytes: What keys and values may take; None: it only embeds.
        is_demo: It is the bundled demo, since nobody named a model.
        needs_key: Requests need a key.
        certificate: File of the certificate, with TLS.
    """

    url: str
    listening: str | None
    has_page: bool
    model: str
    name: str
    num_parameters: int
    nbytes: int
    bits: int | None
    context_length: int
    kv_bytes: int | None
    is_demo: bool = False
    needs_key: bool = False
    certificate: str | None = None

    @property
    def generates(self) -> bool:
        return self.kv_bytes is not None

    @property
    def size(self) -> str:
        bits = "" if self.bits is None else f", {self.bits}-bit"
        return f"{count(self.num_parameters)} parameters{bits}"

    @property
    def memory(self) -> str:
        weights = f"{size(self.nbytes)} of weights"
        if self.kv_bytes is None:
            return f"{weights}, embeddings only"
        return f"{weights}, up to {size(self.kv_bytes)} of keys and values"


def demo_line() -> str:
    return f"this is the demo; mlx_server --model {REAL_MODEL} runs a real model"


def log_lines(facts: Facts) -> list[str]:
    """What is logged when the model is ready; the address was before."""
    context = f"context {facts.context_length} tokens"
    lines = [f"{facts.model} is ready: {facts.size}, {context}, {facts.memory}"]
    return lines + [demo_line()] * facts.is_demo


def listening_line(url: str, listening: str | None) -> str:
    return f"listening on {url}" + ("" if listening is None else f" ({listening})")


def banner(facts: Facts, paint: Paint = lambda text, style: text) -> str:
    """The block, without the last newline.

    Args:
        paint: Gives a text its style, as `Screen.paint`.
    """
    rows = [
        ("Address", paint(f"{facts.url}/", "bold") + "  to chat" * facts.has_page),
        ("Model", f"{facts.model}, {facts.size}"),
        ("Context", f"{facts.context_length:,} tokens"),
        ("Memory", facts.memory),
    ]
    if facts.listening is not None:
        rows.insert(1, ("", f"listening on {facts.listening}"))
    if facts.certificate is not None:
        rows.append(("TLS", "clients must trust the certificate; curl -k does without"))
    block = [paint(f"mlx_server {__version__}", "bold")]
    block += ["  " + paint(title.ljust(9), "dim") + text for title, text in rows]
    if facts.is_demo:
        line = demo_line()
        block += ["", f"{line[0].upper()}{line[1:]}."]
    return "\n".join(["", *block, "", *(paint(line, "cyan") for line in to_paste(facts)), ""])


def to_paste(facts: Facts) -> list[str]:
    """Lines for a POSIX shell: a request, the variables of OpenAI's clients, aider."""
    base, key = f"{facts.url}/v1", KEY if facts.needs_key else "not-needed"
    words = ["curl"]
    if facts.certificate is not None:
        words += ["--cacert", facts.certificate]
    if facts.needs_key:
        words += ["-H", f"Authorization: Bearer {key}"]
    path, body = ("chat/completions", _HELLO) if facts.generates else ("embeddings", _INPUT)
    words += [f"{base}/{path}", "-d", json.dumps(body, separators=(",", ":"))]
    lines = [words, ["export", f"OPENAI_BASE_URL={base}", f"OPENAI_API_KEY={key}"]]
    if facts.generates:
        flags = ["--openai-api-base", base, "--openai-api-key", key]
        lines.append(["aider", "--model", f"openai/{facts.name}", *flags])
    return [shlex.join(line) for line in lines]
