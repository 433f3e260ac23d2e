"""llama.cpp's options on the OpenAI routes, and its names of what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_asking import GREEDY, ONCE, ask, complete, events, get, post, refused

from mlx_server.server.http import HttpServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HEY = [{"role": "user", "content": "Hey"}]


@pytest.fixture(scope="module")
def server(serve, stories: Path) -> HttpServer:
    return serve(
        model=str(stories / "stories260k-chat"),
        lora=(str(stories / "adapters" / "dragon"),),
        lora_init_without_apply=True,
        parallel=4,
        ctx_size=4 * 512,
        alias=("nick", "second"),
    )


@pytest.fixture(scope="module")
def prompt(server: HttpServer) -> list[int]:
    """The conversation as tokens."""
    text = post(server, "/apply-template", {"messages": HEY})["prompt"]
    return post(server, "/tokenize", {"content": text})["tokens"]


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "mirostat": {"mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2},
    "min_p": {"min_p": 0.2, "top_k": 12},
    "typical_p": {"typical_p": 0.5, "min_keep": 2},
    "penalties": {"repeat_penalty": 1.4, "repeat_last_n": -1, "presence_penalty": 0.2},
    "dry": {"dry_multiplier": 1.5, "dry_allowed_length": 1},
    "xtc": {"xtc_probability": 0.6, "xtc_threshold": 0.05},
    "dynatemp": {"dynatemp_range": 0.5},
    "order": {"samplers": ["temperature", "top_k"], "top_k": 8},
    "bias": {"logit_bias": [["Anna", -100.0], [432, False]]},
    "grammar": {"grammar": 'root ::= "yes " ("Lily" | "Tom")'},
    "schema": {"json_schema": {"enum": ["red", "blue"]}},
    "lora": {"lora": [{"id": 0, "scale": 1.0}]},
    "past the end": {"ignore_eos": True},
    "unpenalised newlines": {"penalize_nl": False, "repeat_penalty": 1.5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_does_the_same_everywhere(
    server: HttpServer, prompt: list[int], name: str
) -> None:
    body = {"seed": 5, "n_predict": 20, "return_tokens": True}
    options = OPTIONS[name]
    text = post(server, TEXT, {"prompt": prompt, **body, **options})
    chat = post(server, CHAT, {"messages": HEY, **body, **options})
    assert text["choices"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert text["choices"][0]["tokens"] == chat["choices"][0]["tokens"]
    usual = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repeat_penalty": 1}
    if name in ("greedy", "mirostat", "order", "lora"):
        own = complete(server, prompt, **{**usual, **body, **options})
        assert own["tokens"] == text["choices"][0]["tokens"]
    for path, more in ((TEXT, {"prompt": prompt}), (CHAT, {"messages": HEY})):
        found = events(server, path, {**more, **body, **options, "verbose": True})
        settings = next(e["__verbose"] for e in found if "timings" in e)["generation_settings"]
        assert settings["seed"] == 5 and settings["stream"]
        for field in options.keys() & settings.keys() - {"logit_bias"}:
            assert settings[field] == options[field] or field == "grammar"
        ids = [i for e in found for c in e["choices"] for i in c.get("tokens", ())]
        assert ids == text["choices"][0]["tokens"]


def test_options_change_the_reply(server: HttpServer) -> None:
    body = {"messages": HEY, "seed": 5, "n_predict": 20}
    texts = {
        post(server, CHAT, {**body, **options})["choices"][0]["message"]["content"]
        for options in OPTIONS.values()
    }
    assert len(texts) > len(OPTIONS) * 0.7


def test_the_adapter_applies_to_its_request_alone(server: HttpServer) -> None:
    body = {"prompt": ONCE, "max_tokens": 46, **GREEDY}
    texts = [
        post(server, TEXT, {**body, **more})["choices"][0]["text"]
        for more in ({}, {"lora": [{"id": 0, "scale": 1}]}, {"lora": []})
    ]
    assert "dragon" in texts[1] and texts[0] == texts[2] and "dragon" not in texts[0]


@pytest.mark.parametrize("body", [{"prompt": ONCE}, {"messages": HEY}], ids=[TEXT, CHAT])
def test_a_reply_may_have_to_end_with_the_context(serve, stories: Path, body: Any) -> None:
    small = serve(model=str(stories / "stories260k-chat"), ctx_size=64)
    path = TEXT if "prompt" in body else CHAT
    reply = post(small, path, {**body, "n_predict": -2, "n_keep": 2, **GREEDY})
    assert reply["usage"]["total_tokens"] == 64


def test_a_prompt_has_all_its_forms_everywhere(server: HttpServer) -> None:
    """Each begins with the start token, as the model's texts do."""
    start, *ids = post(server, "/tokenize", {"content": ONCE, "add_special": True})["tokens"]
    forms = [ONCE, {"prompt_string": ONCE}, [start, *ids], [start, ONCE]]
    for prompts, count in ((forms, 4), *((form, 1) for form in forms)):
        body = {"prompt": prompts, "n_predict": 8, "echo": True, **GREEDY}
        choices = post(server, TEXT, body)["choices"]
        assert len(choices) == count
        assert {choice["text"] for choice in choices} == {choices[0]["text"]}
        assert choices[0]["text"].startswith(ONCE)


