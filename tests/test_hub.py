"""Names to folders, with a cache made in the test and the network off."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import constants, errors

from mlx_server.errors import ModelLoadError
from mlx_server.models.hub import cached_models, find_cached, is_repo_id, local_folder, resolve

COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def safetensors(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def put_repo(cache: Path, repo_id: str, *files: str, ref: str = "main") -> Path:
    """A repo in the hub's cache layout; returns its snapshot."""
    entry = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = entry / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / ref).write_text(COMMIT)
    for file in files:
        if file.endswith(".safetensors"):
            safetensors(snapshot / file)
        else:
            (snapshot / file).write_text('{"model_type": "llama"}')
    return snapshot


def message(name: str, **options: object) -> str:
    with pytest.raises(ModelLoadError) as error:
        resolve(name, **options)
    assert "\n" not in error.value.message
    return error.value.message


# ---------------------------------------------------------------- local folders


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    (tmp_path / "owner" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "owner" / "model"
    for name in ("owner/model", "./owner/model/", str(folder), "~/owner/model"):
        assert resolve(name) == folder


def test_wrong_folders_say_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_text("")
    assert "is a file and no .gguf; give the folder" in message(str(file))
    assert "holds no config.json" in message(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in message(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["./nothing", "/no/such", "~/nothing-here", "a/b/c", "", "a\0b", "x" * 5000, "../up"]
)
def test_a_path_that_is_not_there(name: str) -> None:
    assert "There is no folder" in message(name)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("gpt2", True),
        ("mlx-community/Qwen3-0.6B-4bit", True),
        ("a/b_c.d", True),
        ("a/b/c", False),
        ("/etc", False),
        ("../etc", False),
        ("a/..", False),
        ("a..b/c", False),
        ("a--b/c", False),
        ("-a/b", False),
        ("a/b.git", False),
        ("./a", False),
        ("a b", False),
        ("", False),
        ("a/b\n", False),
    ],
)
def test_repo_ids(name: str, valid: bool) -> None:
    assert is_repo_id(name) is valid


def test_local_folder_stays_inside(tmp_path: Path) -> None:
    start, outside = tmp_path / "start", tmp_path / "outside"
    for folder in (start / "models" / "m", start / "empty", outside):
        folder.mkdir(parents=True)
    for folder in (start / "models" / "m", outside):
        (folder / "config.json").write_text("{}")
    (start / "link").symlink_to(outside)
    (start / "inner").symlink_to(start / "models" / "m")
    model = start / "models" / "m"
    assert local_folder("models/m", start) == model
    assert local_folder("./models/m/", start) == model
    assert local_folder("inner", start) == model
    for name in (
        "empty", "nothing", "link", "../outside", "models/../../outside", str(outside), str(model),
        "models/../models/m", "models/m/config.json", "a\0b", "x" * 5000, "",
    ):  # fmt: skip
        assert local_folder(name, start) is None
    assert local_folder("models/m", start, marker="adapter_config.json") is None


# ---------------------------------------------------------------- the cache


def test_a_cached_repo_needs_no_network(tmp_path: Path) -> None:
    snapshot = put_repo(tmp_path, "owner/m", "config.json", "model.safetensors")
    assert resolve("owner/m", cache_dir=tmp_path) == snapshot
    assert resolve("owner/m", cache_dir=tmp_path, allow_download=False) == snapshot
    assert find_cached("owner/m", cache_dir=tmp_path) == snapshot
    assert resolve("owner/m", revision=COMMIT, cache_dir=tmp_path) == snapshot


def test_a_revision_is_its_own_snapshot(tmp_path: Path) -> None:
    snapshot = put_repo(tmp_path, "owner/m", "config.json", "model.safetensors", ref="v2")
    assert find_cached("owner/m", cache_dir=tmp_path) is None
    assert resolve("owner/m", revision="v2", cache_dir=tmp_path) == snapshot


