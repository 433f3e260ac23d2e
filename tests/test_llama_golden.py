"""llama.cpp's own API over HTTP gives the golden outputs: texts, ids and log-probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_asking import GREEDY, complete, events, get, post, refused, together

from mlx_server.server.http import HttpServer

TOLERANCE = 2e-3
"""The files hold five decimals; engines agree to 5.5e-5 with whole prompts."""

NAMES = ("dragon", "moon")


def golden(stories: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((stories / "golden" / f"{name}.json").read_text())["prompts"]


def asked(entry: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"prompt": entry["prompt"], "n_predict": entry["max_tokens"], **GREEDY}
    return {**body, "return_tokens": True, "n_probs": 10, **fields}


def check(reply: dict[str, Any], entry: dict[str, Any]) -> None:
    """Every step of the reply is the file's."""
    assert reply["content"] == entry["text"]
    assert reply["tokens"] == entry["ids"]
    assert reply["stop_type"] == "limit" and reply["stopped_limit"]
    assert reply["tokens_evaluated"] == len(entry["prompt_ids"])
    assert reply["tokens_predicted"] == len(entry["ids"])
    steps = reply["completion_probabilities"]
    assert [step["id"] for step in steps] == entry["ids"]
    for step, expected in zip(steps, entry["top_logprobs"], strict=True):
        assert step["logprob"] == pytest.approx(expected[0][1], abs=TOLERANCE)
        found = {top["id"]: top["logprob"] for top in step["top_logprobs"]}
        assert len(found) == len(step["probs"]) == 10
        # Neighbours in rank may change places within the tolerance.
        for token_id, value in expected[:9]:
            assert found.get(token_id, value) == pytest.approx(value, abs=TOLERANCE)


def adapters(stories: Path, suffix: str = "") -> list[str]:
    return [str(stories / "adapters" / f"{name}{suffix}") for name in NAMES]


@pytest.fixture(scope="module")
def folder(serve, stories: Path) -> HttpServer:
    """Adapters that are loaded and not applied."""
    return serve(
        model=str(stories / "stories260k"),
        lora=tuple(adapters(stories)),
        lora_init_without_apply=True,
    )


@pytest.fixture(scope="module")
def file(serve, stories: Path) -> HttpServer:
    """Everything in GGUF files; the first adapter applies, the second at scale 0."""
    dragon, moon = adapters(stories, ".gguf")
    return serve(model=str(stories / "stories260K.gguf"), lora=(dragon, (moon, 0.0)))


SERVERS = ["folder", "file"]
LORA = {"base": [], "dragon": [{"id": 0, "scale": 1}], "moon": [{"id": 1, "scale": 1.0}]}


@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize("kind", SERVERS)
def test_every_step_of_every_prompt(
    request: pytest.FixtureRequest, stories: Path, kind: str, name: str
) -> None:
    server = request.getfixturevalue(kind)
    entries = golden(stories, name)
    replies = together(server, [asked(entry, lora=LORA[name]) for entry in entries])
    for reply, entry in zip(replies, entries, strict=True):
        check(reply, entry)
        assert reply["prompt"] == entry["prompt"]
        assert reply["generation_settings"]["lora"] == [
            {"id": adapter["id"], "scale": 1.0} for adapter in LORA[name]
        ]


def test_all_adapters_in_one_batch(folder: HttpServer, stories: Path) -> None:
    jobs = [
        (entry, asked(entry, lora=LORA[name]))
        for name in LORA
        for entry in golden(stories, name)[:4]
    ]
    for reply, (entry, _) in zip(together(folder, [b for _, b in jobs]), jobs, strict=True):
        check(reply, entry)


@pytest.mark.parametrize("name", LORA)
def test_streamed(folder: HttpServer, stories: Path, name: str) -> None:
    entry = golden(stories, name)[2]
    found = events(folder, "/completion", asked(entry, lora=LORA[name]))
    last = found[-1]
    assert [event["stop"] for event in found] == [False] * (len(found) - 1) + [True]
    assert last["content"] == "" and last["tokens"] == []
    folded = {
        **last,
        "content": "".join(event["content"] for event in found),
        "tokens": [token for event in found for token in event["tokens"]],
        "completion_probabilities": [
            step for event in found for step in event.get("completion_probabilities", ())
        ],
    }
    check(folded, entry)


def test_prompts_as_ids(folder: HttpServer, stories: Path) -> None:
    for entry in golden(stories, "base")[:3]:
        check(complete(folder, **asked(entry, prompt=entry["prompt_ids"])), entry)


def test_tokenize_gives_the_prompts_ids(folder: HttpServer, file: HttpServer, stories) -> None:
    for server in (folder, file):
        for entry in golden(stories, "base"):
            body = {"content": entry["prompt"], "add_special": True}
            assert post(server, "/tokenize", body) == {"tokens": entry["prompt_ids"]}


