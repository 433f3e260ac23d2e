"""The page on extending, docs/extending.md: its architecture, its samplers and its parsers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from extending import run, value, with_fields
from grammars import Bytes
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3 as reference
from parsing import calls, content, read, reasoning

from mlx_server.engine.engines import Engines
from mlx_server.engine.limits import Limits
from mlx_server.engine.loading import load_engine
from mlx_server.exchange import EngineRequest
from mlx_server.models import registry
from mlx_server.models.base import Row
from mlx_server.models.llama import LlamaModel
from mlx_server.sampling import chain, filters, order, sampler
from mlx_server.sampling.row import SamplingRow
from mlx_server.sampling_params import SamplingParams
from mlx_server.text import formats
from mlx_server.text.formats import SYNTAXES, OutputFormat, choose_format
from mlx_server.text.parsers import thinking
from mlx_server.text.parsers.lark import Lark, ToolRule

# ---------------------------------------------------------------- an architecture

QWEN3 = {
    "model_type": "qwen3", "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
    "vocab_size": 97, "max_position_embeddings": 256, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def qwen3() -> dict[str, Any]:
    return run("architecture")


def random_reference(config: dict[str, Any]) -> Any:
    mx.random.seed(0)
    model = reference.Model(reference.ModelArgs.from_dict(config))
    model.update(tree_map(lambda p: mx.random.normal(p.shape) * 0.2 + 0.1, model.parameters()))
    return model


def forward(model: LlamaModel, seats: list, chunks: list[list[int]]) -> np.ndarray:
    """One step with the next tokens of some rows: logits of all of them, [N, V]."""
    for seat, chunk in zip(seats, chunks, strict=True):
        model.cache.reserve(seat, seat.length + len(chunk))
    rows = sorted(zip(seats, chunks, strict=True), key=lambda r: (len(r[1]) > 1, r[0].order))
    tokens = mx.array([token for _, chunk in rows for token in chunk])
    logits, pending = model.forward(tokens, [Row(s, len(c), len(c)) for s, c in rows])
    mx.eval(logits, pending)
    found, at = {}, 0
    for seat, chunk in rows:
        found[seat], at = np.array(logits[at : at + len(chunk)]), at + len(chunk)
    return np.concatenate([found[seat] for seat in seats])


@pytest.mark.parametrize("tied", [False, True])
def test_the_architecture_gives_mlx_lms_logits(qwen3: dict[str, Any], tied: bool) -> None:
    settings = QWEN3 | {"tie_word_embeddings": tied}
    theirs = random_reference(settings)
    module = qwen3["Model"](qwen3["ModelArgs"].from_dict(settings))
    module.load_weights(tree_flatten(theirs.parameters()), strict=True)
    ours = LlamaModel(module, 256)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 97, n).tolist() for n in (40, 7, 21)]
    expected = [np.array(theirs(mx.array([prompt]))[0]) for prompt in prompts]

    # Whole prompts, each alone; then all of them in chunks, packed into the same steps.
    for prompt, logits in zip(prompts, expected, strict=True):
        found = forward(ours, [ours.cache.open(64)], [prompt])
        np.testing.assert_allclose(found, logits, atol=1e-4)
    seats = [ours.cache.open(64) for _ in prompts]
    done: list[list[np.ndarray]] = [[], [], []]
    for counts in ((30, 1, 3), (1, 5, 17), (9, 1, 1)):
        chunks = [
            p[s.length : s.length + n] for p, s, n in zip(prompts, seats, counts, strict=True)
        ]
        logits = forward(ours, seats, chunks)
        for rows, piece in zip(done, np.split(logits, np.cumsum(counts)[:-1]), strict=True):
            rows.append(piece)
    for rows, logits in zip(done, expected, strict=True):
        np.testing.assert_allclose(np.concatenate(rows), logits, atol=1e-4)


def test_the_registrys_line_is_all_that_loading_needs(
    qwen3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = random_reference(QWEN3)
    weights = dict(tree_flatten(theirs.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights, {"format": "mlx"})
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    monkeypatch.setitem(registry.OURS, "qwen3", qwen3["__name__"])
    engines = Engines()
    load_engine(
        engines, tmp_path, name="m", limits=Limits(4, 8), max_models=1, trust_remote_code=False
    )
    engine = engines["m"]
    assert isinstance(engine.model, LlamaModel)
    prompt, tokens = [5, 9, 2, 31, 7, 40, 3, 3, 8, 1, 60], []
    params = SamplingParams(temperature=0.0, max_tokens=6, seed=0)
    engine.add(EngineRequest("a", tuple(prompt), params))
    while engine.busy:
        for step in engine.step().values():
            assert step.error is None
            tokens += [token for output in step.outputs for token in output.token_ids]
    for _ in range(6):
        prompt.append(int(mx.argmax(theirs(mx.array([prompt]))[0, -1])))
    assert tokens == prompt[-6:]


# ---------------------------------------------------------------- samplers

LOGITS = np.log(np.array([[0.4, 0.3, 0.15, 0.1, 0.05], [0.05, 0.8, 0.06, 0.07, 0.02]]))


def drawn_from(params: list[SamplingParams], logits: np.ndarray = LOGITS) -> np.ndarray:
    """The probabilities that each row's token is drawn from, [R, V]."""
    history = np.array([1, 2], dtype=np.int32)
    rows = [SamplingRow(p, i, 2, history, 2, pending=False) for i, p in enumerate(params)]
    found = sampler.sample(mx.array(logits.astype(np.float32)), rows)
    probs = np.zeros(logits.shape)
    for row in range(len(params)):
        probs[row, np.array(found.top_prob_ids[row])] = np.array(found.top_probs[row])
    return probs


