"""llama.cpp's smaller endpoints over HTTP: tokens, gaps, health, keys, and what is switched off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_asking import GREEDY, ONCE, ask, complete, essence, events, get, post, refused

from mlx_server.server.http import HttpServer

INVALID_KEY = {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}


@pytest.fixture(scope="module")
def server(serve, stories: Path) -> HttpServer:
    """A model without a template and without tokens for gaps, nothing switched on."""
    return serve(model=str(stories / "stories260k"), slots=False)


@pytest.fixture(scope="module")
def filler(serve, stories: Path) -> HttpServer:
    return serve(model=str(stories / "stories260k-infill"), api_key=("secret", "other"))


@pytest.fixture(scope="module")
def file(serve, stories: Path) -> HttpServer:
    return serve(model=str(stories / "stories260K-infill.gguf"))


KEY = {"Authorization": "Bearer secret"}


def fill(server: HttpServer, **fields: Any) -> dict[str, Any]:
    found = ask(server, "/infill", fields, **KEY)
    assert found.status_code == 200, found.text
    return found.json()


# ---------------------------------------------------------------- tokens

TEXTS = ["Once upon a time", "á", "Café ñandú 🤗 媽", " two  blanks ", "\n\nlines\t", "<s> no mark"]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(server: HttpServer, file: HttpServer, text: str) -> None:
    plain = {"content": text, "parse_special": False}
    ids = post(server, "/tokenize", plain)["tokens"]
    assert post(server, "/detokenize", {"tokens": ids}) == {"content": text}
    pieces = post(server, "/tokenize", {**plain, "with_pieces": True})["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    raw = b"".join(
        bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces
    )
    assert raw.decode() == " " + text  # the blank that words begin with
    assert post(file, "/tokenize", plain)["tokens"] == ids
    assert post(file, "/detokenize", {"tokens": ids}) == {"content": text}
    special = post(server, "/tokenize", {**plain, "add_special": True})["tokens"]
    assert special == [1, *ids]


def test_pieces_that_are_no_whole_characters(server: HttpServer) -> None:
    pieces = post(server, "/tokenize", {"content": "á", "with_pieces": True})["tokens"]
    assert pieces[-2:] == [{"id": 198, "piece": [195]}, {"id": 164, "piece": [161]}]


def test_special_tokens_in_a_text(server: HttpServer) -> None:
    assert post(server, "/tokenize", {"content": "<s>Once"})["tokens"][0] == 1
    assert 1 not in post(server, "/tokenize", {"content": "<s>", "parse_special": False})["tokens"]
    mixed = post(server, "/tokenize", {"content": ["Once", 407, " a"], "add_special": True})
    assert mixed["tokens"][:3] == [1, 403, 407]


def test_the_template(serve, stories: Path, server: HttpServer) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    written = post(server, "/apply-template", {"messages": messages})["prompt"]
    assert "Be kind." in written and written.index("Be kind.") < written.index("Hi")
    size = post(server, "/v1/chat/completions/input_tokens", {"messages": messages})
    reply = post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    assert size == {"input_tokens": reply["usage"]["prompt_tokens"]}
    named = serve(model=str(stories / "stories260k"), chat_template="llama2")
    assert "[INST]" in post(named, "/apply-template", {"messages": messages})["prompt"]


# ---------------------------------------------------------------- gaps


def test_a_gap_is_the_prompt_with_its_marks(filler: HttpServer) -> None:
    prefix, suffix, middle = 512, 513, 514
    ends = [ask(filler, "/tokenize", {"content": text}, **KEY).json()["tokens"]
            for text in ("def f():", "return x")]  # fmt: skip
    gap = {"input_prefix": "def f():", "input_suffix": "return x"}
    reply = fill(filler, **gap, n_predict=12, **GREEDY, return_tokens=True)
    assert reply["tokens_evaluated"] >= sum(map(len, ends)) + 3
    slot = ask(filler, "/slots", method="GET", **KEY).json()[reply["id_slot"]]
    marks = [slot["prompt"].index(mark) for mark in
             ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")]  # fmt: skip
    assert marks == sorted(marks)
    ids = ask(filler, "/tokenize", {"content": slot["prompt"]}, **KEY).json()["tokens"]
    assert {prefix, suffix, middle} <= set(ids)
    more = fill(filler, **gap, prompt="  y = 1\n", n_predict=3, **GREEDY)
    assert more["prompt"] == "  y = 1\n"
    assert more["tokens_evaluated"] > reply["tokens_evaluated"]
    extra = [{"filename": "a.py", "text": "x = 1\n"}, {"text": "y = 2\n"}]
    wide = fill(filler, **gap, input_extra=extra, n_predict=3, **GREEDY)
    assert wide["tokens_evaluated"] > reply["tokens_evaluated"]


def test_a_gap_in_a_file_is_the_same(filler: HttpServer, file: HttpServer) -> None:
    gap = {"input_prefix": "Once upon a time", "input_suffix": "the end.", "n_predict": 16}
    ours, theirs = fill(filler, **gap, **GREEDY), fill(file, **gap, **GREEDY)
    ours["model"] = theirs["model"]
    assert essence(ours) == essence(theirs)
    found = events(file, "/infill", {**gap, **GREEDY})
    assert "".join(event["content"] for event in found) == theirs["content"]


def test_suffix_first(serve, stories: Path, filler: HttpServer) -> None:
    other = serve(model=str(stories / "stories260k-infill"), spm_infill=True)
    gap = {"input_prefix": "Once upon a time", "input_suffix": "the end.", "n_predict": 1}
    turned, usual = fill(other, **gap), fill(filler, **gap)
    assert turned["tokens_evaluated"] == usual["tokens_evaluated"]
    prompt = get(other, "/slots")[turned["id_slot"]]["prompt"]
    assert prompt.index("<|fim_suffix|>") < prompt.index("<|fim_prefix|>")


def test_a_model_without_marks_fills_no_gap(server: HttpServer, filler: HttpServer) -> None:
    error = refused(server, 501, "/infill", {"input_prefix": "a", "input_suffix": "b"})
    assert error["type"] == "not_supported_error" and "fill-in-the-middle" in error["message"]
    assert refused(server, 400, "/infill", {"n_predict": 1})["message"].startswith("`input_prefix`")
    found = ask(filler, "/infill", {"input_prefix": "a", "input_extra": [{"filename": "b"}]}, **KEY)
    assert found.status_code == 400 and "input_extra[0].text" in found.json()["error"]["message"]


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": "secre"}, {"Authorization": "secret"}],
    ids=str,
)
def test_a_wrong_key(filler: HttpServer, headers: dict[str, str]) -> None:
    for method, path in (
        ("POST", "/completion"), ("POST", "/infill"), ("POST", "/tokenize"), ("GET", "/props"),
        ("GET", "/slots"), ("GET", "/lora-adapters"), ("GET", "/metrics"), ("POST", "/embedding"),
    ):  # fmt: skip
        found = ask(filler, path, {"prompt": "a"} if method == "POST" else None, method, **headers)
        assert found.status_code == 401, path
        assert found.json() == {"error": INVALID_KEY}, path
    assert ask(filler, "/health", method="GET", **headers).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "headers", [KEY, {"X-Api-Key": "secret"}, {"Authorization": "Bearer other"}], ids=str
)
def test_a_right_key(filler: HttpServer, headers: dict[str, str]) -> None:
    body = {"prompt": ONCE, "n_predict": 1}
    assert ask(filler, "/completion", body, **headers).status_code == 200
    assert ask(filler, "/props", method="GET", **headers).status_code == 200


# ---------------------------------------------------------------- what is switched off


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/slots", "This server does not support slots endpoint."),
        ("GET", "/metrics", "This server does not support metrics endpoint."),
        (
            "POST",
            "/props",
            "This server does not support changing global properties. Start it with `--props`",
        ),
        (
            "POST",
            "/slots/0?action=save",
            "This server does not support slots action. Start it with `--slot-save-path`",
        ),
        (
            "POST",
            "/slots/0?action=restore",
            "This server does not support slots action. Start it with `--slot-save-path`",
        ),
    ],
)
def test_what_is_off_says_so(server: HttpServer, method: str, path: str, message: str) -> None:
    body = {"filename": "a", "system_prompt": "x"} if method == "POST" else None
    found = ask(server, path, body, method)
    assert found.status_code == 501
    assert found.json() == {
        "error": {"code": 501, "message": message, "type": "not_supported_error"}
    }


def test_health_and_props(server: HttpServer, stories: Path) -> None:
    assert get(server, "/health") == {"status": "ok"}
    props = get(server, "/props")
    assert props["total_slots"] >= 1 and props["model_path"] == str(stories / "stories260k")
    assert (props["bos_token"], props["eos_token"]) == ("<s>", "</s>")
    assert props["chat_template"] and isinstance(props["default_generation_settings"], dict)
    settings = complete(server, n_predict=1)["generation_settings"]
    # The same fields, those of the reply apart.
    assert props["default_generation_settings"]["params"].keys() == settings.keys()
    assert (props["endpoint_slots"], props["endpoint_metrics"]) == (False, False)


def test_no_adapters(server: HttpServer) -> None:
    assert get(server, "/lora-adapters") == []
    error = refused(server, 400, "/lora-adapters", [{"id": 0, "scale": 1.0}])
    assert "no adapter 0" in error["message"]


def test_which_fields_are_wanted(server: HttpServer) -> None:
    fields = ["content", "generation_settings/n_predict", "timings/cache_n", "nothing/at/all"]
    body = {"prompt": ONCE, "n_predict": 4, **GREEDY, "response_fields": fields}
    reply = post(server, "/completion", body)
    assert reply.keys() == set(fields[:3]) and reply["generation_settings/n_predict"] == 4
    last = events(server, "/completion", body)[-1]
    assert last.keys() == reply.keys() and last["content"] == ""
