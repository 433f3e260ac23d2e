"""Every family through the server: prompt, guide, engine, parser, deltas."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import pytest
from family_models import EOS, NAMES, Answer, Family, Reply, family, prompt, tags_of, written

from mlx_server.core import GenerationRequest, Grammar, Tool, ToolUse
from mlx_server.exchange import Guide
from mlx_server.text.parsers.events import CallStart

pytestmark = pytest.mark.skipif(not NAMES, reason="needs the templates in shared")
FAMILIES = pytest.mark.parametrize("name", NAMES)


UNRENDERED = {
    "Kimi-K2-Instruct",
    "Kimi-K2-Thinking",
    "LFM2-8B-A1B",
    "LFM2.5-Instruct",
    "deepseek-ai-DeepSeek-V4-Flash-0731",
    "ibm-granite-granite-3.3-2B-Instruct",
}
"""Templates that show no calls where they are rendered without the help of `ChatTemplate`."""

THINKERS = [
    "Apertus-8B-Instruct",
    "Bielik-11B-v3.0-Instruct",
    "ByteDance-Seed-OSS",
    "GLM-4.6",
    "HuggingFaceTB-SmolLM3-3B",
    "Kimi-K2-Thinking",
    "LFM2.5-8B-A1B",
    "LFM2.5-Instruct",
    "MiniMax-M3",
    "Qwen-Qwen3-0.6B",
    "Reka-Edge",
    "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-rwkv-world",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "openbmb-MiniCPM5-1B",
]
"""Models that begin their reasoning themselves, where they are asked in the usual way."""


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    given = {"type": "object", "properties": properties, "required": required}
    return {**given, "additionalProperties": False}


WEATHER = Tool(
    "get_weather",
    "Tells the weather.",
    _object(
        ["city", "days", "unit"],
        city={"type": "string", "minLength": 2, "maxLength": 12},
        days={"type": "integer", "minimum": 0, "maximum": 99},
        unit={"type": "string", "enum": ["C", "F"]},
        exact={"type": "boolean"},
    ),
)
PLAN = Tool(
    "make_plan",
    "Makes a plan.",
    _object(
        ["stops", "more"],
        stops={"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 3},
        more=_object(["kind"], kind={"enum": ["short", "long"]}, on={"type": "boolean"}),
    ),
)
NOW = Tool("now", "Tells the time.")
TOOLS = (WEATHER, PLAN, NOW)
SCHEMAS = {tool.name: tool.parameters or _object([]) for tool in TOOLS}

PERSON = _object(
    ["name", "age"],
    name={"type": "string", "maxLength": 6},
    age={"type": "integer", "minimum": 0, "maximum": 120},
)
SCHEMA = Grammar("json_schema", json.dumps(PERSON), "response_format")
PATTERN = "[a-f]{3,9}!"
REGEX = Grammar("regex", PATTERN, "regex")

REQUIRED = ToolUse(TOOLS, required=True)
WITH_TOOLS, PLAIN = prompt(TOOLS), prompt()


def ask(name: str, told: Any, **fields: Any) -> GenerationRequest:
    return GenerationRequest(name, None, (told,), **fields)


REQUESTS = {
    request.id: request
    for request in (
        ask("calls", WITH_TOOLS, tool_use=REQUIRED),
        ask("one", WITH_TOOLS, tool_use=replace(REQUIRED, parallel=False)),
        ask("named", WITH_TOOLS, tool_use=ToolUse((WEATHER,), True, False)),
        ask("either", WITH_TOOLS, tool_use=ToolUse(TOOLS), grammar=SCHEMA),
        ask("schema", PLAIN, grammar=SCHEMA),
        ask("regex", PLAIN, grammar=REGEX),
    )
}


def check_calls(reply: Reply, names: set[str]) -> None:
    assert (reply.reason, reply.content) == ("tool_calls", "")
    assert reply.calls
    for called, given in reply.calls:
        assert called in names
        jsonschema.validate(json.loads(given), dict(SCHEMAS[called]))


def check_schema(reply: Reply) -> None:
    assert (reply.reason, reply.calls) == ("stop", [])
    jsonschema.validate(json.loads(reply.content), PERSON)


def check(kind: str, reply: Reply) -> None:
    """What the request of this name promises."""
    match kind:
        case "schema":
            check_schema(reply)
        case "regex":
            assert (reply.reason, reply.calls) == ("stop", [])
            assert re.fullmatch(PATTERN, reply.content)
        case "either" if not reply.calls:
            check_schema(reply)
        case "one" | "named":
            assert len(reply.calls) == 1
            check_calls(reply, {"get_weather"} if kind == "named" else set(SCHEMAS))
        case _:
            check_calls(reply, set(SCHEMAS))


def asked(family: Family, seed: int) -> list[GenerationRequest]:
    biased = {"logit_bias": family.bias, "seed": seed}
    return [replace(r, options=biased, max_thinking_tokens=5) for r in REQUESTS.values()]


@cache
def answers(name: str) -> dict[str, Answer]:
    return family(name).answers(asked(family(name), seed=0))


@FAMILIES
def test_what_is_asked_for_comes(name: str) -> None:
    tags = set(tags_of(name))
    for kind, answer in answers(name).items():
        reply = answer.read()
        check(kind, reply)
        state = family(name).state(REQUESTS[kind])
        if state != "before":
            assert bool(reply.usage.reasoning_tokens) == (state == "inside")
        shown = [reply.content, *(given for _, given in reply.calls)]
        assert not any(tag in text for tag in tags for text in shown)


@FAMILIES
def test_whatever_comes_at_once_is_read_alike(name: str) -> None:
    for answer in answers(name).values():
        reply = answer.read()
        assert answer.read(at_once=True) == reply
        assert reply.usage.completion_tokens == len(answer.tokens)


@pytest.mark.parametrize("name", NAMES[::9])
def test_a_reply_is_the_same_alone_as_among_others(name: str) -> None:
    for request in asked(family(name), seed=0):
        (alone,) = family(name).answers([request]).values()
        assert alone.tokens == answers(name)[request.id].tokens
        assert alone.reason == answers(name)[request.id].reason


# ---------------------------------------------------------------- calls that the model begins


def follow(family: Family, request: GenerationRequest, tokens: Sequence[int]) -> Guide:
    """Have the guide accept a reply, read it meanwhile, and see that each call is held to
    its grammar where its name becomes known. Returns the guide behind all."""
    made, form = family.prepare(request)
    guide, parser = made.guide(), form.parser()
    detokenizer = family.tokenizer.detokenizer(made.token_ids, shown=form.shown)
    calls = 0
    for token in tokens:
        words = guide.allowed()
        assert words is None or words[token >> 5] >> (token & 31) & 1
        guide.accept(token)
        events = parser.feed(detokenizer.feed(token))
        starts = sum(isinstance(event, CallStart) for event in events)
        # One that is over with the token that makes its name known was held until then.
        assert not starts or words is not None or guide.allowed() is not None, events
        calls += starts
    assert calls
    return guide


@FAMILIES
def test_what_a_template_renders_is_held_to_from_its_beginning_on(name: str) -> None:
    model = family(name)
    known = model.tokenizer.format
    found = written(name)
    if found is None or known.generic:
        # Its template renders no calls of its family's; then it has none, or another's form.
        assert known.generic or name in UNRENDERED
        return
    rules, turns = found
    tools = tuple(Tool(rule.name, None, rule.schema) for rule in rules)
    request = ask("auto", prompt(tools), tool_use=ToolUse(tools))
    if model.state(request) == "inside":
        turns = [f"Hm.{known.thinking.closing}{known.thinking.tail}{turn}" for turn in turns]
    for turn in turns:
        tokens = model.replies.grammars.vocabulary.encode_markup(turn)
        guide = follow(model, request, tokens)
        assert guide.allowed() is None and not guide.ended, turn


@FAMILIES
@pytest.mark.parametrize("several", [True, False])
def test_what_a_required_call_looks_like_is_held_to_where_it_is_optional(
    name: str, several: bool
) -> None:
    model = family(name)
    last = model.tokenizer.encode(EOS)
    for kind in ("calls", "one") if several else ("one",):
        request = ask("auto", WITH_TOOLS, tool_use=ToolUse(TOOLS, parallel=several))
        tokens = list(answers(name)[kind].tokens)
        guide = follow(model, request, tokens[:-1] if tokens[-1:] == last else tokens)
        words = guide.allowed()
        if words is None:
            assert guide.ended == (not several)
        else:  # the family's end of all calls is still to come, or that of the reply
            assert words[last[0] >> 5] >> (last[0] & 31) & 1


# ---------------------------------------------------------------- reasoning

SWITCHES = [{}, {"enable_thinking": True}, {"enable_thinking": False}]


@FAMILIES
@pytest.mark.parametrize("switch", SWITCHES, ids=["", "on", "off"])
def test_a_budget_ends_the_reasoning_of_a_free_reply(name: str, switch: dict[str, bool]) -> None:
    model = family(name)
    thinking = model.tokenizer.format.thinking
    no_tags = tuple((i, -100.0) for i in model.tokenizer.markup_tokens.values())
    options = {"max_tokens": 40, "ignore_eos": True, "logit_bias": no_tags}
    free = ask("free", prompt(**switch), options=options)
    state = model.state(free)
    assert model.prepare(free)[0].guide is None  # it costs nothing
    limited = replace(free, max_thinking_tokens=5)
    if thinking is None or state == "before":
        # The model begins its reasoning itself, which a guide waits for, or it has none.
        thinks = thinking is not None or model.tokenizer.format.syntax.thinks
        assert (model.prepare(limited)[0].guide is not None) == thinks
        return
    (answer,) = model.answers([limited]).values()
    reply = answer.read()
    if state == "after":
        assert (reply.reasoning, reply.usage.reasoning_tokens) == ("", 0)
        return
    closing = model.replies.grammars.vocabulary.encode_markup(thinking.closing + thinking.tail)
    assert list(answer.tokens[5 : 5 + len(closing)]) == closing
    assert 5 < reply.usage.reasoning_tokens <= 5 + len(closing)
    thought = model.tokenizer.decode(answer.tokens[:5], skip_special_tokens=True)
    assert reply.reasoning == thought.strip()
    assert thinking.closing not in reply.content


def opening_token(name: str) -> int | None:
    """The token with which the model begins its reasoning by itself, if it does."""
    tokenizer = family(name).tokenizer
    thinking = tokenizer.format.thinking
    if thinking is None or family(name).state(REQUESTS["schema"]) != "before":
        return None
    return tokenizer.markup_tokens.get(thinking.opening)


def test_who_thinks_of_itself_is_known() -> None:
    assert [name for name in NAMES if opening_token(name) is not None] == THINKERS


@pytest.mark.parametrize("name", THINKERS)
def test_a_model_that_thinks_of_itself_answers_behind_it(name: str) -> None:
    model = family(name)
    opening = opening_token(name)
    options = {"logit_bias": (*model.bias, (opening, 60.0))}
    asked = [REQUESTS["schema"], REQUESTS["calls"]]
    found = model.answers([replace(r, options=options, max_thinking_tokens=5) for r in asked])
    for kind, answer in found.items():
        reply = answer.read()
        assert answer.tokens[0] == opening
        assert reply.reasoning and reply.usage.reasoning_tokens > 5
        check(kind, reply)
