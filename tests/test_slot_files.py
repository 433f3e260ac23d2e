"""Slots saved, restored and erased: restored = never gone, in another process as well."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from models import CONFIG, Collected, make_engine, make_pair, random_prompts, request, run
from test_lora import write_adapter
from zoo_models import CONTEXT, module_of

from mlx_server.cache.storage import Quantization
from mlx_server.engine.engine import Engine
from mlx_server.engine.limits import Limits
from mlx_server.engine.slot_files import Saved, erase, restore, save
from mlx_server.errors import RequestError, ServerError, Unavailable
from mlx_server.exchange import EngineRequest
from mlx_server.models.fingerprint import adapter_fingerprint, fingerprint
from mlx_server.models.llama import LlamaModel
from mlx_server.models.lora import AdapterBank
from mlx_server.models.zoo import ZooModel

WIDE = CONFIG | {"head_dim": 64}


def fresh(seed: int = 0, quantization: Quantization | None = None, **limits) -> Engine:
    """A server's engine after a start: weights and all are made anew."""
    module = make_pair(WIDE, seed=seed)[1].module
    model = LlamaModel(module, 2048, quantization=quantization)
    return Engine(model, Limits(**{"max_batch_size": 4, "prefill_chunk_size": 64} | limits))


def zoo(name: str) -> Engine:
    model = ZooModel(module_of(name), {"model_type": name}, CONTEXT)
    return Engine(model, Limits(max_batch_size=4, prefill_chunk_size=64))


def in_slot(name: str, prompt: list[int], slot: int, **params) -> EngineRequest:
    return replace(request(name, prompt, **params), slot=slot)


def cached(found: Collected, name: str) -> int:
    return found.outputs[name, 0][-1].cached_tokens


# ---------------------------------------------------------------- equivalences


@pytest.mark.parametrize("quantization", [None, Quantization(8, 32), Quantization(4, 64, 30)])
def test_a_saved_slot_outlives_the_server(tmp_path: Path, quantization) -> None:
    path, [prompt] = tmp_path / "slot.bin", random_prompts([150])
    first = fresh(quantization=quantization)
    reply = run(first, in_slot("a", prompt, 2)).tokens("a")
    saved = save(first, 2, path)
    assert saved == Saved(len(prompt) + len(reply) - 1, path.stat().st_size)
    assert [file.name for file in tmp_path.iterdir()] == ["slot.bin"]

    second = fresh(quantization=quantization)
    assert restore(second, 1, path) == saved
    assert second.slots[1].tokens.tolist() == [*prompt, *reply][:-1]
    turn = [*prompt, *reply, 5, 6, 7]
    warm = run(second, in_slot("b", turn, 1, logprobs=3))
    assert cached(warm, "b") == saved.num_tokens
    cold = run(fresh(quantization=quantization), in_slot("b", turn, 1, logprobs=3))
    assert cached(cold, "b") == 0
    assert warm.tokens("b") == cold.tokens("b")
    for a, b in zip(warm.logprobs("b"), cold.logprobs("b"), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=2e-2 if quantization else 1e-4)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "mamba", "jamba", "llama4"])
def test_the_zoo_s_slots_are_saved_as_well(tmp_path: Path, name: str) -> None:
    path, [prompt] = tmp_path / "slot", random_prompts([60], vocab=97)
    first = zoo(name)
    reply = run(first, in_slot("a", prompt, 0)).tokens("a")
    saved = save(first, 0, path)
    second = zoo(name)
    restore(second, 3, path)
    turn = [*prompt, *reply, 5, 6, 7]
    warm, cold = run(second, in_slot("b", turn, 3)), run(zoo(name), in_slot("b", turn, 3))
    assert cached(warm, "b") == saved.num_tokens >= len(prompt)
    assert warm.tokens("b") == cold.tokens("b")


