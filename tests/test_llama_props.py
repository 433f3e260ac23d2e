"""/props, /lora-adapters and /metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_pool import LlamaPool, ask

from mlx_server.api.base import RawReply
from mlx_server.api.llama_props import LlamaProps
from mlx_server.errors import NotSupported, RequestError, Unavailable
from mlx_server.services import SystemPrompt

PROPS = LlamaProps()


def get(pool: LlamaPool, route: str) -> Any:
    return json.loads(json.dumps(ask(PROPS, pool, "GET", route).body))


def post(pool: LlamaPool, route: str, body: Any) -> Any:
    return ask(PROPS, pool, "POST", route, body).body


def test_props_have_the_documents_fields_and_todays() -> None:
    body = get(LlamaPool(), "/props")
    settings = body.pop("default_generation_settings")
    assert body.pop("build_info").startswith("mlx_server-")
    assert body == {
        "assistant_name": "", "user_name": "", "system_prompt": "", "total_slots": 2,
        "chat_template": "{{ messages }}", "n_ctx": 512, "model_path": "/m/loaded",
        "model_alias": "nick", "bos_token": "<s>", "eos_token": "</s>",
        "modalities": {"vision": False, "audio": False}, "endpoint_slots": True,
        "endpoint_props": False, "endpoint_metrics": False,
    }  # fmt: skip
    # What the command line sets comes before /completion's own defaults.
    assert (settings["temperature"], settings["top_k"], settings["top_p"]) == (0.5, 3, 0.95)
    assert (settings["n_ctx"], settings["model"]) == (512, "/m/loaded")
    assert settings["params"]["temperature"] == 0.5


def test_props_tell_how_much_of_a_prompt_is_kept() -> None:
    assert get(LlamaPool(keep=5), "/props")["default_generation_settings"]["n_keep"] == 5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"prompt": "Once", "anti_prompt": "User:", "assistant_name": "Bot:"},
            SystemPrompt("Once", "User:", "Bot:"),
        ),
        ({"prompt": "Once"}, SystemPrompt("Once")),
        ({"prompt": None, "anti_prompt": ""}, SystemPrompt()),
        ({}, SystemPrompt()),
        ("Once", SystemPrompt("Once")),
    ],
)
def test_the_system_prompt_is_set_and_told(given: Any, expected: SystemPrompt) -> None:
    pool = LlamaPool(props=True)
    pool.system_prompt = SystemPrompt("old", "old", "old")
    assert post(pool, "/props", {"system_prompt": given}) == {"success": True}
    assert pool.system_prompt == expected
    body = get(pool, "/props")
    assert (body["system_prompt"], body["user_name"], body["assistant_name"]) == (
        expected.prompt, expected.anti_prompt, expected.assistant_name,
    )  # fmt: skip


def test_props_are_not_changed_unless_told_so_at_the_start() -> None:
    pool = LlamaPool()
    with pytest.raises(NotSupported, match="--props"):
        post(pool, "/props", {"system_prompt": "x"})
    assert pool.system_prompt == SystemPrompt()


def test_props_that_loading_would_overwrite_are_not_taken() -> None:
    pool = LlamaPool(props=True)
    pool.ready = False
    with pytest.raises(Unavailable, match="Loading model"):
        post(pool, "/props", {"system_prompt": "x"})
    assert pool.system_prompt == SystemPrompt()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "system_prompt"),
        ({"system_prompt": None}, "system_prompt"),
        ({"system_prompt": 3}, "system_prompt"),
        ({"system_prompt": {"prompt": 3}}, "system_prompt.prompt"),
        ({"system_prompt": {"anti_prompt": ["User:"]}}, "system_prompt.anti_prompt"),
    ],
)
def test_a_wrong_system_prompt_is_named(body: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        post(LlamaPool(props=True), "/props", body)
    assert caught.value.param == param


def test_adapters_are_listed() -> None:
    assert get(LlamaPool(), "/lora-adapters") == [
        {"id": 0, "path": "/a/moon", "scale": 1.0},
        {"id": 1, "path": "/a/dragon", "scale": 0.5},
    ]


@pytest.mark.parametrize(
    ("body", "scales"),
    [
        ([{"id": 0, "scale": 0.2}, {"id": 1, "scale": 0.8}], {0: 0.2, 1: 0.8}),
        ([{"id": 1, "scale": 2}], {1: 2.0}),
        ([{"id": 1}], {1: 0.0}),
        ([], {}),
    ],
)
def test_scales_are_set(body: Any, scales: dict[int, float]) -> None:
    pool = LlamaPool()
    assert post(pool, "/lora-adapters", body) == {"success": True}
    assert pool.scales == scales


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "not valid JSON"),
        (b"[" * 100_000, None, "nested too deeply|not valid JSON"),
        ({"id": 0}, None, "must be a list"),
        ([3], "[0]", "an object"),
        ([{"scale": 1}], "[0].id", "is required"),
        ([{"id": "0", "scale": 1}], "[0].id", "an integer"),
        ([{"id": 0}, {"id": 1, "scale": "1"}], "[1].scale", "a number"),
        ([{"id": 0}, {"id": 0}], "[1].id", "again"),
        ([{"id": 5, "scale": 1}], "id", "no adapter 5"),
    ],
)
def test_wrong_scales_are_named_and_change_nothing(body: Any, param: str | None, says: str) -> None:
    pool = LlamaPool()
    with pytest.raises(RequestError, match=says) as caught:
        post(pool, "/lora-adapters", body)
    assert caught.value.param == param
    assert pool.scales is None


def test_metrics_where_they_are_wanted() -> None:
    reply = ask(PROPS, LlamaPool(metrics=True), "GET", "/metrics")
    assert isinstance(reply, RawReply)
    assert reply.content_type.startswith("text/plain; version=0.0.4")
    assert reply.body == b"llamacpp:requests_processing 1.0\n"
    with pytest.raises(NotSupported) as caught:
        ask(PROPS, LlamaPool(), "GET", "/metrics")
    assert PROPS.error(caught.value)["error"] == {
        "code": 501,
        "message": "This server does not support metrics endpoint.",
        "type": "not_supported_error",
    }
