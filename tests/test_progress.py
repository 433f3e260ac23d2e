"""How far downloads and loading are: told in bytes, drawn on a terminal, now and then in a log."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import tqdm
from mlx.utils import tree_flatten
from terminals import lasting, on_a_terminal, plain

from mlx_server.errors import ModelLoadError
from mlx_server.models import loader, read_in
from mlx_server.models.hub import resolve
from mlx_server.models.hub_bytes import counting, missing_bytes
from mlx_server.progress import UNTOLD
from mlx_server.terminal.progress import Reporter
from mlx_server.terminal.screen import Screen

LOGGER = "mlx_server.terminal.progress"
GB = 10**9


class Recorded:
    """A Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int | None]] = []
        self.steps: list[int] = []
        self.raised: list[bool] = []

    def begin(self, what: str, total: int | None) -> Recorded:
        self.begun.append((what, total))
        return self

    def advance(self, nbytes: int) -> None:
        self.steps.append(nbytes)

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        self.raised.append(kind is not None)


# ---------------------------------------------------------------- how it is told


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def time() -> Time:
    return Time()


def reporter(time: Time, stream: io.StringIO) -> Reporter:
    return Reporter(Screen(stream, environ={"TERM": "xterm"}), time)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == LOGGER]


def test_a_log_has_a_line_for_each_tenth(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    caplog.set_level(logging.INFO, LOGGER)
    with reporter(time, stream).begin("downloading o/m", 40 * GB) as task:
        for _ in range(400):  # 0.1 GB in each second
            time.now += 1
            task.advance(GB // 10)
    lines = told(caplog)
    assert lines[0] == "downloading o/m: 7 %, 3 GB of 40 GB, 100 MB/s, 6:10 left"
    assert len(lines) == 400 // 30 + 1  # 30 seconds are over before a tenth is done
    assert lines[-1] == "downloading o/m: 40 GB in 6:40"
    assert stream.getvalue() == ""  # nothing is drawn: the log alone has it


@pytest.mark.parametrize(
    ("seconds", "lines"), [(0.0625, 4), (0.5, 10), (10.0, 34), (0.00390625, 0)]
)  # of each of 100 steps
def test_how_many_lines_there_are(
    time: Time, caplog: pytest.LogCaptureFixture, seconds: float, lines: int
) -> None:
    """A quick download is no page of the log, a slow one says that it lives."""
    caplog.set_level(logging.INFO, LOGGER)
    with reporter(time, io.StringIO()).begin("x", 100) as task:
        for _ in range(100):
            time.now += seconds
            task.advance(1)
    assert len(told(caplog)) == lines


def test_without_a_total_there_are_bytes(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        task = reporter(time, io.StringIO()).begin("x", None)
        for _ in range(4):
            time.now += 10
            task.advance(5_000_000)
    assert told(caplog) == ["x: 15 MB, 500 kB/s"]


def test_a_bar_is_drawn_over_and_leaves_one_line(
    time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    stream = FakeTerminal()
    caplog.set_level(logging.INFO, LOGGER)
    with reporter(time, stream).begin("loading m", GB) as task:
        for _ in range(10):
            time.now += 0.3
            task.advance(GB // 10)
    drawn = stream.getvalue().split("\r\x1b[K")
    assert "loading m  [====>" in drawn[1] and "20 %, 200 MB of 1 GB" in drawn[1]
    assert "100 %" in drawn[-2] and drawn[-1] == ""
    assert "\n" not in stream.getvalue()
    # What the bar shows is for a log file only.
    assert [r.drawn for r in caplog.records[:-1]] == [True] * (len(caplog.records) - 1)
    assert not hasattr(caplog.records[-1], "drawn")
    assert told(caplog)[-1] == "loading m: 1 GB in 3.00 s"


@pytest.mark.parametrize("stream", [FakeTerminal(), io.StringIO()])
def test_of_what_is_quick_nothing_is_told(
    time: Time, stream: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    with reporter(time, stream).begin("loading m", 100) as task:
        for _ in range(100):
            time.now += 0.0049
            task.advance(1)
    assert told(caplog) == [] and stream.getvalue() == ""


def test_what_fails_is_not_told_as_done(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    stream = FakeTerminal()
    caplog.set_level(logging.INFO, LOGGER)
    with pytest.raises(OSError), reporter(time, stream).begin("x", 10) as task:
        time.now = 1
        task.advance(5)
        raise OSError
    assert told(caplog) == []
    assert stream.getvalue().endswith("\r\x1b[K")


def test_bytes_that_have_to_come_again_are_taken_back(time: Time) -> None:
    """As the hub library tells them where a download begins anew."""
    stream = FakeTerminal()
    with reporter(time, stream).begin("x", 100) as task:
        for step in (60, -60, 30):
            time.now += 1
            task.advance(step)
    assert [re.search(r"\d+ %", part)[0] for part in stream.getvalue().split("\r\x1b[K")[1:-1]] == [
        "60 %", "0 %", "30 %",
    ]  # fmt: skip


def test_two_at_once_share_the_line_and_closing_takes_it_away(time: Time) -> None:
    stream = FakeTerminal()
    made = reporter(time, stream)
    tasks = [made.begin("first", 100), made.begin("second", 100)]
    for task in tasks:
        time.now += 1
        task.advance(10)
    assert "first" in stream.getvalue() and stream.getvalue().endswith("(and 1 more)")
    made.close()
    tasks[0].advance(10)
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_long_name_is_cut_and_not_the_figures(time: Time) -> None:
    stream = FakeTerminal()
    name = "downloading " + "a" * 200 + "/the-end"
    with reporter(time, stream).begin(name, 100) as task:
        time.now = 1
        task.advance(10)
    bar = stream.getvalue().split("\r\x1b[K")[1]
    assert len(bar) < 80 and "e-end  [=>" in bar and "10 %" in bar


def test_many_threads_tell_at_once() -> None:
    made = Reporter(Screen(io.StringIO()))
    task = made.begin("x", 8000)
    threads = [
        threading.Thread(target=lambda: [task.advance(1) for _ in range(1000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert task.done == 8000


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("piece", [1, 100_000, 10**9])
@pytest.mark.parametrize("name", ["stories260k", "stories260K.gguf"])
def test_loading_tells_every_byte_and_changes_no_weight(
    stories: Path, name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_in, "PIECE", piece)
    progress = Recorded()
    loaded = loader.load(stories / name, name="m", progress=progress)
    ((what, total),) = progress.begun
    assert what == "loading m" and sum(progress.steps) == total
    assert progress.raised == [False]
    plain_one = loader.load(stories / name, name="m")
    theirs = dict(tree_flatten(plain_one.model.parameters()))
    for key, value in tree_flatten(loaded.model.parameters()):
        assert np.array_equal(np.array(value), np.array(theirs[key])), key
    if name == "stories260k":
        assert total == loaded.nbytes
        assert len(progress.steps) == {1: len(theirs), 10**9: 1}.get(piece, len(progress.steps))


def test_the_weights_are_in_memory_when_it_is_done(stories: Path, tmp_path: Path) -> None:
    """Lazy ones would need their file, which may be gone, and be read under a first request."""
    for file in (stories / "stories260k").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    loaded = loader.load(tmp_path, name="m")
    for file in tmp_path.iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)
    whole = loader.load(stories / "stories260k", name="m")
    found, expected = (tree_flatten(x.model.parameters()) for x in (loaded, whole))
    pairs = zip(found, expected, strict=True)
    assert all(a == b and mx.array_equal(x, y).item() for (a, x), (b, y) in pairs)


# ---------------------------------------------------------------- downloads


COMMIT = "b" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of huggingface.co as a download asks for. The weights come last."""

    files: dict[str, bytes] = {}
    wait_for = threading.Event()

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, has_body: bool) -> None:
        path = self.path.split("?")[0]
        name = path.removeprefix(f"/owner/m/resolve/{COMMIT}/")
        if path == "/api/models/owner/m/revision/main":
            self._send(json.dumps({"id": "owner/m", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/owner/m/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self._send(json.dumps(tree).encode())
        elif name in self.files:
            if has_body and name.endswith(".safetensors"):
                self.wait_for.wait(20)
            data = self.files[name]
            headers = {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(data, has_body, **headers)
        else:
            self.send_error(404)

    def _send(self, body: bytes, has_body: bool = True, **headers: str) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def fake_hub(folder: Path, wait_for: threading.Event) -> Iterator[str]:
    handler = type("Handler", (Hub,), {
        "files": {file.name: file.read_bytes() for file in sorted(folder.iterdir())},
        "wait_for": wait_for,
    })  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        wait_for.set()
        server.shutdown()
        server.server_close()


def hub_environ(url: str, cache: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": ""}  # fmt: skip


def test_a_download_is_drawn_told_and_served(stories: Path, tmp_path: Path) -> None:
    """The real hub library against a hub of ours: the bar, the log's lines, then the server."""
    wait, log_file = threading.Event(), tmp_path / "log"
    command = [sys.executable, "-m", "mlx_server", "--port", "0", "--model", "owner/m"]
    command += ["--log-file", str(log_file)]
    folder = stories / "stories260k"
    size = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".json", ".safetensors"))
    with (
        fake_hub(folder, wait) as url,
        on_a_terminal(command, NO_COLOR="1", **hub_environ(url, tmp_path / "cache")) as terminal,
    ):
        terminal.read_until(lambda written: "downloading" in written)
        threading.Timer(1.0, wait.set).start()
        written = terminal.read_until(lambda written: "\naider" in plain(written))
        terminal.stop()
    mb = f"{size / 1e6:.3g} MB"
    drawn = [part for part in re.split(r"[\r\n]+(?:\x1b\[K)?", written) if "[=" in part]
    assert drawn and f"of {mb}" in drawn[-1] and "100 %" in drawn[-1]
    lines = lasting(written)
    assert f"INFO downloading owner/m, {mb}" in [line[9:] for line in lines]
    assert any(re.search(rf"INFO downloading owner/m: {mb} in \d", line) for line in lines)
    assert not any("[=" in line or "it/s" in line for line in lines)  # neither ours nor tqdm's
    logged = log_file.read_text()
    assert "\r" not in logged and "\x1b" not in logged and "[=" not in logged
    assert f"downloading owner/m: {mb} in" in logged and "owner/m is ready" in logged


def test_the_total_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache already is no part of it; the files that come are."""
    progress, calls = Recorded(), []

    def snapshot_download(name: str, **options: Any) -> Any:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not cached")
        calls.append(options.get("dry_run", False))
        bars = options["tqdm_class"]
        if options.get("dry_run"):
            return [SimpleNamespace(file_size=size, will_download=new)
                    for size, new in ((100, True), (30, True), (7, False))]  # fmt: skip
        wire = bars(unit="B", total=0, name="huggingface_hub.snapshot_download.transfer")
        disk = bars(unit="B", total=0, name="huggingface_hub.snapshot_download")
        number = bars(total=2, desc="Fetching 2 files")
        for size in (100, 30):
            disk.total += size
            wire.update(size // 2)
            disk.update(size)
            number.update(1)
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        (tmp_path / "model.safetensors").write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert resolve("owner/m", progress=progress) == tmp_path
    assert calls == [True, False]
    assert progress.begun == [("downloading owner/m", 130)] and progress.steps == [100, 30]


def test_a_failed_download_ends_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **options: Any) -> Any:
        raise errors.LocalEntryNotFoundError("no network")

    progress = Recorded()
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelLoadError):
        resolve("owner/m", progress=progress)
    assert progress.begun == [("downloading owner/m", None)] and progress.raised == [True]


@pytest.mark.parametrize(
    ("files", "total"),
    [([], 0), ([(5, True), (6, False)], 5), ([(5, True), (None, True)], None),
     ([(None, False)], 0), (OSError("x"), None)],
)  # fmt: skip
def test_the_missing_bytes(files: Any, total: int | None) -> None:
    def snapshot(**options: Any) -> Any:
        assert options["dry_run"] is True
        if isinstance(files, Exception):
            raise files
        return [SimpleNamespace(file_size=size, will_download=new) for size, new in files]

    assert missing_bytes(snapshot) == total


def test_the_hubs_bars_draw_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Recorded()
    bars = counting(progress)
    assert issubclass(bars, tqdm)  # what the hub library asks for
    with bars(total=10, unit="B", unit_scale=True, desc="x", bar_format="{bar}") as bar:
        bar.total += 5
        bar.update(4)
        bar.update(None)
        bar.set_description("y")
        bar.set_postfix_str("z")
        bar.refresh()
    assert progress.steps == [4]
    assert capsys.readouterr() == ("", "")
    assert UNTOLD.begin("x", None).advance(3) is None


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
