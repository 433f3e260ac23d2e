"""/completion on the real server: what llama.cpp's options mean, streamed and not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from llama_asking import GREEDY, ONCE, complete, essence, events, get, post, refused

from mlx_server.server.http import HttpServer

SHARE = 256
"""Tokens of each slot's context; the model's own is 512."""

DOCUMENTED = {
    "temperature": 0.8, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0, "top_k": 40,
    "top_p": 0.95, "min_p": 0.05, "n_predict": -1, "n_keep": 0, "stop": [], "tfs_z": 1.0,
    "typical_p": 1.0, "repeat_penalty": 1.1, "repeat_last_n": 64, "penalize_nl": True,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "mirostat": 0, "mirostat_tau": 5.0,
    "mirostat_eta": 0.1, "ignore_eos": False, "logit_bias": [], "n_probs": 0, "min_keep": 0,
}  # fmt: skip
"""The document's own table."""


@pytest.fixture(scope="module")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as its author might publish it: a story's end ends a reply, and
    generation_config.json has other values than llama.cpp."""
    folder = tmp_path_factory.mktemp("models") / "stories"
    shutil.copytree(stories / "stories260k", folder)
    for name in ("config.json", "generation_config.json"):
        found = json.loads((folder / name).read_text()) | {"eos_token_id": [2, 1]}
        if name == "generation_config.json":
            found |= {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1}
        (folder / name).write_text(json.dumps(found))
    return folder


@pytest.fixture(scope="module")
def server(serve, model: Path) -> HttpServer:
    return serve(model=str(model), parallel=4, ctx_size=4 * SHARE)


def greedy(server: HttpServer, prompt: Any = ONCE, **fields: Any) -> Any:
    return complete(server, prompt, **{"n_predict": 8, "return_tokens": True, **GREEDY, **fields})


# ---------------------------------------------------------------- defaults


def test_a_silent_body_gets_the_documents_defaults(server: HttpServer, model: Path) -> None:
    body = {"seed": 7, "n_predict": 40, "cache_prompt": False}
    silent = complete(server, **body)
    told = complete(server, **{**DOCUMENTED, **body})
    assert essence(silent) == essence(told)
    assert silent["generation_settings"] == told["generation_settings"]
    settings = silent["generation_settings"]
    # Not those of generation_config.json.
    expected = {**DOCUMENTED, "seed": 7, "n_predict": 40, "n_ctx": SHARE, "model": str(model)}
    assert {name: settings[name] for name in expected} == expected
    shown = get(server, "/props")["default_generation_settings"]
    assert {name: shown[name] for name in DOCUMENTED} == DOCUMENTED
    others = complete(server, **body, temperature=0.01, top_k=1, top_p=0.1)
    assert others["content"] != silent["content"]


def test_the_models_own_values_are_openais_defaults(server: HttpServer) -> None:
    body = {"prompt": ONCE, "max_tokens": 8, "seed": 3}
    texts = [
        post(server, "/v1/completions", {**body, **more})["choices"][0]["text"]
        for more in ({}, {"temperature": 0})
    ]
    assert texts[0] == texts[1] == greedy(server)["content"]


def test_a_flag_comes_before_the_documents_defaults(serve, model: Path, server) -> None:
    flagged = serve(
        model=str(model), temp=0.0, repeat_penalty=1.0, max_tokens=5, keep=3, samplers=("top_k",)
    )
    reply = complete(flagged)
    settings = reply["generation_settings"]
    assert reply["content"] == greedy(server, n_predict=5)["content"]
    assert (settings["temperature"], settings["n_predict"], settings["n_keep"]) == (0, 5, 3)
    assert settings["samplers"] == ["top_k"] and settings["top_k"] == 40
    assert complete(flagged, n_predict=7, seed=1)["tokens_predicted"] == 7


# ---------------------------------------------------------------- streamed = collected

BODIES: dict[str, dict[str, Any]] = {
    "plain": {"n_predict": 30},
    "stop word": {"n_predict": 60, "stop": ["park", "zebra"]},
    "probabilities": {"n_predict": 12, "n_probs": 3},
    "after sampling": {"n_predict": 12, "n_probs": 3, "post_sampling_probs": True},
    "grammar": {"grammar": 'root ::= " yes, " ("Lily" | "Tom") " 🤗"'},
    "end of the story": {"n_predict": 360, **GREEDY},
    "bytes": {"prompt": "Café ñandú 🤗 媽 said", "n_predict": 40, "temperature": 1.5},
    "indentation": {"prompt": " Once", "n_predict": 150, "n_indent": 4, **GREEDY},
    "several": {"prompt": ["Once", "Lily and", [1, 403]], "n_predict": 6},
    "copies": {"n_cmpl": 3, "n_predict": 6},
    "nothing": {"n_predict": 0},
}


@pytest.mark.parametrize("name", BODIES)
def test_streamed_is_collected(server: HttpServer, name: str) -> None:
    body = {"prompt": ONCE, "seed": 11, "cache_prompt": False, "return_tokens": True}
    body |= BODIES[name]
    whole = complete(server, **body)
    whole = whole if isinstance(whole, list) else [whole]
    found = events(server, "/completion", body)
    for index, reply in enumerate(whole):
        mine = [event for event in found if event["index"] == index]
        *pieces, last = mine
        assert [event["stop"] for event in mine] == [False] * len(pieces) + [True]
        folded = {
            **last,
            "content": "".join(piece["content"] for piece in pieces),
            "tokens": [token for piece in pieces for token in piece["tokens"]],
        }
        if "completion_probabilities" in reply:
            steps = [s for piece in pieces for s in piece["completion_probabilities"]]
            folded["completion_probabilities"] = steps
        assert essence(folded) == essence(reply)
        settings = [dict(r["generation_settings"], stream=None) for r in (folded, reply)]
        assert settings[0] == settings[1]
        counts = [piece["tokens_predicted"] for piece in pieces]
        assert counts == sorted(counts)
        assert all(p["tokens_evaluated"] == reply["tokens_evaluated"] for p in pieces)
        if name != "indentation":  # it cuts within a token
            text = post(server, "/detokenize", {"tokens": reply["tokens"]})["content"]
            # A text's own first blank is none of its words'.
            assert text.startswith(reply["content"].removeprefix(" "))


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("prompt", "num_tokens"),
    [
        (ONCE, 5),
        ([1, 403, 407, 261, 378], 5),
        ([1, "Once upon a time"], 5),
        ({"prompt_string": ONCE}, 5),
        ([ONCE], 5),
        ([["Once upon", 261, 378]], 5),
        (["Once upon", 261, 378], 5),  # the start token comes where a text begins
        ([403, 407, 261, 378], 4),  # and not before ids
        ([403, " upon a time"], None),
    ],
    ids=str,
)
def test_forms_of_a_prompt(server: HttpServer, prompt: Any, num_tokens: int | None) -> None:
    found = greedy(server, prompt)
    found = found[0] if isinstance(found, list) else found
    if num_tokens == 5:
        assert found["content"] == greedy(server)["content"]
    if num_tokens is not None:
        assert found["tokens_evaluated"] == num_tokens
    assert found["prompt"] == (
        prompt[0] if prompt in ([ONCE], [["Once upon", 261, 378]]) else prompt
    )


def test_several_prompts_are_each_ones_reply(server: HttpServer) -> None:
    prompts = ["Lily", [1, 403], {"prompt_string": "Tom and"}, ["The", 261]]
    replies = greedy(server, prompts)
    assert [reply["index"] for reply in replies] == [0, 1, 2, 3]
    for prompt, reply in zip(prompts, replies, strict=True):
        alone = greedy(server, prompt)
        assert {**essence(reply), "index": 0} == essence(alone)


def test_several_in_one_slot(server: HttpServer) -> None:
    replies = greedy(server, ["Lily", "Tom and"], id_slot=2, n_cmpl=2)
    assert [reply["id_slot"] for reply in replies] == [2] * 4
    assert [reply["content"] for reply in replies[::2]] == [
        greedy(server, prompt)["content"] for prompt in ("Lily", "Tom and")
    ]


def test_the_progress_of_several(server: HttpServer) -> None:
    prompts = ["Lily went to the", "Tom"]
    body = {"prompt": prompts, "n_predict": 2, "return_progress": True, "cache_prompt": False}
    found = events(server, "/completion", body)
    for index, prompt in enumerate(prompts):
        *_, done = [e for e in found if e["index"] == index and "prompt_progress" in e]
        size = complete(server, prompt, n_predict=0)["tokens_evaluated"]
        assert done["prompt_progress"]["processed"] == done["prompt_progress"]["total"] == size
        assert done["tokens_evaluated"] == size


# ---------------------------------------------------------------- where a reply ends


def test_no_tokens_are_asked_for(server: HttpServer) -> None:
    prompt = "Lily saw a big green house and went"
    first = greedy(server, prompt, n_predict=0)
    assert (first["content"], first["tokens_predicted"]) == ("", 0)
    assert first["stopped_limit"] and first["timings"]["prompt_n"] == first["tokens_evaluated"]
    second = greedy(server, prompt, n_predict=1)
    assert second["tokens_cached"] == second["timings"]["cache_n"] == first["tokens_evaluated"] - 1


def test_a_story_ends_with_its_end_token(server: HttpServer) -> None:
    reply = greedy(server, n_predict=-1)
    assert (reply["stop_type"], reply["stopped_eos"]) == ("eos", True)
    assert reply["tokens"][-1] == 1 and not reply["content"].endswith("<s>")
    assert get(server, "/props")["eos_token"] == "</s>"
    on = greedy(server, n_predict=360, ignore_eos=True)
    assert on["content"].startswith(reply["content"]) and on["stopped_limit"]
    assert on["tokens_predicted"] == 360 and on["generation_settings"]["ignore_eos"]


@pytest.mark.parametrize("keep", [0, 4, -1])
def test_a_full_context_makes_room(server: HttpServer, keep: int) -> None:
    body = {"ignore_eos": True, "n_keep": keep, **GREEDY, "return_tokens": True}
    filled = complete(server, n_predict=-2, **body)
    assert filled["tokens_evaluated"] + filled["tokens_predicted"] == SHARE
    assert filled["stopped_limit"] and not filled["truncated"]
    longer = complete(server, n_predict=280, **body)
    assert longer["truncated"] and longer["tokens_predicted"] == 280
    assert longer["tokens"][: len(filled["tokens"])] == filled["tokens"]
    assert longer["generation_settings"]["n_keep"] == keep


def test_without_an_end_it_goes_on_as_far_as_the_model_was_trained(server: HttpServer) -> None:
    endless = greedy(server, n_predict=-1, ignore_eos=True)
    assert endless["tokens_evaluated"] + endless["tokens_predicted"] == 512
    assert endless["truncated"] and endless["stopped_limit"]


def test_a_limit_of_the_bodys_own_makes_room_whatever_the_flag_says(serve, model: Path) -> None:
    flagged = serve(model=str(model), max_tokens=-2, ctx_size=64)
    body = {"ignore_eos": True, **GREEDY}
    silent = complete(flagged, **body)
    assert silent["tokens_evaluated"] + silent["tokens_predicted"] == 64
    for limit, size in ((100, 100), (-1, 512 - silent["tokens_evaluated"])):
        reply = complete(flagged, n_predict=limit, **body)
        assert reply["truncated"] and reply["tokens_predicted"] == size


@pytest.mark.parametrize("stop", ["little", [" gir"], ["zebra", "little g"], [", there", ""]])
def test_stop_words(server: HttpServer, stop: Any) -> None:
    words = [word for word in ([stop] if isinstance(stop, str) else stop) if word]
    reply = greedy(server, n_predict=30, stop=stop)
    whole = greedy(server, n_predict=30)["content"]
    word = next(word for word in words if word in whole)
    assert reply["content"] == whole[: whole.index(word)]
    assert (reply["stopping_word"], reply["stop_type"]) == (word, "word")
    assert reply["stopped_word"] and not reply["stopped_eos"] and not reply["stopped_limit"]
    assert reply["generation_settings"]["stop"] == words


def test_a_limit_in_time(server: HttpServer) -> None:
    body = {"n_predict": -1, "ignore_eos": True, **GREEDY}
    quick = complete(server, t_max_predict_ms=0.01, **body)
    assert quick["content"].count("\n") == 1 and quick["stopped_limit"]
    assert quick["tokens_predicted"] < 200 and quick["id_slot"] in range(4)
    assert not quick["truncated"]
    slow = complete(server, t_max_predict_ms=1e9, **{**body, "n_predict": 120})
    assert slow["tokens_predicted"] == 120 and slow["content"].startswith(quick["content"])


def test_a_line_that_is_not_indented_ends_it(server: HttpServer) -> None:
    body = {"n_predict": 120, **GREEDY}
    cut = complete(server, n_indent=2, **body)
    whole = complete(server, **body)["content"]
    assert cut["content"] == whole[: whole.index("\n") + 1] and cut["stopped_limit"]


def test_a_reply_that_is_cut_behind_a_full_context_tells_so(server: HttpServer) -> None:
    line = 'root ::= [^\\n]{900} "\\n" [^ ]+'  # it ends when the context has been full
    reply = complete(server, n_predict=600, n_indent=2, grammar=line, **GREEDY)
    assert reply["stopped_limit"] and reply["content"].endswith("\n")
    assert reply["tokens_evaluated"] + reply["tokens_predicted"] > SHARE
    assert reply["truncated"]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"prompt": None}, 400, "`prompt`"),
        ({"prompt": []}, 400, "`prompt`"),
        ({"prompt": [[1, 2], 5.5]}, 400, "`prompt[0]`"),
        ({"prompt": [512]}, 400, "512"),
        ({"prompt": {"text": "a"}}, 400, "`prompt.prompt_string`"),
        ({"prompt": [{"prompt_string": "a", "multimodal_data": ["x"]}]}, 501, "multimodal_data"),
        ({"image_data": [{"data": "", "id": 1}]}, 501, "image_data"),
        ({"samplers": ["top_k", "nope"]}, 400, "`samplers`"),
        ({"temperature": "hot"}, 400, "`temperature`"),
        ({"n_predict": -3}, 400, "`n_predict`"),
        ({"logit_bias": [[9999, 1]]}, 400, "9999"),
        ({"logit_bias": [[1]]}, 400, "`logit_bias"),
        ({"id_slot": 4}, 400, "no slot 4"),
        ({"grammar": "root ::= ("}, 400, "Failed to parse grammar: `grammar`"),
        ({"json_schema": {"type": "x"}}, 400, "Failed to parse grammar: `json_schema`"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, 400, "`"),
        ({"system_prompt": 5}, 400, "`system_prompt`"),
        ({"dry_sequence_breakers": []}, 400, "`dry_sequence_breakers`"),
    ],
    ids=str,
)
def test_what_is_refused(
    server: HttpServer, fields: dict[str, Any], status: int, named: str
) -> None:
    body = {"prompt": "a", "n_predict": 1, **fields}
    error = refused(server, status, "/completion", body)
    kinds = {400: "invalid_request_error", 501: "not_supported_error"}
    assert (error["code"], error["type"]) == (status, kinds[status])
    assert named in error["message"]
    # A stream is refused with a status of its own, too.
    assert refused(server, status, "/completion", {**body, "stream": True}) == error


def test_an_end_that_is_ignored_cannot_come_here_and_is_gone_past_elsewhere(serve) -> None:
    """llama.cpp's `ignore_eos` bans the end tokens; on the OpenAI routes they may come."""
    server = serve()  # the demo model ends its turns
    body = {"prompt": "Hello", "ignore_eos": True, "n_predict": 60, "temperature": 0}
    banned = post(server, "/completion", {**body, "return_tokens": True, "repeat_penalty": 1})
    settings = banned["generation_settings"]["logit_bias"]
    ends = {entry["token"] for entry in settings if entry["bias"] is False}
    assert ends and ends.isdisjoint(banned["tokens"]) and len(banned["tokens"]) == 60
    past = post(server, "/v1/completions", {**body, "return_tokens": True})
    assert not ends.isdisjoint(past["choices"][0]["tokens"])
