"""Tokens to deltas: log-probabilities stay with their text, however it is cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_server.deltas import Finished, Text, Timings
from mlx_server.exchange import Candidates, EngineRequest, TokenOutput
from mlx_server.sampling_params import SamplingParams
from mlx_server.text.output import Choice
from mlx_server.text.tokenizer import Tokenizer

EMOJI = "a \N{HUGGING FACE}b"


@pytest.fixture(scope="module")
def tokenizer(stories: Path) -> Tokenizer:
    return Tokenizer.load(stories / "stories260k")


def run(
    tokenizer: Tokenizer, ids: list[int], *, stop=(), prompt=(1, 403), echo=None, reason="length"
):
    params = SamplingParams(stop=tuple(stop), max_tokens=len(ids))
    request = EngineRequest("r", tuple(prompt), params, eos_token_ids=tokenizer.eos_token_ids)
    choice = Choice(0, request, tokenizer, echo)
    deltas = []
    for i, token_id in enumerate(ids):
        last = i == len(ids) - 1
        output = TokenOutput(
            "r", 0, (token_id,), (Candidates(-float(i)),),
            prompt_logprobs=tuple(Candidates(None) for _ in prompt) if i == 0 and echo else (),
            finish_reason=reason if last else None,
        )  # fmt: skip
        deltas += choice.feed(output)
        if choice.finished:
            break
    return deltas


def text_and_tokens(deltas):
    texts = [d for d in deltas if isinstance(d, Text)]
    return "".join(d.text for d in texts), [t for d in texts for t in d.tokens]


def test_every_token_comes_with_its_text_and_its_place(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Lily saw a " + EMOJI + " in the park", add_special_tokens=False)
    deltas = run(tokenizer, ids)
    text, tokens = text_and_tokens(deltas)
    assert text.strip() == "Lily saw a " + EMOJI + " in the park"
    assert [t.id for t in tokens] == ids
    for token in tokens:
        try:
            own = token.bytes.decode()
        except UnicodeDecodeError:  # a part of the emoji
            assert text[token.offset] == "\N{HUGGING FACE}"
        else:
            assert text[token.offset :].startswith(own)
    assert isinstance(deltas[-1], Finished) and deltas[-1].usage.completion_tokens == len(ids)


def test_tokens_swallowed_by_a_stop_string_are_not_reported(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Lily went to the park", add_special_tokens=False)
    whole, _ = text_and_tokens(run(tokenizer, ids))
    for begin in range(1, len(whole) - 2):
        stop = whole[begin : begin + 2]
        deltas = run(tokenizer, ids, stop=[stop])
        text, tokens = text_and_tokens(deltas)
        assert text == whole[: whole.index(stop)]
        assert text.startswith("".join(t.bytes.decode() for t in tokens))
        assert deltas[-1].stop_sequence == stop and deltas[-1].reason == "stop"


def test_several_tokens_of_a_step_are_one_piece_with_its_last_figures(
    tokenizer: Tokenizer,
) -> None:
    ids = tuple(tokenizer.encode("Lily went to the park", add_special_tokens=False))
    request = EngineRequest("r", (1, 403), SamplingParams(max_tokens=9))
    choice = Choice(0, request, tokenizer, ids=True, timings=True)
    output = TokenOutput("r", 0, ids[:3], started_at=0.0)
    (piece,) = [d for d in choice.feed(output) if isinstance(d, Text)]
    assert piece.ids == ids[:3] and piece.text.strip() == tokenizer.decode(ids[:3]).strip()
    assert piece.timings == choice.timings and piece.timings.predicted_n == 3


def test_the_times_are_the_engines_however_late_they_are_read(tokenizer: Tokenizer) -> None:
    choice = Choice(0, EngineRequest("r", (1, 403), SamplingParams(max_tokens=9)), tokenizer)
    outputs = [TokenOutput("r", 0, started_at=5.0, at=6.0)]
    outputs += [TokenOutput("r", 0, (403,), at=at) for at in (7.0, 7.5, 8.0)]
    for output in outputs:
        list(choice.feed(output))
    assert choice.timings == Timings(2, 2000.0, 3, 1000.0, first_at=7.0)


def test_the_end_token_is_counted_but_not_shown(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("Lily", add_special_tokens=False), 2]
    deltas = run(tokenizer, ids, reason="stop")
    text, tokens = text_and_tokens(deltas)
    assert text.strip() == "Lily"
    assert 2 not in [t.id for t in tokens]
    assert deltas[-1].usage.completion_tokens == len(ids)


def test_an_echoed_prompt_comes_first_and_shifts_the_rest(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("Once upon a time")
    ids = tokenizer.encode(", there was", add_special_tokens=False)[1:]
    text, tokens = text_and_tokens(run(tokenizer, ids, prompt=prompt, echo="Once upon a time"))
    assert text.startswith("Once upon a time,")
    assert [t.id for t in tokens] == [*prompt, *ids]
    assert [t.offset for t in tokens[:4]] == [0, 0, 4, 9]
    for token in tokens[2:]:
        assert text[token.offset :].startswith(token.bytes.decode())
