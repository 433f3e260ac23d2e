"""Trains the bundled demo model from scratch and writes it to `demo/model/`.

    python -m mlx_server.demo.train [--output FOLDER] [--steps N]

Everything it learns is in `dialogues.txt`. It takes a few minutes on one
processor core; on Linux preload OpenBLAS, or it takes an hour. The same versions
and machine give the same weights: every draw comes from one seed.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlx_server import demo

SEED = 7
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}"
    "{{- '<|im_start|>' + role + '\\n' + (message['content'] or '') + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
ARGS = ModelArgs(
    model_type="llama",
    hidden_size=128,
    num_hidden_layers=4,
    intermediate_size=352,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=1024,
    max_position_embeddings=16384,
    rope_theta=10000.0,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Corpus:
    """`pairs`: (question, answer); a `{}` in a question stands for one of `words`."""

    pairs: tuple[tuple[str, str], ...]
    systems: tuple[str, ...]
    words: tuple[str, ...]

    def texts(self) -> Iterator[str]:
        yield from self.systems
        yield from self.words
        for pair in self.pairs:
            yield from pair


def read_corpus(file: Path) -> Corpus:
    pairs, systems, words = [], [], []
    questions: list[str] = []
    for line in file.read_text("utf-8").splitlines():
        kind, _, text = line.partition(": ")
        if kind == "Q":
            questions = text.split(" | ")
        elif kind == "A":
            answer = text.replace("\\n", "\n")
            pairs.extend((question, answer) for question in questions)
        elif kind == "S":
            systems.append(text)
        elif kind == "W":
            words.extend(text.split())
    return Corpus(tuple(pairs), tuple(systems), tuple(words))


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` tokens, so that any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=[AddedToken(t, special=True) for t in (END_OF_TEXT, TURN_START, TURN_END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (f"user\nassistant\nsystem\n{t}" for t in corpus.texts()), trainer
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the text yields only {tokenizer.get_vocab_size()} tokens")
    return tokenizer


def vary(text: str, rng: random.Random) -> str:
    """The question as a hurried person might type it."""
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?!.")
    return text


def conversation(
    corpus: Corpus, tokenizer: Tokenizer, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Token ids of a random chat, and 1 for each token that the model is to predict."""
    ids: list[int] = []
    learn: list[int] = []

    def add(text: str, mark: int) -> None:
        piece = tokenizer.encode(text).ids
        ids.extend(piece)
        learn.extend([mark] * len(piece))

    for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
        add(f"{TURN_START}system\n{rng.choice(corpus.systems)}{TURN_END}\n", 0)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        question, answer = rng.choice(corpus.pairs)
        question = vary(question.replace("{}", rng.choice(corpus.words)), rng)
        add(f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n", 0)
        add(f"{answer}{TURN_END}", 1)
        add("\n", 0)
    return ids, learn


def batch(
    corpus: Corpus, tokenizer: Tokenizer, rng: random.Random, size: int
) -> tuple[mx.array, mx.array]:
    """Token ids and marks, int32 [size, longest], padded on the right with zeros."""
    chats = [conversation(corpus, tokenizer, rng) for _ in range(size)]
    longest = max(len(ids) for ids, _ in chats)
    padded = [(a + [0] * (longest - len(a)), b + [0] * (longest - len(b))) for a, b in chats]
    return mx.array([a for a, _ in padded]), mx.array([b for _, b in padded])


def loss_fn(model: Model, ids: mx.array, learn: mx.array) -> mx.array:
    losses = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
    learn = learn[:, 1:]
    return (losses * learn).sum() / learn.sum()


def train(corpus: Corpus, tokenizer: Tokenizer, args: ModelArgs, steps: int, size: int) -> Model:
    mx.random.seed(SEED)
    rng = random.Random(SEED)
    model = Model(args)
    # Small embeddings, because the head is tied to them.
    model.apply(lambda w: 0.02 * mx.random.normal(w.shape) if w.ndim > 1 else w)
    warmup = max(1, steps // 20)
    schedule = optim.join_schedules(
        [optim.linear_schedule(0.0, 3e-3, warmup), optim.cosine_decay(3e-3, steps - warmup, 3e-5)],
        [warmup],
    )
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.98], weight_decay=0.05)
    step_fn = nn.value_and_grad(model, loss_fn)
    start = time.monotonic()
    for step in range(1, steps + 1):
        loss, grads = step_fn(model, *batch(corpus, tokenizer, rng, size))
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state, loss)
        if step % 50 == 0 or step == steps:
            elapsed = time.monotonic() - start
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {elapsed:.0f} s", flush=True)
    return model


def save(folder: Path, model: Model, tokenizer: Tokenizer, args: ModelArgs) -> None:
    """Weights in float16 and the files that Hugging Face and MLX loaders expect."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.astype(mx.float16) for k, v in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"))
    end_ids = [tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)]
    config = {k: v for k, v in asdict(args).items() if v is not None and k != "layer_types"}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "head_dim": args.hidden_size // args.num_attention_heads,
        "hidden_act": "silu",
        "dtype": "float16",
        "eos_token_id": end_ids,
        "pad_token_id": end_ids[1],
    }
    files = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": end_ids, "pad_token_id": end_ids[1]},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "model_max_length": args.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled demo model from scratch.")
    parser.add_argument("--output", type=Path, default=demo.path())
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    corpus = read_corpus(Path(__file__).with_name("dialogues.txt"))
    tokenizer = train_tokenizer(corpus, ARGS.vocab_size)
    model = train(corpus, tokenizer, ARGS, options.steps, options.batch_size)
    save(options.output, model, tokenizer, ARGS)


if __name__ == "__main__":
    main()
