"""The `mlx_server` command: read the flags (flags.py), start, stop.

Heavy imports wait until the flags are read, so that `--help` is quick and the
port answers before the model is loaded.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_server import commands
from mlx_server.config import Config
from mlx_server.errors import ModelLoadError
from mlx_server.flags import read_command
from mlx_server.terminal import logs
from mlx_server.terminal.banner import Facts, banner, listening_line, log_lines
from mlx_server.terminal.progress import Reporter

if TYPE_CHECKING:
    from mlx_server.engine.worker import Worker
    from mlx_server.entry import Entry
    from mlx_server.server.http import HttpServer
    from mlx_server.terminal.screen import Screen

log = logging.getLogger("mlx_server")

GRACE = 5.0
"""Seconds that running requests get to finish after Ctrl-C or SIGTERM."""

_FAILED = 0  # no signal has this number


def main(argv: Sequence[str] | None = None) -> int:
    if (code := commands.dispatch(sys.argv[1:] if argv is None else argv)) is not None:
        return code
    config, ignored = read_command(argv)
    try:
        screen = logs.set_up(config)
    except OSError as error:
        print(f"mlx_server: --log-file {config.log_file}: {error.strerror}", file=sys.stderr)
        return 1
    misplaced = _misplaced(config)
    if misplaced is not None:
        _tell_failure(config, screen, misplaced)
        return 1
    if ignored:
        log.info("without a meaning on MLX, and ignored: %s", " ".join(ignored))
    try:
        return serve(config, screen)
    except KeyboardInterrupt:
        return 0


def _tell_failure(config: Config, screen: Screen, message: str) -> None:
    """Why there will be no server: one line, a log line only where programs read those."""
    if config.log_format == "json":
        log.critical("%s", message)
        return
    with contextlib.suppress(OSError, ValueError):
        screen.write(f"mlx_server: {message}")


def _misplaced(config: Config) -> str | None:
    """What is wrong with the places that are written to only later, in one line. The folder for
    slots is made if only it is missing."""
    folder, trace = config.slot_save_path, config.trace_file
    if folder is not None:
        try:
            # What is saved there holds what people wrote.
            Path(os.path.expanduser(folder)).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            return f"--slot-save-path {folder}: {error.strerror or error}"
    if trace is not None:
        file = Path(os.path.expanduser(trace))
        if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
            return f"--trace-file {trace}: no file can be written there"
    return None


def _raise_file_limit() -> None:
    """A shell on macOS allows 256 open files, fewer than the connections we accept."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(config: Config, screen: Screen) -> int:
    """Listen, load the model behind the open port, serve until told to stop.

    Args:
        screen: Where the progress of loading and the banner are shown.
    """
    from mlx_server.api import DIALECTS
    from mlx_server.engine.worker import Worker
    from mlx_server.pool import ModelPool
    from mlx_server.server.http import HttpServer, SetupError, describe_bind_error

    _raise_file_limit()
    worker = Worker(max_waiting=config.max_queue)
    progress = Reporter(screen)
    pool = ModelPool(config, worker, progress=progress)
    try:
        server = HttpServer(config, DIALECTS, pool)
    except SetupError as error:
        _tell_failure(config, screen, str(error))
        return 1
    except OSError as error:
        _tell_failure(config, screen, describe_bind_error(config, error))
        return 1
    news, post = _open_news()
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    announce(server, config)
    worker.start()
    loading = _Loading(pool.load_default, post, lambda entry: tell_ready(server, entry, screen))
    loading.start()
    _wait(news, worker)
    progress.close()
    if loading.error is None:
        log.info("stopping")
    elif isinstance(loading.error, ModelLoadError):
        _tell_failure(config, screen, loading.error.message)
    code = 0 if loading.error is None else 1
    server.stop(GRACE if code == 0 else 0, lambda: worker.stop(timeout=GRACE))
    stopped = worker.stop(timeout=GRACE)
    if config.trace_file is not None:
        _write_trace(worker, config.trace_file)
    if not stopped:
        # It is deep in a step; MLX would abort if the process ended around it.
        logging.shutdown()
        os._exit(code)
    return code


def _open_news() -> tuple[int, int]:
    """A pipe with a byte for whatever the main thread waits for: a signal's number, or _FAILED.

    Python's own C handler writes the numbers, at once, in whichever thread the system chose;
    no lock is involved, and nobody looks from time to time.
    """
    news, post = os.pipe()
    os.set_blocking(post, False)  # full: enough is on its way
    signal.set_wakeup_fd(post, warn_on_full_buffer=False)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)
    return news, post


def _wait(news: int, worker: Worker) -> None:
    """Until it is time to stop. SIGUSR1 has the numbers logged."""
    stats = getattr(signal, "SIGUSR1", None)
    while True:
        for number in os.read(news, 64):
            if number in (_FAILED, signal.SIGINT, signal.SIGTERM):
                return
            if number == stats:
                _log_stats(worker)


def _log_stats(worker: Worker) -> None:
    try:
        log.info("stats %s", json.dumps(worker.stats()))
    # Read while the engine runs, they may change on the way; that must end nothing.
    except Exception:
        log.exception("the numbers could not be read")


def _write_trace(worker: Worker, file: str) -> None:
    try:
        Path(os.path.expanduser(file)).write_text(json.dumps(worker.trace()), "utf-8")
    except OSError as error:
        log.error("--trace-file %s: %s", file, error.strerror or error)


class _Loading(threading.Thread):
    """Loads the default model beside the running server; a failure stops it."""

    def __init__(self, load: Callable[[], Entry], post: int, tell: Callable[[Entry], None]) -> None:
        super().__init__(name="loading", daemon=True)
        self.load = load
        self.post = post
        self.tell = tell
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            logs.adopt_libraries()
            entry = self.load()
        except Exception as error:
            if not isinstance(error, ModelLoadError):
                log.exception("the model could not be loaded")
            self.error = error
            os.write(self.post, bytes([_FAILED]))
            return
        self.tell(entry)


def announce(server: HttpServer, config: Config) -> None:
    """Tell the address; the model is still on its way."""
    log.info("%s", listening_line(server.url, server.listening))


def tell_ready(server: HttpServer, entry: Entry, screen: Screen) -> None:
    """Tell what is served now: in a block where somebody looks, and in lines of the log."""
    facts = _facts(server, entry)
    if screen.rich:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone; the server is not
            screen.write(banner(facts, screen.paint))
    for line in log_lines(facts):
        log.info("%s", line, extra={"drawn": screen.rich})


def _facts(server: HttpServer, entry: Entry) -> Facts:
    config, info = server.config, entry.info
    short = Path(entry.name).name if entry.name.startswith(("/", ".", "~")) else entry.name
    return Facts(
        url=server.url,
        listening=server.listening,
        has_page=server.has_page,
        model=entry.name,
        name=config.alias[0] if config.alias else short,
        num_parameters=info.num_parameters,
        nbytes=info.nbytes,
        bits=getattr(info, "bits", None),
        context_length=info.context_length,
        kv_bytes=getattr(info, "kv_bytes", None),
        is_demo=not config.model,
        needs_key=bool(config.api_key),
        certificate=config.ssl_cert_file,
    )
