"""POST /tokenize, /detokenize and /apply-template, as in llama.cpp's HTTP server."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict

from mlx_server.api.base import HttpRequest, Json, JsonReply, Pool, Route
from mlx_server.api.described import accepting, within
from mlx_server.api.fields import (
    INT32_MAX,
    OptionalFlag,
    OptionalText,
    got,
    integer,
    required,
    text,
)
from mlx_server.api.llama import LlamaDialect
from mlx_server.api.openai_chat import ChatBody, OpenAIChat
from mlx_server.api.schema import validate
from mlx_server.core import ChatPrompt
from mlx_server.services import TokenPiece


@accepting(str | list[str | within(int, 0, INT32_MAX)])
def _parts(value: Any) -> tuple[str | int, ...]:
    """A text, or texts and token ids in turns."""
    allowed = "must be a string or a list of strings and token ids"
    if isinstance(value, str):
        return (text(value),)
    if not isinstance(value, list):
        raise ValueError(allowed)
    for i, item in enumerate(value):
        try:
            text(item) if isinstance(item, str) else integer(0, INT32_MAX)(item)
        except ValueError:
            raise ValueError(f"{allowed}; item {i} is {got(item)}") from None
    return tuple(item if isinstance(item, str) else int(item) for item in value)


@accepting(list[within(int, 0, INT32_MAX)])
def _token_ids(value: Any) -> tuple[int, ...]:
    allowed = f"must be a list of token ids, integers between 0 and {INT32_MAX}"
    if not isinstance(value, list):
        raise ValueError(allowed)
    check = integer(0, INT32_MAX)
    for i, item in enumerate(value):
        try:
            check(item)
        except ValueError:
            raise ValueError(f"{allowed}; item {i} is {got(item)}") from None
    return tuple(int(item) for item in value)


class TokenizeBody(BaseModel):
    """
    Attributes:
        add_special: Put the tokenizer's own special tokens around the text.
        parse_special: Take special tokens in the text for such; false: for text.
        with_pieces: Give each token's text, or its bytes where they are no whole characters.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"content": "Hello world", "with_pieces": True}}
    )

    content: Annotated[tuple[str | int, ...], required(_parts)]
    add_special: OptionalFlag = None
    parse_special: OptionalFlag = None
    with_pieces: OptionalFlag = None
    model: OptionalText = None


class DetokenizeBody(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"tokens": [1, 2, 3]}})

    tokens: Annotated[tuple[int, ...], required(_token_ids)]
    model: OptionalText = None


class LlamaText(LlamaDialect):
    def __init__(self) -> None:
        self.routes = (
            Route("POST", "/tokenize", self.tokenize, "Text to tokens", TokenizeBody),
            Route("POST", "/detokenize", self.detokenize, "Tokens to text", DetokenizeBody),
            Route(
                "POST",
                "/apply-template",
                self.apply_template,
                "A chat's messages as the text that the model gets",
                ChatBody,
            ),
        )
        self._chat = OpenAIChat()

    def tokenize(self, http: HttpRequest, pool: Pool) -> JsonReply:
        fields = validate(TokenizeBody, http.json())
        pieces = pool.pieces(
            fields.model or None,
            fields.content,
            add_special=bool(fields.add_special),
            markup=fields.parse_special is not False,
        )
        tokens = [piece_body(piece) if fields.with_pieces else piece.id for piece in pieces]
        return JsonReply({"tokens": tokens})

    def detokenize(self, http: HttpRequest, pool: Pool) -> JsonReply:
        fields = validate(DetokenizeBody, http.json())
        return JsonReply({"content": pool.decode(fields.model or None, fields.tokens)})

    def apply_template(self, http: HttpRequest, pool: Pool) -> JsonReply:
        request = self._chat.parse(http.json())
        return JsonReply(
            {"prompt": pool.render(request.model, cast(ChatPrompt, request.prompts[0]))}
        )


def piece_body(piece: TokenPiece) -> Json:
    """The piece as text, or as a list of bytes where it is no whole characters."""
    try:
        shown: str | list[int] = piece.bytes.decode()
    except UnicodeDecodeError:
        shown = list(piece.bytes)
    return {"id": piece.id, "piece": shown}
