"""Slots over HTTP: where requests run, what is remembered, saved, restored and told of them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import running_server
from llama_asking import GREEDY, ONCE, ask, complete, essence, get, post, refused, together
from prometheus_client.parser import text_string_to_metric_families

from mlx_server.server.http import HttpServer

CAT = "The little cat was sad because"
LONG = "Lily and Tom went to the park. " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def server(serve, stories: Path, folder: Path) -> HttpServer:
    return serve(
        model=str(stories / "stories260k"), parallel=2, ctx_size=512, metrics=True, props=True,
        slot_save_path=str(folder),
    )  # fmt: skip


def slots(server: HttpServer) -> list[dict[str, Any]]:
    return get(server, "/slots")


@contextmanager
def running(server: HttpServer, **fields: Any) -> Iterator[None]:
    """A stream that has begun and goes on until it is left."""
    body = {"prompt": ONCE, "n_predict": -1, "ignore_eos": True, "stream": True, **fields}
    body["n_keep"] = 0
    with requests.post(f"{server.url}/completion", json=body, stream=True, timeout=60) as found:
        lines = found.iter_lines()  # the connection closes with it
        next(lines)
        yield
        del lines
    deadline = time.monotonic() + 10
    while any(slot["is_processing"] for slot in slots(server)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------- where requests run


@pytest.mark.parametrize("name", ["id_slot", "slot_id"])
def test_a_request_runs_where_it_asks_to(server: HttpServer, name: str) -> None:
    for slot in (1, 0, 1):
        reply = complete(server, n_predict=3, **{name: slot}, **GREEDY)
        assert reply["id_slot"] == slot
        shown = slots(server)[slot]
        assert (shown["id"], shown["state"], shown["is_processing"]) == (slot, 0, False)
        assert shown["prompt"].endswith(ONCE) and shown["generated"] == reply["content"]
        assert shown["next_token"]["n_decoded"] == 3 and shown["next_token"]["stopped_limit"]
        assert shown["n_ctx"] == 256 and shown["temperature"] == shown["params"]["temperature"] == 0


def test_a_slot_that_is_taken_is_waited_for(server: HttpServer) -> None:
    alone = complete(server, CAT, n_predict=8, id_slot=1, **GREEDY)
    waiting: list[dict[str, Any]] = []
    with running(server, id_slot=1, seed=1):
        thread = threading.Thread(
            target=lambda: waiting.append(complete(server, CAT, n_predict=8, id_slot=1, **GREEDY))
        )
        thread.start()
        while get_metrics(server)["llamacpp:requests_deferred"] == 0:
            assert thread.is_alive()
            time.sleep(0.005)
        other = complete(server, CAT, n_predict=8, **GREEDY)
        assert other["id_slot"] == 0 and not waiting
        taken = slots(server)[1]
        assert taken["state"] == 1 and taken["next_token"]["has_next_token"]
        assert taken["prompt"].endswith(ONCE) and taken["seed"] == 1
    thread.join(20)
    assert waiting[0]["id_slot"] == 1 and essence(waiting[0]) == essence(alone)


def test_no_slot_is_free(server: HttpServer) -> None:
    assert ask(server, "/slots?fail_on_no_slot=1", method="GET").status_code == 200
    with running(server, seed=1), running(server, seed=2):
        error = refused(server, 503, "/slots?fail_on_no_slot=1", method="GET")
        assert error == {"code": 503, "message": "no slot available", "type": "unavailable_error"}
        assert len(slots(server)) == 2


def test_a_conversation_finds_its_slot(server: HttpServer) -> None:
    for slot in (0, 1):
        complete(server, "Tom saw a", n_predict=2, id_slot=slot, **GREEDY)
    first = complete(server, LONG, n_predict=8, id_slot=1, **GREEDY)
    turn = LONG + first["content"] + " And then"
    assert complete(server, turn, n_predict=2, **GREEDY)["id_slot"] == 1


# ---------------------------------------------------------------- what is remembered


def test_what_is_known_is_not_computed_again(server: HttpServer) -> None:
    body = {"n_predict": 6, "seed": 3}
    cold = complete(server, LONG, cache_prompt=False, **body)
    assert cold["timings"]["cache_n"] == cold["tokens_cached"] == 0
    assert cold["timings"]["prompt_n"] == cold["tokens_evaluated"]
    warm = complete(server, LONG, cache_prompt=True, **body)
    assert warm["timings"]["cache_n"] == warm["tokens_cached"] == warm["tokens_evaluated"] - 1
    assert warm["timings"]["prompt_n"] == 1
    assert essence(warm) == essence(cold)
    again = complete(server, LONG, cache_prompt=False, **body)
    assert again["timings"]["cache_n"] == 0 and essence(again) == essence(cold)


def test_timings_are_plausible(server: HttpServer) -> None:
    begun = time.monotonic()
    timings = complete(server, LONG, n_predict=30, cache_prompt=False, seed=1)["timings"]
    elapsed = 1000 * (time.monotonic() - begun)
    assert timings["predicted_n"] == 30
    assert timings["prompt_ms"] > 0 and timings["predicted_ms"] > 0
    assert timings["prompt_ms"] + timings["predicted_ms"] <= elapsed
    for part in ("prompt", "predicted"):
        count, ms = timings[f"{part}_n"], timings[f"{part}_ms"]
        assert timings[f"{part}_per_second"] == pytest.approx(1000 * count / ms)
        assert timings[f"{part}_per_token_ms"] == pytest.approx(ms / count)


# ---------------------------------------------------------------- files


def test_saved_restored_and_erased(server: HttpServer, folder: Path) -> None:
    prompt = "Max had a green boat and"
    size = complete(server, prompt, n_predict=6, id_slot=0, **GREEDY)["tokens_evaluated"]
    assert post(server, "/slots/0?action=save", {"filename": "a" * 255})["n_saved"]
    saved = post(server, "/slots/0?action=save", {"filename": "cat.bin"})
    assert saved.keys() == {"id_slot", "filename", "n_saved", "n_written", "timings"}
    assert saved["n_written"] == (folder / "cat.bin").stat().st_size
    # The last token has been seen, too, where the next step was on its way.
    assert saved["n_saved"] in (size + 5, size + 6) and saved["timings"]["save_ms"] > 0
    erased = ask(server, "/slots/0?action=erase").json()
    assert erased == {"id_slot": 0, "n_erased": saved["n_saved"]}
    assert complete(server, prompt, n_predict=1, id_slot=1)["tokens_cached"] <= 1
    ask(server, "/slots/1?action=erase")
    read = post(server, "/slots/1?action=restore", {"filename": "cat.bin"})
    assert (read["n_restored"], read["n_read"]) == (saved["n_saved"], saved["n_written"])
    assert read["id_slot"] == 1 and read["timings"]["restore_ms"] > 0
    assert complete(server, prompt, n_predict=1, id_slot=1)["tokens_cached"] == size - 1


def test_a_saved_slot_survives_a_restart(stories: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"slot_save_path": str(tmp_path), "parallel": 1}
    with running_server(model=str(stories / "stories260k"), **settings) as first:
        whole = complete(first, LONG, n_predict=24, **GREEDY)
        complete(first, LONG, n_predict=12, cache_prompt=False, **GREEDY)
        post(first, "/slots/0?action=save", {"filename": "story"})
    with running_server(model=str(stories / "stories260k"), **settings) as second:
        post(second, "/slots/0?action=restore", {"filename": "story"})
        reply = complete(second, LONG, n_predict=24, **GREEDY)
        assert reply["tokens_cached"] == reply["tokens_evaluated"] - 1
        assert reply["content"] == whole["content"]
    other = shutil.copytree(stories / "stories260k-infill", tmp_path / "other")
    with running_server(model=str(other), **settings) as third:
        error = refused(third, 400, "/slots/0?action=restore", {"filename": "story"})
        assert "another model" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/slots/7?action=save", {"filename": "a"}, 400, "no slot 7"),
        ("/slots/x?action=save", {"filename": "a"}, 400, "Invalid slot ID"),
        ("/slots/0?action=drop", {"filename": "a"}, 400, "Invalid action"),
        ("/slots/0", {"filename": "a"}, 400, "Invalid action"),
        ("/slots/0?action=save", {}, 400, "`filename`"),
        ("/slots/0?action=save", {"filename": "../a"}, 400, "`filename`"),
        ("/slots/0?action=save", {"filename": "/etc/a"}, 400, "`filename`"),
        ("/slots/0?action=save", {"filename": ".."}, 400, "`filename`"),
        ("/slots/0?action=save", {"filename": "a\\b"}, 400, "`filename`"),
        ("/slots/0?action=save", {"filename": "é" * 128}, 400, "at most 255 bytes"),
        ("/slots/0?action=restore", {"filename": "nothing"}, 400, "no saved slot"),
    ],
)
def test_what_is_refused(
    server: HttpServer, folder: Path, path: str, body: Any, status: int, named: str
) -> None:
    before = sorted(folder.parent.rglob("*"))
    error = refused(server, status, path, body)
    assert named in error["message"] and error["type"] == "invalid_request_error"
    assert sorted(folder.parent.rglob("*")) == before


# ---------------------------------------------------------------- the context is divided


def test_a_slots_share_of_the_context(server: HttpServer) -> None:
    prompt = LONG * 7
    size = len(post(server, "/tokenize", {"content": prompt, "add_special": True})["tokens"])
    assert 256 < size < 512
    for path, body in (
        ("/completion", {"prompt": prompt}),
        ("/v1/completions", {"prompt": prompt}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}),
    ):
        error = refused(server, 400, path, body)
        assert error["type"] == "exceed_context_size_error" and error["n_ctx"] == 256
        assert error["n_prompt_tokens"] >= size
        assert error["code"] == (400 if path == "/completion" else "context_length_exceeded")
    props = get(server, "/props")
    assert (props["n_ctx"], props["total_slots"]) == (256, 2)
    assert props["default_generation_settings"]["n_ctx"] == 256


# ---------------------------------------------------------------- figures


def get_metrics(server: HttpServer) -> dict[str, float]:
    found = ask(server, "/metrics", method="GET")
    assert found.status_code == 200 and found.headers["Content-Type"].startswith("text/plain")
    families = text_string_to_metric_families(found.text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_reply_that_is_broken_off_is_counted(server: HttpServer) -> None:
    """By its outcome, and with the tokens that it has come to."""

    def figures() -> tuple[str | None, float]:
        text = ask(server, "/metrics", method="GET").text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        aborted = lines.get('mlx_server_requests_total{outcome="abort"}')
        return aborted, float(lines["mlx_server_completion_tokens_total"])

    before, tokens = figures()
    with running(server):
        pass
    deadline = time.monotonic() + 10
    while figures()[0] == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert figures()[1] > tokens


def test_figures_add_up(server: HttpServer) -> None:
    before = get_metrics(server)
    bodies = [{"prompt": f"{i}, Lily and", "n_predict": 5 + i, "seed": i} for i in range(4)]
    replies = together(server, [{**body, "cache_prompt": False} for body in bodies])
    after = get_metrics(server)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    prompt = sum(reply["tokens_evaluated"] for reply in replies)
    predicted = sum(reply["tokens_predicted"] for reply in replies)
    assert grown["llamacpp:prompt_tokens_total"] == prompt
    assert grown["llamacpp:tokens_predicted_total"] == predicted
    assert grown["mlx_server_completion_tokens_total"] == predicted
    documented = {
        "prompt_tokens_total", "tokens_predicted_total", "prompt_tokens_seconds",
        "predicted_tokens_seconds", "kv_cache_usage_ratio", "kv_cache_tokens",
        "requests_processing", "requests_deferred",
    }  # fmt: skip
    assert {f"llamacpp:{name}" for name in documented} <= after.keys()
    assert after["llamacpp:requests_processing"] == after["llamacpp:requests_deferred"] == 0
    rate = after["llamacpp:tokens_predicted_total"] / after[
        "llamacpp:tokens_predicted_seconds_total"
    ]  # fmt: skip
    assert after["llamacpp:predicted_tokens_seconds"] == pytest.approx(rate)
    assert 0 < after["llamacpp:kv_cache_usage_ratio"] <= 1
    with running(server, seed=1):
        assert get_metrics(server)["llamacpp:requests_processing"] == 1


# ---------------------------------------------------------------- the system prompt


def test_the_system_prompt(server: HttpServer, tmp_path: Path, serve, stories: Path) -> None:
    given = {"prompt": "Once upon a time,", "anti_prompt": "She", "assistant_name": "Bot:"}
    try:
        plain = complete(server, ONCE + ", there was a", n_predict=20, **GREEDY)["content"]
        assert post(server, "/props", {"system_prompt": given}) == {"success": True}
        props = get(server, "/props")
        assert (props["user_name"], props["assistant_name"]) == ("She", "Bot:")
        reply = complete(server, "there was a", n_predict=20, **GREEDY)
        assert reply["stopping_word"] == "She" and reply["stop_type"] == "word"
        assert reply["content"] == plain[: plain.index("She")]
        assert complete(server, n_predict=1, system_prompt="")["tokens_evaluated"] == 5
        assert get(server, "/props")["user_name"] == ""
    finally:
        post(server, "/props", {"system_prompt": ""})
    file = tmp_path / "system.json"
    file.write_text(json.dumps({"system_prompt": given}))
    other = serve(model=str(stories / "stories260k"), system_prompt_file=str(file))
    assert essence(complete(other, "there was a", n_predict=20, **GREEDY)) == essence(reply)
