"""llama.cpp's form of a reply: streamed = collected, every field, and the limits of its text."""

from __future__ import annotations

import math
from typing import Any

import pytest
from api_fakes import FakePool, call, event_value, reply_body, reply_events, through_json, token
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_server.api.llama_limits import Limited, Limits, LineEnds
from mlx_server.api.llama_reply import LOWEST_LOGPROB
from mlx_server.config import Config
from mlx_server.core import GenerationRequest, TextPrompt
from mlx_server.deltas import (
    Delta,
    Done,
    Finished,
    Progress,
    Started,
    Text,
    Timings,
    TokenLogprob,
    TopLogprob,
    TopProb,
    Usage,
)
from mlx_server.services import Served

PATH = "/completion"
CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
TIMINGS = Timings(prompt_n=4, prompt_ms=8.0, predicted_n=2, predicted_ms=10.0, cache_n=1)
USAGE = Usage(5, 1, 2)


def sampled(text: str) -> TokenLogprob:
    """A token with the model's log-probabilities and those it was sampled from."""
    top = (TopLogprob(1, text, text.encode(), -0.25), TopLogprob(2, "z", b"z", -math.inf))
    best = (TopProb(1, text, text.encode(), 0.9),)
    return TokenLogprob(1, text, text.encode(), -0.25, top, prob=0.9, top_probs=best)


def run(
    reason: str = "stop", word: str | None = None, truncated: bool = False, *, choices: int = 1
) -> list[Delta]:
    deltas: list[Delta] = [Started(USAGE), Progress(5, 5, 1, 7.6)]
    for i in range(choices):
        deltas += [
            Text(i, "Hel", (sampled("Hel"),), (11,), Timings(4, 8.0, 1, 5.0, 1)),
            Text(i, "lo\n", (sampled("lo\n"),), (12,), TIMINGS),
            Finished(i, reason, word, USAGE, TIMINGS, truncated, 3),
        ]
    return [*deltas, Done(USAGE)]


def whole(deltas: list[Delta] | None = None, **fields: Any) -> Any:
    return reply_body(FakePool(deltas or run()), PATH, {"prompt": "a", **fields})


def stream(deltas: list[Delta] | None = None, **fields: Any) -> list[Any]:
    return reply_events(FakePool(deltas or run()), PATH, {"prompt": "a", **fields})


# ---------------------------------------------------------------- the whole reply


def test_whole_reply() -> None:
    body = whole(n_predict=9, seed=5, stop=["x"], id_slot=3)
    settings = body.pop("generation_settings")
    assert body == {
        "index": 0,
        "content": "Hello\n",
        "tokens": [],
        "id_slot": 3,
        "stop": True,
        "model": "/m/loaded",
        "tokens_predicted": 2,
        "tokens_evaluated": 5,
        "prompt": "a",
        "has_new_line": True,
        "truncated": False,
        "stop_type": "eos",
        "stopped_eos": True,
        "stopped_limit": False,
        "stopped_word": False,
        "stopping_word": "",
        "tokens_cached": 1,
        "timings": {
            "cache_n": 1,
            "prompt_n": 4,
            "prompt_ms": 8.0,
            "prompt_per_token_ms": 2.0,
            "prompt_per_second": 500.0,
            "predicted_n": 2,
            "predicted_ms": 10.0,
            "predicted_per_token_ms": 5.0,
            "predicted_per_second": 200.0,
        },
    }
    assert (settings["n_ctx"], settings["model"], settings["seed"]) == (512, "/m/loaded", 5)
    assert (settings["n_predict"], settings["stop"], settings["top_k"]) == (9, ["x"], 40)


