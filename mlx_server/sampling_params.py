"""SamplingParams: how the tokens of one sequence are chosen. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields

MAX_TOP_LOGPROBS = 20
"""The most alternatives per position that a request may ask for (OpenAI's limit)."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one sequence are chosen. Everything works in a batch.

    Args:
        temperature: 0 is greedy; logits are divided by it after the filters.
        top_p: Nucleus sampling: the smallest set whose probabilities reach it.
        top_k: Keep the k most likely tokens; 0 keeps all.
        min_p: Keep tokens at least this likely relative to the most likely one.
        seed: Same seed and prompt, same tokens, whatever else is in the batch.
            None draws a fresh seed.
        max_tokens: Upper bound of generated tokens; None runs until the
            context is full.
        stop: Strings that end the reply; they are never part of it.
        ignore_eos: Go on past end tokens.
        logit_bias: (token id, bias) pairs added to the logits.
        repetition_penalty: Sign-aware factor on tokens seen in the last
            `repetition_context_size` tokens of prompt and reply; 1 is off
            (arXiv:1909.05858).
        presence_penalty, frequency_penalty: Subtracted once, or once per
            occurrence, for tokens of the reply (OpenAI). With
            `penalty_context_size` they look at the last so many tokens of
            prompt and reply instead (mlx-lm, llama.cpp).
        logprobs: None: none are computed. k: the chosen token's
            log-probability and the k best (0 ≤ k ≤ 20), from the model's raw
            logits.
        prompt_logprobs: The same for the prompt's tokens (legacy `echo`).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_context_size: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None


SAMPLING_FIELDS = frozenset(f.name for f in fields(SamplingParams))
