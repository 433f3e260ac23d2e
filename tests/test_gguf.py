"""GGUF files as models: quantised as dequantised, read as mlx reads; what broken ones say."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf_models import Types, dequantised, read_gguf, story, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_server import gguf as header_reader
from mlx_server.errors import ModelLoadError
from mlx_server.gguf import is_gguf, model_files, peek_architecture, read_header, split_files
from mlx_server.models.base import Row
from mlx_server.models.gguf_adapter import read_gguf_adapter
from mlx_server.models.gguf_arrays import BITS, read_arrays, split_halves
from mlx_server.models.llama import LlamaModel
from mlx_server.models.loader import Loaded, check, load
from mlx_server.models.overrides import RopeOverrides
from mlx_server.text.gguf_tokenizer import load_gguf

__all__ = ["story"]

Story = tuple[dict[str, Any], dict[str, np.ndarray]]
PROMPT = [1, 403, 407, 261, 378, 432, 383, 286, 263]

NORMS = dict.fromkeys((Types.F16, Types.Q4_0, Types.Q4_1, Types.Q8_0), 0.02) | {Types.BF16: 0.2}
"""How far apart logits come of what is no matrix, and float32 in the file."""


def logits(loaded: Loaded, tokens: list[int] = PROMPT) -> np.ndarray:
    """float32 [tokens, vocabulary] of a prompt by itself."""
    model = LlamaModel(loaded.model, 512)
    seat = model.cache.open(len(tokens))
    model.cache.reserve(seat, len(tokens))
    found, _ = model.forward(mx.array(tokens), [Row(seat, len(tokens), num_logits=len(tokens))])
    return np.array(found.astype(mx.float32))


def matrices(tensors: dict[str, np.ndarray]) -> list[str]:
    """Those that blocks of 32 fit."""
    return [n for n, t in tensors.items() if t.ndim == 2 and t.shape[-1] % 32 == 0]


def message(path: Path, run: Callable[..., object] = check) -> str:
    with pytest.raises(ModelLoadError) as error:
        run(path, name="m")
    assert "\n" not in error.value.message
    return error.value.message


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("kind", [Types.F16, Types.BF16, Types.Q4_0, Types.Q4_1, Types.Q8_0])
def test_a_stored_type_gives_what_its_values_give_in_float32(
    tmp_path: Path, story: Story, kind: Types
) -> None:
    metadata, tensors = story
    types = dict.fromkeys(matrices(tensors), kind)
    stored = load(write_gguf(tmp_path / "a.gguf", metadata, tensors, types), name="a")
    values = {n: dequantised(t, kind) if n in types else t for n, t in tensors.items()}
    plain = load(write_gguf(tmp_path / "b.gguf", metadata, values), name="b")
    if kind.name in BITS:
        layers = stored.config["quantization"]
        assert layers["model.embed_tokens"] == {"group_size": 32, "bits": BITS[kind.name]}
        assert isinstance(stored.model.model.embed_tokens, nn.QuantizedEmbedding)
        assert not isinstance(stored.model.layers[0].mlp.down_proj, nn.QuantizedLinear)
    expected = logits(plain)
    # 16 bits have a fraction of 10 (float16) or 7 (bfloat16), and five layers add up.
    rounding = 0.6 if kind == Types.BF16 else 0.15
    found = logits(stored)
    np.testing.assert_allclose(found, expected, atol=rounding)
    top = np.sort(expected, axis=-1)
    clear = top[:, -1] - top[:, -2] > 2 * rounding
    assert clear.any()
    np.testing.assert_array_equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])
    # The same packed numbers, computed in 32.
    stored.model.set_dtype(mx.float32)
    np.testing.assert_allclose(logits(stored), expected, atol=NORMS[kind])


def test_types_may_differ_from_layer_to_layer(tmp_path: Path, story: Story) -> None:
    metadata, tensors = story
    kinds = [Types.Q4_0, Types.Q8_0, Types.F16, Types.Q4_1, Types.F32]
    types = {name: kinds[i % len(kinds)] for i, name in enumerate(matrices(tensors))}
    loaded = load(write_gguf(tmp_path / "a.gguf", metadata, tensors, types), name="a")
    values = {n: dequantised(t, types[n]) if n in types else t for n, t in tensors.items()}
    plain = load(write_gguf(tmp_path / "b.gguf", metadata, values), name="b")
    floats = {a.dtype for _, a in tree_flatten(loaded.model.parameters()) if a.dtype != mx.uint32}
    assert floats == {mx.float16}
    loaded.model.set_dtype(mx.float32)
    np.testing.assert_allclose(logits(loaded), logits(plain), atol=0.02)


@pytest.mark.parametrize("kind", [Types.F32, Types.F16, Types.Q4_0, Types.Q4_1, Types.Q8_0])
def test_tensors_are_those_that_mlx_reads(tmp_path: Path, kind: Types) -> None:
    tensor = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    metadata = {"general.architecture": "llama"}
    path = write_gguf(tmp_path / "a.gguf", metadata, {"x.weight": tensor}, {"x.weight": kind})
    ours = read_arrays(path, read_header(path).tensors["x.weight"])
    theirs = mx.load(str(path))
    assert {f"x.{leaf}" for leaf in ours} == theirs.keys()
    for leaf, array in ours.items():
        assert array.dtype == theirs[f"x.{leaf}"].dtype
        assert mx.array_equal(array, theirs[f"x.{leaf}"])


def test_bfloat16_keeps_its_range(tmp_path: Path) -> None:
    tensor = np.array([[1e30, -3e-30, 1.5, 0.0]], dtype=np.float32)
    metadata = {"general.architecture": "llama"}
    path = write_gguf(tmp_path / "a.gguf", metadata, {"x": tensor}, {"x": Types.BF16})
    (array,) = read_arrays(path, read_header(path).tensors["x"]).values()
    np.testing.assert_allclose(np.array(array.astype(mx.float32)), tensor, rtol=2**-8)


def test_the_file_holds_the_folder_s_weights(stories: Path) -> None:
    a, b = (load(stories / name, name=name) for name in ("stories260K.gguf", "stories260k"))
    ours, theirs = (dict(tree_flatten(loaded.model.parameters())) for loaded in (a, b))
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]) for name in ours)
    assert (a.module_kind, a.num_parameters, a.nbytes) == ("ours", b.num_parameters, b.nbytes)
    assert a.eos_token_ids == b.eos_token_ids == (2,)
    for key in ("max_position_embeddings", "vocab_size", "head_dim", "tie_word_embeddings"):
        assert a.config[key] == b.config[key]


def test_rows_change_their_order_and_back() -> None:
    rows = mx.arange(24).reshape(12, 2)
    order = split_halves(rows, 2)[:, 0].tolist()
    assert order == [0, 4, 8, 2, 6, 10, 12, 16, 20, 14, 18, 22]


# ---------------------------------------------------------------- what the metadata says


def changed(
    tmp_path: Path, story: Story, tensors: dict[str, np.ndarray] | None = None, **metadata: Any
) -> Path:
    """The story model with other metadata (`__` for a dot, None: left out) and tensors."""
    new = dict(story[0]) | {key.replace("__", "."): value for key, value in metadata.items()}
    new = {key: value for key, value in new.items() if value is not None}
    kept = {n: t for n, t in (story[1] | (tensors or {})).items() if t is not None}
    return write_gguf(tmp_path / "m.gguf", new, kept)


def test_an_output_of_its_own(tmp_path: Path, story: Story) -> None:
    output = story[1]["token_embd.weight"] * 2
    loaded = load(changed(tmp_path, story, {"output.weight": output}), name="m")
    assert loaded.config["tie_word_embeddings"] is False
    plain = load(changed(tmp_path, story), name="m")
    np.testing.assert_allclose(logits(loaded), 2 * logits(plain), rtol=1e-4, atol=1e-4)


def test_biases_count_and_those_left_out_are_zero(tmp_path: Path, story: Story) -> None:
    bias = np.random.default_rng(1).normal(size=64).astype(np.float32)
    loaded = load(changed(tmp_path, story, {"blk.1.attn_q.bias": bias}), name="m")
    q, o = (getattr(loaded.model.layers[1].self_attn, n) for n in ("q_proj", "o_proj"))
    assert mx.array_equal(q.bias, split_halves(mx.array(bias), 8))
    assert not o.bias.any() and not loaded.model.layers[0].self_attn.q_proj.bias.any()


@pytest.mark.parametrize(
    ("metadata", "same"),
    [
        ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0}, "linear"),
        ({"llama__rope__scale_linear": 2.0}, "linear"),
        (
            {
                "llama__rope__scaling__type": "yarn",
                "llama__rope__scaling__factor": 2.0,
                "llama__rope__scaling__original_context_length": 256,
            },
            "yarn",
        ),
        ({"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 2.0}, None),
        ({"llama__rope__scaling__type": "linear"}, None),
    ],
)
def test_scaling_of_positions(
    tmp_path: Path, story: Story, metadata: dict[str, Any], same: str | None
) -> None:
    loaded = load(changed(tmp_path, story, **metadata), name="m")
    scaling = loaded.config["rope_scaling"]
    assert (scaling and scaling["rope_type"]) == same
    rope = loaded.model.layers[0].self_attn.rope
    angles = np.array(rope.angles(mx.array([100])))[0]
    plain = 100 / 10000 ** (np.arange(0, 8, 2) / 8)
    if same is None:
        np.testing.assert_allclose(angles, plain, rtol=1e-5)
    elif same == "linear":
        np.testing.assert_allclose(angles, plain / 2, rtol=1e-5)
    else:
        assert rope.magnitude == pytest.approx(1 + 0.1 * np.log(2))
        np.testing.assert_allclose(angles[0], plain[0], rtol=1e-5)
        np.testing.assert_allclose(angles[-1], plain[-1] / 2, rtol=1e-5)


def test_factors_on_the_periods(tmp_path: Path, story: Story) -> None:
    """As in files of Llama 3.1 and later."""
    factors = np.array([1.0, 2.0, 4.0, 8.0], dtype=np.float32)
    loaded = load(changed(tmp_path, story, {"rope_freqs.weight": factors}), name="m")
    rope = loaded.model.layers[0].self_attn.rope
    plain = 100 / 10000 ** (np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(np.array(rope.angles(mx.array([100])))[0], plain / factors, 1e-5)
    assert rope.magnitude == 1.0


def test_flags_for_positions_come_over_the_file_s(stories: Path) -> None:
    rope = RopeOverrides(freq_base=500.0)
    for name in ("stories260K.gguf", "stories260k"):
        check(stories / name, name="m", rope=rope)
        loaded = load(stories / name, name="m", rope=rope)
        assert loaded.config["rope_theta"] == 500.0
        assert loaded.model.layers[0].self_attn.rope.base == 500.0


def test_recommended_sampling_and_end_tokens(tmp_path: Path, story: Story) -> None:
    tokens, kinds = list(story[0]["tokenizer.ggml.tokens"]), story[0]["tokenizer.ggml.token_type"]
    tokens[511], kinds = "<|im_end|>", np.array([*kinds[:511], 3])
    path = changed(
        tmp_path, story, general__sampling__temp=0.25, general__sampling__top_k=7,
        tokenizer__ggml__tokens=tokens, tokenizer__ggml__token_type=kinds,
        tokenizer__ggml__eot_token_id=5,
    )  # fmt: skip
    loaded = load(path, name="m")
    assert loaded.generation_config == {"temperature": 0.25, "top_k": 7}
    assert loaded.eos_token_ids == (2, 5, 511)


# ---------------------------------------------------------------- what cannot be served


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general__architecture": "qwen2"}, "general.architecture 'qwen2'"),
    "image projector": ({"general__architecture": "clip"}, "projector for images"),
    "experts": ({"llama__expert_count": 8}, "mixture of experts (llama.expert_count is 8)"),
    "encoder": ({"llama__attention__causal": False}, "llama.attention.causal is False"),
    "no layers": ({"llama__block_count": None}, "llama.block_count is missing"),
    "many layers": ({"llama__block_count": 2**31 - 1}, "block_count is 2147483647"),
    "more layers": ({"llama__block_count": 6}, "lacks 9 tensors that its metadata calls for"),
    "fewer layers": ({"llama__block_count": 4}, "which no Llama has"),
    "heads as text": ({"llama__attention__head_count": "8"}, "must be a whole number above 0"),
    "no heads": ({"llama__attention__head_count": 0}, "head_count is 0"),
    "heads by layer": ({"llama__attention__head_count": [8, 4]}, "one number for all layers"),
    "groups": ({"llama__attention__head_count_kv": 3}, "attn_k.weight of shape"),
    "width": ({"llama__embedding_length": 128}, "must be the heads' dimension 16"),
    "partial rotation": ({"llama__rope__dimension_count": 4}, "rope.dimension_count is 4"),
    "scaling": ({"llama__rope__scaling__type": "su"}, "must be none, linear or yarn"),
    "scalings": ({"llama__rope__scaling__type": [1, 2]}, "must be none, linear or yarn"),
    "factor": ({"llama__rope__scale_linear": "2"}, "rope.scaling.factor is 2"),
    "yarn": ({"llama__rope__scaling__yarn_attn_factor": 2.0}, "yarn_attn_factor is 2.0"),
    "too many tokens": ({"tokenizer__ggml__tokens": ["a"] * 600}, "600 tokens and 512 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_refused(tmp_path: Path, story: Story, case: str) -> None:
    metadata, text = REFUSED[case]
    assert text in message(changed(tmp_path, story, **metadata))


@pytest.mark.parametrize(
    ("name", "tensor", "text"),
    [
        ("blk.0.ffn_gate_exps.weight", np.ones((2, 2)), "blk.0.ffn_gate_exps.weight, which no"),
        ("blk.0.attn_q.weight", np.ones((64, 32)), "attn_q.weight of shape (64, 32)"),
        ("output_norm.weight", None, "lacks 1 tensors that its metadata calls for (output_norm"),
        ("token_embd.weight", None, "lacks the tensor token_embd.weight"),
        ("rope_freqs.weight", np.ones(3), "twice the 3 of rope_freqs.weight"),
        ("rope_freqs.weight", np.zeros(4), "no factors above 0"),
    ],
)
def test_other_tensors_are_refused(
    tmp_path: Path, story: Story, name: str, tensor: np.ndarray | None, text: str
) -> None:
    tensor = None if tensor is None else tensor.astype(np.float32)
    assert text in message(changed(tmp_path, story, {name: tensor}))


@pytest.mark.parametrize("kind", [Types.Q5_0, Types.Q4_K, Types.Q6_K, Types.IQ4_XS])
def test_other_types_are_named(tmp_path: Path, story: Story, kind: Types) -> None:
    metadata, tensors = story
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key in ("embedding_length", "block_count", "feed_forward_length", "context_length"):
        writer.add_uint32(f"llama.{key}", metadata[f"llama.{key}"])
    writer.add_uint32("llama.attention.head_count", 8)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", tensors["token_embd.weight"])
    data = np.zeros(gguf.quant_shape_to_byte_shape((64, 256), kind), dtype=np.uint8)
    writer.add_tensor("blk.0.attn_output.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = message(tmp_path / "m.gguf")
    assert f"blk.0.attn_output.weight as {kind.name}, and only F32, F16, Q4_0" in text


def test_the_types_have_the_numbers_of_the_format() -> None:
    for number, kind in header_reader.READABLE.items():
        assert Types(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[Types(number)] == (kind.block, kind.nbytes)
    known = {kind.value: kind.name for kind in Types}
    for number, name in header_reader.OTHER_TYPES.items():
        assert known.get(number, name) == name


# ---------------------------------------------------------------- broken files


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def head(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


HUGE = struct.pack("<Q", 2**62)
BROKEN = {
    "empty": (b"", "too short"),
    "text": (b"not a model at all, just text", "is no GGUF file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "version 1": (head(version=1), "of GGUF version 1"),
    "other bytes' order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "of GGUF version 50331648"),
    "keys": (head(keys=2**63), "announces 9223372036854775808 metadata entries"),
    "tensors": (head(tensors=2**63), "announces 9223372036854775808 tensors"),
    "key": (head(keys=1) + HUGE + bytes(20), "announces a string of 4611686018427387904"),
    "string": (head(keys=1) + entry(b"k", 8, HUGE), "announces a string"),
    "value": (head(keys=1) + entry(b"k", 99, bytes(8)), "unknown type 99"),
    "array": (head(keys=1) + entry(b"k", 9, struct.pack("<I", 4) + HUGE), "numbers"),
    "strings": (head(keys=1) + entry(b"k", 9, struct.pack("<I", 8) + HUGE), "strings"),
    "nested": (head(keys=1) + entry(b"k", 9, struct.pack("<IQ", 9, 1)), "array of the type 9"),
    "twice": (head(keys=2) + entry(b"k", 4, bytes(4)) * 2 + bytes(9), "key 'k' twice"),
    "alignment": (head(keys=1) + entry(b"general.alignment", 4, b"\3\0\0\0"), "no power of two"),
    "alignment's type": (head(keys=1) + entry(b"general.alignment", 10, bytes(8)), "no uint32"),
    "dimensions": (head(tensors=1) + HUGE[:0] + entry(b"t", 9, bytes(20)), "with 9 dimensions"),
    "shape": (head(tensors=1) + entry(b"t", 1, bytes(8 + 4 + 8)), "impossible shape (0,)"),
    "data": (head(tensors=1) + entry(b"t", 1, struct.pack("<QIQ", 9, 0, 0)), "'t' ends behind"),
    "offset": (head(tensors=1) + entry(b"t", 1, struct.pack("<QIQ", 1, 0, 2**63)), "ends behind"),
    "area": (head(tensors=1) + entry(b"t", 2, HUGE * 2 + bytes(12)), "'t' ends behind"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_header_is_one_line(tmp_path: Path, case: str) -> None:
    content, text = BROKEN[case]
    found = message(put(tmp_path / "m.gguf", content))
    assert text in found
    assert "m.gguf" in found


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_one_line(tmp_path: Path, stories: Path, share: float) -> None:
    content = (stories / "stories260K.gguf").read_bytes()
    text = message(put(tmp_path / "m.gguf", content[: int(len(content) * share)]))
    assert "truncated" in text


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_flipped_bytes_load_or_are_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, stories: Path
) -> None:
    path = stories / "stories260K.gguf"
    content = bytearray(path.read_bytes())
    header = min(tensor.start for tensor in read_header(path).tensors.values())
    # Most of the header are the tokens: the rest is what can go wrong.
    near = st.one_of(st.integers(0, 900), st.integers(header - 3000, header - 1))
    near = st.one_of(near, near, st.integers(0, header - 1))
    for at in data.draw(st.lists(near, min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    broken = put(tmp_path_factory.mktemp("flipped") / "m.gguf", bytes(content))
    for read in (lambda: load(broken, name="m"), lambda: load_gguf(broken)):
        try:
            peek_architecture(broken)
            read()
        except ModelLoadError as error:
            assert "\n" not in error.message


# ---------------------------------------------------------------- several files, and names


def split(folder: Path, source: Path, parts: int) -> list[Path]:
    """The model in several files, as llama.cpp's gguf-split writes them."""
    metadata, tensors = read_gguf(source)
    names = list(tensors)
    found = []
    for i in range(parts):
        own = {n: tensors[n] for n in names[i::parts]}
        said = {"split.no": i, "split.count": parts, "split.tensors.count": len(names)}
        said |= metadata if i == 0 else {"general.architecture": "llama"}
        file = folder / f"m-{i + 1:05d}-of-{parts:05d}.gguf"
        found.append(write_gguf(file, said, own))
    return found


