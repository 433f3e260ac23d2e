"""A Llama with random weights and a real tokenizer, made on this machine.

    python -m benchmarks.model [--params 30M] [--dtype float32] [--quantize 4] [OUT]

The weights say nothing sensible but cost what real ones cost. One direction is
not random: it keeps the replies to whole words that encode to the tokens they
came from, as a trained model's do. So an end token never wins, each token has
text, and a conversation's history has the tokens that were generated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import corpus

HEAD_DIM = 64
END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

STEER_IN, STEER_GATE, STEER_OUT = 3.0, 4.0, 1.5
"""Dimension 0 of the embeddings is ± the first, the sign says whether a token may win. Two
hidden units of the last layer see it at the second's gain and add its square at the third's."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`text` is the number of characters that the tokenizer is trained on."""

    vocab: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    text: int = 8_000_000


SHAPES = {
    "tiny": Shape(1024, 64, 128, 2, 2, 1, 300_000),
    "30M": Shape(16384, 384, 1024, 15, 6, 2),
    "135M": Shape(32768, 576, 1536, 33, 9, 3),
    "1B": Shape(32768, 2048, 8192, 16, 32, 8),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """What is to be made. `quantize` is a number of bits."""

    params: str = "30M"
    dtype: str = "float32"
    quantize: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        bits = f"-{self.quantize}bit" if self.quantize else ""
        return f"{self.params}-{self.dtype}{bits}-seed{self.seed}"


def model_folder(spec: Spec) -> Path:
    """The model's folder in the cache; it is made first if it is not there."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx_server_bench"
    folder = base / spec.name
    if not (folder / "config.json").is_file():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base) as work:
            make(spec, Path(work) / "model")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(Path(work) / "model", folder)
    return folder


def make(spec: Spec, folder: Path) -> None:
    """Write a folder that mlx_lm and this server load."""
    import mlx.core as mx
    from mlx_lm.models import llama
    from mlx_lm.utils import quantize_model, save_config, save_model

    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[spec.params]
    tokenizer = _tokenizer(shape)
    config = _config(spec, shape, tokenizer.get_vocab())
    _save_tokenizer(folder, tokenizer, config["max_position_embeddings"])
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.load_weights(list(_weights(model, tokenizer, spec.seed).items()))
    model.set_dtype(getattr(mx, spec.dtype))
    if spec.quantize:
        model, config = quantize_model(model, config, 64, spec.quantize)
    save_model(folder, model, donate_model=True)
    _write(folder / "generation_config.json", {"eos_token_id": config["eos_token_id"]})
    save_config(config, folder / "config.json")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _config(spec: Spec, shape: Shape, vocab: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 16384,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": vocab[END],
        "torch_dtype": spec.dtype,
    }


def _tokenizer(shape: Shape) -> Any:
    """A byte-level BPE with ChatML's control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.texts(shape.text), trainer)
    if tokenizer.get_vocab_size() != shape.vocab:
        raise RuntimeError("the standard library's sources are too few for this vocabulary")
    return tokenizer


def _save_tokenizer(folder: Path, tokenizer: Any, context: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    _write(folder / "tokenizer_config.json", settings)


def winners(tokenizer: Any) -> list[int]:
    """The tokens that are a space and a word, and that this text encodes to."""
    found = []
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if re.fullmatch("Ġ[a-z]{2,}", token) and tokenizer.encode(" " + token[1:]).ids == [index]:
            found.append(index)
    return found


def _weights(model: Any, tokenizer: Any, seed: int) -> dict[str, Any]:
    """Normal weights: layers keep unit variance, the logits of words spread by about 3."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten

    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, value in sorted(tree_flatten(model.parameters())):
        if value.ndim == 1:
            weights[name] = np.ones(value.shape, np.float32)
            continue
        scale = (3.0 if "embed" in name else 1.0) / math.sqrt(value.shape[-1])
        weights[name] = rng.standard_normal(value.shape, np.float32) * np.float32(scale)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name][0] = 0.0  # nothing but the steering writes to dimension 0
    embedding = weights["model.embed_tokens.weight"]
    embedding[:, 0] = -STEER_IN
    embedding[winners(tokenizer), 0] = STEER_IN
    mlp = f"model.layers.{len(model.model.layers) - 1}.mlp."
    for unit, sign in ((0, 1.0), (1, -1.0)):
        for part in ("gate_proj.weight", "up_proj.weight"):
            weights[mlp + part][unit] = 0.0
            weights[mlp + part][unit, 0] = sign * STEER_GATE
        weights[mlp + "down_proj.weight"][:, unit] = 0.0
        weights[mlp + "down_proj.weight"][0, unit] = STEER_OUT
    return {name: mx.array(value) for name, value in weights.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--params", choices=SHAPES, default="30M", help="size of the made model")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--quantize", type=int, choices=(4, 8), help="bits")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the prompts")


def spec_of(args: argparse.Namespace) -> Spec:
    return Spec(args.params, args.dtype, args.quantize, args.seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    add_arguments(parser)
    parser.add_argument("out", type=Path, nargs="?", help="folder; in the cache if left out")
    args = parser.parse_args()
    spec = spec_of(args)
    if args.out:
        make(spec, args.out)
    print(args.out or model_folder(spec), asdict(spec))


if __name__ == "__main__":
    main()
