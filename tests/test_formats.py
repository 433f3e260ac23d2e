"""Which format a template means, what a prompt's end says of it, and its markup."""

from __future__ import annotations

import pytest
from grammars import Bytes, rendered
from literal_cases import TEMPLATES, source
from parsing import calls, content, fold, reasoning

from mlx_server.text.formats import SYNTAXES, OutputFormat, choose_format
from mlx_server.text.parsers.base import Thinking
from mlx_server.text.parsers.hermes import Hermes
from mlx_server.text.parsers.lark import Lark, ToolRule
from mlx_server.text.template import ChatTemplate

THINK = "<think>"

FORMATS: dict[str, tuple[str, str | None]] = {
    "Apertus-8B-Instruct": ("apertus", "<|inner_prefix|>"),
    "Apriel-1.6-15b-Thinker-fixed": ("apriel", "Here are my reasoning steps:"),
    "Bielik-11B-v3.0-Instruct": ("hermes", THINK),
    "ByteDance-Seed-OSS": ("seed-oss", "<seed:think>"),
    "Cohere2MoE": ("cohere-2", "<|START_THINKING|>"),
    "CohereForAI-c4ai-command-r-plus-tool_use": ("command-r-plus", None),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ("command-r7b", "<|START_THINKING|>"),
    "GLM-4.6": ("glm-lines", THINK),
    "GLM-4.7-Flash": ("glm", THINK),
    "GigaChat3-10B-A1.8B": ("gigachat-3", None),
    "GigaChat3.1-10B-A1.8B": ("gigachat-3.1", None),
    "HuggingFaceTB-SmolLM3-3B": ("generic", THINK),
    "Kimi-K2-Instruct": ("kimi-k2", None),
    "Kimi-K2-Thinking": ("kimi-k2", THINK),
    "Kimi-K3": ("kimi-k3", "<|open|>think<|sep|>"),
    "LFM2-8B-A1B": ("lfm2", None),
    "LFM2.5-8B-A1B": ("lfm2", THINK),
    "LFM2.5-Instruct": ("lfm2", THINK),
    "MiMo-VL": ("hermes", None),
    "MiniMax-M1": ("minimax-m1", None),
    "MiniMax-M2": ("minimax-m2", THINK),
    "MiniMax-M3": ("minimax-m3", "<mm:think>"),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral-call-id", None),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("qwen3-coder", THINK),
    "NVIDIA-Nemotron-Nano-v2": ("nemotron-nano-2", THINK),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": ("hermes", None),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", None),
    "Qwen-QwQ-32B": ("hermes", THINK),
    "Qwen-Qwen2.5-7B-Instruct": ("hermes", None),
    "Qwen-Qwen3-0.6B": ("hermes", THINK),
    "Qwen3-Coder": ("qwen3-coder", None),
    "Qwen3.5-4B": ("qwen3-coder", THINK),
    "Reka-Edge": ("reka", THINK),
    "Spark2.5": ("glm", THINK),
    "StepFun3.5-Flash": ("stepfun", THINK),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("generic", THINK),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("generic", THINK),
    "deepseek-ai-DeepSeek-V3.1": ("generic", THINK),
    "deepseek-ai-DeepSeek-V3.2": ("deepseek-v3.2", THINK),
    "deepseek-ai-DeepSeek-V4-Flash-0731": ("deepseek-v4", THINK),
    "deepseek-ai-DeepSeek-V4": ("deepseek-v4", THINK),
    "fireworks-ai-llama-3-firefunction-v2": ("firefunction-2", None),
    "google-gemma-2-2b-it": ("generic", None),
    "google-gemma-4-31B-it-interleaved": ("gemma-4", "<|channel>thought"),
    "google-gemma-4-31B-it": ("gemma-4", "<|channel>thought"),
    "ibm-granite-granite-3.3-2B-Instruct": ("granite-3", THINK),
    "ibm-granite-granite-4.0": ("hermes", None),
    "ibm-granite-granite-4.1": ("hermes", None),
    "inclusionai-ling-3.0-flash": ("ling", THINK),
    "llama-cpp-deepseek-r1": ("generic", THINK),
    "llama-cpp-rwkv-world": ("generic", THINK),
    "meetkai-functionary-medium-v3.1": ("functionary-3.1", None),
    "meetkai-functionary-medium-v3.2": ("functionary-3.2", None),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama-3", None),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama-3", None),
    "meta-llama-Llama-3.3-70B-Instruct": ("llama-3", None),
    "microsoft-Phi-3.5-mini-instruct": ("generic", None),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("mistral", "[THINK]"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral-list", None),
    "moonshotai-Kimi-K2": ("kimi-k2", None),
    "muse-glimmer": ("muse", None),
    "openai-gpt-oss-120b": ("harmony", None),
    "openbmb-MiniCPM5-1B": ("minicpm5", THINK),
    "poolside-Laguna-S-2.1": ("glm", THINK),
    "poolside-Laguna-XS-2.1": ("glm-lines", THINK),
    "poolside-Laguna-XS.2": ("glm-lines", THINK),
    "tencent-Hy3": ("hunyuan3", "<think:opensource>"),
    "unsloth-Apriel-1.5": ("apriel", "Here are my reasoning steps:"),
    "unsloth-mistral-Devstral-Small-2507": ("mistral", None),
    "upstage-Solar-Open-100B": ("solar-open", None),
}
"""The syntax (generic: the template knows no tools) and what opens the reasoning."""


