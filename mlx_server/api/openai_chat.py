"""POST /v1/chat/completions."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, FailFast, Field

from mlx_server.api.base import HttpRequest, Json, Pool, Reply, Route
from mlx_server.api.fields import (
    INT32_MAX,
    OptionalFlag,
    OptionalMapping,
    TopLogprobs,
    integer,
    optional,
    text_mapping,
)
from mlx_server.api.openai import DEFAULTS, OpenAIDialect, ReplyFormat, new_id, reply_model
from mlx_server.api.openai_chat_reply import ChatFormatter
from mlx_server.api.openai_messages import ChatMessage, read_messages
from mlx_server.api.openai_tools import ToolFields
from mlx_server.api.schema import GenerationFields, validate
from mlx_server.core import ChatPrompt, GenerationRequest
from mlx_server.errors import RequestError

_EFFORT = re.compile(r"[a-zA-Z]{1,16}")


# ---------------------------------------------------------------- the body


def _chat_logprobs(value: Any) -> bool | int:
    """true is OpenAI's form, a number of alternatives is mlx-lm's."""
    if isinstance(value, bool):
        return value
    try:
        return integer(1, 10)(value)
    except ValueError:
        raise ValueError("must be true, false or an integer between 1 and 10") from None


def _effort(value: Any) -> str:
    """Which words there are is the template's affair."""
    if not isinstance(value, str) or not _EFFORT.fullmatch(value):
        raise ValueError('must be a word like "none", "low", "medium" or "high"')
    return value


Effort = Annotated[str | None, optional(_effort)]
ThinkingLimit = Annotated[int | None, optional(integer(-1, INT32_MAX))]


class _Reasoning(BaseModel):
    effort: Effort = None


class ChatBody(GenerationFields, ToolFields):
    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1)]
    logprobs: Annotated[bool | int | None, optional(_chat_logprobs)] = None
    top_logprobs: TopLogprobs = None
    chat_template_kwargs: OptionalMapping = None
    role_mapping: Annotated[dict[str, str] | None, optional(text_mapping)] = None

    reasoning_effort: Effort = None
    reasoning: _Reasoning | None = None
    enable_thinking: OptionalFlag = None
    max_thinking_tokens: ThinkingLimit = None
    thinking_budget: ThinkingLimit = None
    thinking_budget_tokens: ThinkingLimit = None

    def logprobs_format(self) -> tuple[str | None, int | None]:
        """The form of the log-probabilities and the number of alternatives."""
        if self.logprobs is True:
            return "openai", self.top_logprobs or 0
        if self.top_logprobs:
            raise RequestError("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
        if self.logprobs is None or self.logprobs is False:
            return None, None
        return "mlx_lm", self.logprobs

    def effort(self) -> str | None:
        """How much the model is to think."""
        within = None if self.reasoning is None else self.reasoning.effort
        return _agreed({"reasoning_effort": self.reasoning_effort, "reasoning.effort": within})

    def template_args(self) -> dict[str, Any]:
        """The template's variables, with the one that some clients send beside them."""
        args = self.chat_template_kwargs or {}
        thinking = {
            "chat_template_kwargs.enable_thinking": args.get("enable_thinking"),
            "enable_thinking": self.enable_thinking,
        }
        if self.enable_thinking is None:
            return args
        return {**args, "enable_thinking": _agreed(thinking)}

    def thinking_limit(self) -> int | None:
        """Tokens after which the model's reasoning is ended; -1: it ends by itself."""
        names = ("max_thinking_tokens", "thinking_budget", "thinking_budget_tokens")
        return _agreed({name: getattr(self, name) for name in names})


def _agreed(values: dict[str, Any]) -> Any:
    """What all of the fields say that are given. Raises RequestError where two differ."""
    given = [(param, value) for param, value in values.items() if value is not None]
    for param, value in given[1:]:
        if value != given[0][1]:
            raise RequestError(
                f"`{given[0][0]}` and `{param}` must be equal where both are given.", param=param
            )
    return given[0][1] if given else None


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
        messages = read_messages(fields.messages)
        tooling = fields.tooling()
        options = fields.options()
        form, alternatives = fields.logprobs_format()
        if form is not None:
            options["logprobs"] = alternatives
        prompt = ChatPrompt(
            messages,
            fields.template_args(),
            fields.role_mapping,
            tools=tooling.told,
            reasoning_effort=fields.effort(),
        )
        return GenerationRequest(
            id=new_id("chatcmpl"),
            model=fields.model or None,
            prompts=(prompt,),
            options=options,
            defaults=DEFAULTS,
            n=fields.n or 1,
            adapters=fields.adapters or None,
            grammar=tooling.constraint(fields.constraint()),
            tool_use=tooling.use,
            max_thinking_tokens=fields.thinking_limit(),
            stream=bool(fields.stream),
            format=ReplyFormat(fields.include_usage, form, legacy_calls=tooling.legacy),
        )
