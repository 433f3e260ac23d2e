"""Folders of tiny random encoders, as their authors would publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = (
    "[PAD]", "[CLS]", "[SEP]", "[UNK]",
    "the", "cat", "sat", "on", "a", "mat", "dog", "ran", "in", "rain", "sun", "is",
)  # fmt: skip
HIDDEN = 32
LENGTH = 64

_BERT_LIKE = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": LENGTH, "layer_norm_eps": 1e-5,
    "vocab_size": len(WORDS), "pad_token_id": 0, "hidden_act": "gelu",
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT_LIKE, "type_vocab_size": 2},
    # Positions are counted from the padding's id on, so two of them are never used.
    "xlm-roberta": {**_BERT_LIKE, "type_vocab_size": 1, "pad_token_id": 1},
    "modernbert": {
        "hidden_size": HIDDEN, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": LENGTH, "norm_eps": 1e-5,
        "vocab_size": len(WORDS), "pad_token_id": 0, "local_attention": 8,
        "global_attn_every_n_layers": 3, "hidden_activation": "gelu",
    },
}  # fmt: skip

PREFIXES = {"bert": "bert.", "xlm-roberta": "roberta.", "modernbert": "model."}

ARCHITECTURES = {"bert": "Bert", "xlm-roberta": "XLMRoberta", "modernbert": "ModernBert"}


def write_encoder(
    folder: Path, model_type: str, *, head: bool = False, labels: int = 1, **config: Any
) -> Path:
    """
    Args:
        head: A cross-encoder: …ForSequenceClassification, and its weights under their prefix.
        config: Fields of config.json beside the usual ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = "ForSequenceClassification" if head else "Model"
    fields = {
        "model_type": model_type,
        "architectures": [ARCHITECTURES[model_type] + kind],
        **CONFIGS[model_type],
        "id2label": {str(i): f"LABEL_{i}" for i in range(labels)},
        **config,
    }
    weights = body_weights(fields)
    if head:
        prefix = PREFIXES[model_type]
        weights = {prefix + name: value for name, value in weights.items()}
        weights |= head_weights(model_type, labels)
    (folder / "config.json").write_text(json.dumps(fields))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    write_tokenizer(folder, model_type)
    return folder


def body_weights(config: dict[str, Any]) -> dict[str, mx.array]:
    """Random ones, under the names that checkpoints have, the pooler's not among them."""
    import importlib

    arch = importlib.import_module(
        f"mlx_embeddings.models.{config['model_type'].replace('-', '_')}"
    )
    mx.random.seed(3)
    module = arch.Model(arch.ModelArgs.from_dict({**config, "architectures": ["none"]}))
    module = module.model if config["model_type"] == "modernbert" else module
    return {
        name: _random(value.shape)
        for name, value in tree_flatten(module.parameters())
        if not name.startswith("pooler")
    }


def head_weights(model_type: str, labels: int) -> dict[str, mx.array]:
    square, wide = (HIDDEN, HIDDEN), (labels, HIDDEN)
    shapes = {
        "bert": {
            "bert.pooler.dense.weight": square, "bert.pooler.dense.bias": (HIDDEN,),
            "classifier.weight": wide, "classifier.bias": (labels,),
        },
        "xlm-roberta": {
            "classifier.dense.weight": square, "classifier.dense.bias": (HIDDEN,),
            "classifier.out_proj.weight": wide, "classifier.out_proj.bias": (labels,),
        },
        "modernbert": {
            "head.dense.weight": square, "head.norm.weight": (HIDDEN,),
            "classifier.weight": wide, "classifier.bias": (labels,),
        },
    }  # fmt: skip
    mx.random.seed(4)
    return {name: _random(shape) for name, shape in shapes[model_type].items()}


def _random(shape: tuple[int, ...]) -> mx.array:
    return mx.random.normal(shape) * 0.25 + (len(shape) == 1) * 0.5


def write_tokenizer(folder: Path, model_type: str) -> None:
    """One word, one token; pairs as BERT or RoBERTa write them."""
    pad = CONFIGS[model_type]["pad_token_id"]
    words = list(WORDS)
    words[0], words[pad] = words[pad], words[0]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    if model_type == "xlm-roberta":
        pair = "[CLS]:0 $A:0 [SEP]:0 [SEP]:0 $B:0 [SEP]:0"
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=pair,
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(words[:3]))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pooling(folder: Path, **modes: Any) -> None:
    """sentence-transformers' files for a pooling."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))


def write_dense(
    folder: Path,
    size: int,
    activation: str = "torch.nn.modules.linear.Identity",
    *,
    folders: tuple[str, ...] = ("2_Dense",),
    sizes: tuple[int, ...] = (),
) -> tuple[mx.array, mx.array]:
    """A linear layer behind the pooling; returns its weight [size, hidden] and bias.

    Args:
        folders, sizes: Of several, whose weights lie with the model's: no files are written
            for them.
    """
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **dict.fromkeys(folders, "Dense")}
    modules = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    inputs = HIDDEN
    for name, outputs in zip(folders, sizes or (size,), strict=True):
        (folder / name).mkdir()
        config = {"in_features": inputs, "out_features": outputs}
        config["activation_function"] = activation
        (folder / name / "config.json").write_text(json.dumps(config))
        inputs = outputs
    weight, bias = _random((size, HIDDEN)), _random((size,))
    if not sizes:
        mx.save_safetensors(
            str(folder / folders[0] / "model.safetensors"),
            {"linear.weight": weight, "linear.bias": bias},
        )
    return weight, bias
