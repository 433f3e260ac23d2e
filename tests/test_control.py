"""Control vectors: files as llama.cpp reads them, added behind the layers they name."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.base import create_attention_mask
from models import CONFIG, make_engine, make_pair, random_prompts, request, run

from mlx_server.config import Config
from mlx_server.errors import ModelLoadError
from mlx_server.models.control import control_vectors_of, load_control, refuse_control
from mlx_server.models.fingerprint import fingerprint

HIDDEN, LAYERS = CONFIG["hidden_size"], CONFIG["num_hidden_layers"]
KIND = {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}


def write(path: Path, layers: tuple[int, ...] = (1, 2), seed: int = 0, **options) -> Path:
    """A control vector; `size`, `dtype`, `name` and `metadata` make it another."""
    mx.random.seed(seed)
    shape = (options.get("size", HIDDEN),)
    name = options.get("name", "direction.{}")
    tensors = {
        name.format(layer): mx.random.normal(shape).astype(options.get("dtype", mx.float32))
        for layer in layers
    }
    mx.save_gguf(str(path), tensors, options.get("metadata", KIND))
    return path


def arrays(path: Path) -> dict[int, np.ndarray]:
    return {int(k.split(".")[1]): np.array(v) for k, v in mx.load(str(path)).items()}


def load(*files: tuple[Path, float], span: tuple[int, int] | None = None) -> dict[int, np.ndarray]:
    found = load_control(files, span, HIDDEN, LAYERS)
    return {layer: np.array(array) for layer, array in found.items()}


# ---------------------------------------------------------------- reading and summing


def test_several_are_summed_with_their_scales(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.gguf", (1, 2), 1), write(tmp_path / "b.gguf", (2,), 2)
    found, (first, second) = load((a, 0.5), (b, -2.0), (a, 1.0)), (arrays(a), arrays(b))
    assert found.keys() == {1, 2}
    np.testing.assert_allclose(found[1], 1.5 * first[1], rtol=1e-6)
    np.testing.assert_allclose(found[2], 1.5 * first[2] - 2 * second[2], rtol=1e-5)


@pytest.mark.parametrize(
    ("span", "layers"),
    [
        (None, {1, 2}), ((1, 2), {1, 2}), ((1, 1), {1}), ((2, 2), {2}), ((2, 99), {2}),
        ((0, 1), {1}), ((2, 0), {2}), ((-1, -1), {1, 2}), ((3, 9), set()),
    ],
)  # fmt: skip
def test_the_range_is_inclusive(tmp_path: Path, span, layers: set[int]) -> None:
    """A direction for a layer that the model does not have is left out, as in llama.cpp."""
    path = write(tmp_path / "a.gguf", (1, 2, 3, 7))
    assert load((path, 1.0), span=span).keys() == layers


def test_scale_zero_is_none_but_the_file_is_looked_at(tmp_path: Path) -> None:
    assert load((write(tmp_path / "a.gguf"), 0.0)) == {}
    with pytest.raises(ModelLoadError, match="missing"):
        load((tmp_path / "b.gguf", 0.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 32}, r"direction.\d has 32 numbers, this model's hidden state 64"),
        ({"dtype": mx.float16}, r"direction.\d is F16"),
        ({"name": "blk.{}.weight"}, r"holds blk.\d.weight"),
        ({"layers": (0, 1)}, "holds direction.0"),
        ({"metadata": {"general.architecture": "llama"}}, "architecture 'llama'"),
        ({"metadata": KIND | {"controlvector.model_hint": "qwen2"}}, "made for 'qwen2'"),
    ],
)
def test_a_file_that_is_none_of_this_model_s_is_one_line(
    tmp_path: Path, options: dict, said: str
) -> None:
    path = write(tmp_path / "a.gguf", **options)
    with pytest.raises(ModelLoadError, match=said) as refused:
        load((path, 1.0))
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("hint", ["llama", "mistral"])
def test_llama_cpp_calls_mistral_a_llama(tmp_path: Path, hint: str) -> None:
    metadata = KIND | {"controlvector.model_hint": hint}
    path = write(tmp_path / "a.gguf", metadata=metadata)
    assert load_control([(path, 1.0)], None, HIDDEN, LAYERS, "mistral")


def test_a_part_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf").read_bytes()
    for size in (0, 3, 30, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "part.gguf").write_bytes(whole[:size])
        with pytest.raises(ModelLoadError, match="fetch it again"):
            load((tmp_path / "part.gguf", 1.0))


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    """MLX's own reader follows its lengths out of the file, and the process ends."""
    whole = write(tmp_path / "a.gguf").read_bytes()
    name = whole.index(b"direction")
    for at in (8, 16, 24, name - 1, name + len("direction.1")):
        path = tmp_path / "damaged.gguf"
        path.write_bytes(whole[:at] + b"\xff" * 4 + whole[at + 4 :])
        with pytest.raises(ModelLoadError, match=str(path)):
            load((path, 1.0))


