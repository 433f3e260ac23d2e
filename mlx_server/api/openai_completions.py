"""POST /v1/completions: the legacy API, text or tokens in, text out."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict

from mlx_server.api.base import HttpRequest, Json, Pool, Reply, Route, also_get
from mlx_server.api.described import PromptsType
from mlx_server.api.fields import (
    OptionalFlag,
    OptionalText,
    TopLogprobs,
    integer,
    optional,
    unchecked,
    wrong,
)
from mlx_server.api.openai import DEFAULTS, OpenAIDialect, new_id, reply_model
from mlx_server.api.openai_reply import (
    Choice,
    Logprobs,
    LogprobsRenderer,
    OpenAIFormatter,
    ReplyFormat,
    finite,
)
from mlx_server.api.prompts import is_single, read_prompts
from mlx_server.api.schema import MAX_CHOICES, GenerationFields, validate
from mlx_server.core import GenerationRequest
from mlx_server.deltas import Text, TokenLogprob
from mlx_server.errors import RequestError

# ---------------------------------------------------------------- the body


class CompletionBody(GenerationFields):
    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "Once upon a time", "max_tokens": 32}}
    )

    prompt: Annotated[Any, unchecked(PromptsType)]
    echo: OptionalFlag = None
    suffix: OptionalText = None
    best_of: Annotated[int | None, optional(integer(1, MAX_CHOICES))] = None
    logprobs: TopLogprobs = None

    def refuse_unsupported(self) -> None:
        """Raises RequestError for what the legacy API has and this server has not."""
        if self.suffix:
            raise RequestError(
                "`suffix` is not supported: replies only continue the prompt. Leave it out.",
                param="suffix",
            )
        if self.best_of not in (None, 1, self.choices):
            raise wrong("best_of", "must be 1 or equal to `n`", self.best_of)


# ---------------------------------------------------------------- the reply


class CompletionFormatter(OpenAIFormatter):
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def logprobs_renderer(self, form: str | None) -> LogprobsRenderer | None:
        return None if form is None else _legacy_logprobs

    def opening(self, index: int) -> None:
        return None

    def piece(self, delta: Text) -> Json:  # type: ignore[override]  # there is no other here
        return {**self.closing(delta.index), "text": delta.text}

    def closing(self, index: int) -> Json:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": None}

    def whole(self, index: int, choice: Choice) -> Json:
        return {"index": index, "text": "".join(choice.texts)}


def _legacy_logprobs(tokens: tuple[TokenLogprob, ...]) -> Logprobs:
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [
            None if token.logprob is None else finite(token.logprob) for token in tokens
        ],
        "top_logprobs": [_alternatives(token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _alternatives(token: TokenLogprob) -> dict[str, float] | None:
    """The best tokens, and the chosen one if it is not among them; null where none was chosen."""
    if token.logprob is None:
        return None
    best: dict[str, float] = {}
    for top in token.top:
        best.setdefault(top.token, finite(top.logprob))
    best.setdefault(token.token, finite(token.logprob))
    return best


# ---------------------------------------------------------------- the route


class OpenAICompletions(OpenAIDialect):
    def __init__(self) -> None:
        path, summary = "/v1/completions", "Complete a text (OpenAI)"
        with_get = f"{summary}; the JSON body comes with GET"
        self.routes = (
            Route("POST", path, self.create, summary, CompletionBody),
            Route("GET", path, also_get(self.create), with_get, CompletionBody),
        )

    def create(self, http: HttpRequest, pool: Pool) -> Reply:
        request = self.parse(http.json())
        formatter = CompletionFormatter(request, reply_model(request, pool), pool.config.max_tokens)
        return self.respond(http, pool, request, formatter)

    def parse(self, body: Json) -> GenerationRequest:
        """Raises RequestError that names the field at fault."""
        fields = validate(CompletionBody, body)
        prompts = read_prompts(fields.prompt)
        fields.refuse_unsupported()
        echo = bool(fields.echo)
        options = fields.options(min_tokens=0 if echo else 1)
        form: str | None = "llama" if fields.n_probs else None
        if fields.logprobs is not None:
            form = "legacy"
            options["logprobs"] = fields.logprobs
            options.pop("probs", None)
            if echo:
                options["prompt_logprobs"] = fields.logprobs
        shown = [fields.prompt] if is_single(fields.prompt) else fields.prompt
        return GenerationRequest(
            id=new_id("cmpl"),
            prompts=prompts,
            options=options,
            defaults=DEFAULTS,
            echo=echo,
            grammar=fields.constraint(),
            format=ReplyFormat(
                fields.include_usage,
                form,
                view=fields.view(prompts=tuple(shown)),
                verbose=bool(fields.verbose),
            ),
            **fields.generation_fields(),
        )
