"""Slots and slabs: room near the sum of the lengths, writes in place."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest
from models import CONFIG, make_engine, make_pair, random_prompts, request

from mlx_server.cache.kv import SLAB_SLOTS, SLAB_TOKENS, KVCache, KVSeat, capacity_for
from mlx_server.cache.plan import StepPlan


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


def fill(seat: KVSeat, length: int, value: float) -> None:
    for layer in seat.slab.layers:
        for array, sign in zip(layer, (1, -1), strict=True):
            array[seat.slot, :, :length] = sign * value
    seat.length = length


def check_filled(seat: KVSeat, value: float) -> None:
    for layer in seat.slab.layers:
        for array, sign in zip(layer, (1, -1), strict=True):
            assert (np.array(array[seat.slot, :, : seat.length]) == sign * value).all()


def check_slabs(cache: KVCache, seats: list[KVSeat]) -> None:
    for seat in seats:
        assert seat.slab in cache.slabs[seat.slab.storage, seat.slab.capacity]
        assert seat.slab.seats[seat.slot] is seat
        assert seat.order == (seat.slab.number, seat.slot)
    for (_, capacity), slabs in cache.slabs.items():
        rows = sum(slab.num_live for slab in slabs)
        assert rows == sum(seat.slab.capacity == capacity for seat in seats)
        assert all(slab.num_live for slab in slabs)
        assert all(len(slab.seats) <= SLAB_SLOTS for slab in slabs)
        assert all(len(s.seats) == 1 or len(s.seats) * capacity <= SLAB_TOKENS for s in slabs)


@pytest.mark.parametrize("seed", range(3))
def test_rows_keep_their_entries_while_others_come_grow_and_go(seed: int) -> None:
    cache, rng = make_cache(), random.Random(seed)
    rows: dict[KVSeat, float] = {}
    for event in range(400):
        arriving = 0.7 if event % 200 < 100 else 0.3
        if not rows or rng.random() < arriving:
            seat = cache.open(rng.choice([100, 300, 600, 5000]))
            rows[seat] = event
            fill(seat, rng.randint(0, 8), event)
        elif rng.random() < 0.3:
            seat = rng.choice(list(rows))
            cache.reserve(seat, seat.slab.capacity + 1)
        else:
            seat = rng.choice(list(rows))
            del rows[seat]
            cache.close(seat)
        check_slabs(cache, list(rows))
    for seat, value in rows.items():
        check_filled(seat, value)


@pytest.mark.parametrize("stays", [0, 30, 60])
def test_one_row_left_of_many_holds_one_slab(stays: int) -> None:
    cache = make_cache()
    seats = [cache.open(300) for _ in range(61)]
    left = seats.pop(stays)
    for seat in seats:
        cache.close(seat)
    assert cache.nbytes <= SLAB_SLOTS * cache.cost(300)
    assert left.slab.seats[left.slot] is left


def test_rows_of_many_lengths_hold_near_the_sum_of_their_lengths() -> None:
    cache = make_cache()
    lengths = [300, 8000, 700, 1500, 400, 3000] * 3
    for length in lengths:
        cache.open(length)
    assert cache.nbytes < 2 * sum(lengths) * cache.cost(256) / 256


def test_short_and_long_rows_that_run_together_hold_less_than_twice_their_lengths() -> None:
    config = CONFIG | {"num_hidden_layers": 1, "max_position_embeddings": 10_000}
    _, model = make_pair(config)
    engine, cache = make_engine(model, chunk=2048), model.cache
    per_token = cache.cost(256) / 256
    prompts = random_prompts([300, 8000, 310, 320, 330])
    for i, prompt in enumerate(prompts):
        engine.add(request(f"r{i}", prompt, max_tokens=200))
        for _ in range(20):
            engine.step()
            lengths = sum(s.num_tokens for s in engine.scheduler.running)
            assert cache.nbytes < 2 * lengths * per_token
    assert engine.num_running == 5
    # The long row's end leaves the others where they are, and frees what it held.
    engine.abort("r1")
    lengths = sum(s.num_tokens for s in engine.scheduler.running)
    assert cache.nbytes < 2 * lengths * per_token
    engine.drop_all()


def test_leaving_moves_nobody() -> None:
    cache = make_cache()
    seats = [cache.open(100) for _ in range(40)]
    places = {seat: (seat.slab, seat.slot) for seat in seats}
    for seat in random.Random(0).sample(seats, 35):
        cache.close(seat)
        seats.remove(seat)
        assert all((s.slab, s.slot) == places[s] for s in seats)


def test_a_row_joins_the_fullest_slab() -> None:
    cache = make_cache()
    seats = [cache.open(100) for _ in range(9)]
    newest = seats[8].slab
    assert newest.num_live == 1 < len(newest.seats)
    gap = seats[5].order
    cache.close(seats[5])
    assert cache.open(100).order == gap


@pytest.mark.parametrize(
    "slots, groups",
    [
        ([0, 1, 2], [(0, 3)]),
        ([0, 2, 3], [(0, 4)]),
        ([1, 4], [(1, 5)]),  # two of four
        ([1, 5], [(1, 2), (5, 6)]),
        ([0, 1, 8, 9, 11], [(0, 2), (8, 12)]),
    ],
)
def test_decode_rows_share_a_call_where_half_of_its_slots_are_theirs(slots, groups) -> None:
    cache = make_cache()
    storage = cache._storage(0)
    slab = cache._new_slab(storage, 256, 12)
    cache.slabs[storage, 256] = [slab]
    seats = [cache.open(100) for _ in slab.seats]
    plan = StepPlan([seats[i] for i in slots], [1] * len(slots), [None])
    assert [(g.lo, g.hi) for g in plan.groups] == groups
    assert [g.start for g in plan.groups[1:]] == [g.stop for g in plan.groups[:-1]]


def test_growing_copies_the_row_and_only_the_row() -> None:
    cache = make_cache()
    seat, neighbour = cache.open(100), cache.open(100)
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((2, 2, 10, 8)).astype(np.float32)
    for layer in range(2):
        keys, values = seat.slab.layers[layer]
        keys[seat.slot, :, :10] = mx.array(stored[layer])
        values[seat.slot, :, :10] = mx.array(-stored[layer])
    seat.length = 10
    place = neighbour.slab, neighbour.slot
    cache.reserve(seat, 300)
    assert seat.slab.capacity == 384
    assert (neighbour.slab, neighbour.slot) == place
    for layer in range(2):
        keys, values = (np.array(array[seat.slot, :, :10]) for array in seat.slab.layers[layer])
        np.testing.assert_array_equal(keys, stored[layer])
        np.testing.assert_array_equal(values, -stored[layer])


def test_rows_that_are_known_to_come_share_a_slab() -> None:
    cache = make_cache()
    seats = [cache.open(100, expected=6 - i) for i in range(6)]
    assert len({seat.slab for seat in seats}) == 1
    assert cache.nbytes == 6 * cache.cost(100)


def test_a_fork_is_a_copy_and_leaves_its_source_alone() -> None:
    cache = make_cache()
    source, neighbour = cache.open(300, 2), cache.open(300)
    fill(source, 200, 5)
    fill(neighbour, 250, 6)
    new = cache.fork(source, 150, 600)
    assert new.length == 150 and new.slab.capacity == 768
    check_filled(new, 5)
    fill(new, 160, 7)
    check_filled(source, 5)
    check_filled(neighbour, 6)


@pytest.mark.parametrize("room", [300, 8000])
def test_what_is_kept_holds_its_tokens_and_no_more(room: int) -> None:
    cache = make_cache()
    seat, neighbour = cache.open(room, 2), cache.open(room)
    fill(seat, room - 10, 5)
    place = seat.slab
    cache.keep(seat)
    # Copied out of a slab that rows share, left where it is in one of its own.
    assert (seat.slab is place) == (room == 8000)
    assert cache.held(seat) <= cache.cost(room)
    check_filled(seat, 5)
    cache.close(neighbour)
    cache.reserve(seat, room + 500)
    fork = cache.fork(seat, 70, 100)
    check_filled(seat, 5)
    check_filled(fork, 5)
    cache.close(fork)
    cache.close(seat)
    assert cache.nbytes == 0


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
