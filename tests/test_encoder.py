"""Encoders: the same vectors as mlx-embeddings', alone and in company, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("mlx_embeddings")

from encoder_folders import CONFIGS, HIDDEN, LENGTH, write_dense, write_encoder, write_pooling
from mlx_embeddings.utils import load_model

from mlx_server.errors import ModelLoadError, NotSupported
from mlx_server.models import encoder
from mlx_server.models.embedding_files import own_pooling
from mlx_server.models.encoder import EncoderRow
from mlx_server.models.registry import is_encoder
from mlx_server.text.tokenizer import Tokenizer

KINDS = tuple(CONFIGS)
TEXTS = ("the cat sat on a mat", "rain", "the dog ran in the rain and the sun is on the cat a mat")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def rankers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rankers")
    return {kind: write_encoder(root / kind, kind, head=True) for kind in KINDS}


def rows_of(folder: Path, texts=TEXTS) -> list[EncoderRow]:
    tokenizer = Tokenizer.load(folder)
    return [EncoderRow(tuple(tokenizer.encode(text))) for text in texts]


def normalised(x: mx.array) -> np.ndarray:
    x = np.array(x)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_mlx_embeddings(folders: dict[str, Path], kind: str) -> None:
    model = encoder.load(folders[kind], name=kind).model
    # It is strict about a pooler that nobody reads; a random one serves.
    theirs = load_model(with_pooler(folders[kind]))
    for row in rows_of(folders[kind]):
        ids = mx.array([row.token_ids])
        expected = theirs(ids, attention_mask=mx.ones(ids.shape)).text_embeds
        found = normalised(model.pool([row], "mean"))
        np.testing.assert_allclose(found, np.array(expected), atol=1e-5)


def with_pooler(folder: Path) -> Path:
    if "modernbert" in folder.name:
        return folder
    copy = folder.with_name(folder.name + "-pooler")
    copy.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (copy / name).write_text((folder / name).read_text())
    pooler = {
        "pooler.dense.weight": mx.zeros((HIDDEN, HIDDEN)),
        "pooler.dense.bias": mx.zeros((HIDDEN,)),
    }
    weights = mx.load(str(folder / "model.safetensors"))
    mx.save_safetensors(str(copy / "model.safetensors"), weights | pooler)
    return copy


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_is_the_same_in_any_company(
    folders: dict[str, Path], kind: str, pooling: str
) -> None:
    model = encoder.load(folders[kind], name=kind).model
    rows = rows_of(folders[kind])
    together = np.array(model.pool(rows, pooling))
    alone = np.concatenate([np.array(model.pool([row], pooling)) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert not np.allclose(alone[0], alone[1], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_gives_about_the_same(
    folders: dict[str, Path], tmp_path: Path, kind: str, dtype: mx.Dtype
) -> None:
    weights = mx.load(str(folders[kind] / "model.safetensors"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folders[kind] / name).read_text())
    halved = {name: value.astype(dtype) for name, value in weights.items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), halved)
    exact = encoder.load(folders[kind], name=kind).model
    rough = encoder.load(tmp_path, name=kind).model
    assert rough.dtype == dtype
    rows = rows_of(folders[kind])
    rows = rows if rough.pads else rows[:1]
    similar = normalised(exact.pool(rows, "mean")) * normalised(rough.pool(rows, "mean"))
    assert similar.sum(axis=-1).min() > 0.999


def test_roberta_is_xlm_roberta(folders: dict[str, Path], tmp_path: Path) -> None:
    source = folders["xlm-roberta"]
    config = json.loads((source / "config.json").read_text()) | {"model_type": "roberta"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    rows = rows_of(source)
    found = encoder.load(tmp_path, name="r").model.pool(rows, "cls")
    expected = encoder.load(source, name="x").model.pool(rows, "cls")
    assert mx.array_equal(found, expected)


def test_positions_that_are_never_used_do_not_count(folders: dict[str, Path]) -> None:
    lengths = {k: encoder.load(folders[k], name=k).model.context_length for k in KINDS}
    assert lengths == {"bert": LENGTH, "xlm-roberta": LENGTH - 2, "modernbert": LENGTH}
    model = encoder.load(folders["xlm-roberta"], name="x").model
    full = EncoderRow((5,) * model.context_length)
    assert np.isfinite(np.array(model.pool([full], "last"))).all()


def test_a_dense_layer_follows_the_pooling(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = folders["bert"]
    for file in plain.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    write_pooling(tmp_path, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    weight, bias = write_dense(tmp_path, 6, "torch.nn.modules.activation.Tanh")
    loaded = encoder.load(tmp_path, name="b")
    assert loaded.pooling == "cls"
    assert loaded.model.embedding_size == 6
    rows = rows_of(plain)
    pooled = encoder.load(plain, name="b").model.pool(rows, "cls")
    expected = mx.tanh(pooled @ weight.T + bias)
    np.testing.assert_allclose(loaded.model.pool(rows, "cls"), expected, atol=1e-5)


def test_quantised_weights_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    source = folders["bert"]
    weights = mx.load(str(source / "model.safetensors"))
    packed, rounded = {}, {}
    for name, value in weights.items():
        if name.endswith("query.weight"):
            stem = name.removesuffix(".weight")
            w, scales, biases = mx.quantize(value, group_size=32, bits=8)
            packed |= {f"{stem}.weight": w, f"{stem}.scales": scales, f"{stem}.biases": biases}
            rounded[name] = mx.dequantize(w, scales, biases, group_size=32, bits=8)
        else:
            packed[name] = rounded[name] = value
    config = json.loads((source / "config.json").read_text())
    found = []
    for kind, tensors, more in (
        ("packed", packed, {"quantization": {"group_size": 32, "bits": 8}}),
        ("rounded", rounded, {}),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | more))
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        found.append(np.array(encoder.load(folder, name=kind).model.pool(rows_of(source), "mean")))
    np.testing.assert_allclose(*found, atol=1e-4)


# ---------------------------------------------------------------- scores


def reference_score(folder: Path, ids: list[int], types: list[int]) -> float:
    """A BERT or XLM-R cross-encoder in plain numpy, after transformers' definition."""
    config = json.loads((folder / "config.json").read_text())
    bert = config["model_type"] == "bert"
    weights = mx.load(str(folder / "model.safetensors"))
    w = {k.split(".", 1)[1] if k.startswith(("bert.", "roberta.")) else k: np.array(v, np.float64)
         for k, v in weights.items()}  # fmt: skip

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        scaled = (x - mean) / np.sqrt(variance + config["layer_norm_eps"])
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    heads, size = config["num_attention_heads"], config["hidden_size"]
    places = np.arange(len(ids)) + (0 if bert else config["pad_token_id"] + 1)
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][places]
    x = x + w["embeddings.token_type_embeddings.weight"][types if bert else [0] * len(ids)]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{n}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for n in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(size // heads)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.swapaxes(0, 1).reshape(len(ids), size)
        x = norm(linear(mixed, f"{at}.attention.output.dense") + x,
                 f"{at}.attention.output.LayerNorm")  # fmt: skip
        up = linear(x, f"{at}.intermediate.dense")
        up = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
        x = norm(linear(up, f"{at}.output.dense") + x, f"{at}.output.LayerNorm")
    dense, out = ("pooler.dense", "classifier") if bert else (
        "classifier.dense", "classifier.out_proj")  # fmt: skip
    return linear(np.tanh(linear(x[0], dense)), out).item()


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_scores_are_those_of_the_definition(rankers: dict[str, Path], kind: str) -> None:
    folder = rankers[kind]
    model, tokenizer = encoder.load(folder, name=kind).model, Tokenizer.load(folder)
    pairs = [tokenizer.encode_pair("is the cat in", text) for text in TEXTS]
    found = np.array(model.score([EncoderRow(tuple(i), tuple(t)) for i, t in pairs]))
    expected = [reference_score(folder, *pair) for pair in pairs]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected) > 1e-3


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernberts_scores_are_those_of_mlx_embeddings(tmp_path: Path, pooling: str) -> None:
    folder = write_encoder(tmp_path / "m", "modernbert", head=True, classifier_pooling=pooling)
    model, theirs = encoder.load(folder, name="m").model, load_model(folder)
    tokenizer = Tokenizer.load(folder)
    rows = [EncoderRow(tuple(tokenizer.encode_pair("the sun", text)[0])) for text in TEXTS]
    found = np.array(model.score(rows))
    for row, score in zip(rows, found, strict=True):
        ids = mx.array([row.token_ids])
        expected = theirs(ids, attention_mask=mx.ones(ids.shape)).pooler_output.item()
        # Its head has the GELU by tanh, transformers' and ours the exact one.
        assert 1 / (1 + math.exp(-score)) == pytest.approx(expected, abs=1e-4)


