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
            log-probability and the k best (k ≥ 0), from the model's raw
            logits.
        prompt_logprobs: The same for the prompt's tokens (legacy `echo`).
        probs: The same as probabilities of what was sampled from, after penalties and
            samplers (llama.cpp's `post_sampling_probs`).
        samplers: The names of llama.cpp's samplers (`sampling/chain.py`) in the order they are
            applied, each to what the one before left; one that is not named is not applied.
            None: the order of mlx-lm, or llama.cpp's own where one of its samplers is used.
        min_keep: Tokens that every sampler leaves at least.
        typical_p: Locally typical sampling (arXiv:2202.00666); 1 is off.
        tfs_z: Tail free sampling (Phénix and Egan 2019); 1 is off.
        top_n_sigma: Keep logits within so many standard deviations of the best
            (arXiv:2411.07641); not above 0 is off.
        xtc_probability, xtc_threshold: Exclude top choices: with this probability, of the
            tokens at least so likely all but the least likely are dropped.
        dynatemp_range, dynatemp_exponent: The temperature is moved by up to the range, as
            the entropy of what is left says, to this power (llama.cpp).
        mirostat: 1 or 2: hold the surprise of the tokens at `mirostat_tau`, learning at the
            rate `mirostat_eta` (arXiv:2007.14966); no other filter is applied then.
        dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_breakers: The
            "don't repeat yourself" penalty on tokens that would go on with a sequence
            already seen; the breakers are token sequences. A multiplier of 0 is off.
        unpenalized: Tokens whose logits the penalties leave alone (`penalize_nl`).
        n_keep: Prompt tokens that stay (-1: all) when the context is full and the older half
            of the rest makes room; None: the reply ends there.
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
    probs: int | None = None
    samplers: tuple[str, ...] | None = None
    min_keep: int = 0
    typical_p: float = 1.0
    tfs_z: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_breakers: tuple[tuple[int, ...], ...] = ()
    unpenalized: tuple[int, ...] = ()
    n_keep: int | None = None


DRY_BREAKERS = ("\n", ":", '"', "*")
"""The texts that no repetition goes across, as llama.cpp has them."""

SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "tfs_z",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
"""llama.cpp's samplers, in the order in which it applies them unless told another."""

SAMPLING_FIELDS = frozenset(f.name for f in fields(SamplingParams))
