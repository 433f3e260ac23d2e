"""The chat templates that llama.cpp knows by name, as Jinja.

Written after what llama.cpp documents of each format. They know no tools: `ChatTemplate`
tells of those in its generic form. The start token is put before them where the model's
tokenizer puts one before texts.
"""

from __future__ import annotations

from collections.abc import Mapping

_LOOP = "{% for m in messages %}"
_END = "{% endfor %}"
_TEXT = "{{ m.content }}"
_TRIMMED = "{{ m.content | trim }}"


def _uniform(before: str, text: str, after: str, opening: str) -> str:
    """Every turn written alike, with its role's name.

    Args:
        before, after: Around the text; `ROLE` stands for the role.
        opening: What begins the assistant's turn.
    """
    before = before.replace("ROLE", "{{ m.role }}")
    return f"{_LOOP}{before}{text}{after}{_END}{_opened(opening)}"


def _by_role(system: str, user: str, assistant: str, opening: str, begins: str = "") -> str:
    """A way to write a turn for each role; a role without its own is written as the user's."""
    return (
        f"{begins}{_LOOP}"
        f"{{% if m.role == 'system' %}}{system}"
        f"{{% elif m.role == 'assistant' %}}{assistant}"
        f"{{% else %}}{user}{{% endif %}}{_END}{_opened(opening)}"
    )


def _opened(opening: str) -> str:
    return f"{{% if add_generation_prompt %}}{opening}{{% endif %}}" if opening else ""


def _llama2(system: str, again: str = "[INST] ", text: str = _TEXT) -> str:
    """Turns within [INST], which the assistant's ends.

    Args:
        system: How a system message is written there.
        again: What a turn after the assistant's begins with.
    """
    return (
        f"[INST] {{% set ns = namespace(inside=true) %}}{_LOOP}"
        f"{{% if not ns.inside %}}{{% set ns.inside = true %}}{again}{{% endif %}}"
        f"{{% if m.role == 'system' %}}{system}"
        f"{{% elif m.role == 'assistant' %}}{text}</s>{{% set ns.inside = false %}}"
        f"{{% else %}}{text} [/INST]{{% endif %}}{_END}"
    )


def _mistral(before: str, inside: str, text: str = _TEXT) -> str:
    """Mistral's turns: a system message stands with the user's within [INST].

    Args:
        before: The space before [INST] and [/INST], if any.
        inside: The space behind [INST] and before the assistant's text, if any.
    """
    return (
        f"{{% set ns = namespace(inside=false) %}}{_LOOP}"
        f"{{% if not ns.inside and m.role != 'assistant' %}}{{% set ns.inside = true %}}"
        f"{before}[INST]{inside}{{% endif %}}"
        f"{{% if m.role == 'system' %}}{_TEXT}\n\n"
        f"{{% elif m.role == 'assistant' %}}{inside}{text}</s>{{% set ns.inside = false %}}"
        f"{{% else %}}{_TEXT}{before}[/INST]{{% endif %}}{_END}"
    )


def _mistral_v7(space: str) -> str:
    return _by_role(
        f"[SYSTEM_PROMPT]{space}{_TEXT}[/SYSTEM_PROMPT]",
        f"[INST]{space}{_TEXT}[/INST]",
        f"{space}{_TEXT}</s>",
        "",
    )


def _system_first(user: str, assistant: str, opening: str) -> str:
    """A system message's text begins the next user's; `SYSTEM` stands for it there."""
    shown = "{% if ns.system %}{{ ns.system }}\n\n{% set ns.system = '' %}{% endif %}"
    return (
        "{% set ns = namespace(system='') %}"
        + _by_role(
            "{% set ns.system = ns.system + (m.content | trim) %}",
            user.replace("SYSTEM", shown),
            assistant,
            opening,
        )
        # A system message that no user's follows.
        .replace(_END, _END + "{% if ns.system %}" + user.replace("SYSTEM", "").replace(
            "m.content", "ns.system") + "{% endif %}", 1)
    )  # fmt: skip


