"""Servers and pools that the tests talk to, each on a worker of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from models import SHARED

from mlx_server.api import DIALECTS
from mlx_server.config import Config
from mlx_server.engine.worker import Worker
from mlx_server.pool import ModelPool
from mlx_server.server.http import HttpServer

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def running_pool(start_dir: Path | None = None, **settings) -> Iterator[ModelPool]:
    config = Config(**settings)
    worker = Worker(config.max_queue)
    worker.start()
    pool = ModelPool(config, worker, start_dir)
    try:
        pool.load_default()
        yield pool
    finally:
        worker.stop()


@contextmanager
def running_server(start_dir: Path | None = None, **settings) -> Iterator[HttpServer]:
    settings = {"port": 0} | settings
    with running_pool(start_dir, **settings) as pool:
        server = HttpServer(pool.config, DIALECTS, pool)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop(0.5)
            thread.join(5)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "models").is_dir():
        pytest.skip("../shared is absent")
    return SHARED.resolve()


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    return shared / "models"


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., HttpServer]]:
    """Start a server with the given settings; it runs until the module's tests are done."""
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(running_server(*args, **settings))


@pytest.fixture(scope="module")
def open_pool() -> Iterator[Callable[..., ModelPool]]:
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(running_pool(*args, **settings))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; skips where it is not installed."""
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium")
    api = pytest.importorskip("playwright.sync_api")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LD_PRELOAD", raising=False)  # our BLAS is nothing for it
        playwright = api.sync_playwright().start()
    try:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield browser
        browser.close()
    finally:
        playwright.stop()
