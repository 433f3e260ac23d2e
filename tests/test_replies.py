"""What a request asks for becomes a guide and a parser: which replies may come, and how they
are read, for each kind of request and wherever its prompt ends."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from parsing import calls, content, fold, reasoning
from transformers import PreTrainedTokenizerFast

from mlx_server import demo
from mlx_server.core import (
    ChatPrompt,
    GenerationRequest,
    Grammar,
    Message,
    Prompt,
    TextPart,
    TextPrompt,
    Tool,
    ToolUse,
)
from mlx_server.errors import RequestError
from mlx_server.replies import ReplyForm, ReplyForms, closed
from mlx_server.text.tokenizer import Tokenizer

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ANSWERS = TURNS + "<|im_start|>assistant\n"
TEMPLATES = {
    "never": ANSWERS,
    "before": ANSWERS.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"),
    "inside": ANSWERS + "<think>\n",
    "after": ANSWERS + "<think>\n\n</think>\n\n",
}
"""By where the prompt ends: before the reasoning, within it, behind it; or there is none."""

MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

ADD = Tool(
    "add",
    parameters={
        "properties": {"a": {"type": "integer"}, "b": {"enum": [1, 2]}},
        "required": ["a", "b"],
    },
)
NOW = Tool("now")
AUTO, REQUIRED = ToolUse((ADD, NOW)), ToolUse((ADD, NOW), required=True)
DIGITS = Grammar("regex", "[0-9]{2}", "regex")

CALL_ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 5, "b": 2}}\n</tool_call>'
CALL_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
MADE_ADD, MADE_NOW = ("add", {"a": 5, "b": 2}), ("now", {})
WRONG_NAME = CALL_NOW.replace("now", "then")
WRONG_VALUE = CALL_ADD.replace("2}", "3}")


def load(state: str) -> Tokenizer:
    """The bundled model's tokenizer; models that think have tokens for the marks."""
    hf = PreTrainedTokenizerFast.from_pretrained(demo.path())
    if state != "never":
        hf.add_tokens(MARKS, special_tokens=True)
    return Tokenizer(hf, chat_template=TEMPLATES[state])


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {state: load(state) for state in TEMPLATES}


class Model:
    """Of one prompt state, with the settings that the server was given."""

    def __init__(self, tokenizer: Tokenizer, **settings: Any) -> None:
        self.tokenizer = tokenizer
        self.forms = ReplyForms(tokenizer, tokenizer.vocab_size + 8, **settings)

    def form(self, prompt: Prompt | None = None, **fields: Any) -> ReplyForm:
        tools = fields["tool_use"].tools if fields.get("tool_use") else ()
        prompt = prompt or ChatPrompt((Message("user", (TextPart("Hey"),)),), tools=tools)
        request = GenerationRequest("r", None, (prompt,), **fields)
        return self.forms.of(request, prompt, self.tokenizer.encode_prompt(prompt))

    def allows(self, form: ReplyForm, reply: str, *, whole: bool = True) -> bool:
        """Whether a reply may come; with `whole`, whether it may also end there."""
        guide, vocabulary = form.guide(), self.forms.grammars.vocabulary
        for token in vocabulary.encode_markup(reply):
            if guide.ended or not self._allowed(guide, token):
                return False
            guide.accept(token)
        ends = (self._allowed(guide, token) for token in vocabulary.eos_token_ids)
        return not whole or guide.ended or any(ends)

    @staticmethod
    def _allowed(guide: Any, token: int) -> bool:
        words = guide.allowed()
        return words is None or bool(words[token >> 5] >> (token & 31) & 1)


@pytest.fixture
def model(tokenizers: dict[str, Tokenizer]) -> Any:
    return lambda state="never", **settings: Model(tokenizers[state], **settings)


def read(form: ReplyForm, reply: str) -> tuple[str, str, list]:
    """Its reasoning, content and calls."""
    parser = form.parser()
    events = fold([*parser.feed(reply), *parser.flush()])
    return reasoning(events), content(events), calls(events)


# ---------------------------------------------------------------- no guide


@pytest.mark.parametrize("state", TEMPLATES)
@pytest.mark.parametrize("limit", [None, -1])
def test_a_plain_request_costs_nothing(model, state: str, limit: int | None) -> None:
    form = model(state).form(max_thinking_tokens=limit)
    assert form.guide is None
    assert (form.parser() is None) == (state == "never")


def test_a_text_is_no_chat(model) -> None:
    text = TextPrompt("One, two")
    assert model("inside").form(text) == ReplyForm()
    bound = model("inside")
    form = bound.form(text, grammar=DIGITS)
    assert form.parser() is None
    assert bound.allows(form, "42") and not bound.allows(form, "hm</think>42")


def test_a_limit_needs_reasoning_to_be_limited(model) -> None:
    for state in ("never", "after"):
        assert model(state).form(max_thinking_tokens=5).guide is None
    for state in ("before", "inside"):
        assert model(state).form(max_thinking_tokens=5).guide is not None


# ---------------------------------------------------------------- what may come


