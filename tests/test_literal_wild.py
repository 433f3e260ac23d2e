"""Families of their own kind: what models write that their templates do not."""

from __future__ import annotations

import pytest
from literal_cases import FAMILIES, TOOLS
from parsing import calls, content, read, reasoning

from mlx_server.text.parsers.apertus import Apertus
from mlx_server.text.parsers.base import Thinking
from mlx_server.text.parsers.deepseek import DEEPSEEK_R1, DEEPSEEK_V3_1
from mlx_server.text.parsers.dsml import DEEPSEEK_V3_2, DEEPSEEK_V4
from mlx_server.text.parsers.events import CallStart
from mlx_server.text.parsers.gemma import FUNCTION_GEMMA, GEMMA_4
from mlx_server.text.parsers.kimi import KimiK2
from mlx_server.text.parsers.kimi_k3 import KimiK3
from mlx_server.text.parsers.lark import ToolRule
from mlx_server.text.parsers.muse import MUSE
from mlx_server.text.parsers.pythonic import LFM2, LLAMA_PYTHONIC

KIMI, APERTUS, K3 = KimiK2(), Apertus(), KimiK3()
KIMI_CALL = '<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>'
R1_CALL = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>'
V3_CALL = '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
K3_OPEN = '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|>'
INVOKE = '<｜DSML｜tool_calls><｜DSML｜invoke name="f"><｜DSML｜parameter name="a"'
ENDS = "</｜DSML｜parameter></｜DSML｜invoke>"
ATEM = '<atem:invoke name="f"><atem:parameter name="a">1</atem:parameter></atem:invoke>'

ONE = [("f", {"a": 1})]


@pytest.mark.parametrize(
    ("syntax", "text", "expected"),
    [
        # The outer marks, the inner ones or the last ones are missing.
        (KIMI, KIMI_CALL, ONE),
        (KIMI, "<|tool_call_section_begin|>" + KIMI_CALL + "<|tool_call_section_end|>", ONE),
        (KIMI, "<|tool_calls_section_begin|>\n" + KIMI_CALL.removesuffix("<|tool_call_end|>"), ONE),
        (KIMI, KIMI_CALL.replace("functions.", "").replace(":0", ""), ONE),
        (KIMI, "<|tool_call_begin|>functions.f:0<|tool_call_end|>", [("f", {})]),
        (KIMI, KIMI_CALL.replace('{"a": 1}', '"{\\"a\\": 1}"'), ONE),
        (DEEPSEEK_R1, R1_CALL, ONE),
        (DEEPSEEK_R1, f"<｜tool▁calls▁begin｜>\n{R1_CALL}\n<｜tool▁calls▁end｜>", ONE),
        (DEEPSEEK_R1, f"<｜tool calls begin｜>{V3_CALL}<｜tool▁calls▁end｜>", ONE),
        (DEEPSEEK_R1, "<｜tool▁calls▁begin｜>" + R1_CALL.replace("```json", "```"), ONE),
        (DEEPSEEK_R1, R1_CALL.replace("```json", "").replace("```", ""), ONE),
        (DEEPSEEK_R1, R1_CALL.replace('```json\n{"a": 1}\n```', ""), [("f", {})]),
        (DEEPSEEK_V3_1, V3_CALL, ONE),
        (DEEPSEEK_V3_1, f"<｜tool▁calls▁begin｜>{V3_CALL} {V3_CALL}<｜tool▁calls▁end｜>", ONE * 2),
        (DEEPSEEK_V3_1, V3_CALL.replace('{"a": 1}', ""), [("f", {})]),
        (APERTUS, '<|tools_prefix|>[{"f": {"a": 1}}, {"f": null}]', [*ONE, ("f", {})]),
        (APERTUS, '<|tools_prefix|> {"f": {"a": 1}}<|tools_suffix|>', ONE),
        # Values without their type, or in JSON's form.
        (DEEPSEEK_V4, f"{INVOKE}>1{ENDS}", ONE),
        (DEEPSEEK_V4, f'{INVOKE} string="true">1{ENDS}', [("f", {"a": "1"})]),
        (MUSE, ATEM, ONE),
        (K3, K3_OPEN + '<|open|>json type="object"<|sep|>{"a": 1}<|close|>json<|sep|>', ONE),
        (K3, K3_OPEN + '<|open|>argument key="a" type="number"<|sep|>x<|close|>argument<|sep|>'
         "<|close|>call<|sep|>", [("f", {"a": "x"})]),
        (GEMMA_4, '<|tool_call> call:f{"a": 1}', ONE),
        (GEMMA_4, "<|tool_call>call:f{a:1,}<tool_call|>", ONE),
        (GEMMA_4, '<|tool_call>{"name": "f", "arguments": {"a": 1}}<tool_call|>', ONE),
        (GEMMA_4, "<|tool_call>call:f{a: Bern ,b:[None,True]}<tool_call|>",
         [("f", {"a": "Bern", "b": [None, True]})]),
        (FUNCTION_GEMMA, "<start_function_call>call:f{a:1}<end_function_call>", ONE),
        (LFM2, "<|tool_call_start|>f(a=1)<|tool_call_end|>", ONE),
        (LFM2, "<|tool_call_start|>[ f( a = 1, ) , f(a=1) ]", ONE * 2),
        (LFM2, '<|tool_call_start|>[{"name": "f", "arguments": {"a": 1}}]<|tool_call_end|>', ONE),
        (LFM2, "<|tool_call_start|>[f(a='it's', b=\"x\\u00e9\\n\\q\")]<|tool_call_end|>",
         [("f", {"a": "it's", "b": "xé\n\\q"})]),
        (LFM2, "<|tool_call_start|>[f(a=(1, 0x10), b={'c': Bern, 2: .5}, d=01, e={}, g=[])]",
         [("f", {"a": [1, 16], "b": {"c": "Bern", "2": 0.5}, "d": "01", "e": {}, "g": []})]),
        (LLAMA_PYTHONIC, "[f(a=1), f()]", [*ONE, ("f", {})]),
        (LLAMA_PYTHONIC, "<|python_start|>[f(a=1)]<|python_end|>", ONE),
    ],
)  # fmt: skip
def test_another_form_is_read_as_well(syntax, text, expected):
    events = read(text, syntax)
    assert calls(events) == expected
    assert content(events) in ("", "<|python_end|>")


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        (KIMI, "<|tool_calls_section_begin|> is a tag."),
        (KIMI, "<|tool_calls_section_begin|><|tool_call_begin|>no id here<|tool_call_end|>"),
        (DEEPSEEK_R1, "See <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>."),
        (DEEPSEEK_R1, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
        (DEEPSEEK_V3_1, "<｜tool▁call▁begin｜>two words<｜tool▁sep｜>{}"),
        (DEEPSEEK_V3_1, '<｜tool▁calls▁begin｜>{"a": 1}'),
        (DEEPSEEK_V3_2, "A <｜DSML｜function_calls> block."),
        (MUSE, "to=bob, or not to=bob"),
        (MUSE, "The <atem:function_calls> tag."),
        (K3, "<|open|>tools<|sep|>none"),
        (GEMMA_4, "The <|tool_call> token."),
        (GEMMA_4, "<|tool_call>call:me maybe"),
        (FUNCTION_GEMMA, "<start_function_call>call: two words{a:1}"),
        (APERTUS, '<|tools_prefix|>[{"f" 1}]'),
        (APERTUS, "<|tools_prefix|>[]<|tools_suffix|>"),
        (LFM2, "<|tool_call_start|>[1, 2]<|tool_call_end|> and more"),
        (LLAMA_PYTHONIC, "[1] says (so)"),
        (LLAMA_PYTHONIC, "[link](http://x.y?a=1)"),
        (LLAMA_PYTHONIC, "[note(s)] are"),
        (LLAMA_PYTHONIC, "See [f(a=1)]"),
    ],
)
def test_what_is_no_call_stays_content(syntax, text):
    events = read(text, syntax)
    assert content(events) == text
    assert calls(events) == []


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"harmony", "muse", "pythonic"}))
def test_content_may_come_before_and_behind(name):
    family = FAMILIES[name]
    text = family.written([("now", {})])
    events = read(f"Well, {text} Done.", family.syntax)
    assert calls(events) == [("now", {})]
    assert content(events) == "Well,Done."