@pytest.mark.parametrize(
    ("fields", "config", "limit"),
    [
        ({}, Config(), -1),
        ({}, Config(max_tokens=30), 30),
        ({"n_predict": -1}, Config(max_tokens=30), -1),
        ({"n_predict": -2}, Config(max_tokens=30), -2),
        ({}, Config(max_tokens=-2), -2),
        ({"n_predict": 0}, Config(max_tokens=30), 0),
        ({"max_tokens": 6}, Config(), 6),
    ],
)
def test_the_settings_tell_the_limit_that_was_asked_for(
    fields: dict, config: Config, limit: int
) -> None:
    body = reply_body(FakePool(run(), config=config), PATH, {"prompt": "a", **fields})
    assert body["generation_settings"]["n_predict"] == limit
    assert body["generation_settings"]["max_tokens"] == limit


def test_the_settings_tell_what_the_body_said() -> None:
    sent = {
        "temperature": 0.5, "dynatemp_range": 0.1, "dynatemp_exponent": 2.0, "top_k": 7,
        "top_p": 0.6, "min_p": 0.1, "n_predict": 5, "n_keep": 2, "tfs_z": 0.9, "typical_p": 0.8,
        "repeat_penalty": 1.3, "repeat_last_n": 12, "presence_penalty": 0.5, "stop": ["q"],
        "frequency_penalty": 0.25, "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.3,
        "grammar": 'root ::= "a"', "seed": 42, "ignore_eos": True, "n_probs": 2, "min_keep": 3,
        "samplers": ["top_k", "temperature"], "penalize_nl": False, "cache_prompt": False,
        "top_n_sigma": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.2, "dry_multiplier": 0.8,
        "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 9, "n_indent": 0,
        "dry_sequence_breakers": ["!"], "t_max_predict_ms": 0, "timings_per_token": True,
        "return_tokens": True, "post_sampling_probs": True, "lora": [{"id": 0, "scale": 0.5}],
    }  # fmt: skip
    settings = whole(**sent)["generation_settings"]
    assert {name: settings[name] for name in sent} == sent


@pytest.mark.parametrize(
    ("reason", "word", "kind"),
    [
        ("stop", None, "eos"),
        ("length", None, "limit"),
        ("abort", None, "limit"),
        ("stop", "q", "word"),
    ],
)
def test_why_it_ended(reason: str, word: str | None, kind: str) -> None:
    body = whole(run(reason, word))
    assert body["stop_type"] == kind
    flags = {name: body[f"stopped_{name}"] for name in ("eos", "limit", "word")}
    assert flags == {name: name == kind for name in flags}
    assert body["stopping_word"] == (word or "")


def test_a_context_that_was_full_is_told() -> None:
    assert whole(run(truncated=True))["truncated"] is True


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [("a", "a"), ([1, 2], [1, 2]), ({"prompt_string": "q"}, {"prompt_string": "q"})],
)
def test_the_prompt_comes_back_as_it_was(prompt: Any, shown: Any) -> None:
    assert reply_body(FakePool(run()), PATH, {"prompt": prompt})["prompt"] == shown


def test_several_prompts_and_copies_are_a_list() -> None:
    body = reply_body(FakePool(run(choices=4)), PATH, {"prompt": ["a", [1, "b"]], "n_cmpl": 2})
    assert [(one["index"], one["prompt"]) for one in body] == [
        (0, "a"), (1, "a"), (2, [1, "b"]), (3, [1, "b"]),
    ]  # fmt: skip
    assert isinstance(reply_body(FakePool(run()), PATH, {"prompt": ["a"]}), dict)


def test_tokens_only_where_they_are_asked_for() -> None:
    assert whole(return_tokens=True)["tokens"] == [11, 12]
    assert whole()["tokens"] == []


@pytest.mark.parametrize(
    ("names", "body"),
    [
        (["content"], {"content": "Hello\n"}),
        (
            ["content", "generation_settings/top_k"],
            {"content": "Hello\n", "generation_settings/top_k": 40},
        ),
        (["timings/prompt_n", "nothing", "content/deep"], {"timings/prompt_n": 4}),
    ],
)
def test_response_fields_pick(names: list[str], body: dict) -> None:
    assert whole(response_fields=names) == body
    expected = {**body, "content": ""} if "content" in body else body
    assert stream(response_fields=names)[-1] == expected