def test_which_text_a_token_belongs_to_counts(rankers: dict[str, Path]) -> None:
    model, tokenizer = (
        encoder.load(rankers["bert"], name="b").model,
        Tokenizer.load(rankers["bert"]),
    )
    ids, types = tokenizer.encode_pair("the cat", "a mat")
    assert types == [0, 0, 0, 0, 1, 1, 1]
    typed, plain = model.score([EncoderRow(tuple(ids), tuple(types)), EncoderRow(tuple(ids))])
    assert abs(typed.item() - plain.item()) > 1e-4


@pytest.mark.parametrize(("head", "labels"), [(False, 1), (True, 3)])
def test_what_is_no_cross_encoder_with_one_label_cannot_rank(
    tmp_path: Path, head: bool, labels: int
) -> None:
    folder = write_encoder(tmp_path / "x", "bert", head=head, labels=labels)
    model = encoder.load(folder, name="x").model
    assert not model.can_rank
    with pytest.raises(NotSupported, match="cross-encoder"):
        model.score([EncoderRow((1, 2))])


# ---------------------------------------------------------------- what is loaded, and what not


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert"}, True),
        ({"model_type": "camembert"}, True),
        ({"model_type": "llama"}, False),
        ({"model_type": "gemma3_text"}, False),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, True),
        ({"model_type": ["bert"]}, False),
        ({}, False),
    ],
)
def test_which_models_are_encoders(config: dict, expected: bool) -> None:
    assert is_encoder(config) is expected


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_folder_says_how_it_is_pooled(tmp_path: Path, modes: dict, expected: str) -> None:
    write_pooling(tmp_path, **modes)
    assert own_pooling(tmp_path) == expected


