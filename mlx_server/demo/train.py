"""Trains the bundled demo model from scratch and writes it to `demo/model/`.

    python -m mlx_server.demo.train [--output FOLDER] [--tokens N]

Everything it learns is in `corpus/` and in the modules `*_chats.py`. On two cores with
OpenBLAS preloaded it takes less than two hours, without OpenBLAS a day. The same versions
and machine give the same weights: every draw comes from one seed.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from transformers import PreTrainedTokenizerFast

from mlx_server import demo
from mlx_server.demo import corpus
from mlx_server.demo import tokenizer as bpe
from mlx_server.demo.chats import Chat, Source

SEED = 7
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
LONGEST = 1024
"""Tokens of a chat; longer ones are left out."""

ARGS = ModelArgs(
    model_type="llama",
    hidden_size=192,
    num_hidden_layers=6,
    intermediate_size=512,
    num_attention_heads=6,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=4096,
    max_position_embeddings=16384,
    rope_theta=10000.0,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Plan:
    """How long, and how fast, it learns.

    Args:
        tokens: How many it sees in all, padding included.
        copied_tokens: Of these at the beginning, in sequences that only repeat themselves.
        batch_tokens: Of a step.
        rate: The highest learning rate.
    """

    tokens: int = 9_000_000
    copied_tokens: int = 1_400_000
    batch_tokens: int = 2048
    rate: float = 3e-3

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch_tokens)

    @property
    def copying_steps(self) -> int:
        return self.copied_tokens // self.batch_tokens


def draw(choices: Sequence[tuple[Source, float]], rng: random.Random) -> Iterator[Chat]:
    """Chats without end, each from a source drawn by its share."""
    made, weights = zip(*choices, strict=True)
    while True:
        yield rng.choices(made, weights)[0](rng)


def render(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> str:
    """The chat as the template writes it."""
    messages: Any = list(chat.messages)
    tools: Any = list(chat.tools) or None
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))


def encode(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """A chat's token ids as the template renders it, and 1 for each that is to be predicted:
    what the assistant says, and the end of its turn."""
    text = render(chat, tokenizer)
    ids: list[int] = []
    learn: list[int] = []
    for turn in text.split(bpe.TURN_START)[1:]:
        head = "assistant\n" if turn.startswith("assistant\n") else ""
        before = tokenizer.encode(bpe.TURN_START + head, add_special_tokens=False)
        body, _, rest = turn.removeprefix(head).partition(bpe.TURN_END)
        said = tokenizer.encode(body + bpe.TURN_END, add_special_tokens=False)
        after = tokenizer.encode(rest, add_special_tokens=False)
        ids += before + said + after
        learn += [0] * len(before) + [int(bool(head))] * len(said) + [0] * len(after)
    return ids, learn


Batch = tuple[mx.array, mx.array, mx.array]


def batches(
    chats: Iterator[Chat], tokenizer: PreTrainedTokenizerFast, size: int, rng: random.Random
) -> Iterator[Batch]:
    """Chats of about one length together, so that little is padding.

    Yields:
        Inputs, int32 [rows, length]; the positions in them (flattened) whose next token is to
        be predicted, int32 [n]; these tokens, int32 [n].
    """
    while True:
        pool = [encode(chat, tokenizer) for chat in islice(chats, 400)]
        pool = sorted((p for p in pool if len(p[0]) <= LONGEST), key=lambda p: len(p[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for pair in pool:
            if (len(groups[-1]) + 1) * len(pair[0]) > size:
                groups.append([])
            groups[-1].append(pair)
        rng.shuffle(groups)
        yield from map(pack, groups)


def repetitions(rng: random.Random, vocab_size: int, size: int) -> Iterator[Batch]:
    """Random tokens, repeated: each after the first round is to be predicted.

    What a model needs in order to copy a city into a call, heads that find what came behind
    the same token before, it learns here within some hundred steps (Olsson et al. 2022,
    "In-context Learning and Induction Heads"); from the chats alone it takes far longer.
    """
    width = 128
    while True:
        group = []
        for _ in range(size // width):
            round_ = [rng.randrange(3, vocab_size) for _ in range(rng.randint(3, 24))]
            ids = (round_ * (width // len(round_) + 1))[:width]
            group.append((ids, [int(at > len(round_)) for at in range(width)]))
        yield pack(group)


def lessons(
    chats: Iterator[Batch], copies: Iterator[Batch], plan: Plan, rng: random.Random
) -> Iterator[Batch]:
    """Copying first, then the chats, with a little copying among them so that it stays."""
    yield from islice(copies, plan.copying_steps)
    while True:
        yield next(copies if rng.random() < 0.04 else chats)


def pack(group: Sequence[tuple[list[int], list[int]]]) -> Batch:
    longest = max(len(ids) for ids, _ in group)
    ids = np.zeros((len(group), longest), np.int32)
    learn = np.zeros((len(group), longest), bool)
    for row, (tokens, marks) in enumerate(group):
        ids[row, : len(tokens)] = tokens
        learn[row, : len(marks)] = marks
    positions = np.flatnonzero(learn[:, 1:]).astype(np.int32)
    targets = ids[:, 1:].reshape(-1)[positions]
    return mx.array(ids[:, :-1]), mx.array(positions), mx.array(targets)


def loss_fn(model: Model, ids: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
    hidden = model.model(ids).reshape(-1, model.args.hidden_size)
    # Only what counts goes through the head: it is a quarter of the work.
    logits = model.model.embed_tokens.as_linear(hidden[positions])
    return nn.losses.cross_entropy(logits, targets, reduction="mean")


def new_model(args: ModelArgs) -> Model:
    mx.random.seed(SEED)
    model = Model(args)
    # Small embeddings, because the head is tied to them.
    model.apply(lambda w: 0.02 * mx.random.normal(w.shape) if w.ndim > 1 else w)
    return model


def train(model: Model, stream: Iterator[Batch], plan: Plan) -> None:
    warmup = max(1, plan.steps // 60)
    held = max(warmup, plan.copying_steps) + 1
    schedule = optim.join_schedules(
        [
            optim.linear_schedule(0.0, plan.rate, warmup),
            optim.linear_schedule(plan.rate, plan.rate, held),
            optim.cosine_decay(plan.rate, max(1, plan.steps - held), plan.rate / 100),
        ],
        [warmup, held],
    )
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.98], weight_decay=0.05)
    step_fn = nn.value_and_grad(model, loss_fn)
    start, mean = time.monotonic(), None
    for step, batch in enumerate(islice(stream, plan.steps), 1):
        loss, grads = step_fn(model, *batch)
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state, loss)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if step % 20 == 0 or step == plan.steps:
            elapsed = time.monotonic() - start
            print(f"step {step}/{plan.steps}  loss {mean:.4f}  {elapsed:.0f} s", flush=True)


def save(folder: Path, model: Model, tokenizer: PreTrainedTokenizerFast, args: ModelArgs) -> None:
    """Weights in float16 and the files that Hugging Face and MLX loaders expect."""
    folder.mkdir(parents=True, exist_ok=True)
    flat: Any = tree_flatten(model.parameters())
    weights = {name: array.astype(mx.float16) for name, array in flat}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    end_ids: Any = tokenizer.convert_tokens_to_ids([bpe.TURN_END, bpe.END_OF_TEXT])
    config: dict[str, Any] = {
        k: v for k, v in asdict(args).items() if v is not None and k != "layer_types"
    }
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
            "eos_token": bpe.TURN_END,
            "pad_token": bpe.END_OF_TEXT,
            "model_max_length": args.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
            "chat_template": tokenizer.chat_template,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def prepare(vocab_size: int) -> tuple[PreTrainedTokenizerFast, tuple[tuple[Source, float], ...]]:
    """The tokenizer, and where chats come from."""
    files = corpus.load()
    choices = corpus.sources(*files)
    template = TEMPLATE.read_text("utf-8")
    plain = bpe.with_template(bpe.train((), 256 + 3 + len(bpe.TAGS)), template)
    sample = islice(draw(choices, random.Random(SEED)), 3000)
    texts = [render(chat, plain) for chat in sample]
    trained = bpe.train([text for file in files for text in file.texts()] + texts, vocab_size)
    return bpe.with_template(trained, template), choices


def stream(
    choices: Sequence[tuple[Source, float]],
    tokenizer: PreTrainedTokenizerFast,
    plan: Plan,
    rng: random.Random,
) -> Iterator[Batch]:
    """All batches of a training."""
    chats = batches(draw(choices, rng), tokenizer, plan.batch_tokens, rng)
    copies = repetitions(rng, len(tokenizer), plan.batch_tokens)
    return lessons(chats, copies, plan, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled demo model from scratch.")
    parser.add_argument("--output", type=Path, default=demo.path())
    parser.add_argument("--tokens", type=int, default=Plan.tokens)
    options = parser.parse_args()
    tokenizer, choices = prepare(ARGS.vocab_size)
    rng = random.Random(SEED)
    plan = replace(Plan(), tokens=options.tokens)
    model = new_model(ARGS)
    train(model, stream(choices, tokenizer, plan, rng), plan)
    save(options.output, model, tokenizer, ARGS)


if __name__ == "__main__":
    main()