def test_the_model_that_answers_is_told_by_its_path() -> None:
    """Another may be the current one when the reply ends."""
    pool = FakePool(run())
    pool.generation.served = Served("/m/other", 77)
    reply = reply_body(pool, PATH, {"prompt": "a", "model": "org/loaded"})
    settings = reply["generation_settings"]
    assert reply["model"] == settings["model"] == "/m/other" and settings["n_ctx"] == 77


# ---------------------------------------------------------------- probabilities


def test_probabilities_have_both_forms() -> None:
    first, second = whole(n_probs=2)["completion_probabilities"]
    assert first == {
        "id": 1,
        "token": "Hel",
        "bytes": list(b"Hel"),
        "logprob": -0.25,
        "top_logprobs": [
            {"id": 1, "token": "Hel", "bytes": list(b"Hel"), "logprob": -0.25},
            {"id": 2, "token": "z", "bytes": [122], "logprob": LOWEST_LOGPROB},
        ],
        "content": "Hel",
        "probs": [{"tok_str": "Hel", "prob": 0.9}],
    }
    assert second["content"] == "lo\n"
    assert "completion_probabilities" not in whole()


def test_probabilities_after_sampling() -> None:
    entry = whole(n_probs=2, post_sampling_probs=True)["completion_probabilities"][0]
    assert entry["prob"] == 0.9
    assert entry["top_probs"] == [{"id": 1, "token": "Hel", "bytes": list(b"Hel"), "prob": 0.9}]
    assert not {"logprob", "top_logprobs"} & set(entry)


@pytest.mark.parametrize("temperature", [0, -1])
def test_greedy_probabilities_are_the_models_own(temperature: float) -> None:
    entry = whole(n_probs=2, temperature=temperature)["completion_probabilities"][0]
    assert [top["prob"] for top in entry["probs"]] == [pytest.approx(math.exp(-0.25)), 0.0]


# ---------------------------------------------------------------- streams


def test_stream() -> None:
    first, second, last = stream(id_slot=3)
    assert first == {
        "index": 0,
        "content": "Hel",
        "tokens": [11],
        "stop": False,
        "id_slot": 3,
        "tokens_predicted": 1,
        "tokens_evaluated": 5,
    }
    assert (second["content"], second["tokens"], second["tokens_predicted"]) == ("lo\n", [12], 2)
    assert (last["content"], last["tokens"], last["stop"]) == ("", [], True)


@pytest.mark.parametrize("fields", [{}, {"n_probs": 2}, {"prompt": ["a", "b"], "n_cmpl": 2}])
def test_streamed_is_collected(fields: dict) -> None:
    choices = 4 if "prompt" in fields else 1
    body = reply_body(FakePool(run(choices=choices)), PATH, {"prompt": "a", **fields})
    events = reply_events(FakePool(run(choices=choices)), PATH, {"prompt": "a", **fields})
    for one in body if isinstance(body, list) else [body]:
        mine = [event for event in events if event["index"] == one["index"]]
        assert "".join(event["content"] for event in mine) == one["content"]
        assert [event["stop"] for event in mine] == [False] * (len(mine) - 1) + [True]
        listed = [p for event in mine for p in event.get("completion_probabilities", [])]
        assert listed == one.get("completion_probabilities", [])
        same = {k: v for k, v in mine[-1].items() if k != "content"}
        one["generation_settings"]["stream"] = True
        assert same == {k: one[k] for k in same}
        assert set(one) - set(same) <= {"content", "completion_probabilities"}


def test_timings_with_every_piece() -> None:
    first, second, last = stream(timings_per_token=True)
    assert (first["timings"]["predicted_n"], second["timings"]["predicted_n"]) == (1, 2)
    assert last["timings"] == second["timings"]
    assert "timings" not in stream()[0]


def test_progress_of_the_prompt() -> None:
    event = stream(return_progress=True)[0]
    assert (event["content"], event["stop"]) == ("", False)
    assert event["prompt_progress"] == {"total": 5, "cache": 1, "processed": 5, "time_ms": 8}
    assert not any("prompt_progress" in event for event in stream())


# ---------------------------------------------------------------- limits

