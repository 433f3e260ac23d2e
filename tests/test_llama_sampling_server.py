"""llama.cpp's sampling options over HTTP: each alone as beside others, and what each does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llama_asking import GREEDY, ONCE, complete, essence, get, post, refused, together

from mlx_server.server.http import HttpServer

COMMA, THERE, LILY = 432, 383, 317

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Lily", "Tom"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
LIST = 'root ::= " (" word (", " word)* ")"\nword ::= "cat" | "dog" | "bird"'

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "greedy": GREEDY,
    "hot": {"temperature": 1.7, "top_k": 0, "top_p": 1, "min_p": 0},
    "dynamic temperature": {"dynatemp_range": 0.6, "dynatemp_exponent": 1.3},
    "typical": {"typical_p": 0.4, "min_keep": 2},
    "tail free": {"tfs_z": 0.3},
    "top n sigma": {"top_n_sigma": 1.2, "temperature": 1.4},
    "xtc": {"xtc_probability": 0.7, "xtc_threshold": 0.05},
    "mirostat": {"mirostat": 1, "mirostat_tau": 3.0, "mirostat_eta": 0.2},
    "mirostat 2": {"mirostat": 2, "mirostat_tau": 4.0},
    "dry": {"dry_multiplier": 1.5, "dry_base": 1.6, "dry_allowed_length": 1, **GREEDY},
    "dry, own breakers": {
        "dry_multiplier": 2.0, "dry_sequence_breakers": ["was", "\n"], "dry_penalty_last_n": 40,
    },
    "penalties": {
        "repeat_penalty": 1.4, "repeat_last_n": -1, "presence_penalty": 0.5,
        "frequency_penalty": 0.3, "penalize_nl": False,
    },
    "own order": {"samplers": ["temperature", "min_p", "top_k", "min_p"], "temperature": 1.3},
    "no samplers": {"samplers": []},
    "letters": {"samplers": "kfypmt"},
    "bias": {"logit_bias": [[COMMA, False], ["Lily", 2.5], [" was", -1.5]]},
    "schema": {"json_schema": SCHEMA},
    "grammar": {"grammar": LIST},
    "probabilities": {"n_probs": 5},
    "after sampling": {"n_probs": 4, "post_sampling_probs": True, "temperature": 1.2},
    "past the end": {"ignore_eos": True, "temperature": 1.3},
}  # fmt: skip


def body_of(name: str) -> dict[str, Any]:
    seed = list(OPTIONS).index(name)
    body = {"prompt": ONCE, "n_predict": 24, "seed": seed, "return_tokens": True}
    return {**body, "cache_prompt": False, **OPTIONS[name]}


@pytest.fixture(scope="module")
def server(serve, stories: Path) -> HttpServer:
    return serve(model=str(stories / "stories260k"))


@pytest.fixture(scope="module")
def batched(server: HttpServer) -> dict[str, dict[str, Any]]:
    """All of them at the same time."""
    replies = together(server, [body_of(name) for name in OPTIONS])
    return dict(zip(OPTIONS, replies, strict=True))


def rounded(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Probabilities as far as they do not depend on the shape of the batch."""
    return json.loads(json.dumps(steps), parse_float=lambda text: round(float(text), 3))


@pytest.mark.parametrize("name", OPTIONS)
def test_alone_as_in_a_batch(server: HttpServer, batched: dict[str, Any], name: str) -> None:
    alone, beside = complete(server, **body_of(name)), batched[name]
    assert alone["tokens"] == beside["tokens"]
    assert alone["generation_settings"] == beside["generation_settings"]
    steps = [rounded(reply.pop("completion_probabilities", [])) for reply in (alone, beside)]
    assert [s["id"] for s in steps[0]] == [s["id"] for s in steps[1]]
    for mine, theirs in zip(*steps, strict=True):
        for key in {"logprob", "prob"} & mine.keys():
            assert mine[key] == pytest.approx(theirs[key], abs=2e-3)
    assert essence(alone) == essence(beside)


def test_options_change_the_reply(batched: dict[str, Any]) -> None:
    same = {"letters", "defaults", "probabilities"}
    texts = [reply["content"] for name, reply in batched.items() if name not in same]
    assert len(set(texts)) > len(texts) * 0.7


