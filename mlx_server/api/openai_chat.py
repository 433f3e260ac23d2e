"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, PlainValidator
from pydantic import model_validator as check_model

from mlx_server.api.base import HttpRequest, Json, Pool, Reply, Route
from mlx_server.api.openai import (
    DEFAULTS,
    Logprobs,
    OpenAIDialect,
    OpenAIFormatter,
    ReplyFormat,
    finite,
    new_id,
    reply_model,
)
from mlx_server.api.schema import (
    GenerationFields,
    OptionalFlag,
    OptionalMapping,
    OptionalText,
    TopLogprobs,
    integer,
    object_list,
    optional,
    path,
    text,
    text_mapping,
    validate,
)
from mlx_server.core import ChatPrompt, GenerationRequest, ImagePart, Message, TextPart, ToolCall
from mlx_server.deltas import Text
from mlx_server.errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_IMAGE_TYPES = ("image_url", "input_image")


# ---------------------------------------------------------------- the body


def _one_of(*allowed: str) -> PlainValidator:
    names = ", ".join(f'"{word}"' for word in allowed)

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"must be {'one of ' if len(allowed) > 1 else ''}{names}")
        return value

    return PlainValidator(check)


def _image_url(value: Any) -> str:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise ValueError("must be an object with a `url`, or a string")
    return url


def _as_parts(value: Any) -> Any:
    """A string is one text part, null is none; a list is left to the parts' own checks."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"type": "text", "text": text(value)}]
    if not isinstance(value, list):
        raise ValueError("must be a string, a list of parts or null")
    return value


def _null_as_empty(value: Any) -> Any:
    return [] if value is None else value


def _tool_choice(value: Any) -> str | dict[str, Any]:
    if isinstance(value, dict) or value in ("none", "auto", "required"):
        return value
    raise ValueError('must be "none", "auto", "required" or an object')


def _chat_logprobs(value: Any) -> bool | int:
    """true is OpenAI's form, a number of alternatives is mlx-lm's."""
    if isinstance(value, bool):
        return value
    try:
        return integer(1, 10)(value)
    except ValueError:
        raise ValueError("must be true, false or an integer between 1 and 10") from None


class _Part(BaseModel):
    """A part of a message's content."""

    type: Annotated[str, _one_of(*_TEXT_FIELDS, *_IMAGE_TYPES)]
    text: OptionalText = None
    refusal: OptionalText = None
    image_url: Annotated[str | None, optional(_image_url)] = None

    @check_model(mode="after")
    def _carries_its_content(self) -> _Part:
        field = _TEXT_FIELDS.get(self.type, "image_url")
        if getattr(self, field) is None:
            raise ValueError(f"must have `{field}`, as its type is {self.type}")
        return self

    def to_core(self) -> TextPart | ImagePart:
        if self.type in _IMAGE_TYPES:
            return ImagePart(self.image_url)
        return TextPart(getattr(self, _TEXT_FIELDS[self.type]))


class _Function(BaseModel):
    name: Annotated[str, PlainValidator(text)]
    arguments: Annotated[str, PlainValidator(text)]


class _ToolCall(BaseModel):
    id: Annotated[str, PlainValidator(text)]
    type: Annotated[str, _one_of("function")] = "function"
    function: _Function


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Annotated[str, _one_of(*ROLES)]
    content: Annotated[list[_Part], FailFast(), BeforeValidator(_as_parts)] = []
    name: OptionalText = None
    tool_calls: Annotated[list[_ToolCall], FailFast(), BeforeValidator(_null_as_empty)] = []
    tool_call_id: OptionalText = None
    reasoning_content: OptionalText = None
    reasoning: OptionalText = None

    def to_core(self) -> Message:
        return Message(
            role=self.role,
            parts=tuple(part.to_core() for part in self.content),
            name=self.name,
            reasoning=self.reasoning if self.reasoning_content is None else self.reasoning_content,
            tool_calls=tuple(
                ToolCall(call.id, call.function.name, call.function.arguments)
                for call in self.tool_calls
            ),
            tool_call_id=self.tool_call_id,
        )


