"""Models and adapters in GGUF files give the golden outputs, in every pairing with folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_golden import check, golden

from mlx_server.pool import ModelPool

ADAPTERS = [(name, suffix) for name in ("dragon", "moon") for suffix in (".gguf", "")]


def names(stories: Path) -> tuple[str, ...]:
    paths = ((f"{name}{suffix}", stories / "adapters") for name, suffix in ADAPTERS)
    return tuple(f"{name}={folder / name}" for name, folder in paths)


@pytest.fixture(scope="module")
def gguf_pool(open_pool, stories: Path) -> ModelPool:
    return open_pool(
        model=str(stories / "stories260K.gguf"), lora=names(stories), start_dir=stories
    )


@pytest.fixture(scope="module")
def folder_pool(open_pool, stories: Path) -> ModelPool:
    return open_pool(model=str(stories / "stories260k"), lora=names(stories), start_dir=stories)


def test_the_file_alone(gguf_pool: ModelPool, stories: Path) -> None:
    for entry in golden(stories, "base"):
        check(gguf_pool, entry)


@pytest.mark.parametrize(("name", "suffix"), ADAPTERS, ids="".join)
@pytest.mark.parametrize("base", ["gguf_pool", "folder_pool"])
def test_adapters_fit_both_kinds_of_model(
    request: pytest.FixtureRequest, stories: Path, base: str, name: str, suffix: str
) -> None:
    pool = request.getfixturevalue(base)
    for entry in golden(stories, name):
        check(pool, entry, model=f"{name}{suffix}")


def test_a_request_names_a_file_below_the_start_directory(
    gguf_pool: ModelPool, stories: Path
) -> None:
    for entry in golden(stories, "moon")[:1]:
        check(gguf_pool, entry, adapters="adapters/moon.gguf")
    for entry in golden(stories, "base")[:1]:
        check(gguf_pool, entry, model="stories260K.gguf")


def test_prompt_ids(gguf_pool: ModelPool, stories: Path) -> None:
    tokenizer = next(iter(gguf_pool.residence.entries().values())).llm.tokenizer
    for entry in golden(stories, "base"):
        assert tokenizer.encode(entry["prompt"]) == entry["prompt_ids"]
