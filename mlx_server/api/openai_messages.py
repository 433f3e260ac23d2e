"""The messages of a chat, in OpenAI's form and in its older one with functions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field
from pydantic import model_validator as check_model

from mlx_server.api.described import accepting
from mlx_server.api.fields import OptionalText, mapping, one_of, optional, path, required, text
from mlx_server.core import ImagePart, Message, TextPart, ToolCall
from mlx_server.errors import NotSupported, RequestError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_IMAGE_TYPES = ("image_url", "input_image")


# ---------------------------------------------------------------- fields


@accepting(str | Annotated[dict[str, Any], Field(json_schema_extra={"required": ["url"]})])
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


@accepting(str | dict[str, Any])
def _arguments(value: Any) -> str:
    """Clients write none as an empty string, and MLC's the object itself."""
    if isinstance(value, dict):
        return json.dumps(mapping(value), ensure_ascii=False)
    return text(value) or "{}"


class _Part(BaseModel):
    """A part of a message's content."""

    type: Annotated[str, required(one_of(*_TEXT_FIELDS, *_IMAGE_TYPES))]
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
            return ImagePart(self.image_url or "")
        return TextPart(getattr(self, _TEXT_FIELDS[self.type]))


class _CalledFunction(BaseModel):
    name: Annotated[str, required(text)]
    arguments: Annotated[str, required(_arguments)]


class _ToolCall(BaseModel):
    id: Annotated[str, required(text)]
    type: Annotated[str, required(one_of("function"))] = "function"
    function: _CalledFunction


class ChatMessage(BaseModel):
    """A message as it came."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Annotated[str, required(one_of(*ROLES))]
    content: Annotated[
        list[_Part],
        FailFast(),
        BeforeValidator(_as_parts, json_schema_input_type=str | list[_Part] | None),
    ] = []
    name: OptionalText = None
    tool_calls: Annotated[
        list[_ToolCall],
        FailFast(),
        BeforeValidator(_null_as_empty, json_schema_input_type=list[_ToolCall] | None),
    ] = []
    tool_call_id: OptionalText = None
    function_call: _CalledFunction | None = None
    reasoning_content: OptionalText = None
    reasoning: OptionalText = None

    def to_core(self) -> Message:
        """Without what only the conversation tells: the ids of older calls and results."""
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


# ---------------------------------------------------------------- the conversation


def read_messages(sent: Iterable[ChatMessage]) -> tuple[Message, ...]:
    """The conversation, with functions as tools: no template knows the older form.

    A call or a result that came without an id gets one, the same in every turn of the
    conversation, so that its prompt goes on repeating itself.

    Raises:
        RequestError: A message is wrong beside the others; its path is named.
        NotSupported: One has an image; its path is named.
    """
    messages: list[Message] = []
    open_calls: list[ToolCall] = []
    for i, given in enumerate(sent):
        message = given.to_core()
        _refuse_images(message, i)
        if given.function_call is not None:
            message = _with_function_call(message, given.function_call, i)
        if message.tool_calls:
            open_calls = list(message.tool_calls)
        elif message.role in ("tool", "function"):
            message = _answered(message, open_calls)
            open_calls = [call for call in open_calls if call.id != message.tool_call_id]
        messages.append(message)
    return tuple(messages)


def _refuse_images(message: Message, i: int) -> None:
    """The chat template would refuse them too, but only once the model is loaded."""
    for j, part in enumerate(message.parts):
        if isinstance(part, ImagePart):
            raise NotSupported(
                "This server does not support images; send text parts only.",
                param=path(("messages", i, "content", j)),
            )


def _with_function_call(message: Message, function: _CalledFunction, i: int) -> Message:
    if message.tool_calls:
        param = path(("messages", i, "function_call"))
        raise RequestError(f"`{param}` cannot stand beside `tool_calls`.", param=param)
    # Nine letters and digits: Mistral's templates take no other id.
    call = ToolCall(f"call{i:05d}", function.name, function.arguments)
    return replace(message, tool_calls=(call,))


def _answered(message: Message, open_calls: list[ToolCall]) -> Message:
    """A result, with the id of the first unanswered call (of its name) where it has none."""
    call_id = message.tool_call_id
    if call_id is None:
        fitting = (call.id for call in open_calls if message.name in (None, call.name))
        call_id = next(fitting, None)
    return replace(message, role="tool", tool_call_id=call_id)