@pytest.mark.parametrize("fault", ["no config", "no weights", "shard of index", "shard", "tree"])
def test_an_incomplete_snapshot_is_not_used(tmp_path: Path, fault: str) -> None:
    files = {
        "no config": ("model.safetensors",),
        "no weights": ("config.json",),
        "shard of index": ("config.json", "model-1.safetensors"),
        "shard": ("config.json", "model-00001-of-00002.safetensors"),
        "tree": ("config.json", "model.safetensors"),
    }[fault]
    snapshot = put_repo(tmp_path, "owner/m", *files)
    if fault == "shard of index":
        (snapshot / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}})
        )
    if fault == "tree":  # the hub library's own record of what the repo holds
        trees = snapshot.parents[1] / "trees"
        trees.mkdir()
        listed = {name: {"size": 1, "blob_id": "b"} for name in (*files, "tokenizer.json")}
        content = json.dumps({"format_version": 1, "files": listed})
        (trees / f"{COMMIT}.json").write_text(content)
    assert find_cached("owner/m", cache_dir=tmp_path) is None
    assert cached_models(tmp_path) == [] or fault == "tree"
    assert "HF_HUB_OFFLINE" in message("owner/m", cache_dir=tmp_path)


CODE = {
    "model": ("config.json", {"model_file": "my.py"}, "my.py"),
    "tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["tokenization_my.MyTokenizer", None]}},
        "tokenization_my.py",
    ),
    "configuration": (
        "config.json",
        {"auto_map": {"AutoConfig": "configuration_my.MyConfig"}},
        "configuration_my.py",
    ),
}


def put_code_repo(cache: Path, case: str) -> tuple[Path, str]:
    file, values, code = CODE[case]
    snapshot = put_repo(cache, "owner/m", "config.json", "model.safetensors")
    (snapshot / file).write_text(json.dumps({"model_type": "llama"} | values))
    return snapshot, code


@pytest.mark.parametrize("case", CODE)
def test_a_trusted_repo_is_complete_with_its_code(tmp_path: Path, case: str) -> None:
    snapshot, code = put_code_repo(tmp_path, case)
    assert resolve("owner/m", cache_dir=tmp_path) == snapshot
    assert find_cached("owner/m", cache_dir=tmp_path, trust_remote_code=True) is None
    text = message("owner/m", cache_dir=tmp_path, trust_remote_code=True)
    assert "hf download owner/m" in text
    assert "without --trust-remote-code" in text
    (snapshot / code).write_text("")
    assert resolve("owner/m", cache_dir=tmp_path, trust_remote_code=True) == snapshot


