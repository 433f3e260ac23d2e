"""LLM: one loaded model, text in and deltas out.

    request ── template, encode, reply form ──> EngineRequest ──> worker
    worker ── token outputs ──> Generation ──> Delta

Everything here runs on the thread of whoever asks; the engine sees tokens only.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_server.core import AdapterScale, GenerationRequest, Prompt, TextPrompt, TokenPrompt
from mlx_server.engine.limits import no_room
from mlx_server.engine.worker import Worker
from mlx_server.errors import ContextLengthExceeded, RequestError
from mlx_server.exchange import EngineRequest
from mlx_server.generation import Generation
from mlx_server.replies import ReplyForms
from mlx_server.sampling_params import SamplingParams
from mlx_server.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_SEQUENCES = 4096
"""The most replies that one request may ask for, prompts times n."""


@dataclass(frozen=True)
class LLM:
    """
    Args:
        name: The id it is listed under; also the engine's key in the worker.
        vocab_size: Width of the model's logits; token ids are below it.
        replies: How its replies are guided and read.
        context_length: Tokens that fit, prompt and reply together.
        kv_tokens: The longest sequence that the memory for keys and values holds.
        defaults: Sampling settings of the command line and the model's
            generation_config.json, for fields a request leaves out.
    """

    name: str
    worker: Worker
    tokenizer: Tokenizer
    vocab_size: int
    replies: ReplyForms
    context_length: int
    kv_tokens: int
    defaults: Mapping[str, Any]

    def generate(
        self,
        request: GenerationRequest,
        adapters: tuple[AdapterScale, ...] = (),
    ) -> Generation:
        """Check and queue a request.

        Args:
            adapters: Sorted (adapter, scale) pairs for all of its sequences.

        Raises:
            RequestError: It is invalid or does not fit.
            Unavailable: The queue is full.
        """
        if len(request.prompts) * request.n > MAX_SEQUENCES:
            raise RequestError(
                f"The request asks for {len(request.prompts) * request.n} replies; "
                f"at most {MAX_SEQUENCES} are possible.",
                param="prompt" if len(request.prompts) > 1 else "n",
            )
        params = self._params(request)
        prompts = [self._encode(prompt) for prompt in request.prompts]
        forms = [
            self.replies.of(request, prompt, ids)
            for prompt, ids in zip(request.prompts, prompts, strict=True)
        ]
        requests = [
            EngineRequest(
                id=f"{request.id}/{i}",
                token_ids=tuple(ids),
                params=self._fit(params, ids, prompt),
                n=request.n,
                adapters=adapters,
                eos_token_ids=self.tokenizer.eos_token_ids,
                guide=form.guide,
            )
            for i, (ids, prompt, form) in enumerate(
                zip(prompts, request.prompts, forms, strict=True)
            )
        ]
        return Generation(self.name, self.worker, self.tokenizer, request, requests, forms)

    def _params(self, request: GenerationRequest) -> SamplingParams:
        options = {**request.defaults, **self.defaults, **request.options}
        if options.get("seed") is None:
            options["seed"] = secrets.randbits(63)
        params = SamplingParams(**options)
        for token_id, _ in params.logit_bias:
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"Token id {token_id} in logit_bias is not in the vocabulary "
                    f"(0 to {self.vocab_size - 1}).",
                    param="logit_bias",
                )
        return params

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = self.tokenizer.encode_prompt(prompt)
        if isinstance(prompt, TokenPrompt):
            wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
            if wrong is not None:
                raise RequestError(
                    f"Token id {wrong} in prompt is not in the vocabulary "
                    f"(0 to {self.vocab_size - 1}).",
                    param="prompt",
                )
        if not ids:
            raise RequestError(
                "The prompt is empty, and this model has no token to begin with.",
                param="prompt",
            )
        return ids

    def _fit(self, params: SamplingParams, ids: Sequence[int], prompt: Prompt) -> SamplingParams:
        """A larger max_tokens is cut where the context is full, and ends in "length"."""
        room = self.context_length - len(ids)
        param = "prompt" if isinstance(prompt, TextPrompt | TokenPrompt) else "messages"
        if room < (0 if params.max_tokens == 0 else 1):
            raise ContextLengthExceeded(len(ids), self.context_length, param=param)
        wanted = 0 if params.max_tokens == 0 else 1
        if len(ids) + wanted > self.kv_tokens < self.context_length:
            raise RequestError(no_room(len(ids), self.kv_tokens), param=param)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        return replace(params, max_tokens=limit)
