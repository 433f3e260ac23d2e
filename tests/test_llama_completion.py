"""POST /completion, /completions and /infill: bodies in, requests out, and every error."""

from __future__ import annotations

from typing import Any

import pytest
from api_fakes import FakePool, call, event_value, through_json, whole_run

from mlx_server.api.base import JsonReply, StreamReply
from mlx_server.api.llama import LlamaDialect
from mlx_server.api.llama_bodies import InfillBody, LlamaBody
from mlx_server.api.llama_completion import LlamaCompletion
from mlx_server.api.llama_options import DEFAULTS
from mlx_server.api.schema import validate
from mlx_server.config import Config
from mlx_server.core import InfillFile, InfillPrompt, MixedPrompt, TextPrompt, TokenPrompt
from mlx_server.deltas import Text
from mlx_server.errors import (
    AuthenticationError,
    ContextLengthExceeded,
    DeadlineExceeded,
    MethodNotAllowed,
    ModelLoadError,
    ModelNotFound,
    NotFound,
    NotSupported,
    PayloadTooLarge,
    RequestError,
    ServerError,
    Unavailable,
)
from mlx_server.sampling_params import SAMPLERS, SAMPLING_FIELDS, SamplingParams
from mlx_server.services import SystemPrompt

PATHS = ["/completion", "/completions"]
SYSTEM = SystemPrompt("Be kind.\nUser:", "User:", "Assistant:")


def parse(**fields: Any) -> Any:
    return LlamaCompletion().completion(validate(LlamaBody, {"prompt": "a", **fields}))


def fill(**fields: Any) -> Any:
    return LlamaCompletion().filling(validate(InfillBody, fields))


def one_run(*texts: str) -> list[Any]:
    return whole_run({0: [Text(0, text) for text in texts or ("Hel", "lo")]}, {0: "stop"})


# ---------------------------------------------------------------- the defaults


def test_the_defaults_are_the_documents_and_stand_above_the_models() -> None:
    request = parse()
    assert request.options == {}
    assert request.own_defaults
    assert set(request.defaults) <= SAMPLING_FIELDS
    params = SamplingParams(**request.defaults)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.95, 0.05)
    assert (params.repetition_penalty, params.repetition_context_size) == (1.1, 64)
    assert (params.typical_p, params.tfs_z, params.mirostat) == (1.0, 1.0, 0)
    assert (params.presence_penalty, params.frequency_penalty) == (0.0, 0.0)
    assert (params.samplers, params.n_keep, params.max_tokens) == (SAMPLERS, 0, None)
    assert request.reuse and request.slot is None and not request.stream


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("path", PATHS)
def test_what_stays_in_a_full_context_is_the_flags_unless_the_body_says(path: str) -> None:
    pool = FakePool(one_run(), config=Config(keep=7))
    call(pool, "POST", path, {"prompt": "a"})
    assert (pool.request.defaults["n_keep"], pool.request.options) == (7, {})
    call(pool, "POST", path, {"prompt": "a", "n_keep": -1})
    assert pool.request.options == {"n_keep": -1}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"temperature": -3}, {"temperature": 0.0}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_k": -5}, {"top_k": 0}),
        ({"seed": 2**32 - 1}, {"seed": None}),
        ({"seed": 3}, {"seed": 3}),
        ({"max_tokens": 0}, {"max_tokens": 0}),
        ({"stop": ["", "x"]}, {"stop": ("x",)}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x"] * 128}, {"stop": ("x",) * 128}),
        ({"presence_penalty": 5}, {"presence_penalty": 5.0}),
        ({"frequency_penalty": -5}, {"frequency_penalty": -5.0}),
        ({"logit_bias": [[1, -1000]]}, {"logit_bias": ((1, -1000.0),)}),
    ],
)
def test_options_that_are_wider_here(fields: dict, options: dict) -> None:
    assert parse(**fields).options == options


