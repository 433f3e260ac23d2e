"""Small seeded models for tests, and a driver that runs an engine to its end."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama as reference

from mlx_server.engine.engine import Engine
from mlx_server.engine.limits import Limits
from mlx_server.exchange import EngineRequest, StepOutput, TokenOutput
from mlx_server.models.llama import LlamaModel, Model, ModelArgs
from mlx_server.sampling_params import SamplingParams

SHARED = Path(__file__).resolve().parents[1] / "../shared"

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 101,
    "max_position_embeddings": 2048,
}


def make_pair(config: dict | None = None, bits: int | None = None, seed: int = 0):
    """The same random weights in mlx_lm's Llama and, served, in ours."""
    config = config or CONFIG
    mx.random.seed(seed)
    theirs = reference.Model(reference.ModelArgs.from_dict(config))
    ours = Model(ModelArgs.from_dict(config))
    theirs.update(
        tree_map(lambda p: mx.random.normal(p.shape) * 0.15 + (p.ndim == 1), theirs.parameters())
    )
    if bits:
        nn.quantize(theirs, group_size=32, bits=bits)
        nn.quantize(ours, group_size=32, bits=bits)
    ours.load_weights(tree_flatten(theirs.parameters()), strict=True)
    return theirs, LlamaModel(ours, config["max_position_embeddings"])


def random_prompts(lengths: list[int], seed: int = 1, vocab: int = 101) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n).tolist() for n in lengths]


def make_engine(
    model,
    batch: int = 16,
    chunk: int = 64,
    kv_bytes: int | None = None,
    prefix_bytes: int | None = 0,
) -> Engine:
    """An engine; without a prefix cache unless it is given bytes for one (None: no bound)."""
    return Engine(model, Limits(batch, chunk, kv_bytes, prefix_bytes))


def request(
    name: str, prompt: list[int], n: int = 1, eos: frozenset[int] = frozenset(), **params
) -> EngineRequest:
    settings = {"temperature": 0.0, "max_tokens": 12, "seed": 0} | params
    return EngineRequest(
        name, tuple(prompt), SamplingParams(**settings), n=n, eos_token_ids=frozenset(eos)
    )


class Collected:
    """Everything the engine said, per (request, index)."""

    def __init__(self) -> None:
        self.outputs: dict[tuple[str, int], list[TokenOutput]] = {}
        self.errors: dict[str, Exception] = {}

    def take(self, outputs: dict[str, StepOutput]) -> None:
        for name, step in outputs.items():
            if step.error is not None:
                self.errors[name] = step.error
            for output in step.outputs:
                self.outputs.setdefault((name, output.index), []).append(output)

    def tokens(self, name: str, index: int = 0) -> list[int]:
        return [t for o in self.outputs[name, index] for t in o.token_ids]

    def reason(self, name: str, index: int = 0) -> str | None:
        return self.outputs[name, index][-1].finish_reason

    def logprobs(self, name: str, index: int = 0) -> list:
        return [c for o in self.outputs[name, index] for c in o.logprobs]

    def prompt_logprobs(self, name: str, index: int = 0) -> list:
        return [c for o in self.outputs[name, index] for c in o.prompt_logprobs]


def run(engine: Engine, *requests: EngineRequest, into: Collected | None = None) -> Collected:
    """Add the requests and step until the engine is idle."""
    found = into or Collected()
    for r in requests:
        engine.add(r)
    for _ in range(10_000):
        if not engine.busy:
            return found
        found.take(engine.step())
    raise AssertionError("the engine does not come to an end")


def lose_a_pass(engine: Engine, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have reading the engine's nth pass fail, and no other."""
    calls, read = [], engine.runner.read

    def unlucky(flight):
        calls.append(flight)
        if len(calls) == number:
            raise RuntimeError("lost")
        return read(flight)

    monkeypatch.setattr(engine.runner, "read", unlucky)
