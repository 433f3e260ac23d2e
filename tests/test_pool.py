"""Which model a name means, what is loaded when, and which adapters a row runs under."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import running_pool

from mlx_server.core import GenerationRequest, TextOptions, TextPrompt, TokenPrompt
from mlx_server.deltas import Heartbeat, Text
from mlx_server.errors import (
    DeadlineExceeded,
    ModelLoadError,
    ModelNotFound,
    NotSupported,
    RequestError,
    ServerError,
    Unavailable,
)
from mlx_server.pool import ModelPool
from mlx_server.sampling_params import DRY_BREAKERS
from mlx_server.services import EmbeddingRequest, RerankRequest, Served

PROMPT = "Once upon a time"
BASE = ", there was a little girl named Lily."
DRAGON = ", there was a little girl named Ben."
MOON = ", there was a child named Max."


def ask(pool: ModelPool, model: str | None = None, **fields) -> str:
    return "".join(d.text for d in start(pool, model, **fields) if isinstance(d, Text))


def start(pool: ModelPool, model: str | None = None, max_tokens: int = 20, **fields):
    options = {"temperature": 0.0, "max_tokens": max_tokens} | fields.pop("options", {})
    number = next(start.numbers)
    return pool.generate(
        GenerationRequest(f"r{number}", model, (TextPrompt(PROMPT),), options, **fields)
    )


start.numbers = iter(range(10**6))


@pytest.fixture(scope="module")
def place(stories: Path, tmp_path_factory) -> Path:
    """A start directory with models, an adapter, and things that must stay out of reach."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(stories / "stories260k-chat", root / "inside/chat")
    shutil.copytree(stories / "adapters/dragon", root / "inside/dragon")
    (root / "inside/link").symlink_to(stories / "adapters/dragon")
    shutil.copytree(stories / "adapters/dragon", root / "outside")
    return root / "inside"


@pytest.fixture(scope="module")
def pool(open_pool, stories: Path, place: Path) -> ModelPool:
    return open_pool(
        place,
        model=str(stories / "stories260k"),
        alias=("tales",),
        lora=(f"moon={stories / 'adapters/moon'}",),
        max_models=2,
    )


@pytest.mark.parametrize(
    "name", [None, "default_model", "tales", "stories260k", "gpt-4o", "a/b", "../../etc", "/tmp"]
)
def test_names_of_the_loaded_model_and_unknown_ones(pool: ModelPool, name: str | None) -> None:
    assert ask(pool, name).startswith(BASE)


def test_adapters_by_name_and_by_path(pool: ModelPool) -> None:
    assert ask(pool, "moon").startswith(MOON)
    assert ask(pool, None, adapters="dragon").startswith(DRAGON)
    assert ask(pool, "moon", adapters="./dragon").startswith(DRAGON)
    assert ask(pool).startswith(BASE)


@pytest.mark.parametrize("path", ["../outside", "/etc", "link", "nothing", "chat", "dragon\0", ""])
def test_adapter_paths_outside_the_start_directory_are_refused(pool: ModelPool, path: str) -> None:
    with pytest.raises(RequestError) as error:
        ask(pool, None, adapters=path)
    assert error.value.param == "adapters"


@pytest.mark.parametrize("name", ["chat", "./chat", "chat/", "chat/.", "../inside/chat"])
def test_other_spellings_of_a_path_are_the_same_model(pool: ModelPool, name: str) -> None:
    assert ask(pool, "chat").startswith(BASE)
    entries = dict(pool.residence._entries)
    assert ask(pool, name).startswith(BASE)
    assert pool.residence._entries == entries


def test_a_model_under_the_start_directory_is_loaded_on_request(pool: ModelPool) -> None:
    assert ask(pool, "chat").startswith(BASE)
    loaded = [c.id for c in pool.cards() if c.loaded]
    assert loaded == [pool.names.default, "tales", "chat"]
    assert ask(pool).startswith(BASE)