def kept(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    weights = np.where(mask, np.exp(logits), 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.fixture
def params() -> Callable[..., SamplingParams]:
    made = with_fields(SamplingParams, "params")
    return lambda **values: made(**{"seed": 1, "probs": 5} | values)


def test_a_filter_drops_what_it_says(params, monkeypatch: pytest.MonkeyPatch) -> None:
    extended = (*filters.FILTERS, run("filter", filters)["EPSILON"])
    monkeypatch.setattr(sampler, "FILTERS", extended)
    bounds = np.array([[0.12], [0.065]])
    made = [params(epsilon=float(bound)) for bound in bounds[:, 0]]
    expected = kept(LOGITS, np.exp(LOGITS) >= bounds)
    assert (expected == 0).sum() == 5
    np.testing.assert_allclose(drawn_from(made), expected, atol=1e-6)
    # The same in other company, beside other filters; and one token is always left.
    alone = [drawn_from([p], LOGITS[i : i + 1])[0] for i, p in enumerate(made)]
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    mixed = drawn_from([params(epsilon=0.9), params(epsilon=0.01, top_k=2)])
    np.testing.assert_allclose(mixed[0], [1, 0, 0, 0, 0], atol=1e-6)
    assert (mixed[1] > 0).tolist() == [False, True, False, True, False]


def test_a_sampler_has_its_place_in_the_chain(params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chain.STEPS, "top_a", run("sampler", chain)["top_a"])
    monkeypatch.setitem(order._USES, "top_a", value("use", order))
    probs = np.exp(LOGITS)
    expected = kept(LOGITS, probs >= 0.7 * probs.max(axis=-1, keepdims=True) ** 2)
    assert 0 < (expected == 0).sum() < expected.size
    made = params(top_a=0.7, samplers=("top_a", "temperature"))
    np.testing.assert_allclose(drawn_from([made, made]), expected, atol=1e-6)
    # It looks at what the one before left: of two tokens the best has another probability.
    two = kept(LOGITS[:1], np.array([[True, True, False, False, False]]))
    behind = params(top_a=1.8, top_k=2, samplers=("top_k", "top_a"))
    before = params(top_a=1.8, top_k=2, samplers=("top_a", "top_k"))
    assert two[0, 1] < 1.8 * two[0, 0] ** 2 and probs[0, 1] >= 1.8 * probs[0, 0] ** 2
    np.testing.assert_allclose(drawn_from([behind], LOGITS[:1])[0], [1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(drawn_from([before], LOGITS[:1]), two, atol=1e-6)
    # `min_keep` holds for it as for the others.
    least = params(top_a=1.0, min_keep=4, samplers=("top_a",))
    assert (drawn_from([least], LOGITS[1:]) > 0).sum() == 4


# ---------------------------------------------------------------- parsers

TEMPLATE = "{% for c in m.tool_calls %}[[call {{ c.name }}]]{{ c.arguments }}[[end]]{% endfor %}"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
RULES = [ToolRule("get_weather", CITY), ToolRule("now", {"type": "object", "properties": {}})]
BERN = [("get_weather", {"city": "Bern [1]"})]
WEATHER = '[[call get_weather]]{"city": "Bern [1]"}[[end]]'


@pytest.fixture(scope="module")
def brackets() -> Any:
    return run("parser")["Brackets"]()


@pytest.mark.parametrize(
    ("text", "found", "said"),
    [
        (WEATHER, BERN, ""),
        (f"Let me see.\n{WEATHER}\n", BERN, "Let me see."),
        (f"{WEATHER}\n[[call now]]{{}}[[end]]", [*BERN, ("now", {})], ""),
        ("[[call now]] {}", [("now", {})], ""),
        ("[[1, 2], [3]] and [[call ]]", [], "[[1, 2], [3]] and [[call ]]"),
        ("[[call (x)", [], "[[call (x)"),
    ],
)  # fmt: skip
def test_calls_are_read_at_every_split(brackets: Any, text: str, found: list, said: str) -> None:
    events = read(text, brackets)
    assert (calls(events), content(events)) == (found, said)


@pytest.mark.parametrize("specials", [(), ("[[end]]",)], ids=["as text", "as a token"])
@pytest.mark.parametrize("seed", range(4))
def test_what_the_grammar_makes_is_read(brackets: Any, specials: tuple, seed: int) -> None:
    vocabulary = Bytes(specials)
    lark = Lark(vocabulary.specials)
    grammar = lark.grammar(brackets.calls(lark, RULES))
    assert vocabulary.accepts(grammar, '[[call get_weather]]{"city": "Bern"}[[end]]')
    assert not vocabulary.accepts(grammar, '[[call get_weather]]{"town": "Bern"}[[end]]')
    events = read(vocabulary.walk(grammar, seed), brackets)
    assert calls(events) and content(events) == ""
    assert {name for name, _ in calls(events)} <= {rule.name for rule in RULES}


def test_the_family_is_known_by_its_template(brackets: Any, monkeypatch) -> None:
    assert not any(s.matches(TEMPLATE, ()) for s in SYNTAXES)
    monkeypatch.setattr(formats, "SYNTAXES", (brackets, *SYNTAXES))
    assert choose_format(TEMPLATE, (), True).syntax is brackets
    assert choose_format('<tool_call>\n"arguments"', (), True).syntax.name == "hermes"
    assert {"[[call ", "[[end]]"} <= OutputFormat(brackets, None).markup


def test_reasoning_is_told_apart(brackets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    marking = run("reasoning", thinking)["PONDER"]
    monkeypatch.setattr(thinking, "THINKING", (marking, *thinking.THINKING))
    template = "{{ '[[ponder]]' + m.reasoning + '[[answer]]' }}" + TEMPLATE
    monkeypatch.setattr(formats, "SYNTAXES", (brackets, *SYNTAXES))
    found = choose_format(template, (), True)
    assert found.thinking == marking.thinking(template)
    assert found.state("user: hi\n[[ponder]]\n") == "inside"
    assert marking.matches("", {"[[ponder]]", "[[answer]]"}) and not marking.matches("", ())
    text = f"[[ponder]]\nHm, [[1]].\n[[answer]]\nYes.\n{WEATHER}"
    events = read(text, found.syntax, found.thinking)
    assert (reasoning(events), content(events)) == ("Hm, [[1]].", "Yes.")
    assert calls(events) == BERN