def _command_r(role: str, text: str = _TRIMMED) -> str:
    return f"<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>{text}<|END_OF_TURN_TOKEN|>"


_LLAMA2_SYSTEM = f"<<SYS>>\n{_TEXT}\n<</SYS>>\n\n"
_LLAMA3 = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA4 = "<|header_start|>{}<|header_end|>\n\n"
_KIMI = "<|im_{0}|>{0}<|im_middle|>"

TEMPLATES: Mapping[str, str] = {
    "chatml": _uniform(
        "<|im_start|>ROLE\n", _TEXT, "<|im_end|>\n", "<|im_start|>assistant\n"
    ),
    "llama2": _llama2(f"{_TEXT}\n"),
    "llama2-sys": _llama2(_LLAMA2_SYSTEM),
    "llama2-sys-bos": _llama2(_LLAMA2_SYSTEM, "<s>[INST] "),
    "llama2-sys-strip": _llama2(_LLAMA2_SYSTEM.replace(_TEXT, _TRIMMED), text=_TRIMMED),
    "llama3": _uniform(
        _LLAMA3.format("ROLE"), _TRIMMED, "<|eot_id|>", _LLAMA3.format("assistant")
    ),
    "llama4": _uniform(_LLAMA4.format("ROLE"), _TRIMMED, "<|eot|>", _LLAMA4.format("assistant")),
    "mistral-v1": _mistral(" ", " "),
    "mistral-v3": _mistral("", " ", _TRIMMED),
    "mistral-v3-tekken": _mistral("", ""),
    "mistral-v7": _mistral_v7(" "),
    "mistral-v7-tekken": _mistral_v7(""),
    "phi3": _uniform("<|ROLE|>\n", _TEXT, "<|end|>\n", "<|assistant|>\n"),
    "phi4": _uniform(
        "<|im_start|>ROLE<|im_sep|>", _TEXT, "<|im_end|>", "<|im_start|>assistant<|im_sep|>"
    ),
    "falcon3": _uniform("<|ROLE|>\n", _TEXT, "\n", "<|assistant|>\n"),
    "zephyr": _uniform("<|ROLE|>\n", _TEXT, "<|endoftext|>\n", "<|assistant|>\n"),
    "glmedge": _uniform("<|ROLE|>\n", _TEXT, "", "<|assistant|>"),
    "chatglm3": "[gMASK]sop" + _uniform("<|ROLE|>\n ", _TEXT, "", "<|assistant|>"),
    "chatglm4": "[gMASK]<sop>" + _uniform("<|ROLE|>\n", _TEXT, "", "<|assistant|>\n"),
    "monarch": _uniform(
        "{% if not loop.first %}<s>{% endif %}ROLE\n", _TEXT, "</s>\n", "<s>assistant\n"
    ),
    "megrez": _uniform(
        "<|role_start|>ROLE<|role_end|>", _TEXT, "<|turn_end|>",
        "<|role_start|>assistant<|role_end|>",
    ),
    "granite": _uniform(
        "<|start_of_role|>ROLE<|end_of_role|>", _TEXT, "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "seed_oss": _uniform("<seed:bos>ROLE\n", _TEXT, "<seed:eos>", "<seed:bos>assistant\n"),
    "gpt-oss": _uniform(
        "<|start|>ROLE<|message|>", _TEXT,
        "{% if m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}",
        "<|start|>assistant",
    ),
    "gemma": _system_first(
        f"<start_of_turn>user\nSYSTEM{_TRIMMED}<end_of_turn>\n",
        f"<start_of_turn>model\n{_TRIMMED}<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
    "orion": _system_first(f"Human: SYSTEM{_TEXT}\n\nAssistant: </s>", f"{_TEXT}</s>", ""),
    "openchat": _by_role(
        f"{_TEXT}<|end_of_turn|>",
        "GPT4 Correct {{ m.role | capitalize }}: " + f"{_TEXT}<|end_of_turn|>",
        f"GPT4 Correct Assistant: {_TEXT}<|end_of_turn|>",
        "GPT4 Correct Assistant:",
    ),
    "vicuna": _by_role(
        f"{_TEXT}\n\n", f"USER: {_TEXT}\n", f"ASSISTANT: {_TEXT}</s>\n", "ASSISTANT:"
    ),
    "vicuna-orca": _by_role(
        f"SYSTEM: {_TEXT}\n", f"USER: {_TEXT}\n", f"ASSISTANT: {_TEXT}</s>\n", "ASSISTANT:"
    ),
    "deepseek": _by_role(
        _TEXT, f"### Instruction:\n{_TEXT}\n", f"### Response:\n{_TEXT}\n<|EOT|>\n",
        "### Response:\n",
    ),
    "deepseek2": _by_role(
        f"{_TEXT}\n\n", f"User: {_TEXT}\n\n", f"Assistant: {_TEXT}<｜end▁of▁sentence｜>",
        "Assistant:",
    ),
    "deepseek3": _by_role(
        f"{_TEXT}\n\n", f"<｜User｜>{_TEXT}", f"<｜Assistant｜>{_TEXT}<｜end▁of▁sentence｜>",
        "<｜Assistant｜>",
    ),
    "command-r": _by_role(
        _command_r("SYSTEM"), _command_r("USER"), _command_r("CHATBOT", _TEXT),
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    "minicpm": _by_role(_TRIMMED, f"<用户>{_TRIMMED}<AI>", _TRIMMED, ""),
    "exaone3": _by_role(
        f"[|system|]{_TRIMMED}[|endofturn|]\n", f"[|user|]{_TRIMMED}\n",
        f"[|assistant|]{_TRIMMED}[|endofturn|]\n", "[|assistant|]",
    ),
    "exaone4": _by_role(
        f"[|system|]{_TRIMMED}[|endofturn|]\n", f"[|user|]{_TRIMMED}\n",
        f"[|assistant|]{_TRIMMED}[|endofturn|]\n", "[|assistant|]",
    ),
    "rwkv-world": _by_role(
        f"System: {_TRIMMED}\n\n", f"User: {_TRIMMED}\n\n", f"Assistant: {_TRIMMED}\n\n",
        "Assistant:",
    ),
    "gigachat": _by_role(
        f"{_TEXT}<|message_sep|>",
        f"user<|role_sep|>{_TEXT}<|message_sep|>available functions<|role_sep|>[]<|message_sep|>",
        f"assistant<|role_sep|>{_TEXT}<|message_sep|>",
        "assistant<|role_sep|>",
        "<s>",
    ),
    "smolvlm": _by_role(
        f"{_TEXT}\n\n", f"User: {_TEXT}<end_of_utterance>\n",
        f"Assistant: {_TEXT}<end_of_utterance>\n", "Assistant:", "<|im_start|>",
    ),
    "hunyuan-moe": _by_role(
        f"<|startoftext|>{_TEXT}<|extra_4|>", f"<|startoftext|>{_TEXT}<|extra_0|>",
        f"{_TEXT}<|eos|>", "",
    ),
    "kimi-k2": _by_role(
        f"{_KIMI.format('system')}{_TEXT}<|im_end|>",
        f"{_KIMI.format('user')}{_TEXT}<|im_end|>",
        f"<|im_assistant|>assistant<|im_middle|>{_TEXT}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>",
    ),
    "grok-2": _by_role(
        f"System: {_TRIMMED}<|separator|>\n\n", f"Human: {_TRIMMED}<|separator|>\n\n",
        f"Assistant: {_TEXT}<|separator|>\n\n", "Assistant:",
    ),
}  # fmt: skip
"""Name → template."""