def test_default_adapter_and_summed_ones(open_pool, stories: Path) -> None:
    adapters = stories / "adapters"
    default = open_pool(
        stories, model=str(stories / "stories260k"), adapter_path=str(adapters / "dragon")
    )
    assert ask(default).startswith(DRAGON)
    assert ask(default, None, adapters="adapters/moon").startswith(MOON)
    everywhere = open_pool(
        stories,
        model=str(stories / "stories260k"),
        lora=(str(adapters / "dragon"), f"moon={adapters / 'moon'}"),
    )
    assert ask(everywhere).startswith(DRAGON)
    assert not ask(everywhere, "moon").startswith((MOON, DRAGON))
    scaled = everywhere.adapter_scales(
        everywhere.residence._entries[everywhere.names.default], "moon"
    )
    assert [scale for _, scale in scaled] == [1.0, 1.0]
    entry = everywhere.residence._entries[everywhere.names.default]
    twice = everywhere.adapter_scales(entry, None, "adapters/dragon")
    assert twice == ((str((adapters / "dragon").resolve()), 2.0),)
    # They are adapters of that one model.
    assert everywhere.names.applied("another", None, None) == []
    assert default.names.applied("another", None, None) == []


@pytest.mark.parametrize(
    "penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier"]
)
def test_options_that_are_text_become_tokens_where_a_penalty_wants_them(
    pool: ModelPool, penalty: str
) -> None:
    newline = TextOptions(dry_breakers=("\n",), penalize_nl=False)
    for strength in (0.5, None):
        options = {} if strength is None else {penalty: strength}
        generation = start(pool, max_tokens=1, options=options, text_options=newline)
        for _ in generation:
            pass
        found = generation.params
        assert bool(found.unpenalized) is bool(found.dry_breakers) is (strength is not None)


def test_a_reply_that_is_broken_off_counts(pool: ModelPool) -> None:
    ended = b'mlx_server_requests_total{outcome="abort"} %d.0'
    for number in (1, 2):
        running = iter(start(pool, max_tokens=400, options={"ignore_eos": True}))
        next(delta for delta in running if isinstance(delta, Text))
        running.close()
        assert ended % number in pool.metrics()
    running = iter(start(pool, max_tokens=400))
    next(running)  # no token came yet
    running.close()
    assert ended % 2 in pool.metrics()


def test_strict_names(open_pool, stories: Path) -> None:
    strict = open_pool(model=str(stories / "stories260k"), strict_model_names=True)
    assert ask(strict).startswith(BASE)
    with pytest.raises(ModelNotFound, match="gpt-4o"):
        ask(strict, "gpt-4o")


def test_the_least_recently_used_model_goes_when_its_rows_are_done(
    open_pool, stories: Path, place: Path
) -> None:
    pool = open_pool(place, model=str(stories / "stories260k"))
    generation = start(pool, max_tokens=400, options={"ignore_eos": True})
    running = iter(generation)
    for _ in range(5):
        next(running)
    other: list[str] = []
    waiting = threading.Thread(target=lambda: other.append(ask(pool, "chat")))
    waiting.start()
    waiting.join(0.2)
    assert not other
    # Its own clients still see it, and so does whoever asks what there is.
    assert pool.names.default in [c.id for c in pool.cards() if c.loaded]
    text = "".join(d.text for d in running if isinstance(d, Text))
    assert len(text) > 400
    waiting.join(20)
    assert other and other[0].startswith(BASE)
    assert [c.id for c in pool.cards() if c.loaded] == ["chat"]
    # Who reads the reply only now can still tell which model it is of.
    assert generation.served == Served(str(stories / "stories260k"), 512, "", DRY_BREAKERS)
    # Without a name the model that is loaded answers; by its name the first one returns.
    assert ask(pool).startswith(BASE)
    assert [c.id for c in pool.cards() if c.loaded] == ["chat"]
    assert ask(pool, pool.names.default).startswith(BASE)
    assert [c.id for c in pool.cards() if c.loaded] == [pool.names.default]


