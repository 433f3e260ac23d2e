"""`mlx_server list` over caches made here, in the hub's own layout with blobs and links."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_models import Types, write_gguf

from mlx_server import commands
from mlx_server.commands import known, listing
from mlx_server.commands.cache_scan import Row, bundled, scan
from mlx_server.commands.weights import Facts, folder_facts
from mlx_server.models import registry
from mlx_server.models.registry import mlx_lm_utils

COMMIT, OTHER = "a" * 40, "b" * 40
LLAMA = {"model_type": "llama", "max_position_embeddings": 4096}
TENSORS = {"model.w.weight": ("BF16", (100, 30)), "model.norm.weight": ("BF16", (30,))}
"""3,030 numbers."""


def header(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    entries, end = {}, 0
    sizes = {"BF16": 2, "F16": 2, "F32": 4, "U32": 4}
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + sizes[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def put(
    cache: Path,
    repo: str,
    files: dict[str, bytes | dict],
    *,
    ref: str | None = "main",
    commit: str = COMMIT,
    kind: str = "models",
    incomplete: bytes | None = None,
) -> Path:
    """A repo as the hub's library stores one; returns its folder."""
    entry = cache / f"{kind}--{repo.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (entry / folder).mkdir(parents=True, exist_ok=True)
    if ref is not None:
        (entry / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (entry / "refs" / ref).write_text(commit)
    for name, data in files.items():
        blob = entry / "blobs" / f"{commit[:4]}{name.replace('/', '_')}"
        blob.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        link = entry / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if incomplete is not None:
        (entry / "blobs" / "cc.incomplete").write_bytes(incomplete)
    return entry


def use_at(entry: Path, seconds: float) -> None:
    for blob in (entry / "blobs").iterdir():
        os.utime(blob, (seconds, seconds))


def whole(config: dict = LLAMA, tensors: dict = TENSORS) -> dict[str, bytes | dict]:
    return {"config.json": config, "model.safetensors": header(tensors)}


def rows(cache: Path) -> dict[str, Row]:
    return {row.id: row for row in scan(cache).rows}


# ---------------------------------------------------------------- what is listed


def test_a_model_with_its_figures(tmp_path: Path) -> None:
    entry = put(tmp_path, "owner/name", whole())
    use_at(entry, 1_000_000)
    row = rows(tmp_path)["owner/name"]
    assert row.facts == Facts("llama", "bf16", None, 3030, 4096)
    assert row.size == sum(f.stat().st_size for f in (entry / "blobs").iterdir())
    assert (row.kind, row.complete, row.revision, row.last_used) == ("model", True, None, 1e6)
    assert row.path == entry / "snapshots" / COMMIT


def test_the_last_used_comes_first(tmp_path: Path) -> None:
    for name, seconds in (("o/b", 200), ("o/a", 300), ("o/c", 100)):
        use_at(put(tmp_path, name, whole()), seconds)
    assert [row.id for row in scan(tmp_path).rows] == ["o/a", "o/b", "o/c"]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"README.md": b"x"}, "without config.json"),
        ({"config.json": LLAMA}, "without weights"),
        ({"config.json": LLAMA, "pytorch_model.bin": b"x"}, "without weights"),
        ({"config.json": {"model_type": "wav2vec2"}, "model.safetensors": header(TENSORS)},
         "of an unknown architecture"),
        ({"config.json": {"model_type": ["llama"]}, "model.safetensors": header(TENSORS)},
         "of an unknown architecture"),
        ({"config.json": b"{", "model.safetensors": header(TENSORS)}, "broken entries"),
        ({"config.json": b"[1]", "model.safetensors": header(TENSORS)}, "broken entries"),
        ({"model.gguf": b"GGUF and no more than that"},
         "a .gguf of another architecture or type"),
        ({"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": b"x"},
         "adapters in another format than mlx-lm's LoRA and DoRA"),
        ({"adapter_config.json": {"fine_tune_type": "full"}, "adapters.safetensors": b"x"},
         "adapters in another format than mlx-lm's LoRA and DoRA"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_counted(tmp_path: Path, files: dict, why: str) -> None:
    put(tmp_path, "owner/name", files)
    found = scan(tmp_path)
    assert (found.rows, dict(found.left_out)) == ([], {why: 1})


def test_data_sets_are_counted_and_nothing_else_is(tmp_path: Path) -> None:
    put(tmp_path, "owner/data", {"x.parquet": b"x"}, kind="datasets")
    put(tmp_path, "owner/space", {"app.py": b"x"}, kind="spaces")
    (tmp_path / ".locks").mkdir()
    (tmp_path / "version.txt").write_text("1")
    assert dict(scan(tmp_path).left_out) == {"datasets": 1, "spaces": 1}


SHARD = "model-0000{}-of-00002.safetensors"


@pytest.mark.parametrize(
    ("files", "incomplete"),
    [
        ({"config.json": LLAMA, SHARD.format(1): header(TENSORS)}, b"xyz"),
        ({"config.json": LLAMA, SHARD.format(1): header(TENSORS)}, None),
        ({"config.json": LLAMA}, b"xyz"),
        ({"tokenizer.json": b"{}"}, b"xyz"),
        ({}, b"xyz"),
    ],
)
def test_a_partly_downloaded_one_is_marked(
    tmp_path: Path, files: dict, incomplete: bytes | None
) -> None:
    entry = put(tmp_path, "owner/name", files, incomplete=incomplete)
    row = rows(tmp_path)["owner/name"]
    assert not row.complete
    assert row.size == sum(f.stat().st_size for f in (entry / "blobs").iterdir())
    assert "partly downloaded" in listing.table([row], None, time.time())


def test_a_broken_link_is_a_file_that_did_not_come(tmp_path: Path) -> None:
    entry = put(tmp_path, "owner/name", whole(), incomplete=b"xyz")
    next((entry / "blobs").glob("*model.safetensors")).unlink()
    put(tmp_path, "owner/other", whole())
    found = rows(tmp_path)
    assert not found["owner/name"].complete and found["owner/other"].complete


def test_a_download_that_ended_before_any_file_came(tmp_path: Path) -> None:
    (tmp_path / "models--owner--name" / "refs").mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(COMMIT)
    assert dict(scan(tmp_path).left_out) == {"without any file": 1}


def test_another_revision_than_main_is_named(tmp_path: Path) -> None:
    put(tmp_path, "owner/name", whole(), ref="refs/pr/1")
    put(tmp_path, "owner/commit", whole(), ref=None)
    put(tmp_path, "owner/both", whole())
    put(tmp_path, "owner/both", whole(), ref="v2", commit=OTHER)
    revisions = {name: row.revision for name, row in rows(tmp_path).items()}
    assert revisions == {"owner/name": "refs/pr/1", "owner/commit": COMMIT, "owner/both": None}


def test_an_adapter(tmp_path: Path) -> None:
    config = {"fine_tune_type": "lora", "model": "owner/base"}
    put(tmp_path, "o/lora", {"adapter_config.json": config, "adapters.safetensors": b"x"})
    row = rows(tmp_path)["o/lora"]
    assert (row.kind, row.base_model, row.complete) == ("adapter", "owner/base", True)
    assert "for owner/base" in listing.table([row], None, time.time())


def test_gguf_files_are_listed_one_by_one(tmp_path: Path) -> None:
    folder = put(tmp_path, "o/g", {"README.md": b"x"}) / "snapshots" / COMMIT
    metadata = {"general.architecture": "llama", "llama.context_length": 2048}
    tensors = {"a.weight": np.zeros((4, 64), np.float32), "b.weight": np.zeros(8, np.float32)}
    write_gguf(folder / "a-Q8_0.gguf", metadata, tensors, {"a.weight": Types.Q8_0})
    write_gguf(folder / "b.gguf", metadata, tensors)
    write_gguf(folder / "c.gguf", {"general.architecture": "qwen2"}, tensors)
    write_gguf(folder / "d.gguf", metadata, tensors, {"a.weight": Types.Q5_0})
    (folder / "e-00001-of-00002.gguf").write_bytes(b"GGUF")
    found = scan(tmp_path)
    facts = {row.id.removeprefix("o/g/"): row.facts for row in found.rows}
    assert facts == {
        "a-Q8_0.gguf": Facts("llama", "Q8_0", 8, 264, 2048),
        "b.gguf": Facts("llama", "fp32", None, 264, 2048),
        "e-00001-of-00002.gguf": None,
    }
    assert [row.complete for row in found.rows if row.facts is None] == [False]
    assert dict(found.left_out) == {"a .gguf of another architecture or type": 2}


# ---------------------------------------------------------------- figures


def packed(bits: int, rows: int = 64, columns: int = 128) -> dict:
    groups = columns // 64
    return {
        "a.weight": ("U32", (rows, columns * bits // 32)),
        "a.scales": ("BF16", (rows, groups)),
        "a.biases": ("BF16", (rows, groups)),
        "norm.weight": ("BF16", (10,)),
    }


@pytest.mark.parametrize(
    ("given", "tensors", "quantization", "bits", "parameters"),
    [
        ({"quantization": {"bits": b, "group_size": 64}}, packed(b), f"{b}-bit", b, 64 * 128 + 10)
        for b in (2, 3, 4, 5, 6, 8)
    ]
    + [
        # A layer with bits of its own.
        ({"quantization": {"bits": 4, "a": {"bits": 8}}}, packed(8), "4-bit", 4, 64 * 128 + 10),
        ({"quantization": {"bits": 4, "mode": "mxfp4"}}, packed(4), "mxfp4", 4, 64 * 128 + 10),
        ({"quantization_config": {"quant_method": "fp8"}}, TENSORS, "fp8", None, 3030),
        ({}, TENSORS, "bf16", None, 3030),
        ({}, {"x": ("F32", (7, 7))}, "fp32", None, 49),
        ({"quantization": "what"}, TENSORS, "bf16", None, 3030),
    ],
)
def test_figures_of_weights(
    tmp_path: Path, given: dict, tensors: dict, quantization: str, bits: int, parameters: int
) -> None:
    (tmp_path / "model.safetensors").write_bytes(header(tensors))
    facts = folder_facts(tmp_path, LLAMA | given)
    assert (facts.quantization, facts.bits, facts.parameters) == (quantization, bits, parameters)


def test_a_real_model_counts_as_it_does_when_loaded() -> None:
    import mlx.core as mx

    row = bundled()
    weights = mx.load(str(row.path / "model.safetensors"))
    assert row.facts.parameters == sum(w.size for w in weights.values())


@pytest.mark.parametrize(
    ("config", "context"),
    [(LLAMA, 4096), ({"text_config": {"max_position_embeddings": 77}}, 77), ({}, None)],
)
def test_context(tmp_path: Path, config: dict, context: int | None) -> None:
    assert folder_facts(tmp_path, config).context == context


def test_an_unreadable_header_costs_the_figures_only(tmp_path: Path) -> None:
    files = {"config.json": LLAMA, "model.safetensors": b"version https://git-lfs"}
    put(tmp_path, "owner/name", files)
    assert rows(tmp_path)["owner/name"].facts.parameters is None


def test_known_architectures_are_those_of_the_registry() -> None:
    utils = mlx_lm_utils()
    folder = Path(utils.__file__).parent / "models"
    configs = [{"model_type": file.stem} for file in folder.glob("*.py")]
    configs += [{"model_type": name} for name in (*utils.MODEL_REMAPPING, *registry.OURS, "nope")]
    configs += [
        {"model_type": name, "architectures": [architecture]}
        for name, architecture in getattr(utils, "MODEL_ARCHITECTURE_REMAPPING", {})
    ]
    configs += [{}, {"model_type": 1}, {"model_type": "../llama"}, {"model_type": "gemma3_text"}]
    for config in configs:
        assert known.is_servable(config) == registry.is_known(config), config


@pytest.mark.parametrize("name", registry.ENCODERS)
def test_encoders_are_known_where_their_library_is(name: str, monkeypatch) -> None:
    config = {"model_type": name, "use_bidirectional_attention": True}
    monkeypatch.setattr(known.importlib.util, "find_spec", lambda _: object())
    assert known.is_servable(config)
    monkeypatch.setattr(known.importlib.util, "find_spec", lambda _: None)
    assert not known.is_servable(config)


# ---------------------------------------------------------------- the output


def row(name: str, **more: object) -> Row:
    facts = more.pop("facts", Facts("llama", "4-bit", 4, 7_615_000_000, 32768))
    return Row(name, "model", Path("/x"), 4_300_000_000, facts, 1000.0, **more)


def test_a_line_of_the_table() -> None:
    title, line = listing.table([row("owner/name")], None, 1000.0 + 7200).splitlines()
    assert title.split() == ["MODEL", "TYPE", "WEIGHTS", "PARAMS", "SIZE", "CONTEXT", "USED"]
    cells = ["owner/name", "llama", "4-bit", "7.62B", "4.3 GB", "32k", "2 h ago"]
    assert re.split(" {2,}", line) == cells


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    names = ["mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit-DWQ-053125", "o/n"]
    lines = listing.table([row(name) for name in names], width, 2000.0).splitlines()
    assert max(map(len, lines)) <= width
    assert "SIZE" in lines[0] and "o/n" in lines[2]
    if width >= 40:
        assert lines[1].startswith("mlx") and "053125" in lines[1]
    if width == 200:
        assert names[0] in lines[1]


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (999, "999"), (869_504, "870k"), (3_090_000_000, "3.09B"),
     (1_030_000_000_000, "1.03T")],
)  # fmt: skip
def test_parameters_are_written_as_the_server_writes_them(number: int | None, text: str) -> None:
    facts = Facts("llama", "4-bit", 4, number, 32768)
    line = listing.table([row("o/n", facts=facts)], None, 1000.0).splitlines()[1]
    assert line.split()[3] == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "just now"), (59, "just now"), (60, "1 min ago"), (7300, "2 h ago"),
     (86400 * 40, "40 d ago")],
)  # fmt: skip
def test_ago(seconds: float, text: str) -> None:
    assert listing.ago(seconds) == text


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess:
    keep = {name: os.environ[name] for name in ("PATH", "HOME")}
    return subprocess.run(
        [sys.executable, "-m", "mlx_server", *argv],
        capture_output=True, text=True, env={**keep, **environ},
    )  # fmt: skip


