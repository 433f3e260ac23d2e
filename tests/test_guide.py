"""What a guide lets through, and that an engine with guided rows gives each row what it
would get alone."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from guiding import EOS, PERSON, TOKENS, WIDTH, decode, encode, lark, make_grammars, schema
from models import CONFIG, make_engine, make_pair, random_prompts, request, run

from mlx_server.exchange import GuideError
from mlx_server.sampling.grammar import Grammars
from mlx_server.sampling.guide import Guide, Plan, Reasoning, Trigger

GRAMMARS = make_grammars()
THINK = Reasoning("<think>", "</think>", "\n\n")
CALL = lark('start: <[258]> ("a" | "bc") <[259]>')


def markup(text: str) -> list[int]:
    return GRAMMARS.vocabulary.encode_markup(text)


def allowed(guide: Guide) -> set[int] | None:
    words = guide.allowed()
    if words is None:
        return None
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:WIDTH]
    return set(np.flatnonzero(bits).tolist())


def say(guide: Guide, text: str) -> None:
    """Have the guide accept a text as a model might write it, forced or not."""
    for token in markup(text):
        options = allowed(guide)
        assert options is None or token in options, decode([token])
        guide.accept(token)


# ---------------------------------------------------------------- phases


def test_a_bound_reply_is_held_to_its_grammar_and_ends_with_it() -> None:
    guide = Plan(GRAMMARS, lark('start: "ab" ("c" | "d")'))()
    assert decode(list(guide.forced())) == "ab"
    say(guide, "ab")
    assert allowed(guide) == {ord("c"), ord("d")}
    assert not guide.ended
    say(guide, "d")
    assert guide.ended


def test_a_reply_that_may_end_allows_the_end_token() -> None:
    guide = Plan(GRAMMARS, lark("start: /a+/"))()
    say(guide, "aa")
    assert allowed(guide) == {ord("a"), EOS}
    assert not guide.ended


def test_a_token_against_the_grammar_is_an_error() -> None:
    guide = Plan(GRAMMARS, lark('start: "ab" /x/'))()
    with pytest.raises(GuideError):
        guide.accept(ord("x"))


def test_the_reply_is_free_until_a_call_begins_and_again_behind_it() -> None:
    guide = Plan(GRAMMARS, triggers=(Trigger("<call>", CALL),))()
    say(guide, "so <b> ")
    assert allowed(guide) is None and not guide.forced()
    say(guide, "<call>")
    assert allowed(guide) == {ord("a"), ord("b")}
    say(guide, "b")
    assert markup("c</call>") == list(guide.forced())
    say(guide, "c</call> and")
    assert allowed(guide) is None and not guide.ended
    say(guide, "<call>a")
    assert allowed(guide) == {259}


def test_one_call_only_ends_the_reply() -> None:
    guide = Plan(GRAMMARS, triggers=(Trigger("<call>", CALL),), once=True)()
    say(guide, "x<call>a</call>")
    assert guide.ended


@pytest.mark.parametrize("pieces", [["!{", '"x'], ["!", '{"', "x"], ["!", "{", '"', "x"]])
def test_a_mark_of_plain_text_is_seen_however_the_tokens_cut_it(pieces: list[str]) -> None:
    # What the last token has behind the mark follows the grammar as well, or it is left free.
    guide = Plan(GRAMMARS, triggers=(Trigger('{"', lark(r'start: "{\"x" ("y" | "z")')),))()
    say(guide, "".join(pieces))
    assert allowed(guide) == {ord("y"), ord("z")}


def test_a_call_that_begins_in_another_form_is_left_free() -> None:
    guide = Plan(GRAMMARS, triggers=(Trigger("<!", lark('start: "<!" "a"')),))()
    guide.accept(ord("<"))
    guide.accept(ord("!"))
    assert allowed(guide) == {ord("a")}
    other = Plan(GRAMMARS, triggers=(Trigger("a>", lark('start: "a>" "b"')),))()
    say(other, "a>!")  # ">!" is one token
    assert allowed(other) is None


def test_a_leading_mark_counts_only_where_the_content_begins() -> None:
    trigger = Trigger('{"', lark(r'start: "{\"" "x"'), leading=True)
    first = Plan(GRAMMARS, triggers=(trigger,))()
    say(first, '\n\n {"')
    assert allowed(first) == {ord("x")}
    later = Plan(GRAMMARS, triggers=(trigger,))()
    say(later, 'So {"')
    assert allowed(later) is None


def test_what_is_looked_at_for_marks_stays_short_whatever_comes() -> None:
    trigger = Trigger('{"', lark(r'start: "{\"" "x"'), leading=True)
    for text in (" ", "ab "):
        guide = Plan(GRAMMARS, triggers=(trigger,), reasoning=THINK)()
        say(guide, text * 1000)
        assert len(guide._text) < 10
    spaced = Plan(GRAMMARS, triggers=(trigger,), reasoning=THINK)()
    say(spaced, " \n" * 50 + '{ \n{"')
    assert allowed(spaced) is None
    spaced = Plan(GRAMMARS, triggers=(trigger,), reasoning=THINK)()
    say(spaced, " \n" * 50 + '{"')
    assert allowed(spaced) == {ord("x")}


# ---------------------------------------------------------------- reasoning


def test_reasoning_is_free_but_cannot_end_where_an_answer_must_come() -> None:
    guide = Plan(GRAMMARS, schema(PERSON), reasoning=replace(THINK, inside=True))()
    say(guide, "hm")
    options = allowed(guide)
    assert options is not None and EOS not in options and len(options) == WIDTH - 1
    say(guide, "</think>")
    assert decode(list(guide.forced())) == "\n\n"  # as the family writes it
    say(guide, '\n\n{"')
    assert decode(list(guide.forced())).startswith('name": ')


def test_a_bound_reply_may_begin_with_reasoning_where_one_token_opens_it() -> None:
    plan = Plan(GRAMMARS, lark('start: "ab" | "cd"'), reasoning=THINK)
    assert allowed(plan()) == {ord("a"), ord("c"), 256}
    guide = plan()
    say(guide, "<think>a</think>\n\na")
    assert allowed(guide) == {ord("b")}
    guide = plan()
    say(guide, "a")
    assert allowed(guide) == {ord("b")}  # once it has begun to answer it goes on


def test_no_token_ends_the_reasoning_and_begins_the_answer_in_one() -> None:
    reasoning = Reasoning("<why>", "</why>", "", inside=True)
    guide = Plan(GRAMMARS, lark('start: "a"'), reasoning=reasoning)()
    options = allowed(guide)
    assert GRAMMARS.vocabulary.tokens.index(b">!") not in options
    say(guide, "so</why>a")
    assert guide.ended


def test_the_vocabulary_is_searched_for_such_tokens_once_and_not_for_each_request() -> None:
    class Tokens(list):
        num_searches = 0

        def __iter__(self):
            self.num_searches += 1
            return super().__iter__()

    tokens = Tokens(TOKENS)
    grammars = Grammars(replace(GRAMMARS.vocabulary, tokens=tokens))
    reasoning = Reasoning("<why>", "</why>", "", inside=True)
    plans = [Plan(grammars, "", reasoning=reasoning) for _ in range(3)]
    assert all(set(plan.thoughts) == set(plans[0].thoughts) for plan in plans)
    assert tokens.num_searches == 1


@pytest.mark.parametrize("budget", [0, 1, 3])
@pytest.mark.parametrize("grammar", [None, lark('start: "ok"')])
def test_a_budget_ends_the_reasoning_in_the_familys_way(budget: int, grammar: str | None) -> None:
    reasoning = replace(THINK, inside=True, budget=budget)
    guide = Plan(GRAMMARS, grammar, reasoning=reasoning)()
    for _ in range(budget):
        assert not guide.forced()
        say(guide, "x")
    assert list(guide.forced()) == markup("</think>\n\n")
    assert allowed(guide) == {257}  # token by token, where log-probabilities are asked for
    say(guide, "</think>\n\n")
    if grammar is None:
        assert allowed(guide) is None
    else:
        say(guide, "ok")
        assert guide.ended


def test_a_budget_counts_where_the_model_opens_its_reasoning_itself() -> None:
    guide = Plan(GRAMMARS, reasoning=replace(THINK, budget=2))()
    say(guide, "<think>ab")
    assert list(guide.forced()) == markup("</think>\n\n")
    late = Plan(GRAMMARS, reasoning=replace(THINK, budget=2))()
    say(late, "a long answer about <think>")
    say(late, "abcdef")
    assert not late.forced()


def test_a_budget_is_for_all_of_a_replys_reasoning() -> None:
    plan = Plan(GRAMMARS, triggers=(Trigger("<call>", CALL),), reasoning=replace(THINK, budget=3))
    guide = plan()
    say(guide, "<think>a</think>\n\n<think>")
    say(guide, "b")
    assert list(guide.forced()) == markup("</think>\n\n")
    say(guide, "</think>\n\n<think>")
    assert list(guide.forced()) == markup("</think>\n\n")  # at once
    say(guide, "</think>\n\n<call>a</call>\n<think>")
    assert list(guide.forced()) == markup("</think>\n\n")  # behind a call as well


def test_what_is_written_of_the_closing_is_not_written_twice() -> None:
    reasoning = Reasoning("<why>", "</why>", "\n\n", inside=True, budget=4)
    guide = Plan(GRAMMARS, reasoning=reasoning)()
    say(guide, "so</")
    assert decode(list(guide.forced())) == "why>\n\n"


def test_calls_are_not_looked_for_within_reasoning() -> None:
    plan = Plan(GRAMMARS, triggers=(Trigger("<call>", CALL),), reasoning=THINK)
    guide = plan()
    say(guide, "<think>a <call>")
    assert allowed(guide) is None
    say(guide, "x</think>\n\n<call>")
    assert allowed(guide) == {ord("a"), ord("b")}


# ---------------------------------------------------------------- in the engine


@pytest.fixture(scope="module")
def model():
    return make_pair({**CONFIG, "vocab_size": WIDTH})[1]


PLANS = {
    "person": Plan(GRAMMARS, schema(PERSON)),
    "enum": Plan(GRAMMARS, schema({"enum": ["red", "green", "blue"]})),
    "list": Plan(GRAMMARS, schema({"type": "array", "items": {"type": "boolean"}, "maxItems": 4})),
    "word": Plan(GRAMMARS, lark("start: /[a-f]{3,9}/")),
    "thinks": Plan(GRAMMARS, schema(PERSON), reasoning=replace(THINK, inside=True, budget=5)),
    "calls": Plan(GRAMMARS, triggers=(Trigger("a", lark('start: "a" /[0-9]{4}/ "!"')),)),
}


def guided(name: str, plan: Plan | None, prompt: list[int], **settings):
    made = request(name, prompt, eos=frozenset({EOS}), max_tokens=120, **settings)
    return replace(made, guide=plan)


def mixture() -> list:
    """16 requests: every plan twice, and free ones between them, with every kind of option."""
    prompts = random_prompts([3, 40, 17, 1, 100, 5, 33, 70, 12, 90, 8, 21, 50, 9, 2, 64])
    names = [*PLANS, *PLANS, "free0", "free1", "free2", "free3"]
    options = [
        {},
        {"temperature": 1.0},
        {"temperature": 1.4, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 20, "repetition_penalty": 1.3},
        {"temperature": 1.0, "logprobs": 2},
    ]
    return [
        guided(f"{name}-{i}", PLANS.get(name), prompt, seed=i, **options[i % len(options)])
        for i, (name, prompt) in enumerate(zip(names, prompts, strict=True))
    ]


def check(name: str, tokens: list[int], reason: str) -> None:
    text = decode([t for t in tokens if t != EOS])
    if name.startswith(("person", "thinks")):
        if name.startswith("thinks"):
            text = text.split("</think>\n\n")[1]
        assert reason == "stop"
        jsonschema.validate(json.loads(text), PERSON)
    elif name.startswith("enum"):
        assert reason == "stop" and json.loads(text) in ("red", "green", "blue")
    elif name.startswith("list"):
        assert reason == "stop" and len(json.loads(text)) <= 4
    elif name.startswith("word"):
        assert reason == "stop" and 3 <= len(text) <= 9 and set(text) <= set("abcdef")


@pytest.mark.parametrize("prefix_bytes", [0, None])
@pytest.mark.parametrize("overlaps", [False, True])
def test_guided_and_free_rows_together_equal_each_alone(model, overlaps, prefix_bytes) -> None:
    requests = mixture()
    engine = make_engine(model, prefix_bytes=prefix_bytes)
    engine.runner.overlaps = overlaps
    together = run(engine, *requests)
    assert not together.errors
    assert engine.counters.forced_tokens > 50
    for r in requests:
        alone = run(make_engine(model), r)
        assert together.tokens(r.id) == alone.tokens(r.id), r.id
        assert together.reason(r.id) == alone.reason(r.id)
        check(r.id, together.tokens(r.id), together.reason(r.id))
        ours, theirs = together.logprobs(r.id), alone.logprobs(r.id)
        assert [c.logprob for c in ours] == pytest.approx([c.logprob for c in theirs], abs=1e-4)


def test_free_rows_are_what_they_are_without_guided_ones(model) -> None:
    requests = mixture()
    together = run(make_engine(model), *requests)
    free = [r for r in requests if r.guide is None]
    without = run(make_engine(model), *free)
    assert [together.tokens(r.id) for r in free] == [without.tokens(r.id) for r in free]


def test_preempted_rows_go_on_where_they_were(model) -> None:
    many = {"type": "array", "items": {"enum": ["yes", "no"]}, "minItems": 20, "maxItems": 30}
    prompts = random_prompts([150, 160, 170, 180])
    plans = [Plan(GRAMMARS, schema(many)), Plan(GRAMMARS, schema(PERSON)), None, None]
    requests = [
        replace(made, params=replace(made.params, max_tokens=200, ignore_eos=plan is None))
        for i, (plan, prompt) in enumerate(zip(plans, prompts, strict=True))
        for made in [guided(f"r{i}", plan, prompt, temperature=1.0)]
    ]
    roomy = run(make_engine(model), *requests)
    try:
        engine = make_engine(model, kv_bytes=4 * model.cache.cost(256))
        tight = run(engine, *requests)
    finally:
        model.cache.max_bytes = float("inf")
    assert engine.stats()["preemptions"] > 0
    assert [tight.tokens(r.id) for r in requests] == [roomy.tokens(r.id) for r in requests]
    assert 20 <= len(json.loads(decode(tight.tokens("r0")))) <= 30


def test_copies_of_one_prompt_are_held_each_on_its_own(model) -> None:
    (prompt,) = random_prompts([20])
    base = guided("r", PLANS["person"], prompt, temperature=1.2, n=6)
    found = run(make_engine(model), base)
    texts = set()
    for i in range(6):
        check("person", found.tokens("r", i), found.reason("r", i))
        texts.add(decode(found.tokens("r", i)))
    assert len(texts) > 1


def test_max_tokens_cuts_within_forced_tokens(model) -> None:
    (prompt,) = random_prompts([20])
    whole = run(make_engine(model), guided("r", PLANS["person"], prompt)).tokens("r")
    for limit in range(1, len(whole)):
        made = guided("r", PLANS["person"], prompt)
        made = replace(made, params=replace(made.params, max_tokens=limit))
        found = run(make_engine(model), made)
        assert found.tokens("r") == whole[:limit] and found.reason("r") == "length"


def test_log_probabilities_are_given_for_every_token_of_a_guided_row(model) -> None:
    (prompt,) = random_prompts([20])
    plain = run(make_engine(model), guided("r", PLANS["person"], prompt))
    found = run(make_engine(model), guided("r", PLANS["person"], prompt, logprobs=1))
    assert len(found.logprobs("r")) == len(found.tokens("r"))
    check("person", found.tokens("r"), found.reason("r"))
    assert plain.reason("r") == "stop"


def test_the_end_token_is_no_way_out_of_a_grammar(model) -> None:
    (prompt,) = random_prompts([20])
    biased = guided("r", PLANS["word"], prompt, logit_bias=((EOS, 100.0),))
    tokens = run(make_engine(model), biased).tokens("r")
    assert tokens[-1] == EOS and len(tokens) == 4  # as soon as it may, and not before
    ignored = guided("s", PLANS["word"], prompt, logit_bias=((EOS, 100.0),), ignore_eos=True)
    found = run(make_engine(model), ignored)
    assert found.reason("s") in ("stop", "length")


def test_a_guide_that_fails_ends_its_request_and_no_other(model) -> None:
    class Broken(Guide):
        def accept(self, token_id: int) -> None:
            super().accept(token_id)
            if len(seen) > 3:
                raise GuideError("too complex")
            seen.append(token_id)

    seen: list[int] = []
    good, bad = random_prompts([20, 30])
    plan = PLANS["calls"]
    broken = replace(guided("bad", None, bad, n=2), guide=lambda: Broken(plan))
    others = [guided("good", PLANS["person"], good), guided("free", None, good)]
    found = run(make_engine(model), broken, *others)
    assert "too complex" in str(found.errors["bad"])
    check("person", found.tokens("good"), found.reason("good"))
    alone = run(make_engine(model), others[1])
    assert found.tokens("free") == alone.tokens("free")


def test_a_failed_step_loses_no_guided_row(model) -> None:
    requests = mixture()
    expected = run(make_engine(model), *requests)
    engine = make_engine(model)
    forward, calls = model.forward, []

    def failing(*args):
        calls.append(1)
        if len(calls) in (3, 11):
            raise RuntimeError("out of luck")
        return forward(*args)

    engine.model.forward = failing
    try:
        found = run(engine, *requests)
    finally:
        del engine.model.forward
    assert not found.errors
    assert [found.tokens(r.id) for r in requests] == [expected.tokens(r.id) for r in requests]


def test_encoding_of_forced_text_is_the_vocabularys_own() -> None:
    guide = Plan(GRAMMARS, schema(PERSON))()
    forced = list(guide.forced())
    assert forced == encode(decode(forced))