def test_the_slots_of_a_model_that_goes_meanwhile(open_pool, stories: Path, tmp_path: Path) -> None:
    pool = open_pool(model=str(stories / "stories260k"), slot_save_path=str(tmp_path))
    engine = pool.worker.call(lambda engines: engines.pop(pool.names.default))
    try:
        for act in (pool.save_slot, pool.restore_slot):
            with pytest.raises(Unavailable, match="not in memory"):
                act(0, "file")
        with pytest.raises(Unavailable, match="not in memory"):
            pool.erase_slot(0)
    finally:
        pool.worker.call(lambda engines: engines.update({pool.names.default: engine}))


def test_a_model_that_cannot_be_loaded_leaves_the_server_usable(
    open_pool, stories: Path, tmp_path: Path
) -> None:
    shutil.copytree(stories / "stories260k", tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"not weights")
    pool = open_pool(tmp_path, model=str(stories / "stories260k"))
    for _ in range(2):
        with pytest.raises(RequestError, match=r"model\.safetensors"):
            ask(pool, "broken")
        assert ask(pool).startswith(BASE)


def test_before_the_model_is_loaded_requests_are_told_so(stories: Path) -> None:
    from mlx_server.config import Config
    from mlx_server.engine.worker import Worker

    pool = ModelPool(Config(model=str(stories / "stories260k")), Worker(8))
    with pytest.raises(Unavailable, match="Loading model"):
        ask(pool)
    with pytest.raises(Unavailable):
        pool.check_ready()


def test_a_wrong_model_fails_in_one_line(open_pool, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as error:
        open_pool(model=str(tmp_path / "nowhere"))
    assert "nowhere" in error.value.message and "\n" not in error.value.message


def test_a_request_that_is_refused_holds_nothing(pool: ModelPool) -> None:
    for fields in ({"options": {"logit_bias": ((10**6, 1.0),)}}, {"adapters": "nothing"}):
        with pytest.raises(RequestError):
            ask(pool, None, **fields)
    assert all(entry.num_entering == 0 for entry in pool.residence._entries.values())


def test_a_stream_that_waits_for_its_model_begins_at_once(
    open_pool, stories: Path, place: Path, monkeypatch
) -> None:
    monkeypatch.setattr("mlx_server.arrival.HEARTBEAT", 0.05)
    pool = open_pool(place, model=str(stories / "stories260k"))
    running = iter(start(pool, max_tokens=450, options={"ignore_eos": True}))
    next(running)
    waiting = iter(start(pool, "chat"))
    assert isinstance(next(waiting), Heartbeat)
    assert len([d for d in running if isinstance(d, Text)]) > 300
    assert "".join(d.text for d in waiting if isinstance(d, Text)).startswith(BASE)


def test_a_reader_that_is_slow_holds_no_model(open_pool, stories: Path, place: Path) -> None:
    pool = open_pool(place, model=str(stories / "stories260k"))
    slow = iter(start(pool, max_tokens=60, options={"ignore_eos": True}))
    next(slow)  # and reads no further
    assert ask(pool, "chat").startswith(BASE)
    assert "".join(d.text for d in slow if isinstance(d, Text)).startswith(BASE)


def test_a_request_that_gives_up_waiting_unloads_nothing(
    open_pool, stories: Path, place: Path
) -> None:
    pool = open_pool(place, model=str(stories / "stories260k"))
    running = iter(start(pool, max_tokens=450, options={"ignore_eos": True}))
    next(running)
    waiting = start(pool, "chat")
    failures: list[Exception] = []

    def read() -> None:
        try:
            list(waiting)
        except ServerError as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.05)
    waiting.cancel()
    reader.join(5)
    assert len(failures) == 1
    assert len([d for d in running if isinstance(d, Text)]) > 300
    time.sleep(0.1)
    assert [c.id for c in pool.cards() if c.loaded] == [pool.names.default]
    assert ask(pool).startswith(BASE)