@pytest.mark.parametrize("argv", [["list"], ["--list-models"]])
@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_the_command(tmp_path: Path, argv: list[str], variable: str) -> None:
    cache = tmp_path if variable == "HF_HUB_CACHE" else tmp_path / "hub"
    put(cache, "owner/name", whole())
    put(cache, "owner/data", {"x": b"x"}, kind="datasets")
    done = run(*argv, **{variable: str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    title, demo, line, _, total, left = done.stdout.splitlines()
    assert title.startswith("MODEL") and demo.startswith("demo") and demo.endswith("bundled")
    assert line.startswith("owner/name") and "llama" in line and "bf16" in line
    assert total.startswith("1 entry, ") and str(cache) in total
    assert left.endswith(": 1 datasets")


def test_the_json_form(tmp_path: Path) -> None:
    entry = put(tmp_path, "owner/name", whole())
    use_at(entry, 86400)
    done = run("list", "--json", HF_HUB_CACHE=str(tmp_path))
    body = json.loads(done.stdout)
    demo, model = body["models"]
    assert demo["kind"] == "demo" and demo["last_used"] is None
    assert model == {
        "id": "owner/name", "kind": "model", "path": str(entry / "snapshots" / COMMIT),
        "size": body["size"], "model_type": "llama", "quantization": "bf16", "bits": None,
        "parameters": 3030, "context": 4096, "last_used": "1970-01-02T00:00:00+00:00",
        "complete": True, "revision": None, "base_model": None,
    }  # fmt: skip
    assert (body["cache"], body["left_out"]) == (str(tmp_path), {})


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_cache_says_how_to_get_a_model(tmp_path: Path, exists: bool, capsys, monkeypatch):
    cache = tmp_path if exists else tmp_path / "none"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert commands.dispatch(["list"]) == 0
    out = capsys.readouterr().out
    assert "demo" in out and "hf download OWNER/NAME" in out and str(cache) in out


def test_a_wrong_flag_is_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as error:
        commands.dispatch(["list", "--model", "x"])
    assert error.value.code == 2 and "mlx_server list: error" in capsys.readouterr().err


def test_it_needs_no_mlx(tmp_path: Path) -> None:
    put(tmp_path, "owner/name", whole())
    put(tmp_path, "owner/qwen", whole({"model_type": "qwen2"}))
    code = (
        "import sys; from mlx_server.cli import main; code = main(['list', '--json']); "
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'torch', 'pydantic'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {m["id"] for m in json.loads(done.stdout)["models"]} == {
        "demo", "owner/name", "owner/qwen",
    }  # fmt: skip


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m mlx_server list | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
