"""The `mlx_server` command: flags from Config's fields, start, stop.

Heavy imports wait until the flags are read, so that `--help` is quick and the
port answers before the model is loaded.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any

from mlx_server import __version__
from mlx_server.config import Config, default_text, flag_name
from mlx_server.errors import ModelLoadError

if TYPE_CHECKING:
    from mlx_server.engine.worker import Worker
    from mlx_server.pool import Entry
    from mlx_server.server.http import HttpServer

log = logging.getLogger("mlx_server")

GRACE = 5.0
"""Seconds that running requests get to finish after Ctrl-C or SIGTERM."""

_FAILED = 0  # no signal has this number


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="mlx_server",
        description="Serve language models on MLX to the programs around them.",
        epilog="Every flag is also an environment variable: --max-tokens is MLX_SERVER_MAX_TOKENS.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=f"mlx_server {__version__}")
    groups: dict[str, Any] = {}
    for f in fields(Config):
        title = f.metadata["group"]
        if title not in groups:
            groups[title] = result.add_argument_group(title)
        _add_flag(groups[title], f)
    return result


def _add_flag(group: Any, f: Field) -> None:
    meta = f.metadata
    default = default_text(f)
    help_text = meta["help"] + (f" (default: {default})" if default else "")
    help_text = help_text.replace("%", "%%")
    if isinstance(f.default, bool):
        group.add_argument(
            flag_name(f), dest=f.name, action=argparse.BooleanOptionalAction, help=help_text
        )
        return
    group.add_argument(
        flag_name(f),
        dest=f.name,
        type=_named(meta["convert"]),
        action="append" if meta["repeat"] else "store",
        choices=meta["choices"],
        metavar=meta["metavar"] or (None if meta["choices"] else f.name.upper()),
        help=help_text,
    )


def _named(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse hides a ValueError's message; this keeps it."""

    def read(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return read


def read_config(argv: Sequence[str] | None) -> Config:
    result = parser()
    given = vars(result.parse_args(argv))
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    try:
        return Config.from_environment(**given)
    except ValueError as error:
        result.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    config = read_config(argv)
    logging.basicConfig(
        level=config.log_level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    # One line per request to the hub tells a user nothing.
    for noisy in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return serve(config)
    except KeyboardInterrupt:
        return 0


def _raise_file_limit() -> None:
    """A shell on macOS allows 256 open files, fewer than the connections we accept."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(config: Config) -> int:
    """Listen, load the model behind the open port, serve until told to stop."""
    from mlx_server.api import DIALECTS
    from mlx_server.engine.worker import Worker
    from mlx_server.pool import ModelPool
    from mlx_server.server.http import HttpServer, describe_bind_error

    _raise_file_limit()
    worker = Worker(max_waiting=config.max_queue)
    pool = ModelPool(config, worker)
    try:
        server = HttpServer(config, DIALECTS, pool)
    except OSError as error:
        print(f"mlx_server: {describe_bind_error(config, error)}", file=sys.stderr)
        return 1
    news, post = _open_news()
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    announce(server, config)
    worker.start()
    loading = _Loading(pool.load_default, post)
    loading.start()
    _wait(news, worker)
    if loading.error is None:
        log.info("stopping")
    elif isinstance(loading.error, ModelLoadError):
        print(f"mlx_server: {loading.error.message}", file=sys.stderr)
    code = 0 if loading.error is None else 1
    server.stop(GRACE if code == 0 else 0, lambda: worker.stop(timeout=GRACE))
    if not worker.stop(timeout=GRACE):
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


class _Loading(threading.Thread):
    """Loads the default model beside the running server; a failure stops it."""

    def __init__(self, load: Callable[[], Entry], post: int) -> None:
        super().__init__(name="loading", daemon=True)
        self.load = load
        self.post = post
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            entry = self.load()
        except Exception as error:
            if not isinstance(error, ModelLoadError):
                log.exception("the model could not be loaded")
            self.error = error
            os.write(self.post, bytes([_FAILED]))
            return
        info = entry.info
        log.info(
            "%s is ready: %.4gM parameters, %.4g MB, context %d tokens, up to %.4g GB of keys "
            "and values",
            entry.llm.name,
            info.num_parameters / 1e6,
            info.nbytes / 1e6,
            info.context_length,
            info.kv_bytes / 1e9,
        )


def announce(server: HttpServer, config: Config) -> None:
    """Tell the address, and how to run a real model when this is the demo."""
    log.info("listening on %s", server.url)
    if not config.model:
        log.info("this is the bundled demo; `mlx_server --model OWNER/NAME` runs a real model")