def test_the_seed_decides(server: HttpServer) -> None:
    body = {"temperature": 1.2, "n_predict": 20, "top_k": 0}
    replies = [complete(server, seed=seed, **body)["content"] for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]
    drawn = [complete(server, seed=-1, **body) for _ in range(2)]
    seeds = [reply["generation_settings"]["seed"] for reply in drawn]
    assert seeds[0] != seeds[1] and drawn[0]["content"] != drawn[1]["content"]
    assert complete(server, seed=seeds[0], **body)["content"] == drawn[0]["content"]


# ---------------------------------------------------------------- the same said otherwise

SAME = {
    "one candidate": ({"top_k": 1}, GREEDY),
    "less than no temperature": ({"temperature": -1, "repeat_penalty": 1}, GREEDY),
    "names in a string": (
        {"samplers": "top_k;typ_p;temperature"},
        {"samplers": ["top_k", "typical_p", "temperature"]},
    ),
    "letters": ({"samplers": "kyt"}, {"samplers": ["top_k", "typical_p", "temperature"]}),
    "twice": (
        {"samplers": ["temperature", "temperature"], "temperature": 1.5},
        {"samplers": ["temperature"], "temperature": 2.25},
    ),
    "a sampler that is not named": ({"samplers": ["temperature"], "top_k": 1}, {
        "samplers": ["temperature"], "top_k": 0}),
    "mirostat takes no other filter": ({"mirostat": 2, "top_k": 1}, {"mirostat": 2, "top_p": 0.1}),
    "at least two": ({"top_k": 1, "min_keep": 2, "seed": 5}, {"top_k": 2, "seed": 5}),
    "dry without strength": ({"dry_multiplier": 0, "dry_base": 3}, {}),
    "no window": ({"repeat_last_n": 0, "repeat_penalty": 2}, {"repeat_penalty": 1}),
    "whole window": ({"repeat_last_n": -1}, {"repeat_last_n": 500}),
    "biases as an object": (
        {"logit_bias": {"432": -3, " was": 1.5}}, {"logit_bias": [[432, -3], [" was", 1.5]]}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_said_otherwise(server: HttpServer, name: str) -> None:
    body = {"n_predict": 24, "seed": 9, "return_tokens": True}
    one, other = (complete(server, **{**body, **fields}) for fields in SAME[name])
    if name == "one candidate":  # the penalty still counts
        other = complete(server, **{**body, "temperature": 0})
    assert one["tokens"] == other["tokens"]


# ---------------------------------------------------------------- what they do


@pytest.mark.parametrize(
    "bias",
    [[[COMMA, False]], {"432": False}, [[",", False]], {",": False}, [[COMMA, -100.0]],
     {",": -100}],
    ids=str,
)  # fmt: skip
def test_a_token_that_never_comes(server: HttpServer, bias: Any) -> None:
    body = {"n_predict": 40, "return_tokens": True, **GREEDY}
    assert COMMA in complete(server, **body)["tokens"]
    reply = complete(server, logit_bias=bias, **body)
    assert COMMA not in reply["tokens"]
    shown = reply["generation_settings"]["logit_bias"]
    value = bias[0][1] if isinstance(bias, list) else next(iter(bias.values()))
    assert {"token": COMMA, "bias": value} in shown


def test_a_number_in_a_pair_of_texts_is_text(server: HttpServer) -> None:
    ids = post(server, "/tokenize", {"content": "432"})["tokens"]
    reply = complete(server, logit_bias=[["432", -1]], n_predict=1)
    assert [b["token"] for b in reply["generation_settings"]["logit_bias"]] == ids


def test_no_samplers_leave_the_models_probabilities(server: HttpServer) -> None:
    body = {"n_predict": 1, "n_probs": 8, "post_sampling_probs": True, "temperature": 0.5}
    off = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1}
    steps = [
        complete(server, **{**body, **fields})["completion_probabilities"][0]["top_probs"]
        for fields in ({"samplers": [], "repeat_penalty": 1}, off)
    ]
    assert [t["id"] for t in steps[0]] == [t["id"] for t in steps[1]]
    for one, other in zip(*steps, strict=True):
        assert one["prob"] == pytest.approx(other["prob"], abs=1e-5)


def test_a_token_that_always_comes(server: HttpServer) -> None:
    reply = complete(server, logit_bias=[[LILY, 1000]], n_predict=5, seed=1, return_tokens=True)
    assert reply["tokens"] == [LILY] * 5


def test_a_flag_may_say_always_and_never(serve, stories: Path) -> None:
    flags = (f"{LILY}+inf", f"{COMMA}-inf")
    flagged = serve(model=str(stories / "stories260k"), logit_bias=flags)
    reply = complete(flagged, n_predict=2, n_probs=1, return_tokens=True)
    assert reply["tokens"] == [LILY] * 2
    (best,) = reply["completion_probabilities"][0]["probs"]
    assert (best["tok_str"], best["prob"]) == (" Lily", 1.0)
    told = {b["token"]: b["bias"] for b in reply["generation_settings"]["logit_bias"]}
    assert math.isfinite(told[LILY]) and told[COMMA] is False


def test_a_texts_bias_counts_for_all_its_tokens(server: HttpServer) -> None:
    ids = post(server, "/tokenize", {"content": ", there"})["tokens"]
    reply = complete(server, logit_bias=[[", there", -100.0]], n_predict=30, return_tokens=True)
    assert {COMMA, THERE} <= set(ids) and not set(ids) & set(reply["tokens"])


def test_probabilities(server: HttpServer) -> None:
    body = {"seed": 4, "n_predict": 10, "temperature": 1.5, "repeat_penalty": 1}
    model = complete(server, n_probs=6, **body)["completion_probabilities"]
    after = complete(server, n_probs=6, post_sampling_probs=True, **body)
    after = after["completion_probabilities"]
    assert len(model) == len(after) == 10
    for raw, sampled in zip(model, after, strict=True):
        assert raw["id"] == sampled["id"] and raw["content"] == raw["token"]
        assert bytes(raw["bytes"]).decode(errors="replace") == raw["token"]
        values = [top["logprob"] for top in raw["top_logprobs"]]
        assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) <= 1.0001
        shown = [(p["tok_str"], p["prob"]) for p in raw["probs"]]
        again = [(p["tok_str"], pytest.approx(p["prob"], abs=1e-5)) for p in sampled["probs"]]
        assert shown == again
        assert len(shown) == 6 and sum(prob for _, prob in shown) <= 1.0001
        assert shown == sorted(shown, key=lambda pair: -pair[1])
        assert sampled["prob"] > 0 and "logprob" not in sampled
        chosen = [t["prob"] for t in sampled["top_probs"] if t["id"] == sampled["id"]]
        assert chosen in ([], [sampled["prob"]])
        # Temperature 1.5 makes what is likeliest less so, unless it alone is left.
        assert shown[0][1] == pytest.approx(1) or shown[0][0] == raw["top_logprobs"][0]["token"]