def test_probabilities(server: HttpServer) -> None:
    body = {"messages": HEY, "n_probs": 3, "max_tokens": 6, "temperature": 1.3, "seed": 2}
    (choice,) = post(server, CHAT, body)["choices"]
    streamed = [c for e in events(server, CHAT, body) for c in e["choices"] if c.get("logprobs")]
    content = choice["logprobs"]["content"]
    assert [s for c in streamed for s in c["logprobs"]["content"]] == content
    assert len(content) == 6 and all(len(step["top_logprobs"]) == 3 for step in content)
    (after,) = post(server, CHAT, {**body, "post_sampling_probs": True})["choices"]
    for raw, sampled in zip(content, after["logprobs"]["content"], strict=True):
        assert raw["id"] == sampled["id"] and sampled["prob"] > 0
        assert raw["probs"] == sampled["probs"]
    (text,) = post(server, TEXT, {"prompt": ONCE, "n_probs": 2, "max_tokens": 3})["choices"]
    assert [len(step["top_logprobs"]) for step in text["logprobs"]["content"]] == [2, 2, 2]


def test_slots_and_what_is_known(server: HttpServer) -> None:
    body = {"messages": HEY, "max_tokens": 4, "id_slot": 2, "verbose": True, **GREEDY}
    cold = post(server, CHAT, {**body, "cache_prompt": False})
    warm = post(server, CHAT, body)
    assert cold["__verbose"]["id_slot"] == warm["__verbose"]["id_slot"] == 2
    assert cold["timings"]["cache_n"] == 0
    size = warm["usage"]["prompt_tokens"]
    assert warm["timings"]["cache_n"] == size - 1
    assert warm["usage"]["prompt_tokens_details"] == {"cached_tokens": size - 1}
    assert warm["choices"] == cold["choices"]
    error = refused(server, 400, CHAT, {**body, "id_slot": 4})
    assert error["type"] == "invalid_request_error" and error["param"] == "id_slot"


def test_progress_and_timings_in_a_stream(server: HttpServer) -> None:
    body = {"messages": HEY, "max_tokens": 5, "cache_prompt": False, "return_progress": True}
    found = events(server, CHAT, {**body, "timings_per_token": True})
    progress = [e["prompt_progress"] for e in found if "prompt_progress" in e]
    assert progress and progress[-1]["processed"] == progress[-1]["total"] == 43
    assert all(p["cache"] == 0 and p["time_ms"] >= 0 for p in progress)
    counts = [e["timings"]["predicted_n"] for e in found if "timings" in e]
    assert counts == [1, 2, 3, 4, 5, 5]
    native = events(
        server, "/completion",
        {"prompt": ONCE * 3, "n_predict": 3, "return_progress": True, "timings_per_token": True},
    )  # fmt: skip
    done = [e["prompt_progress"] for e in native if "prompt_progress" in e][-1]
    assert done["processed"] == done["total"] == native[-1]["tokens_evaluated"]
    assert [e["timings"]["predicted_n"] for e in native if "timings" in e] == [1, 2, 3, 3]


