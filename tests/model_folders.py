"""Folders of small models, for tests of whole replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_server import demo
from mlx_server.models.llama import Model, ModelArgs

CALL_MARKS = ("<tool_call>", "</tool_call>")
THINKING_MARKS = ("<think>", "</think>")
FIRST_MARK = 512
"""Behind the model's own tokens."""

MARK_IDS = {text: FIRST_MARK + i for i, text in enumerate(CALL_MARKS + THINKING_MARKS)}
EOS = 2
CONTEXT = 32768

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)
TEMPLATE = _TURNS + "{% endif %}"
THINKING_TEMPLATE = _TURNS + "<think>\n{% endif %}"
"""Every prompt ends within the reasoning."""


def write_marked(folder: Path, chat_model: Path, *, thinks: bool = False) -> Path:
    """The small real model with a long context and with tokens for the markup of its replies.

    Its own vocabulary spells "<tool_call>" letter by letter. Where that is one token, as in
    many real models, a request can make the model begin a call by biasing the token.

    Args:
        chat_model: The folder of stories260k-chat.
        thinks: It has marks for reasoning, too, and its prompts begin that.
    """
    marks = CALL_MARKS + (THINKING_MARKS if thinks else ())
    folder.mkdir(parents=True, exist_ok=True)
    _rewrite(chat_model, folder, "config.json", lambda c: _with_room(c, len(marks)))
    _rewrite(chat_model, folder, "tokenizer.json", lambda t: _with_marks(t, marks))
    template = THINKING_TEMPLATE if thinks else TEMPLATE
    _rewrite(
        chat_model, folder, "tokenizer_config.json", lambda c: c.update(chat_template=template)
    )
    weights = mx.load(str(chat_model / "model.safetensors"))
    name = "model.embed_tokens.weight"
    # That of a byte which no text has, and which the model therefore never writes.
    unused = mx.repeat(weights[name][4:5], len(marks), axis=0)
    weights[name] = mx.concatenate([weights[name], unused])
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def _rewrite(
    source: Path, folder: Path, name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    content = json.loads((source / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def _with_room(config: dict[str, Any], more_tokens: int) -> None:
    config["vocab_size"] += more_tokens
    config["max_position_embeddings"] = CONTEXT


def _with_marks(tokenizer: dict[str, Any], marks: Sequence[str]) -> None:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        # Those of reasoning are special, as in some models, and those of calls are not.
        {"id": MARK_IDS[text], "content": text, "special": text in THINKING_MARKS, **plain}
        for text in marks
    ]


def write_random(folder: Path) -> Path:
    """Random weights, so few of them that a prompt of 20,000 tokens takes seconds; with the
    bundled model's tokenizer and template."""
    bundled = json.loads((demo.path() / "config.json").read_text())
    config = {
        "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5,
        "vocab_size": bundled["vocab_size"], "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True, "eos_token_id": EOS,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((demo.path() / name).read_text())
    mx.random.seed(0)
    weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder
