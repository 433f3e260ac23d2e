"""What a GGUF file's metadata says of a Llama, as the config.json of the same model would.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and llama.cpp's
gguf-py/gguf/constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_server.errors import ModelLoadError
from mlx_server.gguf import Header, Tensor

ARCHITECTURE = "llama"
"""Llama and Mistral, and everything that llama.cpp runs as one."""

NEUTRAL = {
    "attention.causal": True,
    "attention.scale": 0.0,
    "embedding_scale": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "use_parallel_residual": False,
    "expert_count": 0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.attn_factor": 1.0,
}
"""Settings that make another model of a Llama, and the value that does not."""

END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_TEXTS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>",
     "<|return|>", "<end_of_turn>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>",
     "<｜end▁of▁sentence｜>")
)  # fmt: skip
"""Tokens that end a reply by their name, as in llama.cpp: many files name only one."""

CONTROL, USER_DEFINED = 3, 4

SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""general.sampling.… → generation_config.json's name."""


def check_kind(header: Header) -> None:
    """See that the file is a Llama's weights.

    Raises:
        ModelLoadError: It is something else, which the message names.
    """
    metadata, architecture = header.metadata, header.architecture
    if header.text("general.type") == "adapter" or "adapter.type" in metadata:
        raise ModelLoadError(
            f"{header.path} is an adapter, not a model; give its base model as --model and "
            "this file as --lora."
        )
    if architecture == "controlvector" or "controlvector.model_hint" in metadata:
        raise ModelLoadError(
            f"{header.path} is a control vector, not a model; give it as --control-vector."
        )
    if architecture == "clip":
        raise ModelLoadError(
            f"{header.path} is a projector for images, not a language model; give the model's file."
        )
    if architecture != ARCHITECTURE:
        raise ModelLoadError(
            f"{header.path} has general.architecture {architecture!r}, and of .gguf files only "
            f"{ARCHITECTURE!r} (Llama, Mistral) can be served; choose a repo with safetensors "
            "weights of the same model."
        )
    for key, neutral in NEUTRAL.items():
        value = metadata.get(f"{ARCHITECTURE}.{key}", neutral)
        if isinstance(value, np.ndarray) or value != neutral:
            what = "a mixture of experts" if key == "expert_count" else "no plain Llama"
            raise ModelLoadError(
                f"{header.path} is {what} ({ARCHITECTURE}.{key} is {value!r}), which cannot be "
                "served from a .gguf; choose a repo with safetensors weights of the same model."
            )