def test_an_empty_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="--control-vector-layer-range 2 1"):
        load((write(tmp_path / "a.gguf"), 1.0), span=(2, 1))


def test_the_flags_become_paths_and_scales() -> None:
    config = Config(
        control_vector=("a.gguf",), control_vector_scaled=(("b c.gguf", 0.5), ("d.gguf", -0.1))
    )
    expected = [(Path("a.gguf"), 1.0), (Path("b c.gguf"), 0.5), (Path("d.gguf"), -0.1)]
    assert control_vectors_of(config) == expected


# ---------------------------------------------------------------- in the model


def by_hand(theirs, tokens: list[int], directions: dict[int, np.ndarray]) -> np.ndarray:
    """mlx_lm's layers with the directions added between them: the last logits [V]."""
    x = theirs.model.embed_tokens(mx.array([tokens]))
    mask = create_attention_mask(x, None)
    for i, layer in enumerate(theirs.model.layers):
        x = layer(x, mask, None)
        if i in directions:
            x = x + mx.array(directions[i])
    return np.array(theirs.model.embed_tokens.as_linear(theirs.model.norm(x))[0, -1])


@pytest.mark.parametrize("span", [None, (1, 1), (2, 2)])
def test_it_equals_adding_by_hand(tmp_path: Path, span) -> None:
    theirs, model = make_pair()
    path, prompts = write(tmp_path / "a.gguf"), random_prompts([9, 30, 1, 17])
    bare = [by_hand(theirs, prompt, {}) for prompt in prompts]
    control = load_control([(path, 0.7)], span, HIDDEN, LAYERS)
    model.module.set_control(control)
    requests = [request(f"r{i}", p, max_tokens=1, logprobs=101) for i, p in enumerate(prompts)]
    found = run(make_engine(model), *requests)
    for i, prompt in enumerate(prompts):
        logits = by_hand(theirs, prompt, {k: np.array(v) for k, v in control.items()})
        expected = logits - np.logaddexp.reduce(logits)
        assert np.abs(logits - bare[i]).max() > 0.1
        for token, logprob in found.logprobs(f"r{i}")[0].top:
            assert logprob == pytest.approx(expected[token], abs=2e-4)


def test_what_is_said_where_layers_cannot_be_reached() -> None:
    said = str(refuse_control("qwen3"))
    assert "'qwen3'" in said and "llama, mistral" in said


def test_none_is_scale_zero_is_bare(tmp_path: Path) -> None:
    path, rows = write(tmp_path / "a.gguf"), []
    for control in (None, [], [(path, 0.0)], [(path, 0.5), (path, -0.5)]):
        model = make_pair()[1]
        if control is not None:
            model.module.set_control(load_control(control, None, HIDDEN, LAYERS))
        found = run(make_engine(model), request("r", [1, 2, 3], logprobs=5))
        rows.append((found.tokens("r"), found.logprobs("r")))
    assert rows[1:] == rows[:1] * 3


def test_directions_are_no_weights_and_take_the_model_s_type(tmp_path: Path) -> None:
    module = make_pair()[1].module
    names, known = sorted(module.parameters()["model"]), fingerprint(module)
    module.set_dtype(mx.bfloat16)
    control = load_control([(write(tmp_path / "a.gguf"), 1.0)], None, HIDDEN, LAYERS)
    module.set_control(control)
    assert sorted(module.parameters()["model"]) == names
    assert {array.dtype for array in module.control.values()} == {mx.bfloat16}
    other = make_pair()[1].module
    assert fingerprint(other) == known
    other.set_control(control)
    assert fingerprint(other) != known