@pytest.mark.parametrize(
    ("fields", "allowed", "refused"),
    [
        pytest.param(
            {"tool_use": AUTO},
            ["hello", CALL_ADD, "Let me see.\n" + CALL_ADD + "\n" + CALL_NOW, CALL_NOW + " done"],
            [WRONG_NAME, WRONG_VALUE, "Well: " + WRONG_VALUE],
            id="auto",
        ),
        pytest.param(
            {"tool_use": REQUIRED},
            [CALL_ADD, CALL_NOW, CALL_ADD + "\n" + CALL_NOW],
            ["hello", " " + CALL_ADD, CALL_ADD + " done", WRONG_NAME, WRONG_VALUE, ""],
            id="required",
        ),
        pytest.param(
            {"tool_use": ToolUse((ADD,), required=True, parallel=False)},
            [CALL_ADD],
            [CALL_NOW, CALL_ADD + "\n" + CALL_ADD, ""],
            id="one and no other",
        ),
        pytest.param(
            {"tool_use": ToolUse((ADD, NOW), parallel=False)},
            ["hello", CALL_ADD, "Well. " + CALL_NOW],
            [CALL_ADD + "\n" + CALL_NOW, CALL_ADD + " done"],
            id="one at most",
        ),
        pytest.param({"grammar": DIGITS}, ["42"], ["4", "x", "421", CALL_ADD], id="grammar"),
        pytest.param(
            {"grammar": DIGITS, "tool_use": AUTO},
            ["42", CALL_ADD, CALL_ADD + "\n" + CALL_NOW],
            ["hello", "42" + CALL_ADD, CALL_ADD + "42", WRONG_NAME, ""],
            id="grammar or call",
        ),
    ],
)
@pytest.mark.parametrize("state", TEMPLATES)
def test_what_may_come(
    model, state: str, fields: dict[str, Any], allowed: list[str], refused: list[str]
) -> None:
    known = model(state)
    form = known.form(**fields)
    thoughts = {"inside": ["hm</think>\n\n"], "before": ["", "<think>hm</think>\n\n"]}
    for thought in thoughts.get(state, [""]):
        for reply in allowed:
            assert known.allows(form, thought + reply), thought + reply
        for reply in refused:
            assert not known.allows(form, thought + reply), thought + reply


def test_whoever_thinks_must_answer(model) -> None:
    known = model("inside")
    form = known.form(tool_use=REQUIRED)
    assert known.allows(form, "hm", whole=False) and not known.allows(form, "hm")
    assert not known.allows(form, "hm</think>\n\n")
    free = known.form(tool_use=AUTO)
    assert known.allows(free, "hm") and known.allows(free, "hm</think>\n\n")


@pytest.mark.parametrize("state", ["never", "after"])
def test_nobody_begins_to_think_whose_turn_that_is_not(model, state: str) -> None:
    known = model(state)
    assert not known.allows(known.form(grammar=DIGITS), "<think>hm</think>\n\n42")


@pytest.mark.parametrize(
    ("asked", "served", "limit"),
    [(3, None, 3), (None, 3, 3), (0, 3, 0), (3, 1, 3), (-1, 3, None), (None, None, None)],
)
def test_the_requests_limit_comes_before_the_servers(
    model, asked: int | None, served: int | None, limit: int | None
) -> None:
    known = model("inside", max_thinking_tokens=served)
    for fields in ({}, {"grammar": DIGITS}, {"tool_use": AUTO}):
        form = known.form(max_thinking_tokens=asked, **fields)
        if limit is None and not fields:
            assert form.guide is None
            continue
        guide = form.guide()
        closing = known.forms.grammars.vocabulary.specials["</think>"]
        for thoughts in range(limit if limit is not None else 40):
            assert closing not in guide.forced(), thoughts
            guide.accept(ord("a"))
        assert (closing in guide.forced()) == (limit is not None)


def test_each_reply_has_a_guide_of_its_own(model) -> None:
    known = model()
    form = known.form(grammar=DIGITS, n=2)
    first, second = form.guide(), form.guide()
    for token in known.forms.grammars.vocabulary.encode("42"):
        first.accept(token)
    assert first.ended and not second.ended


def test_any_end_token_may_end_a_reply() -> None:
    hf = PreTrainedTokenizerFast.from_pretrained(demo.path())
    several = Tokenizer(hf, chat_template=ANSWERS, eos_token_ids=[0, 2])
    known = Model(several)
    number = Grammar("regex", "[0-9]+", "regex")
    for fields, reply in (({"tool_use": REQUIRED}, CALL_ADD), ({"grammar": number}, "42")):
        guide = known.form(**fields).guide()
        for token in known.forms.grammars.vocabulary.encode_markup(reply):
            guide.accept(token)
        words = guide.allowed()
        assert [bool(words[0] >> token & 1) for token in (0, 1, 2)] == [True, False, True]


# ---------------------------------------------------------------- how it is read