def test_the_last_message_is_gone_on_with(server: HttpServer) -> None:
    begun = [*HEY, {"role": "assistant", "content": "Once upon a"}]
    body = {"messages": begun, "max_tokens": 6, **GREEDY}
    texts = []
    for flag in ({"continue_final_message": True, "add_generation_prompt": False},
                 {"continue_final_message": True}, {"prefill_assistant": True}):  # fmt: skip
        template = post(server, "/apply-template", {**body, **flag})["prompt"]
        assert template.endswith("assistant\nOnce upon a")
        texts.append(post(server, CHAT, {**body, **flag})["choices"][0]["message"]["content"])
    assert texts[0] == texts[1] == texts[2]
    ids = post(server, "/tokenize", {"content": template})["tokens"]
    assert texts[0] == complete(server, ids, n_predict=6, **GREEDY)["content"]
    closed = post(server, "/apply-template", {**body, "add_generation_prompt": False})["prompt"]
    assert closed.endswith("Once upon a<|im_end|>\n")
    count = post(server, CHAT + "/input_tokens", {**body, "continue_final_message": True})
    assert count == {"input_tokens": len(ids)}
    for wrong in ({"add_generation_prompt": True}, {"messages": HEY}):
        refused(server, 400, CHAT, {**body, "continue_final_message": True, **wrong})


def test_get_with_a_body_is_post(server: HttpServer) -> None:
    for path, body in (
        ("/completion", {"prompt": ONCE, "n_predict": 4, **GREEDY}),
        ("/completions", {"prompt": ONCE, "n_predict": 4, **GREEDY}),
        (TEXT, {"prompt": ONCE, "max_tokens": 4, **GREEDY}),
        (CHAT, {"messages": HEY, "max_tokens": 4, **GREEDY}),
        ("/infill", {"input_prefix": "a"}),
    ):
        got, posted = (ask(server, path, body, method) for method in ("GET", "POST"))
        assert got.status_code == posted.status_code, path
        if got.ok:
            keys = ("content", "choices")
            assert [got.json().get(k) for k in keys] == [posted.json().get(k) for k in keys]
        without = ask(server, path, method="GET")
        assert without.status_code == 405 and "POST" in without.headers["Allow"]


def test_names_of_the_model(server: HttpServer, stories: Path) -> None:
    assert get(server, "/props")["model_alias"] == "nick"
    for name in ("nick", "second", "anything", str(stories / "stories260k-chat")):
        reply = post(server, CHAT, {"messages": HEY, "max_tokens": 1, "model": name})
        assert reply["model"] == name
        own = complete(server, n_predict=1, model=name)
        assert own["model"] == str(stories / "stories260k-chat")


def test_verbose_is_completions_own_body(server: HttpServer) -> None:
    body = {"prompt": ONCE, "max_tokens": 12, "n_probs": 2, "return_tokens": True, **GREEDY}
    reply = post(server, TEXT, {**body, "verbose": True})
    (choice,), verbose = reply["choices"], reply["__verbose"]
    assert verbose["content"] == choice["text"] and verbose["tokens"] == choice["tokens"]
    assert verbose["completion_probabilities"] == choice["logprobs"]["content"]
    assert verbose["prompt"] == ONCE and verbose["stopped_limit"]
    assert verbose["timings"] == reply["timings"]
    assert "__verbose" not in post(server, TEXT, body)
