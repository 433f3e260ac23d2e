"""The demo model's small talk: its file is sound, and a chat's later turns follow from it."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from mlx_server.demo import corpus
from mlx_server.demo.chats import Chat
from mlx_server.demo.talk_chats import SMALL, follow_up, recall
from mlx_server.demo.talk_things import THINGS, Thing, made_up

FILE = corpus.FOLDER / "talk.txt"
LINES = FILE.read_text("utf-8").splitlines()
TALK = corpus.read(FILE)
ANSWERS = dict(TALK.pairs)
CHATS = [follow_up(random.Random(seed)) for seed in range(500)]
SUM = re.compile(r"(\d+) ([+-]) (\d+) is (\d+)\.")


def plain(question: str) -> str:
    return question.lower().rstrip("?!.")


def exchanges(chat: Chat) -> list[tuple[str, str]]:
    texts = [m["content"] for m in chat.messages if m["role"] != "system"]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_every_block_is_questions_and_then_one_answer() -> None:
    blocks = "\n".join(LINES).split("\n\n")
    kinds = ["".join(line[0] for line in block.split("\n")) for block in blocks]
    bad = [b for b, k in zip(blocks, kinds, strict=True) if not re.fullmatch("Q+A|S+|W+|#+", k)]
    assert bad == []
    assert all(line == line.strip() and len(line) <= 1500 for line in LINES)


def test_no_question_is_asked_twice() -> None:
    asked = Counter(question for question, _ in TALK.pairs)
    assert [question for question, times in asked.items() if times > 1] == []
    answers: dict[str, set[str]] = {}
    for question, answer in TALK.pairs:
        answers.setdefault(plain(question), set()).add(answer)
    assert [question for question, found in answers.items() if len(found) > 1] == []


def test_no_question_is_answered_otherwise_by_the_servers_text() -> None:
    ours = {plain(question): answer for question, answer in TALK.pairs}
    server, settings, _ = corpus.load()
    twice = {q for q, a in (*server.pairs, *settings.pairs) if ours.get(plain(q), a) != a}
    assert twice == set()


def test_placeholders_have_words_and_no_word_is_known_otherwise() -> None:
    patterns = [question for question in ANSWERS if "{}" in question]
    assert len(patterns) > 50 and len(set(TALK.words)) == len(TALK.words) >= 400
    assert not any("{}" in answer for answer in ANSWERS.values())
    known = {plain(question) for question in ANSWERS}
    known |= {plain(question) for part in corpus.load()[:2] for question, _ in part.pairs}
    filled = {plain(p.replace("{}", word)) for p in patterns for word in TALK.words}
    assert filled & known == set()


def test_there_is_much_to_talk_about() -> None:
    assert len(TALK.answers) >= 300
    assert len(set(TALK.systems)) == len(TALK.systems) >= 60
    assert "castle" in TALK.words


def test_small_exchanges_are_answered_as_in_the_file() -> None:
    assert [(q, ANSWERS.get(q)) for q, _ in SMALL] == list(SMALL)


def test_code_fences_are_closed() -> None:
    fenced = [a for a in ANSWERS.values() if "```\n" in f"{a}\n" and a.count("```") != 1]
    assert fenced and [a for a in fenced if a.count("```") % 2] == []


@pytest.mark.parametrize("seed", range(20))
def test_a_chat_is_a_function_of_the_seed(seed: int) -> None:
    assert follow_up(random.Random(seed)) == follow_up(random.Random(seed))
    assert follow_up(random.Random(seed)) != follow_up(random.Random(seed + 1000))


def test_chats_have_two_to_six_exchanges() -> None:
    assert {len(exchanges(chat)) for chat in CHATS} == {2, 3, 4, 5, 6}
    for chat in CHATS:
        roles = [m["role"] for m in chat.messages]
        start = roles.count("system")
        assert start <= 1 and roles[start:] == ["user", "assistant"] * len(exchanges(chat))


def test_sums_are_right() -> None:
    seen = 0
    for chat in CHATS:
        for asked, answer in exchanges(chat):
            if found := SUM.fullmatch(answer):
                a, sign, b, result = found.groups()
                assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
                if numbers := re.findall(r"\d+", asked):
                    assert set(numbers) <= {a, b}
                seen += 1
    assert seen > 100


def recalled(thing: Thing, answer: str) -> str | None:
    before, _, after = thing.recalled.partition("{}")
    found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", answer)
    return found and found.group(1)


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.recalled)
def test_what_is_recalled_was_said_before(thing: Thing) -> None:
    values = set()
    for chat in CHATS:
        turns = exchanges(chat)
        for number, (asked, answer) in enumerate(turns):
            value = recalled(thing, answer)
            # The question alone does not give it away.
            if value is not None and value not in asked:
                said = [earlier for earlier, _ in turns[:number] if value in earlier]
                assert said, (value, turns)
                values.add(value)
    assert len(values) > 5


def test_the_later_of_two_holds() -> None:
    corrections = 0
    for chat in CHATS:
        turns = exchanges(chat)
        if re.match("No, it is|Sorry, I meant|I was wrong", turns[1][0]):
            value = turns[1][0].split(" it is ")[-1].split(" meant ")[-1]
            assert any(
                a.rstrip(".").endswith(f" {value}") or f" {value}." in a for _, a in turns[2:]
            )
            corrections += 1
    assert corrections > 10


def test_repeated_spelled_and_capital_words_are_copied() -> None:
    kinds = Counter[str]()
    for chat in CHATS:
        for asked, answer in exchanges(chat):
            if asked.startswith(("Repeat: ", "Say: ", "Repeat after me: ", "Write: ", "Echo: ")):
                assert asked.split(": ", 1)[1] == answer
                kinds["repeat"] += 1
            elif "spell" in asked.lower():
                assert answer.replace("-", "") in asked
                kinds["spell"] += 1
            elif re.match(r"(Say|Write) .* in capitals", asked):
                assert answer.isupper() and answer.lower() in asked.lower()
                kinds["capitals"] += 1
    assert set(kinds) == {"repeat", "spell", "capitals"} and min(kinds.values()) > 10


def test_names_and_numbers_vary() -> None:
    told = {value for seed in range(500) for _, value in recall(random.Random(seed))}
    assert len(told) > 400
    assert len({made_up(random.Random(seed)) for seed in range(500)}) > 450