@pytest.mark.parametrize(
    ("state", "fields", "reply", "expected"),
    [
        ("never", {"tool_use": AUTO}, "a " + CALL_ADD, ("", "a", [MADE_ADD])),
        ("never", {"tool_use": AUTO}, CALL_ADD + "\n" + CALL_NOW, ("", "", [MADE_ADD, MADE_NOW])),
        ("before", {}, "<think>\nhm\n</think>\n\na", ("hm", "a", [])),
        ("before", {}, "a <think>", ("", "a <think>", [])),
        ("before", {}, CALL_NOW, ("", CALL_NOW, [])),
        ("inside", {}, "hm\n</think>\n\na", ("hm", "a", [])),
        ("inside", {"tool_use": AUTO}, "hm</think>\n" + CALL_NOW, ("hm", "", [MADE_NOW])),
        ("inside", {"tool_use": AUTO}, "hm " + CALL_NOW, ("hm", "", [MADE_NOW])),
        ("after", {}, "hm", ("", "hm", [])),
        ("after", {"grammar": DIGITS}, "42", ("", "42", [])),
    ],
)
def test_how_it_is_read(
    model, state: str, fields: dict[str, Any], reply: str, expected: tuple
) -> None:
    assert read(model(state).form(**fields), reply) == expected


def test_reasoning_can_stay_in_the_content(model) -> None:
    known = model("inside", reasoning_format="none")
    assert known.form().parser() is None
    form = known.form(tool_use=AUTO)
    assert read(form, "hm</think>\n\n" + CALL_NOW) == ("", "hm</think>", [MADE_NOW])


def test_markup_that_is_special_is_shown_to_the_parser(model) -> None:
    known = model("inside")
    marks = {known.forms.grammars.vocabulary.specials[text] for text in MARKS}
    assert known.form(tool_use=AUTO).shown == marks
    assert model().form(tool_use=AUTO).shown == frozenset()


# ---------------------------------------------------------------- schemas


BROKEN = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}


def test_a_schema_that_does_not_compile_is_let_go_and_told_once(model, caplog) -> None:
    known = model()
    use = ToolUse((Tool("broken_once", parameters=BROKEN), ADD), required=True)
    with caplog.at_level(logging.WARNING):
        form = known.form(tool_use=use)
        known.form(tool_use=use)
    (record,) = caplog.records
    assert "broken_once" in record.getMessage()
    any_arguments = CALL_NOW.replace("now", "broken_once").replace("{}", '{"a": 1, "z": [2]}')
    assert known.allows(form, any_arguments) and known.allows(form, CALL_ADD)
    assert not known.allows(form, WRONG_VALUE)


def patterned(count: int) -> tuple[Tool, ...]:
    words = [{"type": "string", "pattern": f"^[a-z]{{3,{20 + i}}}$"} for i in range(count)]
    return tuple(Tool(f"t{i}", None, {"properties": {"p": p}}) for i, p in enumerate(words))


def test_tools_that_are_too_much_together_are_called_with_any_arguments(model, monkeypatch) -> None:
    monkeypatch.setattr("mlx_server.sampling.grammar.MAX_LEXER_FUEL", 1000)
    known = model()
    form = known.form(tool_use=ToolUse(patterned(40), required=True))
    assert known.allows(form, CALL_NOW.replace("now", "t7").replace("{}", '{"z": [1]}'))
    assert not known.allows(form, CALL_NOW)
    held = known.form(tool_use=ToolUse(patterned(2), required=True))
    assert not known.allows(held, CALL_NOW.replace("now", "t0").replace("{}", '{"z": [1]}'))
    monkeypatch.setattr("mlx_server.sampling.grammar.MAX_LEXER_FUEL", 1)
    with pytest.raises(RequestError, match="cannot be called") as refused:
        model().form(tool_use=ToolUse(patterned(2), required=True))
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("gbnf", "root ::= (", "grammar"),
        Grammar("regex", "(", "regex"),
        Grammar("json_schema", json.dumps(BROKEN), "json_schema"),
    ],
)
@pytest.mark.parametrize("tool_use", [None, AUTO])
def test_a_grammar_that_does_not_compile_is_refused(
    model, grammar: Grammar, tool_use: ToolUse | None
) -> None:
    with pytest.raises(RequestError) as refused:
        model().form(grammar=grammar, tool_use=tool_use)
    assert (refused.value.status, refused.value.param) == (400, grammar.param)


@pytest.mark.parametrize(
    ("schema", "more"),
    [
        ({}, {"type": "object"}),
        ({"properties": {}}, {"type": "object", "additionalProperties": False}),
        ({"type": "object", "properties": {"a": {}}}, {"additionalProperties": False}),
        ({"properties": {"a": {}}, "additionalProperties": True}, {"type": "object"}),
        ({"properties": {}, "patternProperties": {"x": {}}}, {"type": "object"}),
        ({"properties": {}, "anyOf": [{"required": ["b"]}]}, {"type": "object"}),
        ({"properties": {"a": {}}, "$ref": "#/$defs/x"}, {"type": "object"}),
    ],
)
def test_an_object_has_the_parameters_it_names(schema: dict, more: dict) -> None:
    before = json.dumps(schema)
    assert closed(schema) == schema | more
    assert json.dumps(schema) == before