@pytest.mark.parametrize(("field", "kind"), [("grammar", "gbnf"), ("json_schema", "json_schema")])
def test_grammars(field: str, kind: str) -> None:
    value = {"type": "string"} if field == "json_schema" else 'root ::= "a"'
    grammar = parse(**{field: value}).grammar
    assert (grammar.kind, grammar.param) == (kind, field)
    assert parse(grammar="").grammar is None


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("a", [TextPrompt("a")]),
        ("", [TextPrompt("")]),
        ([1, 2], [TokenPrompt((1, 2))]),
        ([1, "b", 2], [MixedPrompt((1, "b", 2))]),
        (["a", 1], [MixedPrompt(("a", 1))]),
        (["a", "b"], [TextPrompt("a"), TextPrompt("b")]),
        (["a"], [TextPrompt("a")]),
        ([[1, 2], "b", ["c", 3]], [TokenPrompt((1, 2)), TextPrompt("b"), MixedPrompt(("c", 3))]),
        ([["a", "b"]], [MixedPrompt(("a", "b"))]),
        ({"prompt_string": "a"}, [TextPrompt("a")]),
        ({"prompt_string": "a", "multimodal_data": []}, [TextPrompt("a")]),
        ([{"prompt_string": "a"}, [1]], [TextPrompt("a"), TokenPrompt((1,))]),
    ],
)
def test_prompts(value: Any, prompts: list) -> None:
    request = parse(prompt=value)
    assert request.prompts == tuple(prompts)
    several = len(prompts) > 1 or value in (["a"], [["a", "b"]])
    assert request.format.prompts == tuple(value if several else [value])


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (5, "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([1, -1], "prompt[1]"),
        ([1, 2.5], "prompt[1]"),
        ([1, True], "prompt[1]"),
        ([1, {}], "prompt[1]"),
        (["a", None], "prompt[1]"),
        ({}, "prompt.prompt_string"),
        ([{"prompt_string": 1}], "prompt[0].prompt_string"),
        ("\ud800", "prompt"),
    ],
)
def test_a_wrong_prompt_is_named(value: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(prompt=value)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("path", PATHS)
def test_a_prompt_is_required(path: str) -> None:
    with pytest.raises(RequestError, match="`prompt` is required") as caught:
        call(FakePool(), "POST", path, {})
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"image_data": [{"data": "AAAA", "id": 12}]}, "image_data"),
        (
            {"prompt": {"prompt_string": "a", "multimodal_data": ["AAAA"]}},
            "prompt.multimodal_data",
        ),
    ],
)
def test_images_are_not_supported(fields: dict, param: str) -> None:
    with pytest.raises(NotSupported, match=param) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (501, param)
    assert parse(image_data=[]).prompts == (TextPrompt("a"),)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HI})],
)
def test_images_are_not_supported_on_any_route(path: str, body: dict) -> None:
    with pytest.raises(NotSupported, match="image_data"):
        call(FakePool(), "POST", path, {**body, "image_data": [{"data": "AAAA", "id": 12}]})


# ---------------------------------------------------------------- the system prompt


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [("hi", ("hi",)), ([1, 2], (1, 2)), (["hi", 2], ("hi", 2))],
)
def test_every_prompt_begins_with_the_system_prompt(prompt: Any, parts: tuple) -> None:
    pool = FakePool(one_run())
    pool.system_prompt = SYSTEM
    call(pool, "POST", "/completion", {"prompt": prompt, "stop": ["x"]})
    assert pool.request.prompts == (MixedPrompt((SYSTEM.prompt, *parts)),)
    assert pool.request.options["stop"] == ("x", "User:")


def test_a_body_sets_the_system_prompt_for_all() -> None:
    pool = FakePool(one_run())
    given = {"prompt": SYSTEM.prompt, "anti_prompt": "User:", "assistant_name": "Assistant:"}
    call(pool, "POST", "/completion", {"system_prompt": given})
    assert pool.system_prompt == SYSTEM
    assert pool.request.prompts == (MixedPrompt((SYSTEM.prompt, "")),)
    call(pool, "POST", "/completion", {"prompt": "hi"})
    assert pool.request.prompts == (MixedPrompt((SYSTEM.prompt, "hi")),)
    call(pool, "POST", "/completion", {"prompt": "hi", "system_prompt": ""})
    assert (pool.request.prompts, pool.system_prompt) == ((TextPrompt("hi"),), SystemPrompt())


@pytest.mark.parametrize("body", [{"prompt": 5}, {"prompt": "a", "top_p": 2}])
def test_a_wrong_body_changes_no_system_prompt(body: dict) -> None:
    pool = FakePool()
    with pytest.raises(RequestError):
        call(pool, "POST", "/completion", {**body, "system_prompt": "new"})
    assert pool.system_prompt == SystemPrompt()


def test_an_infill_sets_it_too_and_does_not_begin_with_it() -> None:
    pool = FakePool(one_run())
    body = {"input_prefix": "a", "system_prompt": {"prompt": "new", "anti_prompt": None}}
    call(pool, "POST", "/infill", body)
    assert pool.system_prompt == SystemPrompt("new")
    assert pool.request.prompts == (InfillPrompt("a", ""),)