def test_a_pooling_that_is_not_known_is_told(tmp_path: Path) -> None:
    write_pooling(tmp_path, pooling_mode_max_tokens=True)
    with pytest.raises(ModelLoadError, match="max_tokens"):
        own_pooling(tmp_path)
    assert own_pooling(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_size": 64}, "shape"),
        ({"num_hidden_layers": 3}, "lack"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_a_config_that_does_not_fit_is_told(tmp_path: Path, change: dict, told: str) -> None:
    folder = write_encoder(tmp_path / "b", "bert")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=f"Cannot load it: .*{told}"):
        encoder.load(folder, name="it")


def test_without_the_package_the_error_says_how_to_get_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "mlx_embeddings"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlx_embeddings", None)
    with pytest.raises(ModelLoadError, match=r"pip install 'mlx_server\[embeddings\]'"):
        encoder.check(folders["bert"], name="b")


# ---------------------------------------------------------------- decoders that look both ways

_DECODER = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "vocab_size": 50,
    "rms_norm_eps": 1e-5, "max_position_embeddings": LENGTH, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gemma3_text", "llama_bidirec"])
def test_decoders_without_a_causal_mask_are_encoders(tmp_path: Path, kind: str) -> None:
    import importlib

    from mlx.utils import tree_flatten

    config = {"model_type": kind, "use_bidirectional_attention": True, **_DECODER}
    if kind == "gemma3_text":
        config |= {"query_pre_attn_scalar": 8, "sliding_window": 64, "sliding_window_pattern": 2}
        # EmbeddingGemma's two layers behind the pooling, converted with the rest.
        write_dense(tmp_path, HIDDEN, folders=("2_Dense", "3_Dense"), sizes=(4 * HIDDEN, HIDDEN))
    arch = importlib.import_module(f"mlx_embeddings.models.{kind}")
    mx.random.seed(2)
    module = arch.Model(arch.ModelArgs.from_dict(config))
    weights = {k: mx.random.normal(v.shape) * 0.2 for k, v in tree_flatten(module.parameters())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    module.load_weights(list(weights.items()))
    assert is_encoder(config)
    model = encoder.load(tmp_path, name=kind).model
    rows = [EncoderRow((5, 6, 7)), EncoderRow((9,)), EncoderRow(tuple(range(1, 40)))]
    together = normalised(model.pool(rows, "mean"))
    for row, found in zip(rows, together, strict=True):
        expected = np.array(module(mx.array([row.token_ids])).text_embeds)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
