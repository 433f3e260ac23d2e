"""Slots and slabs: room near the sum of the lengths, writes in place."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from models import CONFIG, make_engine, make_pair, random_prompts, request

from mlx_server.cache.kv import KVCache, capacity_for


def make_cache() -> KVCache:
    return KVCache(num_layers=2, num_kv_heads=2, head_dim=8, dtype=mx.float32)


@pytest.mark.parametrize("length", [1, 255, 256, 257, 384, 385, 513, 5000, 100_000])
def test_capacity_holds_the_tokens_and_wastes_less_than_half(length: int) -> None:
    capacity = capacity_for(length)
    assert capacity >= length
    assert length <= 256 or capacity < 1.5 * length


def test_slots_of_one_capacity_share_slabs_and_empty_slabs_go() -> None:
    cache = make_cache()
    seats = [cache.open(100) for _ in range(8)]
    assert len({seat.slab.number for seat in seats}) <= 4
    assert len({seat.order for seat in seats}) == 8
    held = cache.nbytes
    for seat in seats[:4]:
        cache.close(seat)
    again = [cache.open(100) for _ in range(4)]
    assert cache.nbytes == held
    for seat in seats[4:] + again:
        cache.close(seat)
    assert cache.nbytes == 0


def test_growing_copies_the_row_and_only_the_row() -> None:
    cache = make_cache()
    seat, neighbour = cache.open(100), cache.open(100)
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((2, 2, 10, 8)).astype(np.float32)
    for layer in range(2):
        seat.slab.keys[layer][seat.slot, :, :10] = mx.array(stored[layer])
        seat.slab.values[layer][seat.slot, :, :10] = mx.array(-stored[layer])
    seat.length = 10
    place = neighbour.slab, neighbour.slot
    cache.reserve(seat, 300)
    assert seat.slab.capacity == 384
    assert (neighbour.slab, neighbour.slot) == place
    for layer in range(2):
        keys = np.array(seat.slab.keys[layer][seat.slot, :, :10])
        values = np.array(seat.slab.values[layer][seat.slot, :, :10])
        np.testing.assert_array_equal(keys, stored[layer])
        np.testing.assert_array_equal(values, -stored[layer])


def test_a_budget_limits_new_slabs_but_not_free_slots() -> None:
    cache = make_cache()
    cache.max_bytes = 3 * cache.cost(256)
    seats = [cache.open(200) for _ in range(3)]
    assert not cache.can_open(200)
    cache.close(seats[1])
    assert cache.can_open(200)
    assert cache.nbytes <= cache.max_bytes


def test_pipelined_steps_write_in_place() -> None:
    # A copy of one layer's keys alone would be a visible part of a slab.
    _, model = make_pair(CONFIG | {"num_hidden_layers": 2, "head_dim": 64})
    engine = make_engine(model)
    for i, prompt in enumerate(random_prompts([900] * 4)):
        engine.add(request(f"r{i}", prompt, max_tokens=120))
    for _ in range(70):
        engine.step()
    assert engine.num_running == 4
    slab_bytes = max(s.nbytes for slabs in model.cache.slabs.values() for s in slabs)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(30):
        engine.step()
    assert mx.get_peak_memory() - before < slab_bytes / 8
    engine.drop_all()