def test_the_table_has_every_template():
    source("Kimi-K3")  # skips where there are none
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_has_its_format(name):
    template = source(name)
    knows_tools = ChatTemplate(template, {"bos_token": "", "eos_token": ""}).knows_tools
    found = choose_format(template, (), knows_tools)
    syntax = "generic" if found.generic else found.syntax.name
    opening = found.thinking.opening if found.thinking else None
    assert (syntax, opening) == FORMATS[name]
    if found.generic:
        assert isinstance(found.syntax, Hermes)


ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}


@pytest.mark.parametrize(
    ("name", "variables", "state"),
    [
        ("Qwen-Qwen3-0.6B", ON, "before"),
        ("Qwen-Qwen3-0.6B", OFF, "after"),
        ("Qwen-QwQ-32B", ON, "inside"),
        ("Qwen3.5-4B", ON, "inside"),
        ("Qwen3.5-4B", OFF, "after"),
        ("Qwen3-Coder", {}, "before"),
        ("HuggingFaceTB-SmolLM3-3B", ON, "before"),
        ("HuggingFaceTB-SmolLM3-3B", OFF, "after"),
        ("GLM-4.7-Flash", OFF, "after"),
        ("Reka-Edge", ON, "inside"),
        ("llama-cpp-rwkv-world", ON, "inside"),
        ("llama-cpp-rwkv-world", OFF, "after"),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", {}, "inside"),
        ("deepseek-ai-DeepSeek-V4", ON, "inside"),
        ("deepseek-ai-DeepSeek-V4", OFF, "after"),
        ("google-gemma-4-31B-it", ON, "before"),
        ("google-gemma-4-31B-it", OFF, "after"),
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", ON, "before"),
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", OFF, "after"),
        ("Apriel-1.6-15b-Thinker-fixed", {}, "inside"),
        ("Apertus-8B-Instruct", ON, "before"),
        ("Kimi-K3", {"thinking": True}, "inside"),
        ("Kimi-K3", {"thinking": False}, "after"),
        ("MiniMax-M3", {"thinking_mode": "disabled"}, "after"),
        ("ByteDance-Seed-OSS", {"thinking_budget": 0}, "after"),
        ("tencent-Hy3", {"reasoning_effort": "low"}, "inside"),
        ("openai-gpt-oss-120b", {}, "before"),
    ],
)
def test_a_prompts_end_says_where_the_reply_begins(name, variables, state):
    template = source(name)
    user = [{"role": "user", "content": "Q"}]
    variables = {"bos_token": "", **variables}
    prompt = rendered(template, user, add_generation_prompt=True, **variables)
    assert choose_format(template, (), True).state(prompt) == state


