"""POST /v1/chat/completions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from mlx_server.api.base import HttpRequest, Json, JsonReply, Pool, Reply, Route, also_get
from mlx_server.api.described import accepting, within
from mlx_server.api.fields import (
    INT32_MAX,
    OptionalFlag,
    OptionalMapping,
    TopLogprobs,
    integer,
    one_of,
    optional,
    text_mapping,
)
from mlx_server.api.openai import DEFAULTS, OpenAIDialect, new_id, reply_model
from mlx_server.api.openai_chat_reply import ChatFormatter
from mlx_server.api.openai_messages import ChatMessage, read_messages
from mlx_server.api.openai_reply import ReplyFormat
from mlx_server.api.openai_tools import ToolFields
from mlx_server.api.schema import GenerationFields, agreed, validate
from mlx_server.core import ChatPrompt, GenerationRequest, Message
from mlx_server.errors import RequestError, Unavailable

REASONING_FORMATS = ("auto", "deepseek", "deepseek-legacy", "none")
"""llama-server's words; all but the last give `reasoning_content`."""

_EFFORT = re.compile(r"[a-zA-Z]{1,16}")


# ---------------------------------------------------------------- the body


@accepting(bool | within(int, 1, 10))
def _chat_logprobs(value: Any) -> bool | int:
    """true is OpenAI's form, a number of alternatives is mlx-lm's."""
    if isinstance(value, bool):
        return value
    try:
        return integer(1, 10)(value)
    except ValueError:
        raise ValueError("must be true, false or an integer between 1 and 10") from None


@accepting(Annotated[str, Field(pattern=f"^{_EFFORT.pattern}$")])
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
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "messages": [{"role": "user", "content": "Write a haiku about apples."}],
                "max_tokens": 64,
            }
        }
    )

    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1)]
    logprobs: Annotated[bool | int | None, optional(_chat_logprobs)] = None
    top_logprobs: TopLogprobs = None
    chat_template_kwargs: OptionalMapping = None
    role_mapping: Annotated[dict[str, str] | None, optional(text_mapping)] = None

    add_generation_prompt: OptionalFlag = None
    continue_final_message: OptionalFlag = None
    prefill_assistant: OptionalFlag = None

    reasoning_effort: Effort = None
    reasoning_format: Annotated[str | None, optional(one_of(*REASONING_FORMATS))] = None
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

    def turn(self, messages: Sequence[Message]) -> tuple[bool, bool]:
        """Whether the model's turn begins, and whether the reply goes on with its last one.

        Raises:
            RequestError: Both are asked for, or the last message is not the model's.
        """
        names = ("continue_final_message", "prefill_assistant")
        continues = bool(agreed({name: getattr(self, name) for name in names}))
        begins = not continues if self.add_generation_prompt is None else self.add_generation_prompt
        if not continues:
            return begins, False
        param = names[0] if self.continue_final_message else names[1]
        if begins:
            raise RequestError(
                f"`{param}` and `add_generation_prompt` cannot both be true: a reply goes on "
                "with the last message or begins a new one.",
                param=param,
            )
        if messages[-1].role != "assistant" or messages[-1].tool_calls:
            raise RequestError(
                f"`{param}` needs a last message of the assistant's, with text and no calls.",
                param=param,
            )
        return False, True

    def effort(self) -> str | None:
        """How much the model is to think."""
        within = None if self.reasoning is None else self.reasoning.effort
        return agreed({"reasoning_effort": self.reasoning_effort, "reasoning.effort": within})

    def split_reasoning(self) -> bool | None:
        """Whether the model's reasoning is told apart from its answer; None: it is not said."""
        return None if self.reasoning_format is None else self.reasoning_format != "none"

    def template_args(self) -> dict[str, Any]:
        """The template's variables, with the one that some clients send beside them."""
        args = self.chat_template_kwargs or {}
        thinking = {
            "chat_template_kwargs.enable_thinking": args.get("enable_thinking"),
            "enable_thinking": self.enable_thinking,
        }
        if self.enable_thinking is None:
            return args
        return {**args, "enable_thinking": agreed(thinking)}

    def thinking_limit(self) -> int | None:
        """Tokens after which the model's reasoning is ended; -1: it ends by itself."""
        names = ("max_thinking_tokens", "thinking_budget", "thinking_budget_tokens")
        return agreed({name: getattr(self, name) for name in names})


# ---------------------------------------------------------------- the route


class OpenAIChat(OpenAIDialect):
    def __init__(self) -> None:
        summary = "Answer a conversation (OpenAI)"
        with_get = f"{summary}; the JSON body comes with GET"
        count = "Count the tokens of a conversation"
        routes = []
        for path in ("/v1/chat/completions", "/chat/completions"):
            routes += [
                Route("POST", path, self.create, summary, ChatBody),
                Route("GET", path, also_get(self.create), with_get, ChatBody),
                Route("POST", f"{path}/input_tokens", self.count, count, ChatBody),
            ]
        self.routes = tuple(routes)

    def create(self, http: HttpRequest, pool: Pool) -> Reply:
        request = self.parse(http.json())
        if request.format.verbose:
            request = _with_text(request, pool)
        formatter = ChatFormatter(request, reply_model(request, pool), pool.config.max_tokens)
        return self.respond(http, pool, request, formatter)

    def count(self, http: HttpRequest, pool: Pool) -> JsonReply:
        """The tokens that the same body would have for a prompt."""
        request = self.parse(http.json())
        (prompt,) = request.prompts
        return JsonReply({"input_tokens": len(pool.encode(request.model, prompt))})

    def parse(self, body: Json) -> GenerationRequest:
        """Raises RequestError that names the field at fault."""
        fields = validate(ChatBody, body)
        messages = read_messages(fields.messages)
        tooling = fields.tooling()
        options = fields.options()
        form, alternatives = fields.logprobs_format()
        if form is not None:
            options["logprobs"] = alternatives
            options.pop("probs", None)
        elif fields.n_probs:
            form = "llama"
        begins, continues = fields.turn(messages)
        prompt = ChatPrompt(
            messages,
            fields.template_args(),
            fields.role_mapping,
            tools=tooling.told,
            reasoning_effort=fields.effort(),
            add_generation_prompt=begins,
            continue_final=continues,
        )
        return GenerationRequest(
            id=new_id("chatcmpl"),
            prompts=(prompt,),
            options=options,
            defaults=DEFAULTS,
            grammar=tooling.constraint(fields.constraint()),
            tool_use=tooling.use,
            max_thinking_tokens=fields.thinking_limit(),
            split_reasoning=fields.split_reasoning(),
            format=ReplyFormat(
                fields.include_usage,
                form,
                legacy_calls=tooling.legacy,
                view=fields.view(),
                verbose=bool(fields.verbose),
            ),
            **fields.generation_fields(),
        )


def _with_text(request: GenerationRequest, pool: Pool) -> GenerationRequest:
    """The same, with its conversation as the model is given it, to be shown."""
    (prompt,) = request.prompts
    assert isinstance(prompt, ChatPrompt)
    try:
        text = pool.render(request.model, prompt)
    except Unavailable:  # it is loaded for this request only
        return request
    view = replace(request.format.view, prompts=(text,))
    return replace(request, format=replace(request.format, view=view))
