"""Slots: who runs where, who waits for one, and what a free one remembers."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from models import Collected, make_engine, make_pair, random_prompts, request, run

from mlx_server.engine.engine import Engine
from mlx_server.engine.limits import Limits
from mlx_server.engine.sequence import Sequence
from mlx_server.engine.slots import Slots
from mlx_server.errors import RequestError
from mlx_server.exchange import EngineRequest, SlotState


@pytest.fixture(scope="module")
def ours():
    return make_pair()[1]


def pinned(name: str, slot: int, prompt: list[int] | None = None, **options) -> EngineRequest:
    made = request(name, prompt or random_prompts([9])[0], **options)
    return replace(made, slot=slot)


def steps(engine: Engine, count: int, found: Collected) -> None:
    for _ in range(count):
        found.take(engine.step())


def where(found: Collected, name: str, index: int = 0) -> set[int | None]:
    return {output.slot for output in found.outputs[name, index]}


def running(engine: Engine) -> dict[int, str]:
    return {state.id: state.request_id for state in engine.slot_states() if state.processing}


# ---------------------------------------------------------------- who runs where


def test_each_sequence_has_a_slot_of_its_own_from_its_first_output_to_its_last(ours) -> None:
    engine = make_engine(ours, batch=4)
    requests = [request(f"r{i}", p) for i, p in enumerate(random_prompts([8, 30, 3]))]
    found = run(engine, *requests, request("two", [5, 6], n=2, max_tokens=3))
    slots = [where(found, r.id) for r in requests]
    assert all(len(slot) == 1 for slot in slots)
    assert set.union(*slots) == {0, 1, 2}
    assert len(engine.slots) == 4 and running(engine) == {}
    for index in range(2):
        assert len(where(found, "two", index)) == 1


def test_a_free_slot_remembers_its_last_sequence(ours) -> None:
    engine = make_engine(ours, batch=2)
    never = SlotState(1)
    (prompt,) = random_prompts([8])
    r = request("r", prompt, max_tokens=5)
    found = run(engine, r)
    told = SlotState(
        0, False, "r", r.params, (*prompt, *found.tokens("r")), 8, 5, 0, "length"
    )  # fmt: skip
    assert engine.slot_states() == [told, never]
    np.testing.assert_array_equal(engine.slots[0].tokens, told.token_ids)


def test_what_a_running_one_tells(ours) -> None:
    engine, found = make_engine(ours, batch=1), Collected()
    (prompt,) = random_prompts([8])
    engine.add(request("r", prompt, max_tokens=50))
    steps(engine, 4, found)
    (state,) = engine.slot_states()
    reply = found.tokens("r")
    assert state.processing and state.finish_reason is None and reply
    assert state.token_ids == (*prompt, *reply)
    assert (state.num_decoded, state.num_left) == (len(reply), 50 - len(reply))
    engine.abort("r")
    (state,) = engine.slot_states()
    assert (state.processing, state.finish_reason) == (False, "abort")
    assert state.token_ids == (*prompt, *reply)


def test_what_a_shifted_one_tells(ours) -> None:
    engine = Engine(ours, Limits(2, 64, context_length=32, prompt_cache_bytes=0))
    (prompt,) = random_prompts([8])
    found = run(engine, request("r", prompt, n_keep=0, max_tokens=60))
    state = engine.slot_states()[0]
    assert state.token_ids == (*prompt, *found.tokens("r"))
    assert (state.num_prompt_tokens, state.num_decoded, state.num_left) == (8, 60, 0)
    seen = engine.slots[0].tokens
    assert len(seen) <= 32
    assert tuple(seen.tolist()) == state.token_ids[-len(seen) :]


# ---------------------------------------------------------------- a slot by its number


def test_who_waits_for_a_slot_holds_up_nobody(ours) -> None:
    engine, found = make_engine(ours, batch=3), Collected()
    engine.add(pinned("first", 2, max_tokens=40))
    engine.add(pinned("second", 2, max_tokens=3))
    engine.add(request("free", [4, 5], max_tokens=3))
    steps(engine, 6, found)
    assert running(engine) == {2: "first"}
    assert found.reason("free") == "length" and ("second", 0) not in found.outputs
    run(engine, into=found)
    assert where(found, "first") == where(found, "second") == {2}
    assert engine.slot_states()[2].request_id == "second"


def test_copies_take_turns_in_it(ours) -> None:
    engine, found = make_engine(ours, batch=3), Collected()
    (prompt,) = random_prompts([9])
    engine.add(replace(request("r", prompt, n=3, temperature=1.0), slot=1))
    while engine.busy:
        found.take(engine.step())
        assert running(engine).keys() <= {1}
    free = run(make_engine(ours), request("r", prompt, n=3, temperature=1.0))
    for i in range(3):
        assert where(found, "r", i) == {1}
        assert found.tokens("r", i) == free.tokens("r", i)


@pytest.mark.parametrize("slot", [-1, 3, 100])
def test_there_is_no_such_slot(ours, slot: int) -> None:
    engine = make_engine(ours, batch=3)
    with pytest.raises(RequestError, match=rf"no slot {slot}; .* has 3") as error:
        engine.add(pinned("r", slot))
    assert error.value.param == "id_slot"
    assert not engine.busy


def test_a_slot_that_somebody_waits_for_is_taken_last(ours) -> None:
    engine, found = make_engine(ours, batch=2), Collected()
    engine.add(request("other", [3, 4], max_tokens=9))
    engine.add(pinned("waits", 0, max_tokens=9))
    steps(engine, 2, found)
    assert running(engine) == {0: "waits", 1: "other"}
    engine.add(request("late", [3, 4], max_tokens=4))
    engine.add(pinned("waits too", 0, max_tokens=4))
    engine.abort("waits")
    found.take(engine.step())
    assert running(engine) == {0: "late", 1: "other"}  # there is no other place
    run(engine, into=found)
    assert where(found, "waits too") == {0}


def test_a_preempted_sequence_comes_back_to_its_slot(ours) -> None:
    limits = Limits(8, 64, 5 * ours.cache.cost(256), prompt_cache_bytes=0, slot_similarity=0.0)
    engine = Engine(ours, limits)
    prompts = random_prompts([150, 160, 170, 180])
    requests = [
        pinned(f"r{i}", 2 * i, p, max_tokens=120) if i < 2 else request(f"r{i}", p, max_tokens=120)
        for i, p in enumerate(prompts)
    ]
    found = run(engine, *requests)
    ours.cache.max_bytes = float("inf")
    assert engine.stats()["preemptions"] > 0
    slots = [where(found, r.id) for r in requests]
    assert slots[:2] == [{0}, {2}] and all(len(slot) == 1 for slot in slots)


# ---------------------------------------------------------------- a slot by what it remembers


def make_slotted(ours, similarity: float, batch: int = 4) -> Engine:
    return Engine(ours, Limits(batch, 64, prompt_cache_bytes=0, slot_similarity=similarity))


def test_the_next_turn_finds_its_slot(ours) -> None:
    engine = make_slotted(ours, 0.5)
    prompts = random_prompts([20, 20, 20])
    found = run(engine, *(request(f"r{i}", p) for i, p in enumerate(prompts)))
    for i in (1, 0, 2, 1):
        turn = [*prompts[i], *found.tokens(f"r{i}"), *random_prompts([8])[0]]
        again = run(engine, request("next", turn))
        assert where(again, "next") == where(found, f"r{i}")
    engine.drop_all()


@pytest.mark.parametrize(
    ("similarity", "shared", "slot"),
    [(0.5, 10, 1), (0.5, 9, 0), (0.0, 20, 0), (1.0, 20, 1), (1.0, 19, 0), (0.05, 1, 1)],
)
def test_how_much_it_must_remember(ours, similarity: float, shared: int, slot: int) -> None:
    engine = make_slotted(ours, similarity, batch=2)
    (prompt,) = random_prompts([20])
    run(engine, pinned("old", 1, prompt))
    run(engine, pinned("older", 0, [100 - t for t in prompt]))
    run(engine, pinned("newest", 1, prompt))  # the least recently used one is slot 0
    other = prompt[:shared] + [(t + 1) % 101 for t in prompt[shared:]]
    assert where(run(engine, request("r", other)), "r") == {slot}


def test_what_was_computed_under_other_adapters_does_not_count() -> None:
    slots = Slots(2, 0.5)
    tokens = np.arange(10, dtype=np.int32)
    slots[1].remember(tokens, (("x", 1.0),))

    def slot_of(adapters) -> int:
        made = replace(request("r", tokens.tolist()), adapters=adapters)
        sequence = Sequence(made, 0, 0, tokens)
        slot = slots.take(sequence).id
        slots[slot].sequence = None
        return slot

    assert slot_of((("x", 1.0),)) == 1
    assert slot_of(()) == 0
    slots[1].forget()
    assert slot_of((("x", 1.0),)) == 0
    assert slots[1].state() == SlotState(1)


def test_unknown_ones_come_before_known_ones_and_old_before_new(ours) -> None:
    engine = make_slotted(ours, 0.5, batch=3)
    taken = []
    for i, prompt in enumerate(random_prompts([10] * 6)):
        taken += where(run(engine, request(f"r{i}", prompt)), f"r{i}")
    assert taken == [0, 1, 2, 0, 1, 2]


# ---------------------------------------------------------------- what is told with the outputs


def test_when_the_first_step_began_is_told_once(ours) -> None:
    engine, found = make_engine(ours, batch=1, chunk=8), Collected()
    before = time.monotonic()
    engine.add(request("a", random_prompts([30])[0]))
    engine.add(request("b", random_prompts([5])[0]))
    run(engine, into=found)
    first = [found.outputs[name, 0][0].started_at for name in "ab"]
    assert before < first[0] < first[1] < time.monotonic()
    assert all(o.started_at is None for name in "ab" for o in found.outputs[name, 0][1:])


# ---------------------------------------------------------------- reuse


@pytest.mark.parametrize("while_running", [False, True])
def test_without_reuse_everything_is_computed_and_kept_for_others(ours, while_running) -> None:
    (prompt,) = random_prompts([100])
    engine, found = make_engine(ours, prefix_bytes=None), Collected()
    engine.add(request("known", prompt, max_tokens=30))
    if while_running:
        steps(engine, 5, found)
    else:
        run(engine, into=found)
    assert found.tokens("known")
    cold = run(engine, replace(request("cold", prompt, n=2), reuse=False))
    warm = run(engine, request("warm", prompt))
    assert engine.stats()["prompt_tokens_computed"] == 3 * 100 + 1
    assert [cold.outputs["cold", i][-1].cached_tokens for i in range(2)] == [0, 0]
    assert warm.outputs["warm", 0][-1].cached_tokens == 99
    assert warm.tokens("warm") == cold.tokens("cold", 0) == cold.tokens("cold", 1)
    engine.drop_all()


def test_what_was_computed_without_reuse_is_of_use(ours) -> None:
    (prompt,) = random_prompts([100])
    engine = make_engine(ours, prefix_bytes=None)
    run(engine, replace(request("cold", prompt), reuse=False))
    warm = run(engine, request("warm", prompt))
    assert warm.outputs["warm", 0][-1].cached_tokens == 99
    engine.drop_all()
