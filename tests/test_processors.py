"""Bias and penalties: equal to plain numpy and to mlx-lm's, row by row, in any mixture."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.sample_utils import (
    make_frequency_penalty,
    make_logits_processors,
    make_presence_penalty,
    make_repetition_penalty,
)

from mlx_server.sampling.processors import process
from mlx_server.sampling.row import SamplingRow
from mlx_server.sampling_params import SamplingParams

VOCAB = 53
PROMPT = [3, 7, 7, 11, 3, 50, 2]
REPLY = [5, 5, 9, 7, 5, 1]


def make_row(
    prompt: list[int] = PROMPT, reply: list[int] = REPLY, pending: bool = False, **params: Any
) -> SamplingRow:
    """`pending` takes the last token of the reply away from the host."""
    known = prompt + (reply[:-1] if pending else reply)
    return SamplingRow(
        params=SamplingParams(seed=0, **params),
        choice=0,
        position=len(prompt) + len(reply),
        token_ids=np.array(known, dtype=np.int32),
        num_prompt_tokens=len(prompt),
        pending=pending,
    )


def make_logits(num_rows: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return (mx.random.normal((num_rows, VOCAB), key=mx.random.key(1)) * 4).astype(dtype)


def processed(logits: mx.array, rows: list[SamplingRow], last: list[int] | None = None) -> Any:
    tokens = None if last is None else mx.array(last, dtype=mx.int32)
    return np.array(process(logits, rows, tokens).astype(mx.float32))


def penalised(
    logits: np.ndarray, prompt: list[int], reply: list[int], params: SamplingParams
) -> np.ndarray:
    """The definitions, one token at a time."""
    out = logits.astype(np.float32).copy()
    for token, bias in params.logit_bias:
        if 0 <= token < len(out):
            out[token] += bias
    size = params.repetition_context_size
    window = (prompt + reply)[-size:] if size > 0 else (prompt + reply if size else [])
    for token in set(window) - set(params.unpenalized):
        penalty = np.float32(params.repetition_penalty)
        out[token] = out[token] * penalty if out[token] < 0 else out[token] / penalty
    size = params.penalty_context_size
    window = reply if size is None else (prompt + reply)[-size:] if size > 0 else []
    if size == -1:
        window = prompt + reply
    for token in set(window) - set(params.unpenalized):
        out[token] -= params.presence_penalty
        out[token] -= params.frequency_penalty * window.count(token)
    return out


SETTINGS: list[dict[str, Any]] = [
    {},
    {"logit_bias": ((3, 2.5), (52, -100.0), (3, 0.5))},
    {"logit_bias": ((VOCAB, 5.0), (10**9, 1.0))},
    {"logit_bias": ((8, float("-inf")),)},
    {"logit_bias": ((-1, 5.0), (2**40, 1.0), (0, 2.0))},
    {"logit_bias": tuple((i % (VOCAB + 9), i / 100) for i in range(300))},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "repetition_context_size": 3},
    {"repetition_penalty": 1.3, "repetition_context_size": 1},
    {"repetition_penalty": 1.3, "repetition_context_size": 0},
    {"repetition_penalty": 1.3, "repetition_context_size": -1},
    {"presence_penalty": 0.7},
    {"presence_penalty": -0.7, "penalty_context_size": 4},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -1.1, "penalty_context_size": -1},
    {"frequency_penalty": 0.3, "presence_penalty": 0.9, "penalty_context_size": 1},
    {"frequency_penalty": 0.3, "presence_penalty": 0.9, "penalty_context_size": 0},
    {"unpenalized": (5,)},
    {"repetition_penalty": 1.3, "unpenalized": (5, 50, -1, VOCAB, 10**6)},
    {"logit_bias": ((7, 2.0),), "frequency_penalty": 0.7, "unpenalized": (7,)},
    {
        "unpenalized": (9, 1),
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.25,
        "penalty_context_size": 8,
    },
    {
        "logit_bias": ((5, 1.5), (20, -3.0)),
        "repetition_penalty": 1.2,
        "repetition_context_size": 9,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.25,
    },
]


@pytest.mark.parametrize("pending", [False, True], ids=["known", "pending"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_follows_the_definitions(settings: dict, dtype: mx.Dtype, pending: bool) -> None:
    logits = make_logits(1, dtype)
    row = make_row(pending=pending, **settings)
    expected = penalised(np.array(logits[0].astype(mx.float32)), PROMPT, REPLY, row.params)
    result = processed(logits, [row], REPLY[-1:])
    np.testing.assert_allclose(result[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5, 20])
@pytest.mark.parametrize(
    ("make", "name", "size_name"),
    [
        (make_repetition_penalty, "repetition_penalty", "repetition_context_size"),
        (make_presence_penalty, "presence_penalty", "penalty_context_size"),
        (make_frequency_penalty, "frequency_penalty", "penalty_context_size"),
    ],
)
def test_equals_mlx_lm(make: Any, name: str, size_name: str, size: int) -> None:
    logits = make_logits(1)
    theirs = make(1.4, size)(mx.array(PROMPT + REPLY), mx.array(logits))
    ours = processed(logits, [make_row(**{name: 1.4, size_name: size})])
    np.testing.assert_allclose(ours, np.array(theirs), rtol=1e-6, atol=1e-6)


def test_the_whole_chain_equals_mlx_lm() -> None:
    logits = make_logits(1)
    chain = make_logits_processors({5: 1.5, 20: -3.0}, 1.2, 6, 0.5, 4, 0.25, 4)
    theirs = mx.array(logits)
    for processor in chain:
        theirs = processor(mx.array(PROMPT + REPLY), theirs)
    row = make_row(
        logit_bias=((5, 1.5), (20, -3.0)),
        repetition_penalty=1.2,
        repetition_context_size=6,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        penalty_context_size=4,
    )
    np.testing.assert_allclose(processed(logits, [row]), np.array(theirs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reply", [[5], [7, 7], REPLY, [*REPLY, 5]], ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_pending_token_counts_exactly_like_a_known_one(settings: dict, reply: list[int]) -> None:
    logits = make_logits(1)
    known = processed(logits, [make_row(reply=reply, **settings)])
    pending = processed(logits, [make_row(reply=reply, pending=True, **settings)], reply[-1:])
    np.testing.assert_array_equal(known, pending)


def mixture() -> tuple[list[SamplingRow], list[int]]:
    """Every setting with a history of its own, every other row pending."""
    generator = np.random.default_rng(0)
    rows, last = [], []
    for i, settings in enumerate(SETTINGS):
        prompt = generator.integers(0, VOCAB, 1 + 3 * i).tolist()
        reply = generator.integers(0, 9, 1 + i % 5).tolist()
        rows.append(make_row(prompt, reply, pending=i % 2 == 0, **settings))
        last.append(reply[-1])
    rows.append(make_row(reply=[], frequency_penalty=1.0, presence_penalty=1.0))  # nothing seen yet
    last.append(0)
    return rows, last


def test_rows_in_a_mixture_equal_rows_alone() -> None:
    rows, last = mixture()
    logits = make_logits(len(rows))
    together = processed(logits, rows, last)
    for i, row in enumerate(rows):
        alone = processed(logits[i : i + 1], [row], last[i : i + 1])
        np.testing.assert_array_equal(together[i : i + 1], alone)

    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = processed(
        logits[mx.array(order)], [rows[i] for i in order], [last[i] for i in order]
    )
    np.testing.assert_array_equal(shuffled, together[order])


def test_pending_tokens_of_other_rows_are_not_read() -> None:
    rows, last = mixture()
    logits = make_logits(len(rows))
    garbage = [token if row.pending else 10**6 for row, token in zip(rows, last, strict=True)]
    np.testing.assert_array_equal(processed(logits, rows, garbage), processed(logits, rows, last))


@pytest.mark.parametrize(
    ("samplers", "applied"),
    [
        (None, True),
        (("top_k",), True),
        (("penalties", "top_k"), True),
        (("top_k", "penalties"), False),
    ],
    ids=str,
)
def test_penalties_wait_where_the_chain_has_them_later(
    samplers: tuple[str, ...] | None, applied: bool
) -> None:
    row = make_row(presence_penalty=1.0, logit_bias=((20, 2.0),), top_k=9, samplers=samplers)
    now = make_row(presence_penalty=1.0 if applied else 0.0, logit_bias=((20, 2.0),))
    logits = make_logits(1)
    np.testing.assert_array_equal(processed(logits, [row]), processed(logits, [now]))


def test_the_model_logits_stay_as_they_are() -> None:
    rows, last = mixture()
    logits = make_logits(len(rows))
    before = np.array(logits)
    changed = processed(logits, rows, last)
    np.testing.assert_array_equal(np.array(logits), before)
    assert not np.array_equal(changed, before)


def test_impossible_tokens_stay_impossible() -> None:
    logits = mx.where(mx.arange(VOCAB)[None] % 2 == 1, -mx.inf, make_logits(1))
    row = make_row(**SETTINGS[-1])
    result = processed(logits, [row])[0]
    assert np.isneginf(result[1::2]).all()
    assert np.isfinite(result[::2]).all()


def test_rows_without_processors_cost_nothing() -> None:
    logits = make_logits(2, mx.bfloat16)
    assert process(logits, [make_row(), make_row(temperature=0.0)], None) is logits
