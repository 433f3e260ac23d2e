"""A chat's reply: its text, what the model thought before, and its calls."""

from __future__ import annotations

from mlx_server.api.base import Json
from mlx_server.api.openai_reply import (
    Choice,
    Logprobs,
    LogprobsRenderer,
    OpenAIFormatter,
    Piece,
    finite,
)
from mlx_server.core import GenerationRequest
from mlx_server.deltas import CallStarted, Reasoning, Text, TokenLogprob


class ChatFormatter(OpenAIFormatter):
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self,
        request: GenerationRequest,
        model: str,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(request, model, max_tokens)
        self._legacy = request.format.legacy_calls
        if self._legacy:
            self._finish_reasons = {**self._finish_reasons, "tool_calls": "function_call"}

    def logprobs_renderer(self, form: str | None) -> LogprobsRenderer | None:
        return {None: None, "openai": _openai_logprobs, "mlx_lm": _mlx_lm_logprobs}[form]

    def opening(self, index: int) -> Json:
        return _choice(index, {"role": "assistant", "content": ""})

    def piece(self, delta: Piece) -> Json:
        return _choice(delta.index, self._fields(delta))

    def closing(self, index: int) -> Json:
        return _choice(index, {})

    def _fields(self, delta: Piece) -> Json:
        if isinstance(delta, Text):
            return {"content": delta.text} if delta.text else {}
        if isinstance(delta, Reasoning):
            return {"reasoning_content": delta.text} if delta.text else {}
        if isinstance(delta, CallStarted):
            function = {"name": delta.name, "arguments": ""}
            if self._legacy:
                return {"function_call": function}
            head = {"index": delta.call, "id": delta.id, "type": "function"}
            return {"tool_calls": [{**head, "function": function}]}
        function = {"arguments": delta.text}
        if self._legacy:
            return {"function_call": function}
        return {"tool_calls": [{"index": delta.call, "function": function}]}

    def whole(self, index: int, choice: Choice) -> Json:
        text, reasoning = "".join(choice.texts), "".join(choice.reasoning)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if choice.calls:
            message["content"] = text or None
            functions = [
                {"name": call.name, "arguments": "".join(call.arguments)} for call in choice.calls
            ]
            if self._legacy:  # which allows one call only
                message["function_call"] = functions[0]
            else:
                message["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": function}
                    for call, function in zip(choice.calls, functions, strict=True)
                ]
        return {"index": index, "message": message}


def _choice(index: int, delta: Json) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _openai_logprobs(tokens: tuple[TokenLogprob, ...]) -> Logprobs:
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
            for token in tokens
        ]
    }


def _mlx_lm_logprobs(tokens: tuple[TokenLogprob, ...]) -> Logprobs:
    return {
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "tokens": [token.id for token in tokens],
        "top_logprobs": [
            [{"id": t.id, "token": t.token, "logprob": finite(t.logprob)} for t in token.top]
            for token in tokens
        ],
    }