def test_a_split_model_is_the_whole_one(tmp_path: Path, stories: Path) -> None:
    files = split(tmp_path, stories / "stories260K.gguf", 3)
    assert split_files(files[0]) == split_files(files[2]) == files
    whole = logits(load(stories / "stories260K.gguf", name="m"))
    for file in (files[0], files[1]):
        np.testing.assert_array_equal(logits(load(file, name="m")), whole)
    files[1].unlink()
    assert "lacks m-00002-of-00003.gguf of the 3 parts" in message(files[0])
    files[1].write_bytes(files[2].read_bytes())
    assert "both hold the tensor" in message(files[0])


def test_which_files_are_models() -> None:
    names = ["b.gguf", "mmproj-b.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "x.bin"]
    assert model_files(names) == ["a-00001-of-00002.gguf", "b.gguf"]


def test_a_file_without_the_suffix_is_known_by_its_beginning(tmp_path: Path, stories: Path) -> None:
    blob = put(tmp_path / "0123", (stories / "stories260K.gguf").read_bytes())
    assert is_gguf(blob)
    assert not is_gguf(put(tmp_path / "other", b"GGU"))
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf(tmp_path / "folder.gguf")
    assert load(blob, name="m").config["vocab_size"] == 512


# ---------------------------------------------------------------- adapters


def adapter(tmp_path: Path, stories: Path, tensors: dict | None = None, **metadata: Any) -> Path:
    said, found = read_gguf(stories / "adapters" / "dragon.gguf")
    said |= {key.replace("__", "."): value for key, value in metadata.items()}
    found = {n: t for n, t in (found | (tensors or {})).items() if t is not None}
    return write_gguf(tmp_path / "a.gguf", {k: v for k, v in said.items() if v is not None}, found)


def test_an_adapter_is_the_folder_s(stories: Path) -> None:
    from mlx_server.models.adapter_files import read_adapter

    args = load(stories / "stories260k", name="m").model.args
    for name in ("dragon", "moon"):
        theirs = read_adapter(stories / "adapters" / name)
        ours = read_gguf_adapter(stories / "adapters" / f"{name}.gguf", args)
        assert ours.scale == theirs.scale
        assert ours.tensors.keys() == theirs.tensors.keys()
        for module, pair in theirs.tensors.items():
            for leaf, tensor in pair.items():
                assert mx.allclose(ours.tensors[module][leaf], tensor)


def test_ranks_may_differ(tmp_path: Path, stories: Path) -> None:
    """Each pair counts by alpha over its own rank."""
    args = load(stories / "stories260k", name="m").model.args
    a, b = (np.ones(shape, dtype=np.float32) for shape in ((2, 64), (64, 2)))
    name = "blk.0.attn_output.weight"
    path = adapter(tmp_path, stories, {f"{name}.lora_a": a, f"{name}.lora_b": b})
    file = read_gguf_adapter(path, args)
    pair = file.tensors["model.layers.0.self_attn.o_proj"]
    product = file.scale * (pair["lora_a"] @ pair["lora_b"])
    np.testing.assert_allclose(np.array(product), 40.0 / 2 * 2)


Q_A = "blk.1.attn_q.weight.lora_a"


@pytest.mark.parametrize(
    ("metadata", "tensors", "text"),
    [
        ({"adapter__type": "loha"}, {}, "adapter.type 'loha'"),
        ({"general__type": "model", "adapter__type": None}, {}, "is no adapter"),
        ({"general__type": [1, 2], "adapter__type": None}, {}, "is no adapter"),
        ({"adapter__type": [1, 2]}, {}, "only lora can be applied"),
        ({"general__architecture": "qwen2"}, {}, "architecture 'qwen2'"),
        ({"adapter__lora__alpha": "much"}, {}, "no number for adapter.lora.alpha"),
        ({}, {Q_A: None}, f"lacks {Q_A}"),
        ({}, {"blk.0.attn_q.bias": np.ones(3)}, "which is no tensor of a Llama's adapter"),
        ({}, {Q_A: np.ones(3)}, "is no matrix"),
    ],
)
def test_other_adapters_are_refused(
    tmp_path: Path, stories: Path, metadata: dict, tensors: dict, text: str
) -> None:
    tensors = {n: None if t is None else t.astype(np.float32) for n, t in tensors.items()}
    args = load(stories / "stories260k", name="m").model.args
    with pytest.raises(ModelLoadError, match=r"a\.gguf") as error:
        read_gguf_adapter(adapter(tmp_path, stories, tensors, **metadata), args)
    assert text in error.value.message


def test_kinds_that_are_mistaken_for_each_other(stories: Path) -> None:
    assert "give its base model as --model" in message(stories / "adapters" / "moon.gguf")
    with pytest.raises(ModelLoadError, match="is no adapter"):
        read_gguf_adapter(stories / "stories260K.gguf", None)
    with pytest.raises(ModelLoadError, match="is for Llama models, and this one is none"):
        read_gguf_adapter(stories / "adapters" / "moon.gguf", None)


def test_control_vectors_reach_the_file_s_model(tmp_path: Path, stories: Path) -> None:
    direction = {"direction.1": np.full(64, 2, dtype=np.float32)}
    metadata = {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}
    vector = write_gguf(tmp_path / "c.gguf", metadata, direction)
    path = stories / "stories260K.gguf"
    loaded = load(path, name="m", control=([(vector, 0.5)], None))
    assert {layer: array.tolist() for layer, array in loaded.model.control.items()} == {1: [1] * 64}
    assert not load(path, name="m", control=([], None)).model.control
    assert "give it as --control-vector" in message(vector)
