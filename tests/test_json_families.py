"""What a family's template writes for a call is what is read as one, and what its grammar
makes a model write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grammars import rendered
from json_families import (
    EMPTY,
    FAMILIES,
    NESTED,
    RULES,
    SHORT,
    SILENT,
    SPECIALS,
    TEMPLATES,
    THINK,
    WEATHER,
    Family,
    found,
    grammar,
    matching,
    vocabulary,
)
from parsing import calls, content, read, run

from mlx_server.text.formats import SYNTAXES
from mlx_server.text.parsers.events import CallPiece, CallStart
from mlx_server.text.parsers.lark import Lark

pytestmark = pytest.mark.skipif(not TEMPLATES.is_dir(), reason="no templates here")

OURS = {family.syntax for family in FAMILIES} | {"granite-3"}
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.template)
each_call = pytest.mark.parametrize("given", [WEATHER, EMPTY, NESTED], ids=lambda c: c[0])


def test_a_template_is_known_by_what_it_writes() -> None:
    expected = {f.template: f.syntax for f in FAMILIES} | dict(SILENT)
    for path in TEMPLATES.glob("*.jinja"):
        matched = {s.name for s in SYNTAXES if s.matches(path.read_text(), ())} & OURS
        # Reka writes Hermes' calls, with spaces of its own.
        wanted = expected.get(path.stem)
        assert matched - {"hermes" if wanted == "reka" else ""} == {wanted} - {None}, path.name
        if wanted is not None:
            assert matching(path.read_text()) == wanted


@each_family
@each_call
def test_what_the_template_writes_is_read(family: Family, given: tuple[str, Any]) -> None:
    syntax, text = found(family.syntax), family.reply("", [given])
    events = run([text], syntax, THINK)
    assert run(text, syntax, THINK) == events
    assert (calls(events), content(events)) == ([given], "")


@each_family
def test_two_calls_beside_text_at_every_split(family: Family) -> None:
    given = [SHORT, EMPTY][: family.most]
    said = "Hi, [1] <b>." if family.keeps else ""
    events = read(family.reply(said, given), found(family.syntax), THINK)
    assert (calls(events), content(events).lstrip()) == (given, said)


@each_family
def test_a_turn_without_calls_is_content(family: Family) -> None:
    events = run(family.reply("Hello {you}.\n- a\n[b]", []), found(family.syntax), THINK)
    assert (calls(events), content(events).strip()) == ([], "Hello {you}.\n- a\n[b]")


@each_family
@pytest.mark.parametrize("specials", [SPECIALS, ()], ids=["tokens", "text"])
def test_the_grammar_has_what_the_template_writes(
    family: Family, specials: tuple[str, ...]
) -> None:
    text, syntax = vocabulary(specials), found(family.syntax)
    one, many = (grammar(syntax, text, several=several) for several in (False, True))
    for given in (WEATHER, EMPTY, NESTED):
        reply = family.as_forced([given])
        assert text.accepts(one, reply), (reply, text.accepted(one, reply))
        assert text.accepts(many, reply)
    if family.most > 1:
        reply = family.as_forced([SHORT, EMPTY])
        assert text.accepts(many, reply), (reply, text.accepted(many, reply))
        assert not text.accepts(one, reply)


@each_family
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("get_weather", {}),
        ("get_weather", {"city": 1}),
        ("get_weather", {"city": "Bern", "unit": "K"}),
        ("now.f-2", {"a": 1}),
        ("other", {}),
    ],
)
def test_the_grammar_has_no_wrong_call(
    family: Family, name: str, arguments: dict[str, Any]
) -> None:
    text = vocabulary(SPECIALS)
    assert not text.accepts(
        grammar(found(family.syntax), text), family.as_forced([(name, arguments)])
    )


@each_family
def test_a_cut_text_gives_what_it_has(family: Family) -> None:
    name, arguments = given = ("get_weather", {"city": 'a "\n', "days": 3})
    text, syntax = family.reply("", [given]), found(family.syntax)
    whole = "".join(e.text for e in run([text], syntax, THINK) if isinstance(e, CallPiece))
    assert json.loads(whole) == arguments
    behind_name = text.index(name) + len(name)
    # A mark or a quote that ends the name, and what a mark that is cut looks like.
    certain = behind_name + len("[CALL_ID]")
    for end in range(len(text)):
        events = run([text[:end]], syntax, THINK)
        names = [event.name for event in events if isinstance(event, CallStart)]
        assert names in ([], [name])
        assert names or end < certain
        pieces = "".join(event.text for event in events if isinstance(event, CallPiece))
        assert whole.startswith(pieces)
        if names:
            assert not content(events)


@pytest.mark.parametrize(
    ("template", "syntax"),
    [(f.template, f.syntax) for f in FAMILIES] + [(t, s) for t, s in SILENT if s],
)
def test_an_answer_that_is_forced_is_read_as_its_body(template: str, syntax: str) -> None:
    text, family = vocabulary(SPECIALS), found(syntax)
    lark = Lark(text.specials)
    forced = lark.grammar(family.answer(lark, lark.json({"enum": [{"a": "{"}]})))
    reply = text.walk(forced, 0)
    assert content(run(reply, family, THINK)) == '{"a": "{"}'
    if not family.always:
        assert reply == '{"a": "{"}'


def test_the_prompt_of_functionary_ends_with_its_mark() -> None:
    """Which is why a reply's first part has none."""
    template = (TEMPLATES / "meetkai-functionary-medium-v3.2.jinja").read_text()
    user = [{"role": "user", "content": "Hi"}]
    prompt = rendered(template, user, bos_token="", tools=[], add_generation_prompt=True)
    assert prompt.endswith(">>>")
    assert found("functionary-3.2").leading_marks == (
        "all\n",
        *(f"{rule.name}\n" for rule in RULES),
    )
