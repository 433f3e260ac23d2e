"""POST /completion, /completions and /infill: llama.cpp's own generation API."""

from __future__ import annotations

from typing import Any

from mlx_server.api.base import HttpRequest, Pool, Reply, Route, also_get
from mlx_server.api.llama import LlamaDialect
from mlx_server.api.llama_bodies import InfillBody, LlamaBody, behind
from mlx_server.api.llama_options import DEFAULTS
from mlx_server.api.llama_reply import LlamaFormatter
from mlx_server.api.openai import new_id
from mlx_server.api.prompts import is_single, read_prompts
from mlx_server.api.schema import validate
from mlx_server.core import GenerationRequest, InfillFile, InfillPrompt, Prompt
from mlx_server.errors import RequestError
from mlx_server.services import SystemPrompt


class LlamaCompletion(LlamaDialect):
    """A body may come with GET as well, as older documents have it."""

    def __init__(self) -> None:
        complete = (self.complete, "Complete a text (llama.cpp)", LlamaBody)
        infill = (self.infill, "Fill a gap in code (llama.cpp)", InfillBody)
        routes = []
        for route, (endpoint, summary, body) in (
            ("/completion", complete),
            ("/completions", complete),
            ("/infill", infill),
        ):
            routes.append(Route("POST", route, endpoint, summary, body))
            with_get = f"{summary}; the JSON body comes with GET"
            routes.append(Route("GET", route, also_get(endpoint), with_get, body))
        self.routes = tuple(routes)

    def complete(self, http: HttpRequest, pool: Pool) -> Reply:
        fields = validate(LlamaBody, http.json())
        system = pool.system_prompt if fields.system_prompt is None else fields.system_prompt
        request = self.completion(fields, system, pool.config.keep)
        return self._answer(http, pool, request, fields.system_prompt)

    def infill(self, http: HttpRequest, pool: Pool) -> Reply:
        fields = validate(InfillBody, http.json())
        request = self.filling(fields, pool.config.keep, pool.config.spm_infill)
        return self._answer(http, pool, request, fields.system_prompt)

    def _answer(
        self,
        http: HttpRequest,
        pool: Pool,
        request: GenerationRequest,
        system: SystemPrompt | None,
    ) -> Reply:
        """
        Args:
            system: What later /completion prompts begin with, if the body has one.
        """
        if system is not None:
            pool.system_prompt = system
        formatter = LlamaFormatter(request, request.format, pool.config.max_tokens)
        return self.respond(http, pool, request, formatter)

    def completion(
        self, fields: LlamaBody, system: SystemPrompt = SystemPrompt(), keep: int = 0
    ) -> GenerationRequest:
        """
        Args:
            system: What every prompt begins with.
            keep: `n_keep` where the body has none.

        Raises:
            RequestError: A field is wrong; it is named.
            NotSupported: There are images.
        """
        given = fields.prompt
        if given is None and fields.system_prompt is None:
            raise RequestError("`prompt` is required.", param="prompt")
        given = "" if given is None else given
        prompts = list(read_prompts(given))
        shown = [given] if is_single(given) else given
        if system.prompt:
            prompts = [behind(system, prompt) for prompt in prompts]
        options = fields.options()
        if system.anti_prompt:
            options["stop"] = (*options.get("stop", ()), system.anti_prompt)
        return _request(fields, tuple(prompts), tuple(shown), options, keep)

    def filling(
        self, fields: InfillBody, keep: int = 0, suffix_first: bool = False
    ) -> GenerationRequest:
        """Raises RequestError that names the field at fault, NotSupported for images."""
        if fields.input_prefix is None and fields.input_suffix is None:
            raise RequestError(
                "`input_prefix` is required, or `input_suffix`: what stands around the gap.",
                param="input_prefix",
            )
        prompt = InfillPrompt(
            prefix=fields.input_prefix or "",
            suffix=fields.input_suffix or "",
            prompt=fields.prompt or "",
            files=tuple(InfillFile(file.filename or "tmp", file.text) for file in fields.files()),
            suffix_first=suffix_first,
        )
        return _request(fields, (prompt,), (prompt.prompt,), fields.options(), keep)


def _request(
    fields: LlamaBody,
    prompts: tuple[Prompt, ...],
    shown: tuple[Any, ...],
    options: dict[str, Any],
    keep: int,
) -> GenerationRequest:
    stream = bool(fields.stream)
    common = fields.generation_fields()
    # A stream's chunks tell how many tokens of which prompt there are.
    common["return_tokens"] |= stream
    common["return_timings"] |= stream and len(prompts) > 1
    view = fields.view(prompts=shown, fields=fields.response_fields or ())
    return GenerationRequest(
        id=new_id("cmpl"),
        prompts=prompts,
        options=options,
        defaults={**DEFAULTS, "n_keep": keep},
        own_defaults=True,
        grammar=fields.constraint(),
        format=view,
        **common,
    )
