"""Exported state goes on as the seat that it was taken from does, in another cache of the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from models import CONFIG, make_pair, random_prompts
from test_zoo_prefix import EVERY, decoded, lengths_around, make_model, places, prefilled
from test_zoo_quantized import QUANTISED, module_with_heads
from zoo_models import CONTEXT, TOLERANCE, Keeping, make_qwen3, seeded, tokens_of

from mlx_server.cache.base import Exported, Seat
from mlx_server.cache.storage import Quantization
from mlx_server.cache.zoo_export import pack, unpack
from mlx_server.models.base import Row, ServedModel
from mlx_server.models.llama import LlamaModel
from mlx_server.models.zoo import ZooModel

STORAGES = {
    "plain": None,
    "8 bits": Quantization(8, 32),
    "4 bits": Quantization(4, 64),
    "late": Quantization(8, 32, 100),
}


def forward(model: ServedModel, seat: Seat, tokens: list[int]) -> np.ndarray:
    """The logits [V] behind tokens that are new to the seat, given in one chunk a storage."""
    end = seat.length + len(tokens)
    logits = None
    while seat.length < end:
        count = model.cache.chunk_end(seat.length, end) - seat.length
        model.cache.reserve(seat, seat.length + count)
        chunk, tokens = tokens[:count], tokens[count:]
        logits, pending = model.forward(mx.array(chunk, dtype=mx.int32), [Row(seat, count, 1)])
        mx.eval(logits, pending)
    return np.array(logits[-1].astype(mx.float32))


def through_a_file(tmp_path: Path, exported: Exported) -> Exported:
    path = tmp_path / "state.safetensors"
    mx.save_safetensors(str(path), *exported)
    return mx.load(str(path), return_metadata=True)


def check_goes_on(
    source: tuple[ServedModel, Seat], other: ServedModel, exported: Exported, follow: list[int]
) -> None:
    """Adopted, forked from and taken over, it gives what the source gives; nothing is left."""
    model, seat = source
    adopted = other.cache.adopt(*exported, seat.length)
    assert adopted.length == seat.length
    assert other.cache.nbytes == other.cache.held(adopted) > 0
    other.cache.keep(adopted)
    assert other.cache.nbytes == other.cache.held(adopted)
    fork = other.cache.fork(adopted, seat.length, seat.length + len(follow))
    found = [forward(other, going, follow) for going in (fork, adopted)]
    expected = forward(model, seat, follow)
    for logits in found:
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
    for going in (fork, adopted):
        other.cache.close(going)
    assert other.cache.nbytes == 0


def test_attributes_of_every_kind_come_back() -> None:
    def cache(**attributes) -> SimpleNamespace:
        return SimpleNamespace(**attributes)

    array = mx.arange(3)
    given = cache(
        state=[array, None, (array, 2)], pair=(1, [True]), offset=3, scale=0.5, kind="a", empty=None
    )
    arrays, described = pack([given])
    assert list(arrays) == ["0.state.0", "0.state.2.0"]
    fresh = cache(**dict.fromkeys(vars(given)))
    unpack([fresh], arrays, described)
    assert vars(fresh) == vars(given)
    assert type(fresh.state[2]) is tuple and fresh.state[0] is array
    with pytest.raises(ValueError, match=r"array 0\.state\.2\.0 is missing"):
        unpack([cache(**dict.fromkeys(vars(given)))], {"0.state.0": array}, described)
    with pytest.raises(ValueError, match="other kinds"):
        unpack([cache(offset=0)], arrays, described)
    with pytest.raises(ValueError, match="a cache's what is a set"):
        pack([cache(what={1})])


# ---------------------------------------------------------------- our slabs


@pytest.fixture(scope="module")
def module():
    return make_pair(CONFIG | {"head_dim": 64})[1].module


def llama(module, storage: str) -> LlamaModel:
    return LlamaModel(module, 2048, quantization=STORAGES[storage])


@pytest.mark.parametrize("length", [1, 40, 64, 99, 101, 300])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kept", [False, True])
def test_ours_goes_on(module, storage: str, length: int, kept: bool, tmp_path) -> None:
    model = llama(module, storage)
    tokens, follow, neighbour = random_prompts([length, 20, 30])
    seat, beside = (model.cache.open(length, 2) for _ in range(2))
    forward(model, beside, neighbour)
    forward(model, seat, tokens)
    if kept:
        model.cache.keep(seat)
    exported = through_a_file(tmp_path, model.cache.export(seat, length))
    arrays = exported[0].values()
    assert all(array.shape[0] == 1 and array.shape[2] == length for array in arrays)
    check_goes_on((model, seat), llama(module, storage), exported, follow)


def test_a_part_of_a_seat_is_what_a_fork_at_that_length_is(module) -> None:
    model, other = llama(module, "plain"), llama(module, "plain")
    tokens, follow = random_prompts([150, 9])
    seat = model.cache.open(150)
    forward(model, seat, tokens)
    adopted = other.cache.adopt(*model.cache.export(seat, 70), 70)
    fork = model.cache.fork(seat, 70, 79)
    np.testing.assert_allclose(
        forward(other, adopted, follow), forward(model, fork, follow), atol=TOLERANCE, rtol=0
    )


def test_exporting_copies_no_slab_and_leaves_the_budget_alone(module) -> None:
    model = llama(module, "plain")
    seats = [model.cache.open(250, 8) for _ in range(8)]
    forward(model, seats[3], random_prompts([250])[0])
    mx.eval(seats[3].slab.layers)
    held, before = model.cache.nbytes, mx.get_active_memory()
    mx.reset_peak_memory()
    arrays, _ = model.cache.export(seats[3], 250)
    mx.eval(list(arrays.values()))
    size = sum(array.nbytes for array in arrays.values())
    assert mx.get_peak_memory() - before < 1.2 * size
    assert model.cache.nbytes == held


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ("plain", "8 bits", "in 8 bits, groups of 32"),
        ("8 bits", "plain", "as mlx.core.float32"),
        ("8 bits", "4 bits", "groups of 64"),
        ("late", "plain", "here, there in 8 bits"),
    ],
)
def test_another_storage_is_refused(module, there: str, here: str, said: str) -> None:
    model, other = llama(module, there), llama(module, here)
    seat = model.cache.open(200)
    forward(model, seat, random_prompts([200])[0])
    with pytest.raises(ValueError, match=said):
        other.cache.adopt(*model.cache.export(seat, 200), 200)
    assert other.cache.nbytes == 0


def test_arrays_that_do_not_fit_are_refused(module) -> None:
    model = llama(module, "plain")
    seat = model.cache.open(20)
    forward(model, seat, random_prompts([20])[0])
    arrays, metadata = model.cache.export(seat, 20)
    name = next(iter(arrays))
    held = model.cache.nbytes
    for wrong in (
        {k: v for k, v in arrays.items() if k != name},
        arrays | {name: arrays[name][:, :, :19]},
        arrays | {name: arrays[name].astype(mx.float16)},
    ):
        with pytest.raises(ValueError, match="keys or values"):
            model.cache.adopt(wrong, metadata, 20)
    assert model.cache.nbytes == held


# ---------------------------------------------------------------- mlx-lm's caches


@pytest.mark.parametrize("make", [prefilled, decoded])
@pytest.mark.parametrize("name", EVERY)
def test_every_kind_of_cache_goes_on(name: str, make, tmp_path) -> None:
    """`decoded` rows come out of a batch; windows are full, half full and turned over."""
    for length in lengths_around(name):
        model = make_model(name)
        seat = make(model, length).seat
        exported = through_a_file(tmp_path, model.cache.export(seat, seat.length))
        check_goes_on((model, seat), make_model(name), exported, tokens_of(9, 5))


@pytest.mark.parametrize("name", EVERY)
def test_a_kept_seat_goes_on_as_well_and_a_part_of_it_as_a_fork(name: str, tmp_path) -> None:
    model = make_model(name)
    seat = prefilled(model, lengths_around(name)[-1]).seat
    model.cache.keep(seat)
    for place in places(model, seat):
        exported = through_a_file(tmp_path, model.cache.export(seat, place))
        fork = model.cache.fork(seat, place, place + 5)
        check_goes_on((model, fork), make_model(name), exported, tokens_of(9, 5))


def test_a_window_that_keeps_its_first_tokens_goes_on(tmp_path) -> None:
    module = seeded(lambda: Keeping(make_qwen3().args))
    model, other = (ZooModel(module, {}, CONTEXT) for _ in range(2))
    seat = prefilled(model, 30).seat
    exported = through_a_file(tmp_path, model.cache.export(seat, 30))
    check_goes_on((model, seat), other, exported, tokens_of(9, 1))


@pytest.mark.parametrize("start", [0, 20, 60, 200])
@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_layers_of_the_zoo_go_on(name: str, start: int, tmp_path) -> None:
    def make(bits: int = 8) -> ZooModel:
        module, quantization = module_with_heads(name), Quantization(bits, 32, start)
        return ZooModel(module, {"model_type": name}, CONTEXT, quantization=quantization)

    model = make()
    seat = model.cache.open(60)
    forward(model, seat, tokens_of(3, 60))
    exported = through_a_file(tmp_path, model.cache.export(seat, 60))
    if start < 60:
        with pytest.raises(ValueError, match="in 4 bits, groups of 32 here, there in 8"):
            make(4).cache.adopt(*exported, 60)
    check_goes_on((model, seat), make(), exported, tokens_of(9, 5))


def test_another_architecture_is_refused() -> None:
    model, other = make_model("gemma3"), make_model("qwen3")
    seat = prefilled(model, 12).seat
    arrays, metadata = model.cache.export(seat, 12)
    with pytest.raises(ValueError, match="other kinds"):
        other.cache.adopt(arrays, metadata, 12)
    with pytest.raises(ValueError, match="is missing"):
        make_model("gemma3").cache.adopt({}, metadata, 12)
    assert other.cache.nbytes == 0


def test_ours_and_the_zoo_s_refuse_each_other_s(module) -> None:
    ours, theirs = llama(module, "plain"), make_model("qwen3")
    seat = ours.cache.open(5)
    forward(ours, seat, [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="as they are computed here, there as"):
        theirs.cache.adopt(*ours.cache.export(seat, 5), 5)
    exported = theirs.cache.export(prefilled(theirs, 5).seat, 5)
    with pytest.raises(ValueError, match="here, there as they are computed"):
        ours.cache.adopt(*exported, 5)