def test_a_trusted_repo_without_its_code_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, code = put_code_repo(tmp_path, "model")
    patterns = []

    def snapshot_download(*args: object, local_files_only: bool = False, **options: object) -> str:
        if not local_files_only:
            patterns.extend(options["allow_patterns"])
            (snapshot / code).write_text("")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert resolve("owner/m", cache_dir=tmp_path) == snapshot
    assert patterns == []
    assert resolve("owner/m", cache_dir=tmp_path, trust_remote_code=True) == snapshot
    assert "*.py" in patterns


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoModelForCausalLM": "modeling_my.MyModel"},  # torch's; mlx_lm has its own
        {"AutoTokenizer": ["other/repo--tokenization_my.MyTokenizer", None]},
        {"AutoTokenizer": [None, None]},
        ["odd"],
    ],
    ids=str,
)
def test_code_that_is_not_run_or_not_in_the_repo_is_not_missed(
    tmp_path: Path, auto_map: object
) -> None:
    snapshot = put_repo(tmp_path, "owner/m", "config.json", "model.safetensors")
    (snapshot / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    assert find_cached("owner/m", cache_dir=tmp_path, trust_remote_code=True) == snapshot


def test_what_may_not_be_downloaded(tmp_path: Path) -> None:
    text = message("owner/none", cache_dir=tmp_path, allow_download=False)
    assert "not in the local cache" in text
    assert "--allow-download" in text


def test_the_listing_holds_servable_repos_only(tmp_path: Path) -> None:
    put_repo(tmp_path, "owner/two", "config.json", "model.safetensors")
    put_repo(tmp_path, "one", "config.json", "weights.safetensors")
    put_repo(tmp_path, "owner/torch", "config.json", "pytorch_model.bin")
    for name, config in {
        "zoo": '{"model_type": "qwen3"}',
        "encoder": '{"model_type": "bert"}',
        "untyped": "{}",
        "broken-config": "{",
    }.items():
        snapshot = put_repo(tmp_path, f"owner/{name}", "config.json", "model.safetensors")
        (snapshot / "config.json").write_text(config)
    put_repo(tmp_path, "owner/bad", "config.json", "model.safetensors").parents[1].joinpath(
        "refs", "main"
    ).write_text("gone")
    (tmp_path / "models--broken").write_text("a file")
    (tmp_path / "datasets--owner--d").mkdir()
    (tmp_path / "models--owner--empty").mkdir()
    models = cached_models(tmp_path)
    assert [m.repo_id for m in models] == ["one", "owner/two", "owner/zoo"]
    for m in models:
        assert m.path == find_cached(m.repo_id, cache_dir=tmp_path)
        assert m.size == sum(f.stat().st_size for f in m.path.iterdir())
        assert m.last_modified > 0


def test_the_hub_is_importable_without_mlx() -> None:
    script = "import sys; import mlx_server.models.hub; assert 'mlx.core' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_cache_lists_nothing(tmp_path: Path) -> None:
    assert cached_models(tmp_path / "none") == []


# ---------------------------------------------------------------- downloads that fail


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/x"))


DOWNLOAD_ERRORS = {
    "gated": (errors.GatedRepoError("x", response=response(403)), "accept its licence"),
    "revision": (errors.RevisionNotFoundError("x", response=response(404)), "no revision 'v9'"),
    "repo": (errors.RepositoryNotFoundError("x", response=response(404)), "set HF_TOKEN"),
    "401": (errors.HfHubHTTPError("x", response=response(401)), "set HF_TOKEN"),
    "500": (errors.HfHubHTTPError("x", response=response(500)), "answered 500"),
    "network": (httpx2.ConnectError("refused"), "could not be reached (ConnectError)"),
    "local": (errors.LocalEntryNotFoundError("a\nb"), "could not be reached"),
    "disk": (OSError(28, "No space left on device"), "No space is left"),
    "rights": (OSError(13, "Permission denied"), "could not be stored: Permission denied"),
}


@pytest.mark.parametrize("case", DOWNLOAD_ERRORS)
def test_a_failed_download_names_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    raised, text = DOWNLOAD_ERRORS[case]

    def snapshot_download(*args: object, local_files_only: bool = False, **options: object) -> str:
        raise errors.LocalEntryNotFoundError("not cached") if local_files_only else raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert text in message("owner/m", revision="v9", cache_dir=tmp_path)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_download_asks_for_what_a_model_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    calls = []

    def snapshot_download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not cached")
        calls.append(SimpleNamespace(name=name, **options))
        return str(put_repo(tmp_path, name, "config.json", "model.safetensors"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    folder = resolve("o/m", revision="v2", trust_remote_code=trusted, cache_dir=tmp_path)
    assert (folder / "config.json").is_file()
    [call] = calls
    assert (call.name, call.revision) == ("o/m", "v2")
    from huggingface_hub.utils import filter_repo_objects

    repo = (
        "config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "merges.txt",
        "chat_template.jinja", "qwen.tiktoken", "modeling_x.py", "m.gguf", "pytorch_model.bin",
        "consolidated.safetensors", "onnx/config.json", "original/model.safetensors", "README.md",
    )  # fmt: skip
    kept = filter_repo_objects(
        repo, allow_patterns=call.allow_patterns, ignore_patterns=call.ignore_patterns
    )
    assert tuple(kept) == repo[:6] + (("modeling_x.py",) if trusted else ())


def test_a_repo_without_a_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **o: str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "holds no config.json" in message("owner/m-GGUF")
    (tmp_path / "config.json").write_text("{}")
    assert "holds no weights" in message("owner/m-GGUF")


# ---------------------------------------------------------------- .gguf files


LLAMA_HEADER = (
    b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 20) + b"general.architecture"
    + struct.pack("<IQ", 8, 5) + b"llama"
)  # fmt: skip


def put_gguf(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(LLAMA_HEADER)
    return folder


def test_a_gguf_file_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put_gguf(tmp_path / "m", "a.gguf", "b.gguf") / "a.gguf"
    monkeypatch.chdir(tmp_path)
    for name in ("m/a.gguf", "./m/../m/a.gguf", str(file)):
        assert resolve(name) == file
    assert resolve("m", file="a.gguf") == file
    assert "holds no file 'c.gguf'" in message("m", file="c.gguf")
    assert "leave out --hf-file" in message("m/a.gguf", file="a.gguf")
    assert "holds 2 .gguf models (a.gguf, b.gguf)" in message("m")


def test_a_link_to_a_gguf_keeps_its_name(tmp_path: Path) -> None:
    """As in the hub library's cache, where files have hashes for names."""
    blob = put_gguf(tmp_path, "0123") / "0123"
    (tmp_path / "m.gguf").symlink_to(blob)
    assert resolve(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("a.gguf",), "a.gguf"),
        (("a.gguf", "mmproj-a.gguf"), "a.gguf"),
        (("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"), "a-00001-of-00002.gguf"),
    ],
)
def test_a_folder_with_one_model(tmp_path: Path, names: tuple[str, ...], found: str) -> None:
    folder = put_gguf(tmp_path / "start" / "m", *names)
    (folder / "config.json").write_text("{}")
    assert resolve(str(folder)) == folder / found
    safetensors(folder / "model.safetensors")
    assert resolve(str(folder)) == folder


def test_a_request_s_gguf_stays_inside(tmp_path: Path) -> None:
    start = put_gguf(tmp_path / "start", "a.gguf", "one/m.gguf")
    outside = put_gguf(tmp_path / "outside", "x.gguf")
    (start / "link.gguf").symlink_to(outside / "x.gguf")
    for marker in ("config.json", "adapter_config.json"):
        assert local_folder("a.gguf", start, marker) == start / "a.gguf"
        for name in ("link.gguf", "../outside/x.gguf", str(start / "a.gguf"), "no.gguf"):
            assert local_folder(name, start, marker) is None
    (start / "away").mkdir()
    (start / "away" / "m.gguf").symlink_to(outside / "x.gguf")
    assert local_folder("away", start) is None
    assert local_folder("one", start) == start / "one" / "m.gguf"
    assert local_folder("one", start, "adapter_config.json") is None


def test_a_repo_s_gguf_in_the_cache(tmp_path: Path) -> None:
    snapshot = put_gguf(put_repo(tmp_path, "o/m-GGUF"), "m-q8_0.gguf", "m-q4_0.gguf")
    for name, file in (("o/m-GGUF", "m-q8_0.gguf"), ("o/m-GGUF/m-q8_0.gguf", None)):
        path = resolve(name, file=file, cache_dir=tmp_path, allow_download=False)
        assert path == snapshot / "m-q8_0.gguf"
    assert find_cached("o/m-GGUF/m-q8_0.gguf", cache_dir=tmp_path) == snapshot / "m-q8_0.gguf"
    for name in ("o/m-GGUF", "o/m-GGUF/none.gguf", "o/m-GGUF/../../x.gguf"):
        assert find_cached(name, cache_dir=tmp_path) is None
    (snapshot / "m-q4_0.gguf").unlink()
    assert resolve("o/m-GGUF", cache_dir=tmp_path) == snapshot / "m-q8_0.gguf"


def test_the_listing_names_gguf_files(tmp_path: Path) -> None:
    parts = ("big-00001-of-00002.gguf", "big-00002-of-00002.gguf")
    snapshot = put_gguf(put_repo(tmp_path, "o/g"), "m.gguf", "sub/n.gguf", "mmproj-m.gguf", *parts)
    (snapshot / "other.gguf").write_bytes(LLAMA_HEADER.replace(b"llama", b"qwen2"))
    (snapshot / "part-00001-of-00002.gguf").write_bytes(LLAMA_HEADER)
    (snapshot / "broken.gguf").write_bytes(b"GGUF")
    models = cached_models(tmp_path)
    assert [m.repo_id for m in models] == [f"o/g/{parts[0]}", "o/g/m.gguf", "o/g/sub/n.gguf"]
    assert [m.size // len(LLAMA_HEADER) for m in models] == [2, 1, 1]
    for m in models:
        assert m.path == find_cached(m.repo_id, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("q/m.gguf", "q/m.gguf"), ("m-00001-of-00002.gguf", "m-?????-of-00002.gguf")],
)
def test_only_the_file_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, pattern: str
) -> None:
    calls = []

    def snapshot_download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not cached")
        calls.append(SimpleNamespace(name=name, **options))
        names = (file, file.replace("00001-of", "00002-of"))
        return str(put_gguf(tmp_path / "snapshot", *names))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    path = resolve("o/m", file=file, token="hf_x", revision="v2", cache_dir=tmp_path)
    assert path == tmp_path / "snapshot" / file
    [call] = calls
    assert (call.name, call.allow_patterns, call.token) == ("o/m", [pattern], "hf_x")
    assert call.revision == "v2"
    assert "has no file 'none.gguf'" in message("o/m", file="none.gguf", cache_dir=tmp_path / "x")
    assert "name of a .gguf file" in message("o/m", file="model.bin")
    text = message("o/m", file=file, cache_dir=tmp_path / "x", allow_download=False)
    assert f"hf download o/m {file}" in text