@pytest.mark.parametrize("value", [1, [], {"prompt": 1}, {"anti_prompt": ["x"]}])
def test_a_wrong_system_prompt_is_named(value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        parse(system_prompt=value)
    assert caught.value.param == "system_prompt"


# ---------------------------------------------------------------- infill


def test_infill() -> None:
    request = fill(
        input_prefix="def f(", input_suffix="return 1", prompt="x",
        input_extra=[{"filename": "a.py", "text": "A"}, {"text": "B"}],
        n_predict=9, stream=True,
    )  # fmt: skip
    assert request.prompts == (
        InfillPrompt(
            "def f(", "return 1", "x", (InfillFile("a.py", "A"), InfillFile("tmp", "B")), False
        ),
    )
    assert (request.options, request.stream) == ({"max_tokens": 9}, True)
    assert request.defaults == dict(DEFAULTS)


@pytest.mark.parametrize("flag", [False, True])
def test_the_order_of_an_infill_is_the_flags(flag: bool) -> None:
    pool = FakePool(one_run(), config=Config(spm_infill=flag))
    reply = call(pool, "POST", "/infill", {"input_prefix": "a"})
    assert isinstance(reply, JsonReply)  # a stream only where it is asked for
    assert pool.request.prompts == (InfillPrompt("a", "", suffix_first=flag),)
    assert isinstance(
        call(pool, "POST", "/infill", {"input_suffix": "b", "stream": True}), StreamReply
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input_prefix"),
        ({"input_prefix": 1}, "input_prefix"),
        ({"input_prefix": "a", "input_suffix": []}, "input_suffix"),
        ({"input_prefix": "a", "prompt": ["x"]}, "prompt"),
        ({"input_prefix": "a", "input_extra": "x"}, "input_extra"),
        ({"input_prefix": "a", "input_extra": [{"filename": "f"}]}, "input_extra[0].text"),
        ({"input_prefix": "a", "input_extra": [{"text": "f"}] * 257}, "input_extra"),
        ({"input_prefix": "a", "top_p": 2}, "top_p"),
    ],
)
def test_a_wrong_infill_is_named(fields: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        fill(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


# ---------------------------------------------------------------- GET


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": "a"}),
        ("/completions", {"prompt": "a"}),
        ("/infill", {"input_prefix": "a"}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_get_with_a_body_is_post_and_without_one_is_not_allowed(path: str, body: dict) -> None:
    replies = [call(FakePool(one_run()), method, path, body).body for method in ("GET", "POST")]
    for reply in replies:
        reply.pop("id", None)
        reply.pop("created", None)
    assert replies[0] == replies[1]
    with pytest.raises(MethodNotAllowed) as caught:
        call(FakePool(), "GET", path)
    assert (caught.value.status, "POST" in caught.value.allow) == (405, True)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RequestError("m", param="p"), {"code": 400, "type": "invalid_request_error"}),
        (AuthenticationError("m"), {"code": 401, "type": "authentication_error"}),
        (NotFound("m"), {"code": 404, "type": "not_found_error"}),
        (ModelNotFound("m"), {"code": 404, "type": "not_found_error"}),
        (PayloadTooLarge("m"), {"code": 413, "type": "invalid_request_error"}),
        (NotSupported("m"), {"code": 501, "type": "not_supported_error"}),
        (Unavailable("m"), {"code": 503, "type": "unavailable_error"}),
        (DeadlineExceeded("m"), {"code": 504, "type": "server_error"}),
        (ModelLoadError("m"), {"code": 500, "type": "server_error"}),
        (ServerError("m"), {"code": 500, "type": "server_error"}),
    ],
)
def test_error_form(error: ServerError, expected: dict) -> None:
    assert LlamaDialect().error(error) == {"error": {"message": "m", **expected}}


def test_a_prompt_that_does_not_fit_tells_the_sizes() -> None:
    body = LlamaDialect().error(ContextLengthExceeded(900, 512))["error"]
    assert (body["code"], body["type"]) == (400, "exceed_context_size_error")
    assert (body["n_prompt_tokens"], body["n_ctx"]) == (900, 512)


@pytest.mark.parametrize("param", ["grammar", "json_schema"])
def test_an_invalid_grammar_is_told_as_llama_cpp_tells_it(param: str) -> None:
    body = LlamaDialect().error(RequestError("no such rule.", param=param))["error"]
    assert body == {
        "code": 400,
        "message": "Failed to parse grammar: no such rule.",
        "type": "invalid_request_error",
    }


@pytest.mark.parametrize("failure", [DeadlineExceeded("late"), OSError("x")])
def test_an_error_in_a_stream_is_an_event_and_the_end(failure: Exception) -> None:
    pool = FakePool([*one_run()[:3], failure])
    events = [
        event_value(e)
        for e in call(pool, "POST", "/completion", {"prompt": "a", "stream": True}).events
    ]
    assert [event.get("content") for event in events[:-1]] == ["Hel"]
    assert through_json(events[-1])["error"]["type"] == "server_error"
    assert pool.generation.cancelled


def test_a_client_that_goes_away_cancels() -> None:
    pool, gone = FakePool(one_run()), []
    call(pool, "POST", "/completion", {"prompt": "a", "stream": True}, on_disconnect=gone.append)
    gone[0]()
    assert pool.generation.cancelled
