"""llama.cpp's named templates, and what each makes of a conversation."""

from __future__ import annotations

from functools import cache

import pytest

from mlx_server.core import Message, TextPart, Tool
from mlx_server.text.template import ChatTemplate
from mlx_server.text.template_names import TEMPLATES


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})


def turns(*pairs: str) -> list[Message]:
    split = (pair.split(":", 1) for pair in pairs)
    return [Message(role, (TextPart(text),)) for role, text in split]


TALK = turns("system:Be kind", "user:Hello", "assistant:Hi there", "user:Who", "assistant: I am ",
             "user:Next")  # fmt: skip

RENDERED = {
    "chatml": "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho<|im_end|>\n"
    "<|im_start|>assistant\n I am <|im_end|>\n<|im_start|>user\nNext<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama2": "[INST] Be kind\nHello [/INST]Hi there</s>[INST] Who [/INST] I am </s>"
    "[INST] Next [/INST]",
    "llama2-sys": "[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nHello [/INST]Hi there</s>"
    "[INST] Who [/INST] I am </s>[INST] Next [/INST]",
    "llama2-sys-bos": "[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nHello [/INST]Hi there</s>"
    "<s>[INST] Who [/INST] I am </s><s>[INST] Next [/INST]",
    "llama2-sys-strip": "[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nHello [/INST]Hi there</s>"
    "[INST] Who [/INST]I am</s>[INST] Next [/INST]",
    "mistral-v1": " [INST] Be kind\n\nHello [/INST] Hi there</s> [INST] Who [/INST]  I am </s>"
    " [INST] Next [/INST]",
    "mistral-v3": "[INST] Be kind\n\nHello[/INST] Hi there</s>[INST] Who[/INST] I am</s>"
    "[INST] Next[/INST]",
    "mistral-v3-tekken": "[INST]Be kind\n\nHello[/INST]Hi there</s>[INST]Who[/INST] I am </s>"
    "[INST]Next[/INST]",
    "mistral-v7": "[SYSTEM_PROMPT] Be kind[/SYSTEM_PROMPT][INST] Hello[/INST] Hi there</s>"
    "[INST] Who[/INST]  I am </s>[INST] Next[/INST]",
    "phi3": "<|system|>\nBe kind<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n"
    "<|user|>\nWho<|end|>\n<|assistant|>\n I am <|end|>\n<|user|>\nNext<|end|>\n<|assistant|>\n",
    "gemma": "<start_of_turn>user\nBe kind\n\nHello<end_of_turn>\n<start_of_turn>model\n"
    "Hi there<end_of_turn>\n<start_of_turn>user\nWho<end_of_turn>\n<start_of_turn>model\nI am"
    "<end_of_turn>\n<start_of_turn>user\nNext<end_of_turn>\n<start_of_turn>model\n",
    "orion": "Human: Be kind\n\nHello\n\nAssistant: </s>Hi there</s>Human: Who\n\nAssistant: </s>"
    " I am </s>Human: Next\n\nAssistant: </s>",
    "openchat": "Be kind<|end_of_turn|>GPT4 Correct User: Hello<|end_of_turn|>"
    "GPT4 Correct Assistant: Hi there<|end_of_turn|>GPT4 Correct User: Who<|end_of_turn|>"
    "GPT4 Correct Assistant:  I am <|end_of_turn|>GPT4 Correct User: Next<|end_of_turn|>"
    "GPT4 Correct Assistant:",
    "vicuna": "Be kind\n\nUSER: Hello\nASSISTANT: Hi there</s>\nUSER: Who\nASSISTANT:  I am </s>\n"
    "USER: Next\nASSISTANT:",
    "vicuna-orca": "SYSTEM: Be kind\nUSER: Hello\nASSISTANT: Hi there</s>\nUSER: Who\n"
    "ASSISTANT:  I am </s>\nUSER: Next\nASSISTANT:",
    "deepseek": "Be kind### Instruction:\nHello\n### Response:\nHi there\n<|EOT|>\n"
    "### Instruction:\nWho\n### Response:\n I am \n<|EOT|>\n### Instruction:\nNext\n"
    "### Response:\n",
    "deepseek2": "Be kind\n\nUser: Hello\n\nAssistant: Hi there<｜end▁of▁sentence｜>User: Who\n\n"
    "Assistant:  I am <｜end▁of▁sentence｜>User: Next\n\nAssistant:",
    "deepseek3": "Be kind\n\n<｜User｜>Hello<｜Assistant｜>Hi there<｜end▁of▁sentence｜>"
    "<｜User｜>Who<｜Assistant｜> I am <｜end▁of▁sentence｜><｜User｜>Next<｜Assistant｜>",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe kind<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWho<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nI am<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nNext<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "minicpm": "Be kind<用户>Hello<AI>Hi there<用户>Who<AI>I am<用户>Next<AI>",
    "monarch": "system\nBe kind</s>\n<s>user\nHello</s>\n<s>assistant\nHi there</s>\n<s>user\n"
    "Who</s>\n<s>assistant\n I am </s>\n<s>user\nNext</s>\n<s>assistant\n",
    "rwkv-world": "System: Be kind\n\nUser: Hello\n\nAssistant: Hi there\n\nUser: Who\n\n"
    "Assistant: I am\n\nUser: Next\n\nAssistant:",
}


@pytest.mark.parametrize("name", RENDERED)
def test_what_a_format_looks_like(name: str) -> None:
    assert template(name).render(TALK) == RENDERED[name]


def test_the_names_of_the_document_are_there() -> None:
    names = (
        "chatml llama2 llama2-sys llama2-sys-bos llama2-sys-strip llama3 llama4 mistral-v1 "
        "mistral-v3 mistral-v3-tekken mistral-v7 mistral-v7-tekken phi3 phi4 gemma zephyr vicuna "
        "vicuna-orca deepseek deepseek2 deepseek3 command-r openchat falcon3 granite monarch "
        "minicpm orion chatglm3 chatglm4 glmedge exaone3 rwkv-world gigachat megrez"
    )
    assert set(names.split()) <= TEMPLATES.keys()


SHAPES = {
    "a question": turns("user:aaa"),
    "system alone": turns("system:aaa"),
    "answered": turns("system:aaa", "user:bbb", "assistant:ccc"),
    "system later": turns("user:aaa", "assistant:bbb", "system:ccc", "user:ddd"),
    "assistant first": turns("assistant:aaa", "user:bbb"),
    "user twice": turns("user:aaa", "user:bbb"),
    "developer": turns("developer:aaa", "user:bbb"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_message_is_shown_once_and_in_order(name: str) -> None:
    for shape, messages in SHAPES.items():
        text = template(name).render(messages)
        places = [text.find(message.text) for message in messages]
        assert -1 not in places and places == sorted(places), shape
        assert all(text.count(message.text) == 1 for message in messages), shape


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_next_turns_prompt_goes_on_from_the_last_ones(name: str) -> None:
    """What was computed for one turn serves the next."""
    asked = turns("system:Be kind", "user:Hello")
    without = template(name).render(asked, add_generation_prompt=False)
    assert template(name).render(asked).startswith(without)
    assert template(name).render(TALK).startswith(without)


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_are_told_of_all_the_same(name: str) -> None:
    tool = Tool("get_weather", "tells the weather", {"type": "object", "properties": {"city": {}}})
    text = template(name).render(TALK, tools=[tool])
    assert not [w for w in ("get_weather", "tells the weather", "city", "Next") if w not in text]
