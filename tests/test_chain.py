"""llama.cpp's samplers: equal to plain numpy in any order, and in any company."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_server.sampling import sampler
from mlx_server.sampling.draw import row_numbers
from mlx_server.sampling.order import Order, order_of
from mlx_server.sampling.row import SamplingRow
from mlx_server.sampling.sampler import Sampled, sample
from mlx_server.sampling_params import SAMPLERS, SamplingParams

VOCAB = 203
HISTORY = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 1, 4]
DOCUMENT_ORDER = ("top_k", "tfs_z", "typical_p", "top_p", "min_p", "temperature")


def make_row(position: int = 20, pending: bool = False, **params: Any) -> SamplingRow:
    known = HISTORY[:-1] if pending else HISTORY
    return SamplingRow(
        params=SamplingParams(**{"seed": 7, **params}),
        choice=0,
        position=position,
        token_ids=np.array(known, dtype=np.int32),
        num_prompt_tokens=5,
        pending=pending,
    )


def make_logits(num_rows: int = 1, vocab: int = VOCAB, key: int = 3) -> mx.array:
    return mx.random.normal((num_rows, vocab), key=mx.random.key(key)) * 3


def distribution(sampled: Sampled, line: int, vocab: int) -> np.ndarray:
    """What a row that asked for all probabilities was drawn from, [V]."""
    probs = np.zeros(vocab)
    probs[np.array(sampled.top_prob_ids[line])] = np.array(sampled.top_probs[line])
    return probs


def sampled_from(logits: mx.array, row: SamplingRow) -> np.ndarray:
    vocab = logits.shape[-1]
    pending = mx.array(HISTORY[-1:], dtype=mx.int32)
    sampled = sample(logits, [row], pending)
    probs = distribution(sampled, 0, vocab)
    token = sampled.tokens.item()
    assert probs[token] > 0
    assert sampled.probs.item() == pytest.approx(probs[token], rel=1e-5)
    return probs


# ---------------------------------------------------------------- the same in numpy


class Reference:
    """A list of candidates, as llama.cpp has it, in double precision."""

    def __init__(self, logits: np.ndarray, row: SamplingRow) -> None:
        self.size = len(logits)
        self.ids = np.flatnonzero(logits > -np.inf)
        self.logits = logits.astype(np.float64)[self.ids]
        self.row, self.params = row, row.params
        self.least = max(1, row.params.min_keep)
        self.num_xtc = 0

    def probs(self) -> np.ndarray:
        weights = np.exp(self.logits - self.logits.max())
        return weights / weights.sum()

    def keep(self, index: np.ndarray) -> None:
        self.ids, self.logits = self.ids[index], self.logits[index]

    def sort(self) -> None:
        self.keep(np.lexsort((self.ids, -self.logits)))

    def top_k(self) -> None:
        self.sort()
        self.keep(np.arange(min(max(self.params.top_k, self.least), len(self.ids))))

    def top_p(self) -> None:
        self.sort()
        mass, count = 0.0, len(self.ids)
        for i, p in enumerate(self.probs()):
            mass += p
            if mass >= self.params.top_p and i + 1 >= self.least:
                count = i + 1
                break
        self.keep(np.arange(count))

    def min_p(self) -> None:
        self.sort()
        worst = self.logits[0] + math.log(self.params.min_p)
        self.keep(np.flatnonzero((self.logits >= worst) | (np.arange(len(self.ids)) < self.least)))

    def top_n_sigma(self) -> None:
        self.sort()
        worst = self.logits[0] - self.params.top_n_sigma * self.logits.std()
        self.keep(np.flatnonzero((self.logits >= worst) | (np.arange(len(self.ids)) < self.least)))

    def tfs_z(self) -> None:
        self.sort()
        if len(self.ids) <= 2:
            return
        bends = np.abs(np.diff(self.probs(), 2))
        bends = bends / bends.sum() if bends.sum() > 1e-6 else np.full(len(bends), 1 / len(bends))
        mass, count = 0.0, len(self.ids)
        for i, bend in enumerate(bends):
            mass += bend
            if mass > self.params.tfs_z and i >= self.least:
                count = i
                break
        self.keep(np.arange(count))

    def typical_p(self) -> None:
        probs = self.probs()
        entropy = -(probs * np.log(probs)).sum()
        order = np.argsort(np.abs(-np.log(probs) - entropy), kind="stable")
        mass, count = 0.0, len(order)
        for i, p in enumerate(probs[order]):
            mass += p
            if mass > self.params.typical_p and i + 1 >= self.least:
                count = i + 1
                break
        self.keep(order[:count])

    def xtc(self) -> None:
        self.num_xtc += 1
        chance = row_numbers([self.row], self.num_xtc).item()
        if self.params.xtc_threshold > 0.5 or chance > self.params.xtc_probability:
            return
        self.sort()
        dropped = int((self.probs() >= self.params.xtc_threshold).sum()) - 1
        if dropped > 0 and len(self.ids) - dropped >= self.least:
            self.keep(np.arange(dropped, len(self.ids)))

    def temperature(self) -> None:
        base, span = self.params.temperature, self.params.dynatemp_range
        if span <= 0:
            self.logits = self.logits / base
        elif len(self.ids) > 1:
            probs = self.probs()
            entropy = -(probs[probs > 0] * np.log(probs[probs > 0])).sum()
            low, high = max(0.0, base - span), base + span
            share = (entropy / math.log(len(probs))) ** self.params.dynatemp_exponent
            self.logits = self.logits / (low + (high - low) * share)

    def penalties(self) -> None:
        for i, token in enumerate(self.ids.tolist()):
            window = HISTORY[-self.params.repetition_context_size :]
            if token in window and token not in self.params.unpenalized:
                factor = self.params.repetition_penalty
                self.logits[i] *= factor if self.logits[i] <= 0 else 1 / factor
            window = HISTORY[-(self.params.penalty_context_size or 0) :]
            if token in window and token not in self.params.unpenalized:
                self.logits[i] -= self.params.presence_penalty
                self.logits[i] -= self.params.frequency_penalty * window.count(token)

    def dry(self) -> None:
        # The history ends with "3 1 4", which "1" follows before, and "4", which "1" follows.
        for token, length in ((1, 3),):
            power = length - self.params.dry_allowed_length
            penalty = self.params.dry_multiplier * self.params.dry_base**power
            self.logits[self.ids == token] -= penalty

    def result(self, *names: str) -> np.ndarray:
        for name in names:
            getattr(self, name)()
        probs = np.zeros(self.size)
        probs[self.ids] = self.probs()
        return probs


OFF = {"top_k": 0, "tfs_z": 1.0, "typical_p": 1.0, "top_p": 1.0, "min_p": 0.0}


def check(logits: mx.array, row: SamplingRow, *names: str) -> None:
    probs = sampled_from(logits, row)
    expected = Reference(np.array(logits[0]), row).result(*names)
    # What is less likely may be 0 in single precision.
    assert set(np.flatnonzero(probs > 1e-30)) == set(np.flatnonzero(expected > 1e-30))
    np.testing.assert_allclose(probs, expected, rtol=1e-4, atol=1e-7)


SINGLE: list[tuple[str, dict[str, Any]]] = [
    *(("top_k", {"top_k": k}) for k in (1, 2, 17, 60, VOCAB - 1, VOCAB, 10**6)),
    *(("top_p", {"top_p": p}) for p in (0.0, 1e-6, 0.3, 0.9, 0.999)),
    *(("min_p", {"min_p": p}) for p in (1e-6, 0.02, 0.3, 1.0)),
    *(("top_n_sigma", {"top_n_sigma": n}) for n in (0.01, 0.7, 2.0, 50.0)),
    *(("tfs_z", {"tfs_z": z}) for z in (0.0, 0.2, 0.7, 0.95, 0.999)),
    *(("typical_p", {"typical_p": p}) for p in (0.01, 0.2, 0.7, 0.99)),
    *(("xtc", {"xtc_probability": 1.0, "xtc_threshold": t}) for t in (0.001, 0.02, 0.1, 0.5)),
    ("xtc", {"xtc_probability": 0.5, "xtc_threshold": 0.01}),
    ("temperature", {"temperature": 0.3}),
    ("temperature", {"temperature": 2.0}),
    *(
        ("temperature", {"temperature": 0.8, "dynatemp_range": r, "dynatemp_exponent": e})
        for r, e in ((0.5, 1.0), (0.5, 2.5), (2.0, 0.5), (0.8, 0.0))
    ),
    (
        "penalties",
        {
            "repetition_penalty": 1.3,
            "repetition_context_size": 6,
            "penalty_context_size": 6,
            "presence_penalty": 0.4,
            "frequency_penalty": 0.3,
            "unpenalized": (5,),
        },
    ),
    ("dry", {"dry_multiplier": 0.8}),
]


@pytest.mark.parametrize(("name", "settings"), SINGLE, ids=str)
def test_each_sampler_follows_its_definition(name: str, settings: dict[str, Any]) -> None:
    for key in (1, 2, 3):
        row = make_row(position=key, samplers=(name,), probs=VOCAB, **settings)
        check(make_logits(key=key), row, name)


@pytest.mark.parametrize(("name", "settings"), SINGLE, ids=str)
def test_a_sampler_named_twice_is_applied_twice(name: str, settings: dict[str, Any]) -> None:
    row = make_row(samplers=(name, name), probs=VOCAB, **settings)
    check(make_logits(), row, name, name)


@pytest.mark.parametrize("least", [2, 9, 40])
@pytest.mark.parametrize(("name", "settings"), SINGLE, ids=str)
def test_every_sampler_leaves_min_keep(name: str, settings: dict[str, Any], least: int) -> None:
    row = make_row(samplers=(name,), probs=VOCAB, min_keep=least, **settings)
    check(make_logits(), row, name)
    assert (sampled_from(make_logits(), row) > 0).sum() >= least


def everything() -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for _, own in SINGLE:
        settings |= own
    return settings | {
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.01,
        "top_n_sigma": 1.5,
        "tfs_z": 0.97,
        "typical_p": 0.95,
        "xtc_probability": 0.6,
        "xtc_threshold": 0.15,
        "temperature": 0.7,
        "dynatemp_range": 0.0,
    }


@pytest.mark.parametrize("moving", [0.0, 0.4])
@pytest.mark.parametrize("pending", [False, True], ids=["known", "pending"])
@pytest.mark.parametrize("seed", range(24))
def test_any_order_is_honoured(seed: int, moving: float, pending: bool) -> None:
    generator = np.random.default_rng(seed)
    names = SAMPLERS if seed == 0 else tuple(generator.permutation(SAMPLERS).tolist())
    names = names[: len(names) - seed % 4] if seed % 5 else (*names, *names[:3])
    settings = everything() | {"dynatemp_range": moving}
    if pending:
        settings["dry_multiplier"] = 0.0
    first = [n for n in ("penalties", "dry") if n not in names]
    used = [n for n in (*first, *names) if n != "dry" or not pending]
    row = make_row(samplers=names, probs=VOCAB, pending=pending, **settings)
    check(make_logits(key=seed), row, *used)


def test_the_order_matters() -> None:
    settings = {"temperature": 3.0, "top_p": 0.6, "probs": VOCAB}
    hot = sampled_from(make_logits(), make_row(samplers=("temperature", "top_p"), **settings))
    cold = sampled_from(make_logits(), make_row(samplers=("top_p", "temperature"), **settings))
    assert (hot > 0).sum() > 2 * (cold > 0).sum()


def test_what_is_not_named_is_not_applied_but_for_the_penalties() -> None:
    settings = everything() | {"probs": VOCAB}
    check(make_logits(), make_row(samplers=(), **settings), "penalties", "dry")
    check(make_logits(), make_row(samplers=("top_k",), **settings), "penalties", "dry", "top_k")


@pytest.mark.parametrize(
    "own",
    [
        {"typical_p": 0.9},
        {"tfs_z": 0.9},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 0.5, "xtc_threshold": 0.02},
        {"dynatemp_range": 0.5},
        {"min_keep": 3},
        {"dry_multiplier": 0.5},
    ],
    ids=str,
)
def test_one_of_the_own_samplers_brings_the_own_order(own: dict[str, Any]) -> None:
    settings = {"top_k": 30, "top_p": 0.9, "min_p": 0.01, "temperature": 0.7, **own}
    used = [n for n in SAMPLERS if n not in ("penalties", "dry", "tfs_z", "typical_p", "xtc")]
    used = [n for n in used if n != "top_n_sigma"]
    for name, field in (
        ("typical_p", "typical_p"),
        ("tfs_z", "tfs_z"),
        ("top_n_sigma", "top_n_sigma"),
        ("xtc", "xtc_probability"),
        ("dry", "dry_multiplier"),
    ):
        if field in own:
            used.append(name)
    used.sort(key=SAMPLERS.index)
    check(make_logits(), make_row(probs=VOCAB, **settings), *used)


ORDERS: list[tuple[dict[str, Any], Order]] = [
    ({}, Order()),
    ({"top_k": 3, "top_p": 0.5, "temperature": 0.3}, Order()),
    ({"temperature": 0.0, "samplers": ("dry", "top_k"), "typical_p": 0.5}, Order()),
    ({"temperature": -1.0, "min_keep": 4}, Order()),
    ({"mirostat": 2, "samplers": ("top_k",), "top_k": 5}, Order()),
    ({"samplers": ()}, Order(False, False, ())),
    ({"samplers": ("top_k", "top_p")}, Order(False, False, ())),
    ({"samplers": ("top_k",), "top_k": 9, "presence_penalty": 1.0}, Order(True, False, ("top_k",))),
    (
        {"samplers": ("top_k", "penalties"), "top_k": 9, "presence_penalty": 1.0},
        Order(False, False, ("top_k", "penalties")),
    ),
    (
        {"samplers": ("dry", "penalties"), "dry_multiplier": 1.0, "presence_penalty": 1.0},
        Order(False, True, ("penalties",)),
    ),
    ({"xtc_probability": 1.0, "xtc_threshold": 0.6, "top_k": 9}, Order()),
]


@pytest.mark.parametrize(("settings", "order"), ORDERS, ids=str)
def test_order_of(settings: dict[str, Any], order: Order) -> None:
    assert order_of(SamplingParams(**settings)) == order


def test_an_unknown_sampler_is_an_error() -> None:
    with pytest.raises(KeyError, match="top_q"):
        order_of(SamplingParams(samplers=("top_q",)))


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize(("name", "settings"), SINGLE, ids=str)
def test_impossible_tokens_stay_so_and_do_not_count(name: str, settings: dict[str, Any]) -> None:
    logits = mx.where(mx.arange(VOCAB)[None] % 3 == 0, -mx.inf, make_logits())
    for least in (0, 150):
        row = make_row(samplers=(name,), probs=VOCAB, min_keep=least, **settings)
        check(logits, row, name)
        assert not sampled_from(logits, row)[::3].any()


@pytest.mark.parametrize("vocab", [1, 2, 3])
@pytest.mark.parametrize(("name", "settings"), SINGLE[:-2], ids=str)  # the history has more tokens
def test_tiny_vocabularies(name: str, settings: dict[str, Any], vocab: int) -> None:
    row = make_row(samplers=(name,), probs=vocab, **settings)
    check(make_logits(vocab=vocab), row, name)


@pytest.mark.parametrize(("name", "settings"), SINGLE, ids=str)
def test_one_possible_token_is_taken(name: str, settings: dict[str, Any]) -> None:
    logits = mx.where(mx.arange(VOCAB)[None] == 77, -5.0, -mx.inf)
    row = make_row(samplers=(name,), min_keep=5, probs=2, **settings)
    sampled = sample(logits, [row])
    assert (sampled.tokens.item(), sampled.probs.item()) == (77, 1.0)
    assert sampled.top_probs.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("name", "settings"), SINGLE, ids=str)
def test_nothing_possible_is_no_crash(name: str, settings: dict[str, Any]) -> None:
    row = make_row(samplers=(name, "temperature"), **settings)
    assert 0 <= sample(mx.full((1, VOCAB), -mx.inf), [row]).tokens.item() < VOCAB


def test_of_equals_the_lowest_ids_are_kept() -> None:
    logits = mx.array([[1.0, 3.0, 3.0, 0.0, 3.0, 2.0]])
    for settings, expected in (
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.5}, {1, 2}),
        ({"top_k": 3}, {1, 2, 4}),
        ({"min_keep": 2, "min_p": 1.0}, {1, 2, 4}),
    ):
        row = make_row(samplers=("top_k", "top_p", "min_p"), probs=6, **settings)
        assert set(np.flatnonzero(sampled_from(logits, row))) == expected


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_not_above_0_is_greedy_behind_the_penalties(temperature: float) -> None:
    logits = make_logits()
    best = int(np.argmax(np.array(logits)))
    settings = {"temperature": temperature, "samplers": ("xtc", "top_k"), "probs": VOCAB}
    settings |= {"xtc_probability": 1.0, "xtc_threshold": 0.01, "top_k": 5}
    row = make_row(**settings)
    assert sample(logits, [row]).tokens.item() == best
    barred = make_row(**settings, logit_bias=((best, -1000.0),))
    assert sample(logits, [barred]).tokens.item() == int(np.argsort(np.array(logits[0]))[-2])
    # The probabilities are those of the logits, whatever else is set.
    np.testing.assert_allclose(
        sampled_from(logits, row), np.array(mx.softmax(logits[0])), rtol=1e-4, atol=1e-9
    )


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 0.0}], ids=str)
def test_what_only_one_token_is_left_of_has_the_probability_1(settings: dict[str, Any]) -> None:
    tied = mx.array([[0.0, 2.0, 1.0, 2.0]])
    sampled = sample(tied, [make_row(probs=2, **settings)])
    assert sampled.tokens.item() == sample(tied, [make_row(**settings)]).tokens.item() == 1
    assert sampled.probs.item() == 1 and sampled.top_probs.tolist() == [[1.0, 0.0]]
    assert sampled.top_prob_ids[0, 0].item() == 1


@pytest.mark.parametrize("tiny", [1e-3, 1e-30])
def test_a_tiny_temperature_is_greedy_anywhere(tiny: float) -> None:
    logits = make_logits(6) * 50
    best = np.argmax(np.array(logits), axis=-1).tolist()
    for names in (("temperature",), ("temperature", "top_p", "typical_p")):
        row = make_row(samplers=names, temperature=tiny, top_p=0.9, typical_p=0.9)
        assert sample(logits, [row] * 6).tokens.tolist() == best
    row = make_row(temperature=0.5, dynatemp_range=0.5, dynatemp_exponent=200.0)
    assert sample(logits, [row] * 6).tokens.tolist() == best


@pytest.mark.parametrize(
    ("repeated", "settings"),
    [
        ("temperature", {"temperature": 1e-30}),
        ("temperature", {"temperature": 1e-30, "dynatemp_range": 1e-31}),
        ("penalties", {"repetition_penalty": 0.01, "repetition_context_size": -1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [(), ("top_p",)])
@pytest.mark.parametrize("shift", [-30.0, 0.0, 30.0])
def test_what_is_applied_again_and_again_overflows_nowhere(
    repeated: str, settings: dict[str, Any], last: tuple[str, ...], shift: float
) -> None:
    row = make_row(
        samplers=("min_p",) + 30 * (repeated,) + last, probs=VOCAB, top_p=0.9, **settings
    )
    row.allowed = np.full(7, 0x55555555, dtype=np.uint32)
    logits = make_logits() + shift
    probs = sampled_from(logits, row)
    assert probs.sum() == pytest.approx(1, abs=1e-4) and not probs[1::2].any()
    if repeated == "temperature":
        assert probs.argmax() == 2 * np.array(logits)[0, ::2].argmax() and probs.max() == 1


def test_a_mask_comes_before_the_samplers_and_behind_the_first_penalties() -> None:
    logits = make_logits()
    words = np.zeros(-(-VOCAB // 32), dtype=np.uint32)
    allowed = [1, 4, 40, 41, 90, 150]
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    row = make_row(samplers=("top_k", "penalties"), top_k=4, presence_penalty=5.0, probs=VOCAB)
    row.allowed = words
    probs = sampled_from(logits, row)
    masked = np.full(VOCAB, -np.inf)
    masked[allowed] = np.array(logits[0])[allowed]
    row.params = SamplingParams(top_k=4, presence_penalty=5.0, penalty_context_size=7, seed=7)
    expected = Reference(masked, row).result("top_k", "penalties")
    np.testing.assert_allclose(probs, expected, rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize(
    "settings",
    [
        {"samplers": DOCUMENT_ORDER, "top_k": 6, "top_p": 0.95, "temperature": 1.5},
        {"typical_p": 0.8},
        {"samplers": ("temperature", "min_p"), "temperature": 2.0, "min_p": 0.2},
        {"samplers": ()},
    ],
    ids=str,
)
def test_frequencies_follow_the_distribution(settings: dict[str, Any]) -> None:
    logits, count = mx.linspace(-2, 2, 12)[None], 6000
    rows = [make_row(i, **settings) for i in range(count)]
    tokens = np.array(sample(mx.broadcast_to(logits, (count, 12)), rows).tokens)
    probs = sampled_from(logits, make_row(probs=12, **settings))
    observed = np.bincount(tokens, minlength=12)
    there = probs > 0
    assert not observed[~there].any()
    chi_square = ((observed - count * probs)[there] ** 2 / (count * probs[there])).sum()
    assert chi_square < 35  # 11 degrees of freedom at most; the draws are fixed


def test_xtc_strikes_as_often_as_it_should_and_by_numbers_of_its_own() -> None:
    logits, count = mx.log(mx.array([[0.5, 0.3, 0.2]])), 4000
    rows = [
        make_row(i, xtc_probability=0.25, xtc_threshold=0.25, samplers=("xtc",))
        for i in range(count)
    ]
    tokens = np.array(sample(mx.broadcast_to(logits, (count, 3)), rows).tokens)
    struck = np.array(row_numbers(rows, 1))[:, 0] <= 0.25
    assert abs(struck.mean() - 0.25) < 0.02
    assert not (tokens[struck] == 0).any()
    # What is drawn does not hang on whether it struck.
    assert abs((tokens[struck] == 1).mean() - 0.6) < 0.05
    assert abs((tokens[~struck] == 0).mean() - 0.5) < 0.03


def test_streams_of_numbers_are_apart() -> None:
    rows = [make_row(i) for i in range(2000)]
    streams = [np.array(row_numbers(rows, s))[:, 0] for s in range(4)]
    for i, one in enumerate(streams):
        counts, _ = np.histogram(one, 10, (0, 1))
        assert abs(counts - 200).max() < 60
        for other in streams[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.08


# ---------------------------------------------------------------- company

MIXTURE: list[dict[str, Any]] = [
    {"temperature": 0.0, "probs": 3},
    {},
    {"top_p": 0.8, "probs": 0},
    {"samplers": DOCUMENT_ORDER, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    {"samplers": DOCUMENT_ORDER, "top_k": 40, "top_p": 0.5, "min_p": 0.01, "probs": 5},
    {"samplers": DOCUMENT_ORDER, "top_k": 7, "repetition_penalty": 1.3, "probs": 30},
    {"samplers": ("temperature", "top_k", "penalties"), "top_k": 70, "presence_penalty": 1.0},
    *({"samplers": (name,), "probs": 4, **settings} for name, settings in SINGLE[::3]),
    {"typical_p": 0.5, "min_keep": 3, "probs": 12},
    {"mirostat": 1, "probs": 5},
    {"mirostat": 2, "temperature": 0.7},
    {"mirostat": 2, "mirostat_tau": 3.0, "presence_penalty": 1.0, "probs": 2},
    {"dry_multiplier": 1.0, "probs": 8},
    {"min_p": 0.1, "top_k": 5, "probs": 64},
    {"top_k": 1, "probs": 2},
]


def mixture() -> list[SamplingRow]:
    rows = [make_row(position=20 + i, **settings) for i, settings in enumerate(MIXTURE)]
    for i, row in enumerate(rows):
        if row.params.mirostat:
            row.mu = 4.0 + i / 10
    return rows


def told(sampled: Sampled, rows: list[SamplingRow]) -> list[tuple]:
    """What each row gets."""
    found = [[token] for token in sampled.tokens.tolist()]
    for line, i in enumerate(sampled.prob_rows):
        top = rows[i].params.probs
        found[i].append(sampled.probs[line].item())
        if top:
            probs = sampled.top_probs[line].tolist()[:top]
            ids = sampled.top_prob_ids[line].tolist()[:top]
            found[i].append([(t, p) for t, p in zip(ids, probs, strict=True) if p > 0])
    for line, i in enumerate(sampled.mirostat_rows):
        found[i].append(sampled.mu[line].item())
    return found


@pytest.mark.parametrize("vocab", [33, 1000])
def test_a_row_gets_the_same_in_any_company(vocab: int) -> None:
    rows = mixture()
    logits = make_logits(len(rows), vocab)
    together = told(sample(logits, rows), rows)
    for i, row in enumerate(rows):
        assert told(sample(logits[i : i + 1], [row]), [row]) == together[i : i + 1]
    generator = np.random.default_rng(5)
    for size in (2, 5, 9, len(rows)):
        some = generator.permutation(len(rows))[:size].tolist()
        chosen = [rows[i] for i in some]
        assert told(sample(logits[mx.array(some)], chosen), chosen) == [together[i] for i in some]


def test_probabilities_come_only_where_they_are_asked_for() -> None:
    logits = make_logits(3)
    plain = sample(logits, [make_row(), make_row(top_k=3), make_row(typical_p=0.5)])
    assert plain.prob_rows == () and plain.probs is None and len(plain.arrays()) == 1
    some = sample(logits, [make_row(), make_row(probs=0), make_row(typical_p=0.5)])
    assert some.prob_rows == (1,) and some.top_probs is None and len(some.arrays()) == 2
    some = sample(logits, [make_row(probs=2), make_row(probs=1), make_row(typical_p=0.5, probs=25)])
    assert some.prob_rows == (0, 1, 2)
    assert some.top_probs.shape == some.top_prob_ids.shape == (3, 25)
    assert some.top_prob_ids.dtype == mx.int32


@pytest.mark.parametrize(
    "settings",
    [{}, {"top_p": 0.7}, {"top_k": 5, "min_p": 0.1, "temperature": 0.5}, {"temperature": 3.0}],
    ids=str,
)
def test_probabilities_of_the_way_of_mlx_lm(settings: dict[str, Any]) -> None:
    """Its filters look at the unfiltered distribution, and the temperature comes last."""
    logits = make_logits()
    row = make_row(probs=VOCAB, **settings)
    kept = np.array(logits[0]).astype(np.float64)
    for name in ("top_p", "min_p", "top_k"):
        if name in settings:
            reference = Reference(np.array(logits[0]), row)
            getattr(reference, name)()
            kept[np.setdiff1d(np.arange(VOCAB), reference.ids)] = -np.inf
    weights = np.exp((kept - kept.max()) / settings.get("temperature", 1.0))
    np.testing.assert_allclose(
        sampled_from(logits, row), weights / weights.sum(), rtol=1e-4, atol=1e-9
    )


def test_building_the_graph_waits_for_nothing() -> None:
    rows = mixture()
    seed = mx.zeros((len(rows), 1), dtype=mx.int32)
    mx.eval(seed)
    before = mx.get_active_memory()
    sampled = sampler.sample(mx.zeros((len(rows), 200_000)) + seed, rows)  # 20 MB
    assert mx.get_active_memory() - before < 1_000_000
    mx.eval(sampled.tokens)
    assert mx.get_active_memory() - before > 10_000_000
