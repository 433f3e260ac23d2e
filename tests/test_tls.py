"""TLS with a certificate made here: all that plain HTTP does, and how it goes wrong."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from test_http import EVENTS, WAIT, Client, Running, eventually, serving
from test_pump import Source, SourceDialect

from mlx_server.config import Config
from mlx_server.server import tls
from mlx_server.server.http import HttpServer
from mlx_server.server.tls import SetupError

trustme = pytest.importorskip("trustme")


@dataclass
class Files:
    key: str
    cert: str
    authority: str

    @property
    def settings(self) -> dict[str, str]:
        return {"ssl_key_file": self.key, "ssl_cert_file": self.cert}

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    made = authority.issue_cert("localhost", "127.0.0.1")
    made.private_key_pem.write_to_path(folder / "key.pem")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return Files(*(str(folder / f"{name}.pem") for name in ("key", "cert", "ca")))


@pytest.fixture(scope="module")
def running(files: Files) -> Iterator[Running]:
    settings = {**files.settings, "webui": False}
    with serving(tls=files.client(), max_request_bytes=1000, **settings) as running:
        yield running


@contextlib.contextmanager
def streaming(files: Files, sources: list[Source]) -> Iterator[Running]:
    with serving(SourceDialect(sources), tls=files.client(), **files.settings) as running:
        yield running


def begin(running: Running, number: int) -> Client:
    client = running.client().post(f"/source/{number}")
    assert client.head().status == 200
    return client


# ---------------------------------------------------------------- what works as without


def test_the_address_says_https_and_a_checked_certificate_is_accepted(
    running: Running, files: Files
) -> None:
    assert running.server.url.startswith("https://127.0.0.1:")
    trust = {"verify": files.authority}
    with requests.Session() as session:
        for number in range(3):
            reply = session.post(f"{running.server.url}/echo?n={number}", data=b"body", **trust)
            assert reply.json()["body"] == "body"
        url = f"{running.server.url}/stream"
        with session.post(url, data=b"{}", stream=True, **trust) as stream:
            assert b"".join(stream.iter_content(None)) == b"".join(EVENTS)


def test_a_stranger_to_the_authority_does_not_trust_it(running: Running) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{running.server.url}/health")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_connection_serves_many_requests(
    running: Running, files: Files, version: ssl.TLSVersion
) -> None:
    context = files.client()
    context.minimum_version = context.maximum_version = version
    client = Client(running.server.port, context)
    for number in range(3):
        assert client.post(f"/echo?n={number}").answer().json()["query"] == {"n": [str(number)]}
    client.send(b"GET / HTTP/1.1\r\n\r\n" * 3)  # in one record
    assert [client.answer().status for _ in range(3)] == [200] * 3
    client.close()


def test_an_older_version_is_refused(running: Running, files: Files) -> None:
    context = files.client()
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        Client(running.server.port, context)


def test_the_end_of_a_connection_is_announced(running: Running) -> None:
    client = running.client().send("POST /stream HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
    # Read to its end: without TLS's own end this raises.
    assert client.answer().body == b"".join(EVENTS)


def test_what_is_too_large_is_answered_and_ended(running: Running) -> None:
    client = running.client().send("POST /echo HTTP/1.1\r\nContent-Length: 5000\r\n\r\n")
    client.send(b"x" * 5000)
    assert client.answer().status == 413
    assert client.at_end()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_talks_to_it(running: Running, files: Files) -> None:
    address = f"localhost:{running.server.port}"
    command = ["openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", files.authority]
    request = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
    found = subprocess.run(
        [*command, "-connect", address, "-servername", "localhost", "-ign_eof"],
        input=request, capture_output=True, timeout=WAIT,
    )  # fmt: skip
    assert found.stdout.startswith(b"HTTP/1.1 200 OK")


# ---------------------------------------------------------------- streams


def test_each_event_is_sent_at_once(files: Files) -> None:
    sources = [Source()]
    with streaming(files, sources) as running:
        client = begin(running, 0)
        for number in range(3):
            sources[0].put({"n": number})
            assert client.chunk() == b'data: {"n":%d}\n\n' % number
        sources[0].put("[DONE]", "end")
        assert [client.chunk(), client.chunk()] == [b"data: [DONE]\n\n", b""]
        sources.append(Source())  # and the connection goes on
        sources[1].put("end")
        assert client.post("/source/1").answer().body == b""


def test_one_that_reads_late_gets_all_of_it_and_holds_up_nobody(files: Files) -> None:
    sources = [Source(), Source()]
    with streaming(files, sources) as running:
        slow, quick = begin(running, 0), begin(running, 1)
        texts = [f"{number}" * (10_000 * (number % 30 + 1)) for number in range(60)]
        sources[0].put(*({"t": text} for text in texts), "end")
        for number in range(20):
            sources[1].put({"n": number})
            assert quick.chunk() == b'data: {"n":%d}\n\n' % number
        assert [slow.chunk() for _ in texts] == [
            b'data: {"t":"%b"}\n\n' % t.encode() for t in texts
        ]
        assert slow.chunk() == b""


def test_one_that_never_reads_is_given_up(files: Files) -> None:
    sources = [Source()]
    settings = {"read_timeout": 0.5, **files.settings}
    with serving(SourceDialect(sources), tls=files.client(), **settings) as running:
        begin(running, 0)
        sources[0].put(*({"text": "x" * 100_000} for _ in range(200)))
        assert eventually(lambda: sources[0].closed)


def abandon(client: Client) -> None:
    """TCP's end without TLS's own."""
    socket.socket.shutdown(client.sock, socket.SHUT_RDWR)


def end_properly(client: Client) -> None:
    with contextlib.suppress(OSError):
        client.sock.setblocking(False)
        client.sock.unwrap()
    client.close()


@pytest.mark.parametrize("leave", [Client.close, Client.reset, abandon, end_properly])
@pytest.mark.parametrize("path", ["/hold", "/hold-stream"])
def test_a_gone_client_is_noticed(
    files: Files, path: str, leave: Callable[[Client], None], caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tls=files.client(), **files.settings) as running:
        client = running.client().post(path)
        assert running.pool.started.acquire(timeout=WAIT)
        leave(client)
        assert running.pool.cancelled.wait(WAIT)
        assert eventually(lambda: not running.server._running)
    assert "Traceback" not in caplog.text


def test_a_waiting_pipelined_request_is_no_disconnect(running: Running) -> None:
    client = running.client().post("/hold")
    assert running.pool.started.acquire(timeout=WAIT)
    client.send("GET / HTTP/1.1\r\n\r\n")
    time.sleep(0.2)
    assert not running.pool.cancelled.is_set()
    running.pool.release.set()
    assert client.answer().json() == {"held": True}
    assert client.answer().json() == {"status": "ok"}
    running.pool.release.clear()


# ---------------------------------------------------------------- handshakes that fail


def test_plain_http_is_told_so(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(running.server.port).send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = client.answer()
    assert answer.status == 400
    assert b"https://" in answer.body
    assert client.at_end()
    client.close()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("data", [b"", b"\x00" * 20, b"\x16\x03\x01\x02\x00\x01\x00", b"\xff\n"])
def test_what_is_no_handshake_is_dropped_quietly(
    running: Running, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", running.server.port), WAIT) as sock:
        sock.sendall(data)
        with contextlib.suppress(OSError):  # closed or reset already
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):  # at most an alert
                pass
    assert eventually(lambda: not running.server._running)
    assert running.client().send("GET / HTTP/1.1\r\n\r\n").answer().status == 200
    assert "Traceback" not in caplog.text


def test_a_slow_handshake_holds_up_nobody_and_is_ended(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.5)
    with serving(tls=files.client(), **files.settings) as running:
        slow = socket.create_connection(("127.0.0.1", running.server.port), WAIT)
        slow.sendall(b"\x16\x03\x01")
        assert running.client().send("GET / HTTP/1.1\r\n\r\n").answer().status == 200
        sent = 3
        with contextlib.suppress(OSError):  # each byte is in time, the whole never is
            while sent < 200 and not _ended(slow):
                slow.sendall(b"\x00" if sent > 4 else b"\x40")
                sent += 1
        assert sent < 200
        assert eventually(lambda: len(running.server._open) == 1)
        slow.close()


def _ended(sock: socket.socket) -> bool:
    sock.settimeout(0.05)
    try:
        return sock.recv(4096) == b""
    except TimeoutError:
        return False


def test_stop_cuts_handshakes_and_streams(files: Files) -> None:
    with serving(tls=files.client(), **files.settings) as running:
        unready = socket.create_connection(("127.0.0.1", running.server.port), WAIT)
        stream = running.client().post("/endless")
        stream.head()
        running.server.stop(0.1)
        assert running.pool.closed.wait(WAIT)
        assert not running.server._open
        with contextlib.suppress(ConnectionResetError):
            assert unready.recv(1) == b""
        unready.close()


def test_one_connection_too_many_is_closed(files: Files) -> None:
    with serving(tls=files.client(), max_connections=1, **files.settings) as running:
        first = running.client()
        assert first.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200
        with pytest.raises(OSError):
            running.client()
        assert first.send("GET / HTTP/1.1\r\n\r\n").answer().status == 200


# ---------------------------------------------------------------- settings that do not fit


def start(**settings: str) -> None:
    server = HttpServer(Config(port=0, **settings), [SourceDialect([])], None)
    server.stop(0.0)


def encrypted(files: Files, folder: Path) -> str:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(Path(files.key).read_bytes(), None)
    pem = key.private_bytes(
        s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret")
    )
    (folder / "encrypted.pem").write_bytes(pem)
    return str(folder / "encrypted.pem")


def other_key(files: Files, folder: Path) -> str:
    trustme.CA().issue_cert("x").private_key_pem.write_to_path(folder / "other.pem")
    return str(folder / "other.pem")


def garbage(files: Files, folder: Path) -> str:
    (folder / "garbage.pem").write_text("no key")
    return str(folder / "garbage.pem")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (lambda files, folder: str(folder / "nowhere.pem"), "No such file"),
        (lambda files, folder: str(folder), "Is a directory"),
        (encrypted, "encrypted"),
        (other_key, "is not the key of"),
        (garbage, "PEM"),
    ],
)
def test_a_wrong_key_is_one_line(
    files: Files, tmp_path: Path, key: Callable[[Files, Path], str], message: str
) -> None:
    with pytest.raises(SetupError) as caught:
        start(ssl_key_file=key(files, tmp_path), ssl_cert_file=files.cert)
    line = str(caught.value)
    assert message in line and "--ssl-key-file" in line and "\n" not in line
    assert "secret" not in line


def test_the_command_says_so_and_ends(files: Files, tmp_path: Path) -> None:
    flags = ["--port", "0", "--ssl-cert-file", files.cert, "--ssl-key-file"]
    found = subprocess.run(
        [sys.executable, "-m", "mlx_server", *flags, other_key(files, tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 1
    assert len(found.stderr.splitlines()) == 1 and "is not the key of" in found.stderr


def test_many_handshakes_at_once(files: Files) -> None:
    with serving(tls=files.client(), **files.settings) as running:
        statuses: list[int] = []

        def ask() -> None:
            client = Client(running.server.port, files.client())
            statuses.append(client.send("GET / HTTP/1.1\r\n\r\n").answer().status)
            client.close()

        threads = [threading.Thread(target=ask) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert statuses == [200] * 32
