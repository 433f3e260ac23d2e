"""/tokenize, /detokenize and /apply-template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_pool import LlamaPool, ask

from mlx_server.api.llama_text import LlamaText
from mlx_server.core import Message, TextPart
from mlx_server.errors import RequestError
from mlx_server.services import TokenPiece
from mlx_server.text.tokenizer import Tokenizer

TEXT = LlamaText()
PIECES = [TokenPiece(5, b" Hi"), TokenPiece(198, b"\xc3"), TokenPiece(164, b"\xa1")]


def post(pool: LlamaPool, route: str, body: Any) -> Any:
    return json.loads(json.dumps(ask(TEXT, pool, "POST", route, body).body))


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"content": "Hi"}, (None, ("Hi",), False, True)),
        ({"content": "Hi", "add_special": True}, (None, ("Hi",), True, True)),
        ({"content": "Hi", "parse_special": False}, (None, ("Hi",), False, False)),
        ({"content": ["a", 3, "b", 4.0]}, (None, ("a", 3, "b", 4), False, True)),
        ({"content": "", "model": "org/x"}, ("org/x", ("",), False, True)),
        ({"content": "Hi", "add_special": None, "other": 1}, (None, ("Hi",), False, True)),
    ],
)
def test_what_tokenize_asks_for(body: Any, asked: Any) -> None:
    pool = LlamaPool()
    assert post(pool, "/tokenize", body) == {"tokens": []}
    assert pool.asked == [asked]


def test_tokenize_gives_ids_or_pieces() -> None:
    pool = LlamaPool()
    pool.token_pieces = PIECES
    assert post(pool, "/tokenize", {"content": "x"}) == {"tokens": [5, 198, 164]}
    assert post(pool, "/tokenize", {"content": "x", "with_pieces": True}) == {
        "tokens": [
            {"id": 5, "piece": " Hi"},
            {"id": 198, "piece": [0xC3]},
            {"id": 164, "piece": [0xA1]},
        ]
    }


def test_detokenize() -> None:
    pool = LlamaPool()
    assert post(pool, "/detokenize", {"tokens": [1, 2.0], "model": "m"}) == {"content": "text"}
    assert post(pool, "/detokenize", {"tokens": []}) == {"content": "text"}
    assert pool.asked == [("m", (1, 2)), (None, ())]


@pytest.mark.parametrize(
    ("route", "body", "param", "says"),
    [
        ("/tokenize", {}, "content", "is required"),
        ("/tokenize", {"content": None}, "content", "a string or a list"),
        ("/tokenize", {"content": 3}, "content", "a string or a list"),
        ("/tokenize", {"content": ["a", -1]}, "content", "item 1 is -1"),
        ("/tokenize", {"content": ["a", True]}, "content", "item 1 is true"),
        ("/tokenize", {"content": "\ud800"}, "content", "string or a list|Unicode"),
        ("/tokenize", {"content": "a", "with_pieces": 1}, "with_pieces", "true or false"),
        ("/detokenize", {}, "tokens", "is required"),
        ("/detokenize", {"tokens": "1"}, "tokens", "a list of token ids"),
        ("/detokenize", {"tokens": [1, "2"]}, "tokens", "item 1"),
        ("/detokenize", {"tokens": [2**40]}, "tokens", "item 0"),
        ("/apply-template", {}, "messages", "is required"),
        ("/apply-template", {"messages": []}, "messages", "must not be empty"),
    ],
)
def test_a_wrong_field_is_named(route: str, body: Any, param: str, says: str) -> None:
    pool = LlamaPool()
    with pytest.raises(RequestError, match=says) as caught:
        ask(TEXT, pool, "POST", route, json.dumps(body).encode())
    assert caught.value.param == param and f"`{param}`" in caught.value.message
    error = TEXT.error(caught.value)["error"]
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert not pool.asked


def test_apply_template_renders_what_a_chat_would() -> None:
    pool = LlamaPool()
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "chat_template_kwargs": {"mood": "calm"},
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    assert post(pool, "/apply-template", body) == {"prompt": "rendered"}
    ((model, prompt),) = pool.asked
    assert model == "m"
    assert prompt.messages == (Message("user", (TextPart("Hi"),)),)
    assert prompt.template_args == {"mood": "calm"}
    assert [tool.name for tool in prompt.tools] == ["f"]


def test_the_documents_example(stories: Path) -> None:
    """á is two bytes, of which stories260K has a token each."""
    tokenizer = Tokenizer.load(stories / "stories260k")
    pool = LlamaPool()
    pool.token_pieces = tokenizer.pieces(["á"], add_special=False, markup=True)
    tokens = post(pool, "/tokenize", {"content": "á", "with_pieces": True})["tokens"]
    assert tokens[-2:] == [{"id": 198, "piece": [195]}, {"id": 164, "piece": [161]}]