def test_a_deadline_counts_the_wait_for_the_model(open_pool, stories: Path, place: Path) -> None:
    pool = open_pool(place, model=str(stories / "stories260k"))
    running = iter(start(pool, max_tokens=450, options={"ignore_eos": True}))
    next(running)
    with pytest.raises(DeadlineExceeded):
        list(start(pool, "chat", timeout=0.05))
    assert len([d for d in running if isinstance(d, Text)]) > 300


def test_the_default_is_always_listed_first(open_pool, stories: Path, place: Path) -> None:
    pool = open_pool(place, model=str(stories / "stories260k"), alias=("tales",))
    ask(pool, "chat")
    first, alias, *_ = pool.cards()
    assert (first.id, first.loaded) == (pool.names.default, False)
    assert alias == replace(first, id="tales") == pool.card("tales")
    for name in ("stories260k", pool.names.default):
        assert pool.card(name) == first


def test_a_budget_that_holds_no_sequence_is_refused_at_the_start(open_pool, stories: Path) -> None:
    with pytest.raises(ModelLoadError, match="--max-kv-bytes"):
        open_pool(model=str(stories / "stories260k"), max_kv_bytes=1000)


def test_a_prompt_beyond_the_memory_is_refused_before_the_stream(open_pool, stories: Path) -> None:
    pool = open_pool(model=str(stories / "stories260k"), max_kv_bytes=400_000)
    tokens = TokenPrompt((1, *[300] * 300))
    with pytest.raises(RequestError, match=r"301 tokens.*--max-kv-bytes") as error:
        pool.generate(GenerationRequest("long", None, (tokens,)))
    assert error.value.param == "prompt"


def test_more_replies_than_are_possible_are_refused(pool: ModelPool) -> None:
    many = GenerationRequest("many", None, (TextPrompt("a"),) * 100, n=100)
    with pytest.raises(RequestError, match="10000") as error:
        pool.generate(many)
    assert error.value.param == "prompt"


def test_an_empty_model_name_is_the_demo(open_pool) -> None:
    pool = open_pool(model="")
    assert pool.cards()[0].id == "demo"


def test_models_that_take_turns_for_one_place_are_each_served(
    open_pool, stories: Path, place: Path, monkeypatch
) -> None:
    pool = open_pool(place, model=str(stories / "stories260k"))
    loads = []
    load = pool.residence.load
    monkeypatch.setattr(
        pool.residence, "load", lambda name, path: (loads.append(name), load(name, path))[1]
    )
    names = [pool.names.default, "chat"] * 4
    with ThreadPoolExecutor(len(names)) as threads:
        replies = list(threads.map(lambda name: ask(pool, name, max_tokens=5), names))
    assert all(reply and BASE.startswith(reply) for reply in replies)
    assert len(loads) <= len(names)


