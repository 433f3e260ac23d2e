"""/slots: what they are doing, and what is saved of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from llama_pool import SETTINGS, LlamaPool, ask

from mlx_server.api.llama_slots import LlamaSlots
from mlx_server.errors import NotSupported, RequestError, ServerError, Unavailable
from mlx_server.services import SlotInfo

SLOTS = LlamaSlots()
ROUTE = "/slots/{id_slot}"

DOCUMENTED = {
    "dynatemp_exponent", "dynatemp_range", "frequency_penalty", "grammar", "id", "ignore_eos",
    "logit_bias", "min_p", "mirostat", "mirostat_eta", "mirostat_tau", "model", "n_ctx", "n_keep",
    "n_predict", "n_probs", "next_token", "penalize_nl", "presence_penalty", "prompt",
    "repeat_last_n", "repeat_penalty", "samplers", "seed", "state", "stop", "stream", "task_id",
    "temperature", "tfs_z", "top_k", "top_p", "typical_p",
}  # fmt: skip
TODAYS = {"id_task", "is_processing", "params", "speculative", "n_ctx", "next_token"}
NEXT = {
    "has_next_token", "n_remain", "n_decoded", "stopped_eos", "stopped_limit", "stopped_word",
    "stopping_word",
}  # fmt: skip


def slots(pool: LlamaPool, query: str = "") -> list[dict[str, Any]]:
    return json.loads(json.dumps(ask(SLOTS, pool, "GET", "/slots", query=query).body))


def test_a_slot_is_told_in_the_documents_form_and_in_todays() -> None:
    busy, idle = slots(LlamaPool())
    for slot in (busy, idle):
        assert slot.keys() >= DOCUMENTED | TODAYS
        assert slot["next_token"].keys() >= NEXT
        assert slot["params"]["temperature"] == slot["temperature"]
    assert (busy["id"], busy["state"], busy["is_processing"]) == (0, 1, True)
    assert (idle["id"], idle["state"], idle["is_processing"]) == (1, 0, False)
    assert (busy["temperature"], busy["top_k"], busy["seed"], busy["stop"]) == (
        0.25, 7, 42, ["END"],
    )  # fmt: skip
    assert (busy["n_ctx"], busy["model"], busy["prompt"]) == (512, "/m/loaded", "Say")
    assert busy["next_token"] == {
        "has_next_token": True, "has_new_line": True, "n_remain": 6, "n_decoded": 3,
        "stopped_eos": False, "stopped_limit": False, "stopped_word": False, "stopping_word": "",
    }  # fmt: skip
    # One that nobody has used shows /completion's defaults.
    assert (idle["temperature"], idle["top_k"], idle["repeat_penalty"]) == (0.8, 40, 1.1)


@pytest.mark.parametrize(
    ("reason", "text", "stopped", "word"),
    [
        ("stop", "all", "stopped_eos", ""),
        ("length", "cut END", "stopped_limit", ""),
        ("abort", "so it END s", "stopped_word", "END"),
        ("abort", "gone", None, ""),
        ("tool_calls", "END", "stopped_word", "END"),
    ],
)
def test_how_the_last_reply_ended(reason: str, text: str, stopped: str | None, word: str) -> None:
    pool = LlamaPool()
    pool.slot_list = [SlotInfo(0, 512, False, "m", SETTINGS, text=text, finish_reason=reason)]
    (slot,) = slots(pool)
    ends = {name for name in NEXT if name.startswith("stopped_") and slot["next_token"][name]}
    assert ends == ({stopped} if stopped else set())
    assert slot["next_token"]["stopping_word"] == word


@pytest.mark.parametrize("query", ["fail_on_no_slot=1", "fail_on_no_slot=true"])
def test_no_free_slot_can_be_told_as_503(query: str) -> None:
    pool = LlamaPool()
    assert len(slots(pool, query)) == 2
    pool.slot_list = [replace(slot, processing=True) for slot in pool.slot_list]
    assert len(slots(pool)) == len(slots(pool, "fail_on_no_slot=0")) == 2
    with pytest.raises(Unavailable) as caught:
        slots(pool, query)
    assert SLOTS.error(caught.value)["error"] == {
        "code": 503, "message": "no slot available", "type": "unavailable_error",
    }  # fmt: skip
    pool.slot_list = []
    assert slots(pool, query) == []


def test_slots_can_be_turned_off() -> None:
    with pytest.raises(NotSupported) as caught:
        slots(LlamaPool(slots=False))
    assert SLOTS.error(caught.value)["error"] == {
        "code": 501,
        "message": "This server does not support slots endpoint.",
        "type": "not_supported_error",
    }


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (
            "save",
            {"filename": "a.bin", "n_saved": 17, "n_written": 1234, "timings": {"save_ms": 50.0}},
        ),
        (
            "restore",
            {
                "filename": "a.bin",
                "n_restored": 16,
                "n_read": 1233,
                "timings": {"restore_ms": 40.1},
            },
        ),
        ("erase", {"n_erased": 15}),
    ],
)
def test_actions(action: str, expected: dict[str, Any]) -> None:
    pool = LlamaPool(slot_save_path="/tmp/slots")
    body = None if action == "erase" else {"filename": "a.bin"}
    reply = ask(SLOTS, pool, "POST", ROUTE, body, query=f"action={action}", id_slot="1")
    assert json.loads(json.dumps(reply.body)) == {"id_slot": 1, **expected}


def test_nothing_needs_a_folder_to_be_erased() -> None:
    reply = ask(SLOTS, LlamaPool(), "POST", ROUTE, query="action=erase", id_slot="0")
    assert reply.body == {"id_slot": 0, "n_erased": 15}


@pytest.mark.parametrize("action", ["save", "restore"])
def test_files_need_a_folder(action: str) -> None:
    with pytest.raises(NotSupported, match="--slot-save-path"):
        ask(SLOTS, LlamaPool(), "POST", ROUTE, {"filename": "a"}, query=f"action={action}",
            id_slot="0")  # fmt: skip


@pytest.mark.parametrize(
    ("number", "query", "body", "param", "says"),
    [
        ("x", "action=save", {"filename": "a"}, "id_slot", "Invalid slot ID"),
        ("-1", "action=save", {"filename": "a"}, "id_slot", "Invalid slot ID"),
        ("9" * 30, "action=erase", None, "id_slot", "Invalid slot ID"),
        ("0", "", {"filename": "a"}, "action", "save, restore or erase"),
        ("0", "action=delete", {"filename": "a"}, "action", "save, restore or erase"),
        ("0", "action=save", None, None, "no body"),
        ("0", "action=save", {}, "filename", "is required"),
        ("0", "action=save", {"filename": 3}, "filename", "a string"),
        ("0", "action=save", {"filename": ""}, "filename", "without a path"),
        ("0", "action=save", {"filename": ".."}, "filename", "without a path"),
        ("0", "action=save", {"filename": "../a"}, "filename", "without a path"),
        ("0", "action=save", {"filename": "/etc/passwd"}, "filename", "without a path"),
        ("0", "action=restore", {"filename": "..\\a"}, "filename", "without a path"),
        ("0", "action=restore", {"filename": "a\x00b"}, "filename", "without a path"),
        ("0", "action=restore", {"filename": "none.bin"}, "filename", "no file none.bin"),
    ],
)
def test_what_is_wrong_is_named(
    number: str, query: str, body: Any, param: str | None, says: str
) -> None:
    pool = LlamaPool(slot_save_path="/tmp/slots")
    with pytest.raises(RequestError, match=says) as caught:
        ask(SLOTS, pool, "POST", ROUTE, body, query=query, id_slot=number)
    assert caught.value.param == param
    assert told(caught.value) == (400, "invalid_request_error")


def told(error: ServerError) -> tuple[int, str]:
    body = SLOTS.error(error)["error"]
    return body["code"], body["type"]