LINES = "def f():\n    a\n\t\t\t\tb\n  c\n    d"


@pytest.mark.parametrize(
    ("indent", "kept"),
    [
        (0, LINES),
        (1, LINES),
        (2, LINES),
        (3, "def f():\n    a\n\t\t\t\tb\n  "),
        (4, "def f():\n    a\n\t\t\t\tb\n  "),
        (5, "def f():\n    "),
    ],
)
@settings(deadline=None)
@given(data=st.data())
def test_a_reply_ends_at_a_line_with_too_little_indentation(
    indent: int, kept: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(LINES)), max_size=6)))
    pieces = [LINES[a:b] for a, b in zip([0, *cuts], [*cuts, len(LINES)], strict=True)]
    lines, text = LineEnds(Limits(indent)), ""
    for piece in pieces:
        end = lines.feed(piece, None)
        text += piece[:end]
        if end is not None:
            break
    assert text == kept


def test_an_empty_line_has_no_indentation() -> None:
    assert LineEnds(Limits(1)).feed("a\n\n b", None) == 2


@pytest.mark.parametrize(
    ("pieces", "kept"),
    [
        ([("a\n", 10), ("b", 60), ("c", 70)], "a\nb"),
        ([("a", 60), ("b", 70), ("c\nd", 80), ("e", 90)], "abc\nd"),
        ([("a", 60), ("b", 70)], "ab"),
        ([("a\n", 10), ("b\n", 50)], "a\nb\n"),
    ],
)
def test_a_reply_ends_after_its_time_once_it_has_a_newline(pieces: list, kept: str) -> None:
    deltas: list[Delta] = [Started(Usage(5))]
    for n, (text, ms) in enumerate(pieces, 1):
        deltas.append(Text(0, text, (), (n,), Timings(4, 8.0, n, float(ms), 1)))
    full = Usage(5, 1, len(pieces))
    pool = FakePool([*deltas, Finished(0, "stop", None, full), Done(full)])
    body = reply_body(pool, PATH, {"prompt": "a", "t_max_predict_ms": 50, "return_tokens": True})
    cut = kept != "".join(text for text, _ in pieces) or (pieces[-1][1] > 50 and "\n" in kept)
    assert body["content"] == kept
    assert body["stop_type"] == ("limit" if cut else "eos")
    assert body["tokens_predicted"] == len(body["tokens"])
    assert body["tokens_evaluated"] == 5
    assert pool.generation.cancelled


def test_one_choice_may_be_cut_and_another_go_on() -> None:
    deltas: list[Delta] = [Started(Usage(5))]
    for n, (index, text) in enumerate([(0, "a\n"), (1, "x"), (0, "b"), (1, "y"), (0, "c")], 1):
        deltas.append(Text(index, text, (), (n,), Timings(4, 8.0, n, 1.0, 1)))
    deltas += [Finished(i, "stop", None, Usage(5, 1, 3)) for i in (0, 1)]
    request = GenerationRequest("id", None, (TextPrompt("a"),), n=2)
    pool = FakePool([*deltas, Done(Usage(5, 1, 6))])
    seen = list(Limited(pool.generate(request), request, Limits(indent=2)))
    texts = {
        i: "".join(d.text for d in seen if isinstance(d, Text) and d.index == i) for i in (0, 1)
    }
    assert texts == {0: "a\n", 1: "xy"}
    ends = [(d.index, d.reason) for d in seen if isinstance(d, Finished)]
    assert ends == [(0, "length"), (1, "stop")]
    assert seen[-1] == Done(Usage(5, 1, 6))


