"""LLM: one loaded model, text in and deltas out.

    request ── template, encode, reply form ──> EngineRequest ──> worker
    worker ── token outputs ──> Generation ──> Delta

Everything here runs on the thread of whoever asks; the engine sees tokens only.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mlx_server.core import (
    AdapterScale,
    ChatPrompt,
    GenerationRequest,
    InfillPrompt,
    MixedPrompt,
    Prompt,
    TextOptions,
    TokenPrompt,
)
from mlx_server.defaults import Defaults
from mlx_server.deltas import Finished
from mlx_server.engine.limits import check_slot, no_room
from mlx_server.engine.worker import Worker
from mlx_server.errors import ContextLengthExceeded, RequestError
from mlx_server.exchange import EngineRequest
from mlx_server.generation import Generation
from mlx_server.replies import ReplyForms
from mlx_server.sampling_params import SamplingParams
from mlx_server.services import Served
from mlx_server.text.tokenizer import Tokenizer, check_ids

log = logging.getLogger(__name__)

MAX_SEQUENCES = 4096
"""The most replies that one request may ask for, prompts times n."""

_PENALTIES = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
}
"""What options that are text have a say in, and where it is off."""


@dataclass(frozen=True)
class LLM:
    """
    Args:
        name: The id it is listed under; also the engine's key in the worker.
        path: Where it lies.
        vocab_size: Width of the model's logits; token ids are below it.
        replies: How its replies are guided and read.
        context_length: Tokens that fit, prompt and reply together.
        trained_length: Tokens that the model was made for.
        kv_tokens: The longest sequence that the memory for keys and values holds.
        num_slots: Sequences that run at the same time.
        defaults: For what a request leaves out.
        observe: Is told of every reply that ends.
    """

    name: str
    path: str
    worker: Worker
    tokenizer: Tokenizer
    vocab_size: int
    replies: ReplyForms
    context_length: int
    trained_length: int
    kv_tokens: int
    num_slots: int
    defaults: Defaults
    observe: Callable[[Finished], None] = lambda finished: None

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
        if request.slot is not None:
            check_slot(request.slot, self.num_slots)
        if request.grammar is None and request.tool_use is None:
            request = replace(request, grammar=self.defaults.grammar)
        text = self.defaults.text_options(request)
        params = self._params(request, text)
        prompts = [self._encode(prompt, params.max_tokens) for prompt in request.prompts]
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
                eos_token_ids=self._ends(prompt),
                guide=form.guide,
                slot=request.slot,
                reuse=request.reuse,
            )
            for i, (ids, prompt, form) in enumerate(
                zip(prompts, request.prompts, forms, strict=True)
            )
        ]
        grammar = request.grammar.text if request.grammar is not None else ""
        served = Served(self.path, self.context_length, grammar, text.dry_breakers or ())
        return Generation(
            self.name, self.worker, self.tokenizer, request, requests, forms, served, self.observe
        )

    def _params(self, request: GenerationRequest, text: TextOptions) -> SamplingParams:
        options = self.defaults.options(request)
        if options.get("seed") is None:
            # Within what a client's floating-point numbers hold; the largest means "draw one".
            options["seed"] = secrets.randbelow(2**32 - 1)
        penalised = any(options.get(name, off) != off for name, off in _PENALTIES.items())
        if penalised or text.logit_bias:
            resolved = self.tokenizer.resolve(text)
            resolved["logit_bias"] = (*options.get("logit_bias", ()), *resolved["logit_bias"])
            options |= resolved
        if options.get("ignore_eos") and text.ban_ends:
            bans = tuple((i, -math.inf) for i in sorted(self.tokenizer.eos_token_ids))
            options["logit_bias"] = (*options.get("logit_bias", ()), *bans)
        params = SamplingParams(**options)
        biased = [token_id for token_id, _ in params.logit_bias]
        check_ids(biased, self.vocab_size, "logit_bias")
        return params

    def _ends(self, prompt: Prompt) -> frozenset[int]:
        """The tokens that end a reply."""
        ends, infill = self.tokenizer.eos_token_ids, self.tokenizer.infill
        return ends | infill.ends if isinstance(prompt, InfillPrompt) and infill else ends

    def _encode(self, prompt: Prompt, max_tokens: int | None) -> list[int]:
        ids = self.tokenizer.encode_prompt(
            prompt, context_length=self.context_length, max_tokens=max_tokens
        )
        if isinstance(prompt, TokenPrompt | MixedPrompt):
            check_ids(ids, self.vocab_size, "prompt")
        if not ids:
            raise RequestError(
                "The prompt is empty, and this model has no token to begin with.",
                param="prompt",
            )
        return ids

    def _fit(self, params: SamplingParams, ids: Sequence[int], prompt: Prompt) -> SamplingParams:
        """A larger max_tokens is cut where the context is full, and ends in "length"."""
        room = self.context_length - len(ids)
        wanted = 0 if params.max_tokens == 0 else 1
        param = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        if room < wanted:
            raise ContextLengthExceeded(len(ids), self.context_length, param=param)
        if len(ids) + wanted > self.kv_tokens < self.context_length:
            raise RequestError(no_room(len(ids), self.kv_tokens), param=param)
        if params.n_keep is not None:
            return self._fit_shifting(params, params.n_keep, ids, room)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        return replace(params, max_tokens=limit)

    def _fit_shifting(
        self, params: SamplingParams, keep: int, ids: Sequence[int], room: int
    ) -> SamplingParams:
        """A reply that goes on in a full context ends where it was told to, else, as
        llama-server's do, where the model's training ended."""
        limit = params.max_tokens
        if keep >= 0 and ids[0] == self.tokenizer.bos_token_id:
            keep += 1
        if limit is None:
            limit = max(room, self.trained_length - len(ids))
        return replace(params, max_tokens=limit, n_keep=keep)
