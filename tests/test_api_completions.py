"""POST /v1/completions: bodies in, replies out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from api_fakes import FakePool, add_logprobs, reply_body, reply_events, runs, token, whole_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_server.api.openai_completions import CompletionBody, OpenAICompletions
from mlx_server.api.openai_reply import SYSTEM_FINGERPRINT
from mlx_server.core import MixedPrompt, TextPrompt, TokenPrompt
from mlx_server.deltas import Text, TokenLogprob, TopLogprob
from mlx_server.errors import RequestError

COMPLETIONS = "/v1/completions"
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def parse(**fields: Any) -> Any:
    return OpenAICompletions().parse({"prompt": "hi", **fields})


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", (TextPrompt(""),)),
        ("abc", (TextPrompt("abc"),)),
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([1, 2.0, 3], (TokenPrompt((1, 2, 3)),)),
        ([[1, 2], [3]], (TokenPrompt((1, 2)), TokenPrompt((3,)))),
        (["a", 1], (MixedPrompt(("a", 1)),)),
        ([1, "a"], (MixedPrompt((1, "a")),)),
        (["a", ["b"], [1, "c"]], (TextPrompt("a"), MixedPrompt(("b",)), MixedPrompt((1, "c")))),
        ([[1], "a"], (TokenPrompt((1,)), TextPrompt("a"))),
        ({"prompt_string": "a"}, (TextPrompt("a"),)),
    ],
)
def test_prompt_forms(prompt: Any, expected: tuple) -> None:
    assert parse(prompt=prompt).prompts == expected


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (3, "prompt"),
        ({}, "prompt.prompt_string"),
        ([], "prompt"),
        ("\udc00", "prompt"),
        (["a", -1], "prompt[1]"),
        (["a", [1.5]], "prompt[1][0]"),
        (["a", "\udc00"], "prompt[1]"),
        ([1, "\udc00"], "prompt[1]"),
        ([1, [2]], "prompt[1]"),
        ([True], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([1.5], "prompt[0]"),
        ([2**31], "prompt[0]"),
        ([[1], 2], "prompt[0]"),
        ([["a"], None], "prompt[1]"),
        ([[1], []], "prompt[1]"),
        ([[1, {}]], "prompt[0][1]"),
    ],
)
def test_a_wrong_prompt_is_named_by_its_path(prompt: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(prompt=prompt)
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message


def test_a_prompt_is_required() -> None:
    with pytest.raises(RequestError, match="`prompt` is required"):
        OpenAICompletions().parse({"model": "m"})


@pytest.mark.parametrize("name", sorted(set(CompletionBody.model_fields) - {"prompt"}))
def test_null_is_absent(name: str) -> None:
    given, absent = parse(**{name: None}), parse()
    assert (given.options, given.echo, given.format) == (absent.options, False, absent.format)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"logprobs": 0}, {"logprobs": 0}),
        ({"logprobs": 5}, {"logprobs": 5}),
        ({"logprobs": 5, "echo": True}, {"logprobs": 5, "prompt_logprobs": 5}),
        ({"echo": True}, {}),
        ({"echo": True, "max_tokens": 0}, {"max_tokens": 0}),
        ({"max_tokens": 4, "best_of": 1, "suffix": ""}, {"max_tokens": 4}),
        ({"n": 3, "best_of": 3}, {}),
        ({"temperature": 0, "stop": "\n"}, {"temperature": 0.0, "stop": ("\n",)}),
    ],
)
def test_options_hold_what_the_client_named(fields: dict, options: dict) -> None:
    request = parse(**fields)
    assert request.options == options
    assert request.echo == fields.get("echo", False)
    assert request.n == fields.get("n", 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 4}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": False}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"n": 0}, "n"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"grammar": "root ::= [a]", "regex": "a"}, "regex"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message


# ---------------------------------------------------------------- replies


def test_whole_reply() -> None:
    pool = FakePool(whole_run({0: [Text(0, "Hel"), Text(0, "lo")]}, {0: "length"}))
    body = reply_body(pool, COMPLETIONS, {"prompt": "a", "model": "m"})
    assert isinstance(body.pop("created"), int)
    assert body.pop("usage")["total_tokens"] == 8
    assert body.pop("timings")["predicted_n"] == 0
    assert pool.request.id.startswith("cmpl-")
    assert body == {
        "id": pool.request.id,
        "object": "text_completion",
        "model": "m",
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "choices": [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length"}],
    }


def test_streamed_reply() -> None:
    pool = FakePool(whole_run({0: [Text(0, "Hel"), Text(0, "lo")]}, {0: "stop"}))
    *events, done = reply_events(pool, COMPLETIONS, {"prompt": "a"})
    assert done == "[DONE]"
    assert {event["object"] for event in events} == {"text_completion"}
    assert all("usage" not in event for event in events)
    assert [event["choices"] for event in events] == [
        [{"index": 0, "text": "Hel", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "lo", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
    ]


def test_choices_are_counted_over_prompts_and_copies() -> None:
    pieces = {index: [Text(index, str(index))] for index in (3, 1, 0, 2)}
    pool = FakePool(whole_run(pieces, dict.fromkeys(range(4), "stop")))
    body = reply_body(pool, COMPLETIONS, {"prompt": ["a", "b"], "n": 2})
    assert [(c["index"], c["text"]) for c in body["choices"]] == [
        (0, "0"), (1, "1"), (2, "2"), (3, "3"),
    ]  # fmt: skip


def test_legacy_logprobs_with_echo() -> None:
    prompt = Text(
        0, "Hi", (TokenLogprob(1, "H", b"H", None), replace(token("i", -0.25, 2), offset=1))
    )
    best = (TopLogprob(8, "?", b"?", -1.0),)
    reply = Text(0, "!", (TokenLogprob(9, "!", b"!", -math.inf, best, offset=2),))
    pool = FakePool(whole_run({0: [prompt, reply]}, {0: "stop"}))
    body = reply_body(pool, COMPLETIONS, {"prompt": "Hi", "echo": True, "logprobs": 2})
    assert body["choices"][0]["text"] == "Hi!"
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["H", "i", "!"],
        "token_logprobs": [None, -0.25, -9999.0],
        "top_logprobs": [None, {"i": -0.5, "i1": -1.5}, {"?": -1.0, "!": -9999.0}],
        "text_offset": [0, 1, 2],
    }


def fold(events: list[Any]) -> dict:
    """What a client makes of a stream: the whole reply."""
    *chunks, usage, done = (event for event in events if event is not None)
    assert done == "[DONE]"
    choices: dict[int, dict] = {}
    for chunk in chunks:
        (piece,) = chunk["choices"]
        choice = choices.setdefault(
            piece["index"], {"text": "", "logprobs": None, "finish_reason": None}
        )
        choice["text"] += piece["text"]
        choice["logprobs"] = add_logprobs(choice["logprobs"], piece["logprobs"])
        choice["finish_reason"] = piece["finish_reason"] or choice["finish_reason"]
    return {"choices": [choices[i] for i in sorted(choices)], "usage": usage["usage"]}


@pytest.mark.parametrize("logprobs", [None, 2])
@UNTIMED
@given(data=st.data(), prompts=st.integers(1, 2), n=st.integers(1, 2))
def test_streamed_equals_collected(
    logprobs: int | None, data: st.DataObject, prompts: int, n: int
) -> None:
    deltas = data.draw(runs(prompts * n))
    fields = {"prompt": ["x"] * prompts, "n": n, "logprobs": logprobs}
    fields["stream_options"] = {"include_usage": True}
    streamed = fold(reply_events(FakePool(deltas), COMPLETIONS, fields))
    whole = reply_body(FakePool(deltas), COMPLETIONS, fields)
    assert streamed["usage"] == whole["usage"]
    for choice, collected in zip(streamed["choices"], whole["choices"], strict=True):
        said = choice["logprobs"] or {}
        assert choice["text"] == collected["text"]
        assert choice["finish_reason"] == collected["finish_reason"]
        # A stream says nothing of pieces without text and tokens.
        assert said == (collected["logprobs"] or {}) or not any(collected["logprobs"].values())
