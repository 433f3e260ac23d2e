"""Log lines: text for people, JSON for programs, and nothing that a client writes breaks either."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_server.flags import read_command
from mlx_server.terminal.logs import JsonFormatter, ScreenHandler, TextFormatter
from mlx_server.terminal.screen import Screen

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates among them


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("mlx_server.x", logging.WARNING, "f.py", 1, message, args, None)
    made.__dict__ |= extra
    return made


def failure() -> logging.LogRecord:
    made = record("it failed")
    try:
        raise KeyError("a\nb \ud83d \x1b[2J")
    except KeyError:
        made.exc_info = sys.exc_info()
    return made


# ---------------------------------------------------------------- JSON


@given(text=ANY_TEXT, field=ANY_TEXT)
def test_any_text_survives_json(text: str, field: str) -> None:
    line = JsonFormatter().format(record("%s", text, fields={"path": field}))
    assert line.isascii() and "\n" not in line
    found = json.loads(line)
    assert (found["msg"], found["path"]) == (text, field)


def test_a_json_line_has_its_keys() -> None:
    made = record("said %d", 3, fields={"status": 200, "seconds": float("inf")})
    made.created = 1_700_000_000.1234
    line = JsonFormatter().format(made)
    assert json.loads(line) == {
        "ts": "2023-11-14T22:13:20.123Z", "level": "WARNING", "logger": "mlx_server.x",
        "msg": "said 3", "status": 200, "seconds": None,
    }  # fmt: skip
    assert datetime.fromisoformat(json.loads(line)["ts"]).utcoffset().total_seconds() == 0


def test_an_exception_is_one_field_of_json() -> None:
    found = json.loads(JsonFormatter().format(failure()))
    assert found["msg"] == "it failed"
    assert found["exception"].startswith("Traceback") and "KeyError" in found["exception"]


def test_both_forms_of_one_record_are_whole() -> None:
    """A handler for the screen and one for the file get the same record, in either order."""
    for formatters in ((TextFormatter(), JsonFormatter()), (JsonFormatter(), TextFormatter())):
        made = failure()
        for formatter in formatters:
            assert formatter.format(made).count("Traceback") == 1


# ---------------------------------------------------------------- text


@given(ANY_TEXT)
def test_no_text_steers_a_terminal(text: str) -> None:
    line = TextFormatter().format(record("%s", text))
    assert not any(c in line for c in map(chr, [*range(9), *range(11, 32), *range(127, 160)]))


def test_text_keeps_its_lines_and_letters() -> None:
    line = TextFormatter().format(record("größer\n\tzwei 語 \x1b[31m \x85"))
    assert line.endswith("WARNING größer\n\tzwei 語 \\x1b[31m \\x85")
    assert "Traceback" in TextFormatter().format(failure())


# ---------------------------------------------------------------- the screen


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "plain", "rich", "colours", "bars"),
    [
        ({"TERM": "xterm"}, False, True, True, True),
        ({"TERM": "xterm"}, True, False, False, False),
        ({"TERM": "dumb"}, False, True, False, False),
        ({}, False, True, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True, False, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, False, True, True, True),
        ({"TERM": "xterm", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}, False, True, True, False),
        ({"TERM": "xterm", "HF_HUB_DISABLE_PROGRESS_BARS": "yes"}, False, True, True, False),
        ({"TERM": "xterm", "HF_HUB_DISABLE_PROGRESS_BARS": "0"}, False, True, True, True),
    ],
)
def test_what_a_screen_can_show(
    environ: dict[str, str], plain: bool, rich: bool, colours: bool, bars: bool
) -> None:
    screen = Screen(FakeTerminal(), plain=plain, environ=environ)
    assert (screen.rich, screen.colours, screen.bars) == (rich, colours, bars)
    pipe = Screen(io.StringIO(), environ=environ)
    assert not (pipe.rich or pipe.colours or pipe.bars)


def test_a_line_takes_the_status_away_and_puts_it_back() -> None:
    stream = FakeTerminal()
    screen = Screen(stream, environ={"TERM": "xterm"})
    screen.write("one")
    screen.show("50 %")
    screen.write("two\nthree")
    screen.show("")
    screen.write("four")
    clear = "\r\x1b[K"
    assert stream.getvalue() == f"one\n{clear}50 %{clear}two\nthree\n50 %{clear}four\n"


def test_the_status_fits_one_line() -> None:
    stream = FakeTerminal()
    Screen(stream, environ={"TERM": "xterm"}).show("x" * 500)
    assert stream.getvalue().count("x") == 79


def test_what_is_drawn_is_not_written_as_well() -> None:
    stream = FakeTerminal()
    handler = ScreenHandler(Screen(stream, environ={"TERM": "xterm"}))
    handler.handle(record("drawn", drawn=True))
    handler.handle(record("written", drawn=False))
    assert stream.getvalue() == "written\n"


def test_a_stream_that_is_closed_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream = FakeTerminal()
    screen = Screen(stream, environ={"TERM": "xterm"})
    stream.close()
    screen.show("status")
    ScreenHandler(screen).handle(record("line"))
    assert "ValueError" in capsys.readouterr().err  # logging's own report


# ---------------------------------------------------------------- as it is set up


def run(script: str, *flags: str, **environ: str) -> str:
    """What a program writes to stderr behind `set_up`."""
    code = (
        "import logging, sys, threading, warnings\n"
        "from mlx_server.flags import read_command\n"
        "from mlx_server.terminal import logs\n"
        "logs.set_up(read_command(sys.argv[1:], {})[0])\n"
        f"log = logging.getLogger('mlx_server')\n{script}"
    )
    command = [sys.executable, "-c", code, *flags]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env={**os.environ, **environ}
    ).stderr


def test_everything_that_is_written_is_json_whatever_the_locale() -> None:
    script = (
        "log.info('größer \\ud83d')\n"
        "warnings.warn('odd')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\n"
        "thread.start(); thread.join()\n"
        "log.debug('not told')\n"
        "raise ValueError('uncaught')"
    )
    written = run(script, "--log-format", "JSON", LC_ALL="C", PYTHONIOENCODING="ascii")
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["level"] for line in lines] == ["INFO", "WARNING", "CRITICAL", "CRITICAL"]
    assert lines[0]["msg"] == "größer \ud83d"
    assert "odd" in lines[1]["msg"]
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert "uncaught" in lines[3]["exception"]


def test_the_file_has_what_the_screen_has(tmp_path: Path) -> None:
    for form in ("text", "json"):
        file = tmp_path / form
        written = run("log.info('größer \\ud83d')", "--log-format", form, "--log-file", str(file))
        assert file.read_text("utf-8") == written and written.count("\n") == 1


def test_libraries_write_where_we_do() -> None:
    """huggingface_hub and transformers have handlers of their own, which know no bars."""
    script = (
        "logs.adopt_libraries()\n"
        "for name in ('huggingface_hub.x', 'transformers', 'transformers.y'):\n"
        "    logging.getLogger(name).warning('hello')\n"
    )
    lines = [
        json.loads(line)
        for line in run(
            script, "--log-format", "json", TRANSFORMERS_VERBOSITY="warning"
        ).splitlines()
    ]
    assert [line["logger"] for line in lines] == [
        "huggingface_hub.x", "transformers", "transformers.y",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ([], {}, "text"),
        (["--log-format", "json"], {}, "json"),
        ([], {"MLX_SERVER_LOG_FORMAT": "JSON"}, "json"),
        (["--log-format", "text"], {"MLX_SERVER_LOG_FORMAT": "json"}, "text"),
    ],
)
def test_the_setting(flags: list[str], environ: dict[str, str], expected: str) -> None:
    assert read_command(flags, environ)[0].log_format == expected


def test_another_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, environ in ((["--log-format", "xml"], {}), ([], {"MLX_SERVER_LOG_FORMAT": "xml"})):
        with pytest.raises(SystemExit) as error:
            read_command(flags, environ)
        assert error.value.code == 2
        told = capsys.readouterr().err
        assert "xml" in told and "json" in told


def test_why_there_is_no_server_is_told_in_json_too() -> None:
    command = [sys.executable, "-m", "mlx_server", "--log-format", "json", "--path", "/no/where"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert "/no/where" in json.loads(line)["msg"] and json.loads(line)["level"] == "CRITICAL"