# ---------------------------------------------------------------- the adapters' scales


def test_scales_of_the_command_line(
    folder: HttpServer, file: HttpServer, stories: Path, serve
) -> None:
    paths = adapters(stories)
    assert get(folder, "/lora-adapters") == [
        {"id": i, "path": path, "scale": 0.0} for i, path in enumerate(paths)
    ]
    (entry,) = golden(stories, "base")[:1]
    check(complete(folder, **asked(entry)), entry)

    listed = get(file, "/lora-adapters")
    assert [adapter["scale"] for adapter in listed] == [1.0, 0.0]
    (entry,) = golden(stories, "dragon")[:1]
    check(complete(file, **asked(entry)), entry)

    scaled = serve(model=str(stories / "stories260k"), lora=((paths[1], 1.0),))
    (entry,) = golden(stories, "moon")[:1]
    check(complete(scaled, **asked(entry)), entry)


@pytest.mark.parametrize(
    ("scales", "name"),
    [
        ([{"id": 1, "scale": 1.0}], "moon"),
        ([{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.0}], "dragon"),
        ([{"id": 0, "scale": 0}], "base"),
        ([], "base"),
    ],
)
def test_scales_are_set_for_later_requests(
    folder: HttpServer, stories: Path, scales: list[dict[str, float]], name: str
) -> None:
    try:
        assert post(folder, "/lora-adapters", scales) == {"success": True}
        given = {scale["id"]: scale["scale"] for scale in scales}
        listed = get(folder, "/lora-adapters")
        assert [a["scale"] for a in listed] == [given.get(0, 0.0), given.get(1, 0.0)]
        (entry,) = golden(stories, name)[1:2]
        check(complete(folder, **asked(entry)), entry)
        (entry,) = golden(stories, "dragon")[1:2]  # a request's own come first
        check(complete(folder, **asked(entry, lora=LORA["dragon"])), entry)
    finally:
        post(folder, "/lora-adapters", [])


def test_half_a_scale_lies_between(folder: HttpServer, stories: Path) -> None:
    (entry,) = golden(stories, "dragon")[:1]
    logprobs = [
        complete(folder, **asked(entry, n_predict=1, lora=[{"id": 0, "scale": scale}]))
        for scale in (0, 0.5, 1)
    ]
    ids = [top["id"] for top in logprobs[1]["completion_probabilities"][0]["top_logprobs"]]
    found = [
        {t["id"]: t["logprob"] for t in reply["completion_probabilities"][0]["top_logprobs"]}
        for reply in logprobs
    ]
    common = [i for i in ids if all(i in values for values in found)]
    assert len({round(values[common[0]], 4) for values in found}) == 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/completion", {"prompt": "a", "lora": [{"id": 2, "scale": 1}]}, "adapter 2"),
        ("/completion", {"prompt": "a", "lora": [{"id": 0}]}, "lora[0].scale"),
        ("/completion", {"prompt": "a", "lora": {"0": 1}}, "`lora`"),
        ("/lora-adapters", [{"id": 7, "scale": 1}], "adapter 7"),
        ("/lora-adapters", [{"id": 0, "scale": "1"}], "[0].scale"),
        ("/lora-adapters", {"id": 0}, "must be a list"),
        ("/lora-adapters", [{"id": 0, "scale": 1}, {"id": 0, "scale": 0}], "again"),
    ],
)
def test_what_is_refused(folder: HttpServer, path: str, body: Any, param: str) -> None:
    error = refused(folder, 400, path, body)
    assert param in error["message"] and error["type"] == "invalid_request_error"
    assert error["code"] == 400


def test_conversations(serve, stories: Path) -> None:
    server = serve(model=str(stories / "stories260k-chat"))
    for entry in golden(stories, "chat"):
        body = {"messages": entry["messages"], "max_tokens": entry["max_tokens"], **GREEDY}
        reply = post(server, "/v1/chat/completions", {**body, "return_tokens": True, "n_probs": 1})
        (choice,) = reply["choices"]
        assert choice["message"]["content"] == entry["text"]
        assert choice["tokens"] == entry["ids"]
        for step, expected in zip(
            choice["logprobs"]["content"], entry["top_logprobs"], strict=True
        ):
            assert step["logprob"] == pytest.approx(expected[0][1], abs=TOLERANCE)
        assert post(server, "/apply-template", {"messages": entry["messages"]}) == {
            "prompt": entry["prompt"]
        }
        counted = post(server, "/v1/chat/completions/input_tokens", body)
        assert counted == {"input_tokens": len(entry["prompt_ids"])}
        text = complete(server, entry["prompt"], n_predict=entry["max_tokens"], **GREEDY)
        # The template writes <s>, and the tokenizer puts another before a text.
        assert text["tokens_evaluated"] == len(entry["prompt_ids"]) + 1
