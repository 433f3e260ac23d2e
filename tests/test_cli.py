"""The command as a user runs it: flags, environment, messages, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from mlx_server.config import Config
from mlx_server.flags import read_command

COMMAND = [sys.executable, "-m", "mlx_server"]
HEAVY = ("mlx", "mlx_lm", "transformers", "huggingface_hub", "numpy", "pydantic", "jinja2")


def read(argv: list[str]) -> Config:
    return read_command(argv)[0]


def output_of(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def running(*flags: str, **environ: str) -> Iterator[tuple[subprocess.Popen, str]]:
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "--port", str(port), *flags],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_until_ready(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(url + "/health").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the server does not become ready")


def test_flags_come_before_the_environment_and_that_before_the_defaults(monkeypatch) -> None:
    monkeypatch.setenv("MLX_SERVER_PORT", "1234")
    monkeypatch.setenv("MLX_SERVER_TEMP", "0.5")
    monkeypatch.setenv("MLX_SERVER_LORA", "a=x,b=y")
    monkeypatch.setenv("MLX_SERVER_STRICT_MODEL_NAMES", "true")
    config = read(["--temp", "0.25", "--allowed-origins", '["http://a", "http://b"]'])
    assert (config.port, config.temp, config.host) == (1234, 0.25, Config().host)
    assert config.lora == ("a=x", "b=y")
    assert config.strict_model_names
    assert config.allowed_origins == ("http://a", "http://b")


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (["--max-tokens", "-1"], {"max_tokens": None}),
        (["--lora", "a=b", "--lora", "c"], {"lora": ("a=b", "c")}),
        (["--max-request-bytes", "2MiB"], {"max_request_bytes": 2 * 2**20}),
        (["--max-kv-bytes", "1.5GB"], {"max_kv_bytes": 1_500_000_000}),
        (["--max-kv-bytes", "1"], {"max_kv_bytes": 1}),
        (["--top-k", "0"], {"top_k": 0}),
        (["--chat-template-args", '{"a": 1}'], {"chat_template_args": {"a": 1}}),
        (
            ["--allowed-origins", "http://a, http://b"],
            {"allowed_origins": ("http://a", "http://b")},
        ),
        (["--log-level", "debug"], {"log_level": "DEBUG"}),
        (["--trust-remote-code"], {"trust_remote_code": True}),
    ],
)
def test_flags(flags: list[str], values: dict) -> None:
    config = read(flags)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "between 0 and 65535"),
        (["--max-tokens", "0"], "at least 1"),
        (["--chat-template-args", "[1]"], "JSON object"),
        (["--top-p", "1.5"], "between 0 and 1"),
        (["--top-p", "nan"], "between 0 and 1"),
        (["--temp", "inf"], "between -100 and 100"),
        (["--read-timeout", "nan"], "between 0.1 and 86400"),
        (["--top-k", "-5"], "at least 0"),
        (["--top-k", "1.5"], "--top-k"),
        (["--max-request-bytes", "much"], "--max-request-bytes"),
        (["--max-request-bytes", "inf"], "at least 1 byte"),
        (["--max-request-bytes", "nan"], "at least 1 byte"),
        (["--max-request-bytes", "1e308GB"], "at least 1 byte"),
        (["--max-request-bytes", "0"], "at least 1 byte"),
        (["--max-kv-bytes", "0.5"], "at least 1 byte"),
        (["--max-kv-bytes", "-5"], "at least 1 byte"),
        (["--max-kv-bytes=-5MB"], "at least 1 byte"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        read(flags)
    assert error.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("mlx_server: error: ") and message in last


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MLX_SERVER_PORT", "many"),
        ("MLX_SERVER_MAX_KV_BYTES", "inf"),
        ("MLX_SERVER_MAX_REQUEST_BYTES", "-1GB"),
        ("MLX_SERVER_TOP_K", "-5"),
        ("MLX_SERVER_MIN_P", "nan"),
    ],
)
def test_a_wrong_variable_is_named(name: str, text: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit) as error:
        read([])
    assert error.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("mlx_server: error: ") and f"{name}={text!r}" in last


def test_help_names_every_flag_and_imports_no_model_code() -> None:
    code = (
        "import sys, contextlib\n"
        "from mlx_server.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    shown = output_of(code)
    assert shown.rstrip().endswith("[]")
    assert "--strict-model-names" in shown and "--max-kv-bytes" in shown


def test_the_version_tells_of_the_build() -> None:
    found = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    (line,) = found.stdout.splitlines()
    assert line.startswith("mlx_server ") and "Python 3" in line and "mlx " in line


def test_what_means_nothing_is_one_line_at_the_start(tmp_path: Path) -> None:
    log_file = tmp_path / "server.log"
    log_file.write_text("before\n")
    flags = ["--threads", "4", "-ngl", "99", "--mlock", "--log-file", str(log_file)]
    flags += ["--model", str(tmp_path / "nowhere")]
    with running(*flags, LLAMA_ARG_NUMA="isolate", LLAMA_API_KEY="hunter2") as (process, _):
        assert process.wait(30) == 1
        lines = process.stderr.read().splitlines()
    named = [line for line in lines if "without a meaning" in line]
    assert [line.split(": ")[1] for line in named] == ["--threads -ngl --mlock LLAMA_ARG_NUMA"]
    assert "hunter2" not in "".join(lines)
    logged = log_file.read_text().splitlines()
    assert logged[0] == "before" and logged[1] in lines


def test_what_cannot_be_done_is_one_line_and_exit_code_2() -> None:
    flags = ["-m", "x", "--override-kv", "tokenizer.ggml.add_bos_token=bool:false"]
    found = subprocess.run([*COMMAND, *flags], capture_output=True, text=True)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1 and "--override-kv" in found.stderr


@pytest.mark.parametrize("flag", ["--log-file", "--trace-file", "--slot-save-path", "--path"])
def test_a_place_that_is_not_there_is_one_line(flag: str, tmp_path: Path) -> None:
    for place in (tmp_path / "none" / "x", "~nobody-here/x"):
        found = subprocess.run([*COMMAND, flag, str(place)], capture_output=True, text=True)
        assert found.returncode == 1
        assert len(found.stderr.splitlines()) == 1 and f"{flag} {place}: " in found.stderr


def test_the_folder_for_slots_is_made_and_the_trace_written(stories: Path, tmp_path: Path) -> None:
    folder, trace = tmp_path / "slots", tmp_path / "trace.json"
    flags = ["--slot-save-path", str(folder), "--trace-file", str(trace)]
    with running("--model", str(stories / "stories260k"), *flags) as (process, url):
        wait_until_ready(url)
        body = {"prompt": "Once", "n_predict": 4}
        assert requests.post(f"{url}/completion", json=body, timeout=60).ok
        save = {"filename": "a.bin"}
        assert requests.post(f"{url}/slots/0?action=save", json=save, timeout=60).ok
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert [file.name for file in folder.iterdir()] == ["a.bin"]
    assert folder.stat().st_mode & 0o077 == 0
    assert any(event["name"] == "decode" for event in json.loads(trace.read_text()))


def test_a_model_may_stand_behind_serve(stories: Path) -> None:
    model = str(stories / "stories260k")
    with running("serve", model, "--model-lib", "lib.so", "--device", "auto") as (_, url):
        wait_until_ready(url)
        assert requests.get(url + "/v1/models").json()["data"][0]["id"] == model


def test_the_port_is_open_before_the_slowest_imports_begin() -> None:
    code = (
        "import os, socket, sys\n"
        "from mlx_server import cli\n"
        "def announce(server, config):\n"
        "    socket.create_connection(('127.0.0.1', server.port)).close()\n"
        "    print([m for m in ('mlx_lm', 'transformers') if m in sys.modules], flush=True)\n"
        "    os._exit(0)\n"
        "cli.announce = announce\n"
        "cli.main(['--port', '0'])"
    )
    assert output_of(code).rstrip() == "[]"


def test_a_model_that_cannot_be_found_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with running("--model", str(tmp_path / "nowhere")) as (process, _):
        assert process.wait(30) == 1
        lines = [line for line in process.stderr.read().splitlines() if " INFO " not in line]
    assert len(lines) == 1 and "nowhere" in lines[0]


def test_a_port_in_use_is_one_line_and_exit_code_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True)
    assert found.returncode == 1
    assert len(found.stderr.splitlines()) == 1 and port in found.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_with_code_0_though_a_stream_runs(number: int, stories: Path) -> None:
    with running("--model", str(stories / "stories260k")) as (process, url):
        wait_until_ready(url)
        body = {"prompt": ["Once"] * 30, "stream": True, "ignore_eos": True, "max_tokens": 500}
        with requests.post(url + "/v1/completions", json=body, stream=True) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(number)
            # Cut after some seconds, the stream still ends cleanly and says why.
            last = [line for line in lines if line][-1].decode()
            assert last == "data: [DONE]" or "stopping" in json.loads(last[6:])["error"]["message"]
            assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


def test_many_signals_at_once_end_it_all_the_same(stories: Path) -> None:
    with running("--model", str(stories / "stories260k")) as (process, url):
        wait_until_ready(url)
        for _ in range(300):
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
def test_a_signal_has_the_numbers_logged() -> None:
    def stats_of(process: subprocess.Popen) -> dict[str, int]:
        process.send_signal(signal.SIGUSR1)
        line = next(line for line in process.stderr if " INFO stats " in line)
        return json.loads(line.partition(" stats ")[2])

    with running() as (process, url):
        next(line for line in process.stderr if "listening" in line)
        assert stats_of(process)["peak_memory"] >= 0  # whether there is a model yet or not
        wait_until_ready(url)
        before = stats_of(process)
        body = {"prompt": "Hello", "max_tokens": 5, "ignore_eos": True}
        usage = requests.post(url + "/v1/completions", json=body).json()["usage"]
        after = stats_of(process)
        assert after["generated_tokens"] - before["generated_tokens"] >= usage["completion_tokens"]
        assert (after["running"], after["waiting"]) == (0, 0)
        assert after["active_memory"] > 0
        process.terminate()
        assert process.wait(20) == 0


def test_the_demo_model_talks_without_a_network() -> None:
    with running() as (process, url):
        wait_until_ready(url)
        models = requests.get(url + "/v1/models").json()["data"]
        assert models[0]["id"] == "demo"
        body = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
        reply = requests.post(url + "/v1/chat/completions", json=body).json()
        assert reply["choices"][0]["finish_reason"] == "stop"
        assert len(reply["choices"][0]["message"]["content"]) > 5
        process.terminate()
        assert process.wait(20) == 0
        assert "--model" in process.stderr.read()


def test_settings_reach_the_model(stories: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{{ tail }}{% endfor %}")
    flags = ["--model", str(stories / "stories260k-chat"), "--chat-template", str(template)]
    flags += ["--chat-template-args", json.dumps({"tail": " upon a time"}), "--temp", "0"]
    with running(*flags, MLX_SERVER_MAX_TOKENS="12", MLX_SERVER_API_KEY="secret") as (_, url):
        wait_until_ready(url)
        body = {"messages": [{"role": "user", "content": "Once"}]}
        path = url + "/v1/chat/completions"
        assert requests.post(path, json=body).status_code == 401
        reply = requests.post(path, json=body, headers={"Authorization": "Bearer secret"}).json()
        assert reply["usage"]["completion_tokens"] == 12
        assert reply["choices"][0]["message"]["content"].startswith(", there was a little")
