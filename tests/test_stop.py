"""Stop strings: any cut of the text gives what a search of the whole text gives."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_server.text.stop import StopChecker

LETTERS = st.text("ab<é", max_size=40)
STOPS = st.lists(st.text("ab<é", min_size=1, max_size=5), max_size=4)


def search(text: str, stops: Iterable[str]) -> tuple[str, str | None]:
    """The definition: the first one complete wins, of those the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


def pieces(text: str, cuts: Iterable[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[a:b] for a, b in pairwise(edges)]


@given(LETTERS, STOPS, st.sets(st.integers(0, 40)))
def test_any_cut_gives_what_a_whole_search_gives(
    text: str, stops: list[str], cuts: set[int]
) -> None:
    checker = StopChecker(stops)
    released, cut = "", 0
    for piece in pieces(text, cuts):
        result = checker.feed(piece)
        released, cut = released + result.text, cut + result.cut
        fed = len(released) + checker.pending + cut
        assert text.startswith(released)
        assert fed == len(text[:fed])
        held = text[len(released) : len(released) + checker.pending]
        assert checker.matched or not held or any(s.startswith(held) for s in stops)
    assert len(released) + checker.pending + cut == len(text)
    released += checker.flush()
    assert (released, checker.matched) == search(text, stops)


@given(LETTERS, STOPS)
def test_no_more_is_held_back_than_needed(text: str, stops: list[str]) -> None:
    checker = StopChecker(stops)
    for length in range(1, len(text) + 1):
        if checker.feed(text[length - 1]).matched:
            break
        ends = (text[length - n : length] for n in range(length + 1))
        begun = [len(end) for end in ends if any(stop.startswith(end) for stop in stops)]
        assert checker.pending == max(begun, default=0)


@pytest.mark.parametrize(
    ("stops", "text", "released", "matched"),
    [
        (("abcd", "bc"), "xabcd", "xa", "bc"),  # complete first
        (("bc", "abc"), "xabc", "x", "abc"),  # at the same end the longer
        (("ab", "abc"), "xabc", "x", "ab"),
        (("",), "x", "x", None),
        ((), "x", "x", None),
    ],
)
def test_which_stop_string_wins(
    stops: tuple[str, ...], text: str, released: str, matched: str | None
) -> None:
    checker = StopChecker(stops)
    result = checker.feed(text)
    assert (result.text, result.matched) == (released, matched)
    assert len(result.text) + result.cut + checker.pending == len(text)


def test_everything_after_a_match_is_cut() -> None:
    checker = StopChecker(("END",))
    assert checker.feed("one EN").text == "one "
    result = checker.feed("D two")
    assert (result.text, result.matched, result.cut) == ("", "END", 7)
    assert (checker.feed("three").text, checker.flush()) == ("", "")


def test_a_long_stop_string_that_almost_comes_again_and_again() -> None:
    stop = "a" * 5_000 + "b"
    checker = StopChecker((stop,))
    released = "".join(checker.feed("a").text for _ in range(50_000))
    assert len(released) == 45_000
    assert checker.pending == 5_000
    assert checker.feed("b").matched == stop
