"""What a server says once it is ready, on a terminal and in a log."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from terminals import lasting, on_a_terminal, plain

from mlx_server.amounts import count, duration, size
from mlx_server.api import DIALECTS
from mlx_server.config import Config
from mlx_server.server.http import HttpServer
from mlx_server.terminal.banner import KEY, REAL_MODEL, Facts, banner, log_lines, to_paste

COMMAND = [sys.executable, "-m", "mlx_server"]
FACTS = Facts(
    url="http://127.0.0.1:8080", listening=None, has_page=True, model="owner/model",
    name="owner/model", num_parameters=3_210_000_000, nbytes=1_810_000_000, bits=4,
    context_length=131072, kv_bytes=10_200_000_000,
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"),
        (8_420_000, "8.42 MB"), (40_100_000_000, "40.1 GB"), (5e15, "5000 TB"),
    ],
)  # fmt: skip
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12, "12"), (260_032, "260k"), (999_999, "1M"), (4_230_000, "4.23M"), (3.21e9, "3.21B"),
     (1e12, "1T")],
)  # fmt: skip
def test_counts(value: float, text: str) -> None:
    assert count(int(value)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.004, "0.004 s"), (0.0999, "0.10 s"), (1.239, "1.24 s"), (9.96, "10 s"), (59.6, "1:00"),
     (282, "4:42"), (3882, "1:04:42")],
)  # fmt: skip
def test_durations(value: float, text: str) -> None:
    assert duration(value) == text


# ---------------------------------------------------------------- the block


def test_the_block_has_every_fact() -> None:
    text = banner(FACTS)
    for fact in (
        "http://127.0.0.1:8080/  to chat", "owner/model, 3.21B parameters, 4-bit",
        "131,072 tokens", "1.81 GB of weights, up to 10.2 GB of keys and values",
    ):  # fmt: skip
        assert fact in text
    assert "\x1b" not in text and "demo" not in text and "TLS" not in text


CASES = {
    "plain": FACTS,
    "demo": replace(FACTS, is_demo=True, model="demo", name="demo"),
    "key": replace(FACTS, needs_key=True),
    "tls": replace(FACTS, url="https://[::1]:8080", certificate="/a b/it's.pem"),
    "encoder": replace(FACTS, kv_bytes=None),
    "odd name": replace(FACTS, name="a b$(id)"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("painted", [True, False])
def test_what_is_to_be_pasted_stands_by_itself(case: str, painted: bool) -> None:
    facts = CASES[case]
    paint = (lambda text, style: f"<{text}>") if painted else (lambda text, style: text)
    lines = banner(facts, paint).splitlines()
    for line in to_paste(facts):
        assert paint(line, "cyan") in lines


@pytest.mark.parametrize("case", CASES)
def test_a_shell_reads_the_lines_as_they_are_meant(case: str) -> None:
    facts = CASES[case]
    key = KEY if facts.needs_key else "not-needed"
    curl, export, *rest = map(shlex.split, to_paste(facts))
    assert curl[0] == "curl"
    assert json.loads(curl[curl.index("-d") + 1])
    assert (f"Authorization: Bearer {key}" in curl) is facts.needs_key
    assert ("--cacert" in curl) is (facts.certificate is not None)
    assert export == ["export", f"OPENAI_BASE_URL={facts.url}/v1", f"OPENAI_API_KEY={key}"]
    script = ";".join([to_paste(facts)[1], 'printf %s "$OPENAI_BASE_URL"'])
    assert subprocess.check_output(["sh", "-c", script], text=True) == f"{facts.url}/v1"
    assert bool(rest) is facts.generates  # an encoder edits no code
    if rest:
        assert rest[0][:3] == ["aider", "--model", f"openai/{facts.name}"]


def test_the_demo_is_told_in_exactly_one_line() -> None:
    for text in (banner(CASES["demo"]), "\n".join(log_lines(CASES["demo"]))):
        (line,) = [line for line in text.splitlines() if "this is the demo" in line.lower()]
        assert f"mlx_server --model {REAL_MODEL} " in line
    assert len(log_lines(CASES["demo"])) == 2 and len(log_lines(FACTS)) == 1


# ---------------------------------------------------------------- on a terminal

SCRIPT = """
import sys
from types import SimpleNamespace
from mlx_server import cli
from mlx_server.flags import read_command
from mlx_server.terminal import logs