def model_config(header: Header, tensors: Mapping[str, Tensor], freqs: Any = None) -> dict:
    """The fields of config.json.

    Args:
        tensors: Of all parts of the model.
        freqs: rope_freqs.weight, float32 [head_dim / 2], if the file has it: what each
            period of the rotation is multiplied by.

    Raises:
        ModelLoadError: A key is missing or has a value that makes no Llama.
    """
    reader = _Reader(header)
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelLoadError(f"{header.path} lacks the tensor token_embd.weight; fetch it again.")
    hidden = reader.count("embedding_length")
    heads = reader.count("attention.head_count")
    head_dim = reader.count("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (value := reader.count(key, head_dim)) != head_dim:
            reader.fail(key, value, f"the heads' dimension {head_dim}")
    if freqs is not None and len(freqs) != head_dim // 2:
        reader.fail(
            "rope.dimension_count", head_dim, f"twice the {len(freqs)} of rope_freqs.weight"
        )
    layers = reader.count("block_count")
    if layers > len(tensors):
        reader.fail("block_count", layers, f"below the number of tensors, {len(tensors)}")
    tokens = header.metadata.get("tokenizer.ggml.tokens", ())
    if isinstance(tokens, list) and len(tokens) > embedding.shape[0]:
        raise ModelLoadError(
            f"{header.path} has {len(tokens)} tokens and {embedding.shape[0]} rows in "
            "token_embd.weight; fetch it again."
        )
    context = reader.count("context_length")
    return {
        "model_type": ARCHITECTURE,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": reader.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": reader.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": context,
        "rope_theta": reader.number("rope.freq_base", 10000.0),
        "rope_traditional": False,
        "rope_scaling": _scaling(reader, context, freqs),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": _has_bias(tensors, "attn_"),
        "mlp_bias": _has_bias(tensors, "ffn_"),
        "eos_token_id": end_token_ids(header.metadata),
        "bos_token_id": reader.token("bos_token_id"),
    }


def generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling values that the file recommends, as generation_config.json would."""
    found = {name: metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    return {name: value for name, value in found.items() if value is not None}


def end_token_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Tokens that end a reply: those the file calls so, and special ones with a known name."""
    named = [metadata.get(f"tokenizer.ggml.{key}") for key in END_TOKENS]
    ids = {i for i in named if type(i) is int}
    tokens = metadata.get("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(kinds, np.ndarray) and len(kinds) == len(tokens):
        special = np.flatnonzero((kinds == CONTROL) | (kinds == USER_DEFINED))
        ids.update(int(i) for i in special if tokens[i] in END_TEXTS)
    return sorted(ids)


def _has_bias(tensors: Mapping[str, Tensor], kind: str) -> bool:
    return any(
        name.endswith(".bias") and name.split(".")[2:3] and name.split(".")[2].startswith(kind)
        for name in tensors
    )


class _Reader:
    """Llama's own keys, checked."""

    def __init__(self, header: Header) -> None:
        self._path = header.path
        self._metadata = header.metadata

    def get(self, key: str) -> Any:
        return self._metadata.get(f"{ARCHITECTURE}.{key}")

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; a value per layer counts where all are the same."""
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        elif isinstance(value, np.ndarray):
            self.fail(key, "different from layer to layer", "one number for all layers")
        if value is None and default is not None:
            value = default
        if type(value) is not int or not 0 < value < 1 << 31:
            self.fail(key, value, "a whole number above 0")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            self.fail(key, value, "a number above 0")
        return value

    def token(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        return value if type(value) is int else None

    def fail(self, key: str, value: Any, wanted: str) -> None:
        found = "is missing" if value is None else f"is {str(value)[:80]}"
        raise ModelLoadError(
            f"{self._path} cannot be served: {ARCHITECTURE}.{key} {found} and must be {wanted}; "
            "convert the model again."
        )


def _scaling(reader: _Reader, context: int, freqs: Any) -> dict[str, Any] | None:
    kind = reader.get("rope.scaling.type")
    factor = reader.get("rope.scaling.factor")
    if factor is None:
        factor = reader.get("rope.scale_linear")  # older files; without a type, too
    if kind is None:
        kind = "none" if factor is None else "linear"
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
        reader.fail("rope.scaling.type", kind, "none, linear or yarn")
    if kind == "none" or factor is None:
        factor = 1
    if type(factor) not in (int, float) or not 0 <= factor < float("inf"):
        reader.fail("rope.scaling.factor", factor, "a number above 0")
    if factor in (0, 1):  # 0 means none, as in llama.cpp
        return None if freqs is None else _stretched(context, freqs)
    if freqs is not None:
        reader.fail("rope.scaling.type", kind, "none in a file that has rope_freqs.weight")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": reader.count(
            "rope.scaling.original_context_length", max(1, int(context / factor))
        ),
    }
    for key in ("beta_fast", "beta_slow"):
        if reader.get(f"rope.scaling.yarn_{key}") is not None:
            scaling[key] = reader.number(f"rope.scaling.yarn_{key}")
    return scaling


def _stretched(context: int, freqs: Any) -> dict[str, Any]:
    """Periods multiplied one by one: longrope, whose other factors are 1 at the trained length."""
    return {
        "rope_type": "longrope",
        "long_factor": [float(f) for f in freqs],
        "original_max_position_embeddings": context,
    }