@pytest.mark.parametrize("path", [PATH, "/v1/completions", CHAT])
def test_limits_hold_on_every_route_streamed_or_not(path: str) -> None:
    def deltas() -> list[Delta]:
        return [
            Started(Usage(5)),
            Text(0, "a\n", (), (), Timings(4, 8.0, 1, 1.0, 1)),
            Text(0, "  b\nc", (), (), Timings(4, 8.0, 2, 2.0, 1)),
            Text(0, "never", (), (), Timings(4, 8.0, 3, 3.0, 1)),
        ]

    body = {**(HI if path == CHAT else {"prompt": "a"}), "n_indent": 1}
    reply = reply_body(FakePool(deltas()), path, body)
    assert "a\\n  b\\n" in str(reply).replace("\n", "\\n") and "never" not in str(reply)
    assert "length" in str(reply) or reply["stopped_limit"]
    pool = FakePool(deltas())
    events = [event_value(e) for e in call(pool, "POST", path, {**body, "stream": True}).events]
    assert "never" not in str(events)
    assert pool.generation.cancelled


# ---------------------------------------------------------------- on the OpenAI routes


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_timings_end_a_reply_of_openais_form(path: str) -> None:
    body = HI if path == CHAT else {"prompt": "a"}
    assert reply_body(FakePool(run()), path, body)["timings"]["predicted_per_second"] == 200.0
    *events, last, _done = reply_events(FakePool(run()), path, body)
    assert last["timings"]["prompt_n"] == 4
    assert not any("timings" in event for event in events)
    usage = {"stream_options": {"include_usage": True}}
    *events, last, _done = reply_events(FakePool(run()), path, {**body, **usage})
    assert last["timings"]["prompt_n"] == 4 and last["usage"]
    assert not any("timings" in event for event in events)
    events = reply_events(FakePool(run()), path, {**body, "timings_per_token": True})[:-1]
    assert [e["timings"]["predicted_n"] for e in events if "timings" in e] == [1, 2, 2]


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_verbose_gives_llama_cpps_body_beside(path: str) -> None:
    body = {**(HI if path == CHAT else {"prompt": "a"}), "verbose": True, "return_tokens": True}
    reply = reply_body(FakePool(run()), path, body)
    beside = reply["__verbose"]
    assert (beside["content"], beside["tokens"], beside["stop"]) == ("Hello\n", [11, 12], True)
    assert beside["generation_settings"]["seed"] == 7
    assert beside["timings"] == reply["timings"]
    assert beside["prompt"] == ("<user>hi" if path == CHAT else "a")
    assert reply["choices"][0]["tokens"] == [11, 12]
    events = reply_events(FakePool(run()), path, body)[:-1]
    told = [event["__verbose"] for event in events if "__verbose" in event]
    assert [(one["content"], one["stop"]) for one in told] == [
        ("Hel", False), ("lo\n", False), ("", True),
    ]  # fmt: skip
    assert "__verbose" not in reply_body(FakePool(run()), path, {**body, "verbose": False})


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_n_probs_in_a_choice(path: str) -> None:
    body = {**(HI if path == CHAT else {"prompt": "a"}), "n_probs": 2}
    entries = reply_body(FakePool(run()), path, body)["choices"][0]["logprobs"]["content"]
    assert entries == whole(n_probs=2)["completion_probabilities"]
    events = reply_events(FakePool(run()), path, body)[:-1]
    choices = [event["choices"][0] for event in events]
    assert [e for c in choices for e in (c["logprobs"] or {}).get("content", [])] == entries


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_progress_in_a_chunk(path: str) -> None:
    body = {**(HI if path == CHAT else {"prompt": "a"}), "return_progress": True}
    events = reply_events(FakePool(run()), path, body)[:-1]
    (told,) = [event for event in events if "prompt_progress" in event]
    assert told["prompt_progress"]["cache"] == 1
    assert told["choices"][0]["finish_reason"] is None


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_the_tokens_of_a_conversation_are_counted(prefix: str) -> None:
    reply = call(FakePool(), "POST", f"{prefix}/chat/completions/input_tokens", HI)
    assert through_json(reply.body) == {"input_tokens": 1}


def test_tokens_without_probabilities_have_none() -> None:
    text = Text(0, "a", (token("a", None),))
    deltas: list[Delta] = [Started(USAGE), text, Finished(0, "stop", None, USAGE), Done(USAGE)]
    assert whole(deltas, n_probs=1)["completion_probabilities"][0]["logprob"] is None