# ---------------------------------------------------------------- markup and parsers

TOOL = ToolRule("f", {"type": "object", "properties": {"a": {"type": "string"}}})
THINKING = Thinking("<think>", "</think>")
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_markup_has_all_that_a_grammar_writes_as_tokens(syntax):
    markup = OutputFormat(syntax, THINKING).markup
    assert {"<think>", "</think>", *filter(str.strip, syntax.marks)} <= markup
    # Each piece of markup as a token: the grammar is then made of no others.
    tags = sorted(tag for tag in markup if "<" in tag or "[" in tag)
    vocabulary = Bytes(tags)
    lark = Lark(vocabulary.specials)
    grammar = lark.grammar(syntax.calls(lark, [TOOL]))
    assert not vocabulary.matcher(grammar).is_error()
    assert all(f"<[{i}]>" not in grammar or vocabulary.decode([i]) in markup for i in range(400))


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("openai-gpt-oss-120b", ["<|channel|>", "<|message|>", "<|constrain|>", "<|return|>"]),
        ("Kimi-K2-Instruct", ["<|tool_call_argument_begin|>", "<|tool_calls_section_end|>"]),
        ("Kimi-K3", ["<|open|>", "<|close|>", "<|sep|>"]),
        ("google-gemma-4-31B-it", ["<|channel>", "<channel|>", '<|"|>', "<tool_call|>"]),
        ("deepseek-ai-DeepSeek-V4", ["｜DSML｜", "<think>", "</think>"]),
        ("LFM2.5-8B-A1B", ["<|tool_call_start|>", "<|tool_call_end|>"]),
        ("Qwen-Qwen3-0.6B", ["<tool_call>", "</tool_call>", "<think>"]),
    ],
)
def test_tokens_of_the_markup_are_in_it(name, tags):
    markup = choose_format(source(name), (), True).markup
    for tag in tags:
        assert any(tag in text for text in markup), tag
    assert not any("<|im_end|>" in text or "<|turn>" in text for text in markup)


def parsed(format_: OutputFormat, text: str, tools: list[ToolRule], **settings: bool) -> list:
    parser = format_.parser(tools, **settings)
    return fold([*parser.feed(text), *parser.flush()])


def test_a_reply_is_parsed_as_far_as_it_is_asked_for():
    format_ = OutputFormat(Hermes(), THINKING)
    text = f"<think>Hm</think>Yes{CALL}"
    events = parsed(format_, text, [TOOL])
    assert (reasoning(events), content(events), calls(events)) == ("Hm", "Yes", [("f", {})])
    events = parsed(format_, text, [])
    assert (reasoning(events), content(events)) == ("Hm", "Yes" + CALL)
    events = parsed(format_, text, [TOOL], reasoning=False)
    assert (reasoning(events), content(events)) == ("", "<think>Hm</think>Yes")
    events = parsed(format_, "Hm</think>Yes", [], inside=True)
    assert (reasoning(events), content(events)) == ("Hm", "Yes")


def test_a_reply_without_markup_needs_no_parser():
    plain, thinking = OutputFormat(Hermes(), None), OutputFormat(Hermes(), THINKING)
    assert plain.parser([]) is None
    assert plain.parser([TOOL]) is not None
    assert thinking.parser([]) is not None
    assert thinking.parser([], reasoning=False) is None
    harmony = choose_format("'<|channel|>analysis<|message|>'", (), True)
    assert harmony.parser([]) is not None
    assert harmony.parser([], reasoning=False) is None
    (kimi,) = (syntax for syntax in SYNTAXES if syntax.name == "kimi-k3")
    assert OutputFormat(kimi, None).parser([], reasoning=False) is not None


def test_unknown_templates_are_told_of_the_generic_form():
    found = choose_format("{{ messages }}", ("<think>", "</think>"), False)
    assert isinstance(found.syntax, Hermes)
    assert found.generic
    assert found.thinking == THINKING
    assert not choose_format("{{ tools }}", (), True).generic
