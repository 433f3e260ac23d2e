"""How log lines look and where they go: the screen, and the file of --log-file.

A record may have `fields` (a mapping that JSON shows beside the text) and `drawn` (the screen
shows the same in another way: as a bar, as the banner).
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mlx_server.config import Config
from mlx_server.terminal.screen import Screen

_NOISY = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "filelock")
"""One line per request to the hub tells a user nothing."""

_OWN_HANDLERS = ("huggingface_hub", "transformers")
"""Libraries that write their warnings to stderr by themselves."""

_STYLES = {"DEBUG": "dim", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}

# But for the tab and the newline: a client's text must steer no terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def set_up(config: Config) -> Screen:
    """Have the log written, to the screen that is given back.

    Raises:
        OSError: The log file cannot be written.
    """
    as_json = config.log_format == "json"
    quiet = logging.getLevelNamesMapping()[config.log_level] > logging.INFO
    # There is none where whoever started us has closed it.
    stream = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    screen = Screen(stream, plain=as_json or quiet)
    handlers: list[logging.Handler] = [ScreenHandler(screen)]
    handlers[0].setFormatter(JsonFormatter() if as_json else TextFormatter(screen))
    if config.log_file:
        file = os.path.expanduser(config.log_file)
        mode = "a" if config.log_append else "w"
        handlers.append(logging.FileHandler(file, mode, "utf-8", errors="backslashreplace"))
        handlers[1].setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=config.log_level, handlers=handlers)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if as_json:  # nothing else may stand between the lines
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda args: _log_uncaught(
            args.exc_type, args.exc_value, args.exc_traceback
        )
    return screen


def adopt_libraries() -> None:
    """Have the libraries' own warnings go where ours go: they would cut into a bar, and be no
    JSON. Imports them, which takes a second or two."""
    # At its import transformers would advise everybody to install PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name in _OWN_HANDLERS:
        importlib.import_module(f"{name}.utils.logging").get_logger()  # sets its handler up
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def _log_uncaught(kind: Any, error: Any, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        logging.getLogger("mlx_server").critical("failed", exc_info=(kind, error, trace))


class ScreenHandler(logging.Handler):
    """Writes a record between the bars. What is `drawn` it leaves out."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "drawn", False):
            return
        try:
            self._screen.write(self.format(record))
        except Exception:
            self.handleError(record)


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO message`, with control characters as escapes.

    Args:
        screen: Where it is shown, if it may have colours there.
    """

    def __init__(self, screen: Screen | None = None) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._screen = screen

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        for more in (record.exc_text, record.stack_info):
            text += f"\n{more}" if more else ""
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
        time, level = self.formatTime(record, self.datefmt), record.levelname
        if self._screen is not None:
            time = self._screen.paint(time, "dim")
            if level in _STYLES:
                level = self._screen.paint(level, _STYLES[level])
        return f"{time} {level} {text}"


class JsonFormatter(logging.Formatter):
    """One object a line: `ts` (ISO 8601, UTC, milliseconds), `level`, `logger`, `msg`, the
    record's `fields`, and `exception` with a traceback.

    ASCII throughout: what stderr can write hangs on the locale, and an escape for JSON is one
    for every reader. So a lone surrogate passes as well.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        line |= {name: _plain(value) for name, value in fields.items()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON knows no infinite numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