def test_a_name_that_cannot_be_downloaded_unloads_nothing(
    open_pool, stories: Path, monkeypatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pool = open_pool(model=str(stories / "stories260k"), allow_download=True)
    entries = pool.residence.entries()
    with pytest.raises(RequestError) as error:
        ask(pool, "openai/gpt-4")
    assert error.value.param == "model"
    assert pool.residence.entries() == entries
    assert ask(pool).startswith(BASE)


def test_a_repo_in_the_local_cache_is_listed_and_loaded_on_request(
    open_pool, stories: Path, tmp_path: Path, monkeypatch
) -> None:
    snapshot = tmp_path / "models--org--tiny/snapshots/abc"
    shutil.copytree(stories / "stories260k-chat", snapshot)
    (tmp_path / "models--org--tiny/refs").mkdir()
    (tmp_path / "models--org--tiny/refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pool = open_pool(model=str(stories / "stories260k"))
    assert "org/tiny" in [card.id for card in pool.cards()]
    assert pool.card("org/tiny").loaded is False
    assert ask(pool, "org/tiny").startswith(BASE)
    assert [card.id for card in pool.cards() if card.loaded] == ["org/tiny"]
    assert ask(pool, "org/absent").startswith(BASE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_bias": ("99999999+1",)}, "--logit-bias: Token id 99999999"),
        ({"grammar": "root ::= nope"}, "--grammar: "),
        ({"json_schema": '{"type": "nope"}'}, "--json-schema: "),
    ],
)
def test_an_option_that_would_fail_every_request_fails_at_the_start(
    stories: Path, settings: dict, message: str
) -> None:
    with (
        pytest.raises(ModelLoadError, match=message),
        running_pool(model=str(stories / "stories260k"), **settings),
    ):
        pass


def test_a_download_is_no_way_out_of_the_start_directory(
    open_pool, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "mm").mkdir()
    (tmp_path / "mm" / "esc").symlink_to(stories / "stories260k-chat")
    pool = open_pool(tmp_path, model=str(stories / "stories260k"), allow_download=True)
    with pytest.raises(RequestError, match="mm/esc"):
        ask(pool, "mm/esc")


def test_a_model_is_loaded_for_embeddings_too(open_pool, stories: Path, place: Path) -> None:
    pool = open_pool(place, model=str(stories / "stories260k"))
    alone = open_pool(place, model=str(place / "chat"))
    asked = EmbeddingRequest("chat", (TextPrompt(PROMPT),))

    running = iter(start(pool, max_tokens=400, options={"ignore_eos": True}))
    next(running)
    begun, rest = time.monotonic(), []
    with ThreadPoolExecutor() as threads:
        late = threads.submit(pool.embed, replace(asked, timeout=0.05), lambda: False)
        gone = threads.submit(pool.embed, asked, lambda: time.monotonic() > begun + 0.05)
        with pytest.raises(DeadlineExceeded):
            late.result()
        with pytest.raises(Unavailable, match="cancelled"):
            gone.result()
        assert [c.id for c in pool.cards() if c.loaded] == [pool.names.default]
        found = threads.submit(pool.embed, asked, lambda: False)
        rest += running
        assert found.result().vectors == alone.embed(asked, lambda: False).vectors
    assert rest and [c.id for c in pool.cards() if c.loaded] == ["chat"]
    assert ask(pool, pool.names.default).startswith(BASE)


def test_embeddings_of_a_model_that_cannot_be_loaded(
    open_pool, stories: Path, tmp_path: Path
) -> None:
    shutil.copytree(stories / "stories260k", tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"not weights")
    pool = open_pool(tmp_path, model=str(stories / "stories260k"))
    with pytest.raises(RequestError, match="broken") as caught:
        pool.embed(EmbeddingRequest("broken", (TextPrompt(PROMPT),)), lambda: False)
    assert caught.value.param == "model"
    with pytest.raises(NotSupported):
        pool.rerank(RerankRequest(None, "a", ("b",)), lambda: False)
    assert ask(pool).startswith(BASE)


def test_what_the_command_line_says_of_the_model_reaches_it(
    open_pool, stories: Path, tmp_path: Path
) -> None:
    """Positions, control vectors, the device and how embeddings are made."""
    model, vector = str(stories / "stories260k"), tmp_path / "v.gguf"
    values = mx.full((64,), 3.0)
    metadata = {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}
    mx.save_gguf(str(vector), {"direction.1": values, "direction.2": values}, metadata)
    plain = open_pool(model=model, device="cpu")
    assert ask(plain).startswith(BASE)
    assert ask(open_pool(model=model, control_vector_scaled=((str(vector), 0.0),))) == ask(plain)
    for settings in (
        {"rope_freq_base": 50.0},
        {"rope_scaling": "linear", "rope_scale": 8.0},
        {"rope_scaling": "yarn", "rope_scale": 8.0, "yarn_ext_factor": 0.0},
        {"control_vector": (str(vector),)},
        {"control_vector": (str(vector),), "control_vector_layer_range": (2, 4)},
    ):
        assert not ask(open_pool(model=model, **settings)).startswith(BASE), settings
    asked = EmbeddingRequest(None, (TextPrompt("Once upon a time"),))
    mean, last = (
        open_pool(model=model, pooling=pooling).embed(asked, lambda: False).vectors
        for pooling in ("mean", "last")
    )
    assert mean == plain.embed(asked, lambda: False).vectors != last