class ChatBody(GenerationFields):
    messages: Annotated[list[_Message], FailFast(), Field(min_length=1)]
    logprobs: Annotated[bool | int | None, optional(_chat_logprobs)] = None
    top_logprobs: TopLogprobs = None
    chat_template_kwargs: OptionalMapping = None
    role_mapping: Annotated[dict[str, str] | None, optional(text_mapping)] = None

    tools: Annotated[list[dict[str, Any]] | None, optional(object_list)] = None
    tool_choice: Annotated[Any, optional(_tool_choice)] = None
    parallel_tool_calls: OptionalFlag = None  # without a meaning: tools are refused
    functions: Annotated[list[dict[str, Any]] | None, optional(object_list)] = None
    function_call: Annotated[Any, optional(_tool_choice)] = None

    def chat_messages(self) -> tuple[Message, ...]:
        """The conversation. Raises RequestError that names an image's part; the chat
        template would refuse it too, but only once the model is loaded."""
        messages = tuple(message.to_core() for message in self.messages)
        for i, message in enumerate(messages):
            for j, part in enumerate(message.parts):
                if isinstance(part, ImagePart):
                    raise RequestError(
                        "This server does not support images; send text parts only.",
                        param=path(("messages", i, "content", j)),
                    )
        return messages

    def refuse_tools(self) -> None:
        """Raises RequestError where the model may or must call a tool."""
        for param, choice in (("tools", "tool_choice"), ("functions", "function_call")):
            chosen = getattr(self, choice)
            if chosen == "none":
                continue
            if getattr(self, param):
                raise _no_tools(param)
            if chosen not in (None, "auto"):
                raise _no_tools(choice)

    def logprobs_format(self) -> tuple[str | None, int | None]:
        """The form of the log-probabilities and the number of alternatives."""
        if self.logprobs is True:
            return "openai", self.top_logprobs or 0
        if self.top_logprobs:
            raise RequestError("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
        if self.logprobs is None or self.logprobs is False:
            return None, None
        return "mlx_lm", self.logprobs


def _no_tools(param: str) -> RequestError:
    return RequestError(
        f"`{param}` is not supported: this server does not call tools. "
        'Leave it out or send "none" as the choice.',
        param=param,
    )


# ---------------------------------------------------------------- the reply


class ChatFormatter(OpenAIFormatter):
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def logprobs_renderer(self, form: str | None) -> Callable[[Text], Logprobs] | None:
        return {None: None, "openai": _openai_logprobs, "mlx_lm": _mlx_lm_logprobs}[form]

    def opening(self, index: int) -> Json:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, text: str) -> Json:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def whole(self, index: int, text: str) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message}


def _openai_logprobs(delta: Text) -> Logprobs:
    return {
        "content": [
            {
                "token": token.token,
                "logprob": finite(token.logprob),
                "bytes": list(token.bytes),
                "top_logprobs": [
                    {"token": t.token, "logprob": finite(t.logprob), "bytes": list(t.bytes)}
                    for t in token.top
                ],
            }
            for token in delta.tokens
        ]
    }


def _mlx_lm_logprobs(delta: Text) -> Logprobs:
    return {
        "token_logprobs": [finite(token.logprob) for token in delta.tokens],
        "tokens": [token.id for token in delta.tokens],
        "top_logprobs": [
            [{"id": t.id, "token": t.token, "logprob": finite(t.logprob)} for t in token.top]
            for token in delta.tokens
        ],
    }


# ---------------------------------------------------------------- the route


class OpenAIChat(OpenAIDialect):
    def __init__(self) -> None:
        self.routes = (
            Route("POST", "/v1/chat/completions", self.create),
            Route("POST", "/chat/completions", self.create),
        )

    def create(self, http: HttpRequest, pool: Pool) -> Reply:
        request = self.parse(http.json())
        return self.respond(http, pool, request, ChatFormatter(request, reply_model(request, pool)))

    def parse(self, body: Json) -> GenerationRequest:
        """Raises RequestError that names the field at fault."""
        fields = validate(ChatBody, body)
        messages = fields.chat_messages()
        fields.refuse_tools()
        fields.refuse_constraints()
        options = fields.options()
        form, alternatives = fields.logprobs_format()
        if form is not None:
            options["logprobs"] = alternatives
        prompt = ChatPrompt(messages, fields.chat_template_kwargs or {}, fields.role_mapping)
        return GenerationRequest(
            id=new_id("chatcmpl"),
            model=fields.model or None,
            prompts=(prompt,),
            options=options,
            defaults=DEFAULTS,
            n=fields.n or 1,
            adapters=fields.adapters or None,
            stream=bool(fields.stream),
            format=ReplyFormat(fields.include_usage, form),
        )
