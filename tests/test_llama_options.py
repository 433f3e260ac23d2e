"""llama.cpp's options: bodies in, `GenerationRequest`s out, on its own routes and on OpenAI's."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from pydantic.json_schema import models_json_schema

from mlx_server.api.fields import MAX_BIASED_TOKENS
from mlx_server.api.llama_bodies import InfillBody, LlamaBody
from mlx_server.api.llama_completion import LlamaCompletion
from mlx_server.api.llama_fields import MAX_N_PROBS
from mlx_server.api.llama_limits import Limits
from mlx_server.api.llama_options import DEFAULTS, settings_body
from mlx_server.api.openai_chat import ChatBody, OpenAIChat
from mlx_server.api.openai_completions import CompletionBody, OpenAICompletions
from mlx_server.api.schema import validate
from mlx_server.core import TextOptions
from mlx_server.errors import RequestError
from mlx_server.sampling_params import SAMPLERS, SAMPLING_FIELDS, SamplingParams

HI = {"messages": [{"role": "user", "content": "hi"}]}
NEVER = -math.inf


def complete(**fields: Any) -> Any:
    return LlamaCompletion().completion(validate(LlamaBody, {"prompt": "a", **fields}))


def chat(**fields: Any) -> Any:
    return OpenAIChat().parse({**HI, **fields})


def legacy(**fields: Any) -> Any:
    return OpenAICompletions().parse({"prompt": "a", **fields})


EVERYWHERE = [complete, chat, legacy]


# ---------------------------------------------------------------- what reaches the sampler

OPTIONS = [
    ({"typical_p": 0.5}, {"typical_p": 0.5}),
    ({"tfs_z": 0.9}, {"tfs_z": 0.9}),
    ({"top_n_sigma": 1.5}, {"top_n_sigma": 1.5}),
    ({"top_n_sigma": -1}, {"top_n_sigma": -1.0}),
    ({"min_p": 0}, {"min_p": 0.0}),
    ({"min_keep": 3}, {"min_keep": 3}),
    ({"dynatemp_range": 0.5}, {"dynatemp_range": 0.5}),
    ({"dynatemp_exponent": 2}, {"dynatemp_exponent": 2.0}),
    (
        {"xtc_probability": 0.5, "xtc_threshold": 0.2},
        {"xtc_probability": 0.5, "xtc_threshold": 0.2},
    ),
    ({"mirostat": 2}, {"mirostat": 2}),
    ({"mirostat_tau": 4, "mirostat_eta": 0.2}, {"mirostat_tau": 4.0, "mirostat_eta": 0.2}),
    ({"repeat_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ({"repeat_last_n": 9}, {"repetition_context_size": 9, "penalty_context_size": 9}),
    ({"repeat_last_n": -1}, {"repetition_context_size": -1, "penalty_context_size": -1}),
    ({"repeat_last_n": 0}, {"repetition_context_size": 0, "penalty_context_size": 0}),
    ({"dry_multiplier": 0.8, "dry_base": 2}, {"dry_multiplier": 0.8, "dry_base": 2.0}),
    ({"dry_allowed_length": 3}, {"dry_allowed_length": 3}),
    ({"dry_penalty_last_n": -1}, {"dry_penalty_last_n": -1}),
    ({"n_keep": 5}, {"n_keep": 5}),
    ({"n_keep": -1}, {"n_keep": -1}),
    ({"n_predict": 0}, {"max_tokens": 0}),
    ({"n_predict": -1}, {"max_tokens": None}),
    ({"n_predict": -2}, {"max_tokens": None, "n_keep": None}),
    ({"n_predict": -2, "n_keep": 5}, {"max_tokens": None, "n_keep": None}),
    ({"n_predict": 7, "max_tokens": 9}, {"max_tokens": 7}),
    ({"n_probs": 3}, {"logprobs": 3, "probs": 3}),
    ({"n_probs": 0}, {}),
    ({"seed": -1}, {"seed": None}),
    ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"samplers": []}, {"samplers": ()}),
    ({"n_discard": 0, "n_cache_reuse": 256, "cache_prompt": True}, {}),
]


@pytest.mark.parametrize("parse", EVERYWHERE)
@pytest.mark.parametrize(("fields", "options"), OPTIONS)
def test_options_mean_the_same_on_every_route(parse: Any, fields: dict, options: dict) -> None:
    request = parse(**fields)
    assert request.options == options
    assert set(request.options) <= SAMPLING_FIELDS


@pytest.mark.parametrize("parse", EVERYWHERE)
@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["top_k", "temperature"], ("top_k", "temperature")),
        (["top_k", "top_k"], ("top_k", "top_k")),
        (["typ_p", "Top-P", "temp", "tfs"], ("typical_p", "top_p", "temperature", "tfs_z")),
        ("kfypmt", ("top_k", "tfs_z", "typical_p", "top_p", "min_p", "temperature")),
        ("edsx", ("penalties", "dry", "top_n_sigma", "xtc")),
        ("top_k;temperature", ("top_k", "temperature")),
        ("top_k", ("top_k",)),
        (list(SAMPLERS), SAMPLERS),
        # What llama.vim and its kin send: today's samplers that are not here are left out.
        (["top_k", "top_p", "infill"], ("top_k", "top_p")),
        ("top_k;adaptive_p", ("top_k",)),
        ("infill", ()),
        ("kpia", ("top_k", "top_p")),
    ],
)
def test_samplers_by_name_alias_and_letter(parse: Any, value: Any, names: tuple) -> None:
    assert parse(samplers=value).options["samplers"] == names


@pytest.mark.parametrize("parse", EVERYWHERE)
@pytest.mark.parametrize(
    ("value", "ids", "texts"),
    [
        ([[15043, 1.0]], ((15043, 1.0),), ()),
        ([[15043, -1]], ((15043, -1.0),), ()),
        ([[15043, False]], ((15043, NEVER),), ()),
        ([["Hello, World!", -0.5]], (), (("Hello, World!", -0.5),)),
        ([["x", False], [3, 2]], ((3, 2.0),), (("x", NEVER),)),
        ({"15043": 1.0}, ((15043, 1.0),), ()),
        ({"15043": False, "Hello": -2}, ((15043, NEVER),), (("Hello", -2.0),)),
        ([["7", 1]], (), (("7", 1.0),)),
        ([], (), ()),
    ],
)
def test_every_form_of_logit_bias(parse: Any, value: Any, ids: tuple, texts: tuple) -> None:
    request = parse(logit_bias=value)
    assert request.options == {"logit_bias": ids}
    assert request.text_options == TextOptions(texts, ban_ends=parse is complete)


@pytest.mark.parametrize("parse", EVERYWHERE)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, TextOptions()),
        ({"penalize_nl": False}, TextOptions(penalize_nl=False)),
        ({"penalize_nl": True}, TextOptions(penalize_nl=True)),
        ({"dry_sequence_breakers": ["\n", "*"]}, TextOptions(dry_breakers=("\n", "*"))),
    ],
)
def test_options_that_are_text(parse: Any, fields: dict, expected: Any) -> None:
    """On /completion an end that is ignored cannot come."""
    assert parse(**fields).text_options == replace(expected, ban_ends=parse is complete)


@pytest.mark.parametrize("parse", EVERYWHERE)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"id_slot": 2}, {"slot": 2}),
        ({"slot_id": 2}, {"slot": 2}),
        ({"id_slot": -1, "slot_id": 4}, {"slot": None}),
        ({"cache_prompt": False}, {"reuse": False}),
        (
            {"lora": [{"id": 0, "scale": 0.5}, {"id": 1, "scale": 1}]},
            {"adapter_scales": ((0, 0.5), (1, 1.0))},
        ),
        ({"lora": []}, {"adapter_scales": ()}),
        ({"return_tokens": True}, {"return_tokens": True}),
        ({"timings_per_token": True}, {"return_timings": True}),
        ({"n_cmpl": 3}, {"n": 3}),
        ({"n": 3}, {"n": 3}),
        ({"n_indent": 2}, {"return_timings": True}),
        ({"t_max_predict_ms": 50}, {"return_timings": True}),
    ],
)
def test_options_beside_sampling(parse: Any, fields: dict, expected: dict) -> None:
    usual, request = parse(), parse(**fields)
    same = replace(request, id=usual.id, format=usual.format)
    assert same == replace(usual, **expected)


@pytest.mark.parametrize("parse", EVERYWHERE)
def test_what_a_reply_shows_reaches_its_formatter(parse: Any) -> None:
    request = parse(
        n_probs=2, post_sampling_probs=True, timings_per_token=True, return_progress=True,
        return_tokens=True, n_indent=4, t_max_predict_ms=250,
    )  # fmt: skip
    view = getattr(request.format, "view", request.format)
    assert view.prompts == (() if parse is chat else ("a",))
    assert asdict(replace(view, prompts=())) == {
        "prompts": (), "num_probs": 2, "post_sampling": True, "timings": True, "progress": True,
        "tokens": True, "fields": (), "limits": asdict(Limits(4, 250.0)),
    }  # fmt: skip


# ---------------------------------------------------------------- what is refused

REFUSED = [
    *((name, "1") for name in ("typical_p", "min_keep", "mirostat", "n_keep", "n_probs")),
    *((name, True) for name in ("tfs_z", "xtc_threshold", "dry_base", "repeat_last_n", "id_slot")),
    ("typical_p", 1.5),
    ("tfs_z", -0.1),
    ("xtc_probability", 2),
    ("mirostat", 3),
    ("mirostat", 1.5),
    ("repeat_penalty", 0),
    ("repeat_last_n", -2),
    ("dry_base", 0.5),
    ("dry_penalty_last_n", -2),
    ("dry_sequence_breakers", []),
    ("dry_sequence_breakers", "x"),
    ("dry_sequence_breakers", [""]),
    ("n_predict", -3),
    ("n_keep", -2),
    ("n_discard", 5),
    ("n_probs", MAX_N_PROBS + 1),
    ("n_indent", -1),
    ("t_max_predict_ms", -1),
    ("id_slot", -2),
    ("cache_prompt", "yes"),
    ("samplers", ["nonsense"]),
    ("samplers", [1]),
    ("samplers", "kq"),
    ("samplers", 5),
    ("lora", [{"id": 0}] * 65),
    ("return_tokens", 1),
    ("n_cmpl", 0),
]


@pytest.mark.parametrize("parse", EVERYWHERE)
@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_wrong_option_is_named(parse: Any, name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**{name: value})
    assert (caught.value.status, caught.value.param) == (400, name)
    assert caught.value.message.startswith(f"`{name}` must ")


@pytest.mark.parametrize("parse", EVERYWHERE)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repeat_penalty"),
        ({"n": 2, "n_cmpl": 3}, "n_cmpl"),
        ({"lora": [{"scale": 1}]}, "lora[0].id"),
        ({"lora": [{"id": 0}]}, "lora[0].scale"),
        ({"lora": [{"id": 0, "scale": "x"}]}, "lora[0].scale"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "grammar"),
        ({"logit_bias": [[i, 1] for i in range(MAX_BIASED_TOKENS + 1)]}, "logit_bias"),
        ({"logit_bias": [[1.5, 1]]}, "logit_bias"),
        ({"logit_bias": [[1, True]]}, "logit_bias"),
    ],
)
def test_what_cannot_be_is_named(parse: Any, fields: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(("parse", "temperature"), [(complete, 0.0), (chat, None), (legacy, None)])
def test_a_negative_temperature_is_greedy_on_its_own_route_only(
    parse: Any, temperature: float | None
) -> None:
    if temperature is not None:
        assert parse(temperature=-1).options == {"temperature": temperature}
        return
    with pytest.raises(RequestError) as caught:
        parse(temperature=-1)
    assert caught.value.param == "temperature"


# ---------------------------------------------------------------- the chat's own


@pytest.mark.parametrize(
    ("fields", "begins", "continues"),
    [
        ({}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"prefill_assistant": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
        ({"continue_final_message": False, "add_generation_prompt": True}, True, False),
    ],
)
def test_whose_turn_it_is(fields: dict, begins: bool, continues: bool) -> None:
    messages = [*HI["messages"], {"role": "assistant", "content": "So"}]
    (prompt,) = OpenAIChat().parse({"messages": messages, **fields}).prompts
    assert (prompt.add_generation_prompt, prompt.continue_final) == (begins, continues)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"continue_final_message": True}, "last message of the assistant's"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "cannot both be true",
        ),
    ],
)
def test_a_turn_that_cannot_be(fields: dict, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        chat(**fields)
    assert caught.value.param == "continue_final_message"


def test_logprobs_and_n_probs_together_have_the_form_of_logprobs() -> None:
    request = chat(n_probs=5, logprobs=True, top_logprobs=2)
    assert request.options == {"logprobs": 2}
    assert request.format.logprobs == "openai"
    assert chat(n_probs=5).format.logprobs == "llama"


# ---------------------------------------------------------------- settings


def test_the_settings_tell_every_option_of_the_document() -> None:
    params = SamplingParams(
        seed=9, max_tokens=12, stop=("x",), logit_bias=((1, 2.0), (3, NEVER)), unpenalized=(13,),
        samplers=("top_k",), logprobs=4, n_keep=2,
    )  # fmt: skip
    body = settings_body(params, context_length=99, model="/m", grammar="g", stream=True)
    document = {
        "dynatemp_exponent", "dynatemp_range", "frequency_penalty", "grammar", "ignore_eos",
        "logit_bias", "min_p", "mirostat", "mirostat_eta", "mirostat_tau", "model", "n_ctx",
        "n_keep", "n_predict", "n_probs", "penalize_nl", "presence_penalty", "repeat_last_n",
        "repeat_penalty", "samplers", "seed", "stop", "stream", "temperature", "tfs_z", "top_k",
        "top_p", "typical_p", "min_keep",
    }  # fmt: skip
    assert document <= set(body)
    assert (body["n_ctx"], body["model"], body["seed"]) == (99, "/m", 9)
    assert (body["n_predict"], body["max_tokens"], body["stop"]) == (12, 12, ["x"])
    assert body["logit_bias"] == [{"token": 1, "bias": 2.0}, {"token": 3, "bias": False}]
    assert (body["penalize_nl"], body["n_probs"], body["n_keep"]) == (False, 4, 2)
    assert (body["samplers"], body["grammar"], body["stream"]) == (["top_k"], "g", True)


def test_settings_without_a_request_are_the_defaults() -> None:
    body = settings_body(None, context_length=1, model="m")
    assert (body["temperature"], body["top_k"], body["top_p"], body["min_p"]) == (
        0.8,
        40,
        0.95,
        0.05,
    )
    assert (body["repeat_penalty"], body["repeat_last_n"], body["penalize_nl"]) == (1.1, 64, True)
    assert (body["n_predict"], body["seed"], body["samplers"]) == (-1, -1, list(SAMPLERS))
    assert body == settings_body(DEFAULTS, context_length=1, model="m")


def test_the_bodies_can_be_described() -> None:
    models = [ChatBody, CompletionBody, LlamaBody, InfillBody]
    named, _ = models_json_schema([(model, "validation") for model in models])
    assert len(named) == len(models)