def test_a_running_slot_is_saved_as_far_as_it_is_and_goes_on_undisturbed(tmp_path: Path) -> None:
    path, prompts = tmp_path / "slot", random_prompts([100, 40])
    alone = run(fresh(), in_slot("a", prompts[0], 0, max_tokens=30)).tokens("a")
    engine, found = fresh(), Collected()
    for slot, (name, prompt) in enumerate(zip("ab", prompts, strict=True)):
        engine.add(in_slot(name, prompt, slot, max_tokens=30))
    for _ in range(12):
        found.take(engine.step())
    saved = save(engine, 0, path)
    assert 100 < saved.num_tokens < 130
    assert run(engine, into=found).tokens("a") == alone

    restored = fresh()
    restore(restored, 0, path)
    tokens = restored.slots[0].tokens.tolist()
    assert tokens == [*prompts[0], *alone][: saved.num_tokens]
    more = run(restored, in_slot("c", tokens, 0, max_tokens=5))
    assert cached(more, "c") == saved.num_tokens - 1
    assert more.tokens("c") == alone[saved.num_tokens - 100 :][:5]


def test_a_prompt_that_is_still_being_computed_is_saved_in_part(tmp_path: Path) -> None:
    engine, [prompt] = fresh(), random_prompts([600])
    engine.add(in_slot("a", prompt, 0))
    engine.step()
    saved = save(engine, 0, tmp_path / "slot")
    assert 0 < saved.num_tokens < 600
    restored = fresh()
    restore(restored, 0, tmp_path / "slot")
    found = run(restored, in_slot("a", prompt, 0))
    assert cached(found, "a") == saved.num_tokens
    assert found.tokens("a") == run(engine, into=Collected()).tokens("a")


def test_saving_over_a_file_replaces_it(tmp_path: Path) -> None:
    path, prompts = tmp_path / "slot", random_prompts([100, 30])
    engine = fresh()
    run(engine, in_slot("a", prompts[0], 0), in_slot("b", prompts[1], 1))
    long, short = save(engine, 0, path), save(engine, 1, path)
    assert path.stat().st_size == short.num_bytes < long.num_bytes
    # A second restore finds its entry there already.
    for _ in range(2):
        restore(engine, 3, path)
    assert engine.slots[3].tokens.tolist() == engine.slots[1].tokens.tolist()[: short.num_tokens]


# ---------------------------------------------------------------- erasing


def test_an_erased_slot_is_computed_anew(tmp_path: Path) -> None:
    engine, prompts = fresh(), random_prompts([100, 80])
    reply = run(engine, in_slot("a", prompts[0], 0), in_slot("b", prompts[1], 1)).tokens("a")
    held = engine.prefixes.nbytes
    assert erase(engine, 0) == 100 + len(reply) - 1
    assert 0 < engine.prefixes.nbytes < held
    assert erase(engine, 0) == 0
    again = run(engine, in_slot("c", prompts[0], 0), in_slot("d", prompts[1], 1))
    assert (cached(again, "c"), again.tokens("c")) == (0, reply)
    assert cached(again, "d") == 79


def test_an_erased_slot_leaves_others_what_began_like_it() -> None:
    engine, (prompt, rest) = fresh(), random_prompts([100, 80])
    other = prompt[:40] + rest
    run(engine, in_slot("a", prompt, 0))
    assert cached(run(engine, in_slot("b", other, 1)), "b") == 40
    erase(engine, 0)
    assert cached(run(engine, in_slot("c", other, 1)), "c") == 119
    assert cached(run(engine, in_slot("d", prompt, 0)), "d") == 40


# ---------------------------------------------------------------- adapters


def with_adapter(folder: Path | None) -> Engine:
    module = make_pair(CONFIG)[1].module
    bank = AdapterBank(module)
    if folder is not None:
        bank.load("style", folder)
    return Engine(LlamaModel(module, 2048, bank), Limits(4, 64))