config, _ = read_command(sys.argv[1:], {})
screen = logs.set_up(config)
server = SimpleNamespace(
    config=config, url="http://127.0.0.1:8080", listening=None, has_page=True
)
info = SimpleNamespace(
    num_parameters=260032, nbytes=1040128, bits=None, context_length=512, kv_bytes=10**9
)
entry = SimpleNamespace(name="owner/model", info=info, llm=object())
cli.announce(server, config)
cli.tell_ready(server, entry, screen)
cli.log.warning("behind it")
"""
"""What a server does once its model is loaded, without the seconds that this takes."""


def shown_by(flags: list[str], **environ: str | None) -> str:
    command = [sys.executable, "-c", SCRIPT, "--model", "owner/model", *flags]
    with on_a_terminal(command, **environ) as terminal:
        return terminal.read_until(lambda written: False, 60)


@pytest.mark.parametrize(
    ("environ", "flags", "colours", "block"),
    [
        ({"NO_COLOR": None}, [], True, True),
        ({"NO_COLOR": "1"}, [], False, True),
        ({"NO_COLOR": ""}, [], True, True),
        ({"TERM": "dumb", "NO_COLOR": None}, [], False, True),
        ({"TERM": None, "NO_COLOR": None}, [], False, True),
        ({"NO_COLOR": None}, ["--log-format", "json"], False, False),
        ({"NO_COLOR": None}, ["--log-level", "warning"], False, False),
    ],
)
def test_who_wants_no_colours_or_no_block_has_none(
    environ: dict, flags: list[str], colours: bool, block: bool
) -> None:
    written = shown_by(flags, **environ)
    assert ("\x1b[" in written) is colours
    assert ("export OPENAI_BASE_URL" in written) is block
    assert ("is ready" in written) is ("json" in flags)  # else the block says it, or nothing does
    assert written.count("behind it") == 1
    if "json" in flags:
        assert [json.loads(line)["level"] for line in written.splitlines()] == [
            "INFO", "INFO", "WARNING",
        ]  # fmt: skip
    if "warning" in flags:
        assert len(written.splitlines()) == 1


def test_the_key_is_never_shown_and_the_file_has_lines_only(tmp_path: Path) -> None:
    file = tmp_path / "log"
    written = shown_by(["--api-key", "hunter2", "--log-file", str(file)], NO_COLOR=None)
    assert KEY in written and "hunter2" not in written + file.read_text()
    assert "\x1b" in written and "\x1b" not in file.read_text()
    assert [line[9:].split(" (")[0] for line in file.read_text().splitlines()] == [
        "INFO listening on http://127.0.0.1:8080",
        "INFO owner/model is ready: 260k parameters, context 512 tokens, 1.04 MB of weights, up "
        "to 1 GB of keys and values",
        "WARNING behind it",
    ]


def test_a_pipe_gets_lines_and_no_block() -> None:
    command = [sys.executable, "-c", SCRIPT, "--model", "owner/model"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 3 and "\x1b" not in found.stderr


# ---------------------------------------------------------------- where it listens


@pytest.mark.parametrize(
    ("host", "url", "listening"),
    [
        ("127.0.0.1", "http://127.0.0.1:{port}", None),
        ("localhost", "http://localhost:{port}", None),
        ("0.0.0.0", "http://127.0.0.1:{port}", "0.0.0.0:{port}"),
        ("0", "http://127.0.0.1:{port}", "0.0.0.0:{port}"),
        ("", "http://127.0.0.1:{port}", "0.0.0.0:{port}"),
        ("::1", "http://[::1]:{port}", None),
        ("::", "http://[::1]:{port}", "[::]:{port}"),
    ],
)
def test_the_address_to_paste_works_from_this_machine(
    host: str, url: str, listening: str | None
) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    server = HttpServer(Config(host=host, port=0), DIALECTS, None)
    try:
        assert server.url == url.format(port=server.port)
        told = listening and f"{listening.format(port=server.port)}, all addresses of this machine"
        assert server.listening == told
        where = server.url.removeprefix("http://").rpartition(":")[0].strip("[]")
        socket.create_connection((where, server.port), timeout=10).close()
    finally:
        server.stop(0)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# ---------------------------------------------------------------- a running server


def test_the_lines_of_a_running_server_work(stories: Path, tmp_path: Path) -> None:
    """With a key and TLS, by the shortest name of a model that lies in a folder."""
    cert = trustme.CA().issue_cert("127.0.0.1")
    key_file, cert_file = tmp_path / "key.pem", tmp_path / "cert chain.pem"
    cert.private_key_pem.write_to_path(str(key_file))
    for blob in cert.cert_chain_pems:
        blob.write_to_path(str(cert_file), append=True)
    flags = ["--port", "0", "--model", str(stories / "stories260k-chat"), "--api-key", "hunter2"]
    flags += ["--ssl-key-file", str(key_file), "--ssl-cert-file", str(cert_file)]
    flags += ["--strict-model-names", "--no-webui"]
    with on_a_terminal([*COMMAND, *flags], HF_HUB_OFFLINE="1", MLX_SERVER_MAX_TOKENS="5") as seen:
        shown = plain(seen.read_until(lambda written: "\naider" in plain(written)))
        curl, aider = (
            next(line for line in shown.splitlines() if line.startswith(name))
            for name in ("curl ", "aider ")
        )
        assert f"--cacert '{cert_file}'" in curl and "curl -k" in shown and "to chat" not in shown
        name = shlex.split(aider)[2].removeprefix("openai/")
        assert name == "stories260k-chat"
        # The certificate is its own only root, which its chain does not have.
        curl = curl.replace("--cacert", "-k --cacert").replace(KEY, "hunter2")
        curl = curl.replace('{"messages"', f'{{"model":"{name}","messages"')
        found = subprocess.run(["sh", "-c", curl], capture_output=True, timeout=60)
        assert json.loads(found.stdout)["choices"][0]["message"]
        lines = lasting(seen.stop())
    assert any(line[9:].startswith("INFO POST /v1/chat/completions 200") for line in lines)
    assert lines[-2].endswith("INFO stopping")