def test_the_id_is_the_models_own():
    bare = KIMI_CALL.replace(":0", "")  # without a number it would not be the only one
    starts = [e for e in read(KIMI_CALL + bare, KIMI) if isinstance(e, CallStart)]
    assert starts == [CallStart("f", "functions.f:0"), CallStart("f")]


@pytest.mark.parametrize(
    ("syntax", "call"),
    [(KIMI, KIMI_CALL), (APERTUS, '<|tools_prefix|>[{"f": {"a": 1}}]<|tools_suffix|>')],
)
def test_a_call_ends_the_reasoning(syntax, call):
    events = read(f"<think>So: {call}Done", syntax, Thinking("<think>", "</think>"))
    assert (reasoning(events), calls(events), content(events)) == ("So:", ONE, "Done")


def test_a_known_tool_needs_no_more_than_its_name():
    known = LLAMA_PYTHONIC.for_tools([ToolRule("f", {})])
    assert calls(read("[f(1)]", known)) == [("f", {"0": 1})]
    assert content(read("[g(1)]", known)) == "[g(1)]"


@pytest.mark.parametrize(
    "text", ['<|tool_call_start|>[files.write-text("x", text="y")]', "[files.write-text('x', 'y')]"]
)
def test_arguments_without_names_have_the_tools(text):
    syntax = LLAMA_PYTHONIC if text[0] == "[" else LFM2
    found = calls(read(text, syntax.for_tools(TOOLS)))
    assert found == [("files.write-text", {"path": "x", "text": "y"})]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [({"type": "string"}, "01"), ({"type": "integer"}, 1), ({}, "01"), (None, "01")],
)
def test_muses_texts_are_typed_by_the_schema(schema, expected):
    tools = [ToolRule("f", {"properties": {"a": schema}})] if schema is not None else []
    value = "1" if expected == 1 else "01"
    text = f'<atem:invoke name="f"><atem:parameter name="a">{value}</atem:parameter></atem:invoke>'
    assert calls(read(text, MUSE.for_tools(tools))) == [("f", {"a": expected})]