def test_grammars(server: HttpServer) -> None:
    listed = complete(server, grammar=LIST, n_predict=60, seed=3)
    words = listed["content"]
    assert words.startswith(" (") and {*words[2:].rstrip(")").split(", ")[:-1]} <= {
        "cat", "dog", "bird"}  # fmt: skip
    assert listed["generation_settings"]["grammar"] == LIST
    for seed in range(3):
        reply = complete(server, json_schema=SCHEMA, n_predict=60, seed=seed, temperature=1.5)
        jsonschema.validate(json.loads(reply["content"]), SCHEMA)
        assert reply["stopped_eos"]
    whole = complete(server, json_schema={"const": {"a": [1, None]}}, n_predict=60)
    assert json.loads(whole["content"]) == {"a": [1, None]}


def test_the_command_lines_grammar_applies_unless_a_request_has_one(serve, stories) -> None:
    flags = {"grammar": 'root ::= " never"', "dry_sequence_breaker": ("!",)}
    server = serve(model=str(stories / "stories260k"), **flags)
    reply = complete(server, n_predict=20)
    assert reply["content"] == " never"
    for settings in (
        reply["generation_settings"], get(server, "/props")["default_generation_settings"],
    ):  # fmt: skip
        assert settings["grammar"] == flags["grammar"]
        assert settings["dry_sequence_breakers"] == ["!"]
    assert complete(server, n_predict=20, grammar='root ::= " once"')["content"] == " once"
    error = refused(server, 400, "/completion", {"prompt": "a", "grammar": "x"})
    assert error["message"].startswith("Failed to parse grammar")