@pytest.fixture(scope="module")
def styles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of the same shape."""
    return [
        write_adapter(
            tmp_path_factory.mktemp("styles") / "style", lambda: make_pair(CONFIG)[0], seed=seed
        )
        for seed in (1, 2)
    ]


def test_a_prefix_belongs_to_its_adapters(tmp_path: Path, styles: list[Path]) -> None:
    path, [prompt] = tmp_path / "slot", random_prompts([90])
    under = replace(in_slot("a", prompt, 0), adapters=(("style", 0.5),))
    first = with_adapter(styles[0])
    reply = run(first, under).tokens("a")
    saved = save(first, 0, path)
    second = with_adapter(styles[0])
    restore(second, 0, path)
    assert second.slots[0].adapters == (("style", 0.5),)
    plain, styled = (
        replace(in_slot(name, [*prompt, *reply], 0), adapters=adapters)
        for name, adapters in (("plain", ()), ("styled", under.adapters))
    )
    found = run(second, plain, styled)
    assert (cached(found, "plain"), cached(found, "styled")) == (0, saved.num_tokens)
    assert found.tokens("styled") == run(with_adapter(styles[0]), styled).tokens("styled")
    assert found.tokens("plain") == run(with_adapter(None), plain).tokens("plain")


def test_an_adapter_that_is_absent_or_has_changed_is_told(tmp_path, styles: list[Path]) -> None:
    path, [prompt] = tmp_path / "slot", random_prompts([40])
    engine = with_adapter(styles[0])
    run(engine, replace(in_slot("a", prompt, 0), adapters=(("style", 1.0),)))
    save(engine, 0, path)
    with pytest.raises(RequestError, match="the adapter style, which is not loaded"):
        restore(with_adapter(None), 0, path)
    with pytest.raises(RequestError, match="the adapter style has changed"):
        restore(with_adapter(styles[1]), 0, path)


# ---------------------------------------------------------------- fingerprints


def test_a_fingerprint_tells_models_apart_and_sees_no_adapters(styles: list[Path]) -> None:
    def of(config: dict = CONFIG, **options) -> str:
        return fingerprint(make_pair(config, **options)[1].module)

    prints = [
        of(), of(seed=1), of(CONFIG | {"rope_theta": 9999.0}), of(CONFIG | {"vocab_size": 102}),
        of(bits=4), fingerprint(module_of("qwen3")), fingerprint(module_of("mixtral")),
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)
    assert of() == prints[0]
    engine = with_adapter(styles[0])
    assert fingerprint(engine.model.module) == prints[0]
    known = adapter_fingerprint(engine.model.module, "style")
    assert known == adapter_fingerprint(with_adapter(styles[0]).model.module, "style") is not None
    assert known != adapter_fingerprint(with_adapter(styles[1]).model.module, "style")
    assert adapter_fingerprint(engine.model.module, "other") is None


# ---------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def saved_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slots") / "slot"
    engine = fresh()
    run(engine, in_slot("a", random_prompts([120])[0], 0))
    save(engine, 0, path)
    return path


def changed(path: Path, into: Path, *, without: str = "", **metadata: str | None) -> Path:
    arrays, known = mx.load(str(path), format="safetensors", return_metadata=True)
    known = {k: v for k, v in (known | metadata).items() if v is not None}
    kept = {name: array for name, array in arrays.items() if name != without}
    with into.open("wb") as file:
        mx.save_safetensors(file, kept, known)
    return into


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"format": "gguf"}, "it is no saved slot"),
        ({"format": None}, "it is no saved slot"),
        ({"version": "2"}, "its version is 2, this server reads 1"),
        ({"model": "0" * 64}, "it is of another model"),
        ({"adapters": "null"}, "under which adapters"),
        ({"layout": "[]"}, "how its state is laid out"),
        ({"layout": None}, "how its state is laid out"),
        ({"layout": json.dumps({"cache": "slabs", "storage": "in 2 bits"})}, "there in 2 bits"),
        ({"without": "tokens"}, "names no tokens"),
        ({"without": "state.0.0"}, "keys or values"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    saved_file: Path, tmp_path: Path, what: dict, said: str
) -> None:
    engine = fresh()
    with pytest.raises(RequestError, match=said) as refused:
        restore(engine, 0, changed(saved_file, tmp_path / "slot", **what))
    assert refused.value.param == "filename"
    assert not len(engine.slots[0].tokens) and not len(engine.prefixes)
    assert engine.model.cache.nbytes == 0


@pytest.mark.parametrize(
    "engine", [lambda: fresh(seed=1), lambda: zoo("qwen3"), lambda: make_engine(make_pair()[1])]
)
def test_another_model_s_file_is_refused(saved_file: Path, engine) -> None:
    with pytest.raises(RequestError, match="it is of another model"):
        restore(engine(), 0, saved_file)


def test_a_part_of_a_file_is_refused_wherever_it_ends(saved_file: Path, tmp_path: Path) -> None:
    whole, part = saved_file.read_bytes(), tmp_path / "part"
    for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        part.write_bytes(whole[:size])
        with pytest.raises(RequestError, match="only a part of one"):
            restore(fresh(), 0, part)
    part.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(RequestError, match="part is no saved slot"):
        restore(fresh(), 0, part)


def test_tokens_the_model_does_not_have_are_refused(saved_file: Path, tmp_path: Path) -> None:
    arrays, known = mx.load(str(saved_file), format="safetensors", return_metadata=True)
    for wrong in (arrays["tokens"] + 100, arrays["tokens"] - 1000):
        with (tmp_path / "slot").open("wb") as file:
            mx.save_safetensors(file, arrays | {"tokens": wrong}, known)
        with pytest.raises(RequestError, match="tokens that the model does not have"):
            restore(fresh(), 0, tmp_path / "slot")


def test_slots_and_files_that_are_not_there(saved_file: Path, tmp_path: Path) -> None:
    engine = fresh()
    for slot in (-1, 4):
        for do in (lambda i: save(engine, i, tmp_path / "x"), lambda i: erase(engine, i)):
            with pytest.raises(RequestError, match=f"no slot {slot}; this server has 4"):
                do(slot)
    with pytest.raises(RequestError, match="Slot 0 holds nothing that could be saved"):
        save(engine, 0, tmp_path / "x")
    with pytest.raises(RequestError, match="There is no saved slot x"):
        restore(engine, 0, tmp_path / "x")
    assert erase(engine, 0) == 0
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_nothing(saved_file: Path, tmp_path: Path) -> None:
    engine = fresh()
    restore(engine, 0, saved_file)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "absent" / "slot"):
        with pytest.raises(ServerError, match=f"{path.name} cannot be written") as failed:
            save(engine, 0, path)
        assert failed.value.status == 500
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_slot_that_is_processing_is_neither_restored_nor_erased(saved_file: Path) -> None:
    engine = fresh()
    engine.add(in_slot("a", [1, 2, 3], 0))
    engine.step()
    for do in (lambda: restore(engine, 0, saved_file), lambda: erase(engine, 0)):
        with pytest.raises(Unavailable, match="Slot 0 is processing"):
            do()


# ---------------------------------------------------------------- memory


def test_restoring_stays_within_the_budget(saved_file: Path) -> None:
    size = saved_file.stat().st_size
    for limits in ({"max_kv_bytes": size // 2}, {"context_length": 50}):
        with pytest.raises(RequestError, match="holds 131 tokens, a sequence here"):
            restore(fresh(**limits), 0, saved_file)
    for limits in ({"prompt_cache_bytes": size // 2}, {"prompt_cache_size": 0}):
        with pytest.raises(RequestError, match="--prompt-cache-bytes"):
            restore(fresh(**limits), 0, saved_file)


def test_old_entries_make_room_and_running_rows_do_not(saved_file: Path) -> None:
    budget = 4 * saved_file.stat().st_size
    engine = fresh(max_kv_bytes=budget)
    prompts = random_prompts([100] * 6)
    for i, prompt in enumerate(prompts):
        run(engine, request(f"r{i}", prompt))
    restore(engine, 0, saved_file)
    assert engine.model.cache.nbytes <= budget
    assert engine.prefixes.num_evicted

    engine = fresh(max_kv_bytes=budget)
    engine.add(request("long", random_prompts([300])[0], max_tokens=500))
    while engine.model.cache.nbytes <= budget * 0.8:
        engine.step()
    with pytest.raises(Unavailable, match="Running requests hold the memory"):
        restore(engine, 3, saved_file)
