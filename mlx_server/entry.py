"""Entry: a model in memory, and how it gets there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_server.config import Config
from mlx_server.defaults import Defaults
from mlx_server.deltas import Finished
from mlx_server.embedder import Embedder
from mlx_server.engine.encoders import EncoderInfo, load_encoder
from mlx_server.engine.engines import Engines
from mlx_server.engine.limits import Limits
from mlx_server.engine.loading import EngineInfo, load_engine, unload
from mlx_server.engine.worker import Worker
from mlx_server.errors import ModelLoadError, NotSupported, RequestError
from mlx_server.llm import LLM
from mlx_server.models import encoder, loader
from mlx_server.models.control import control_vectors_of
from mlx_server.models.embedding_files import own_pooling
from mlx_server.models.model_files import read_json
from mlx_server.models.overrides import RopeOverrides
from mlx_server.models.registry import is_encoder
from mlx_server.progress import UNTOLD, Progress
from mlx_server.replies import ReplyForms
from mlx_server.text.tokenizer import Tokenizer, check_ids


@dataclass(eq=False)
class Entry:
    """A model in memory.

    Attributes:
        embedder: Makes vectors with it.
        llm: Generates with it; None with an encoder.
        adapters: Adapter names in the engine, by their folder.
        num_entering: Requests that are being queued just now, or have vectors made.
        draining: It goes when its rows are done; no request may join them.
        used: When it was last asked for, for choosing what to unload.
    """

    name: str
    path: Path
    info: EngineInfo | EncoderInfo
    tokenizer: Tokenizer
    embedder: Embedder
    llm: LLM | None
    adapters: dict[Path, str] = field(default_factory=dict)
    num_entering: int = 0
    draining: bool = False
    used: float = 0.0

    @property
    def context_length(self) -> int:
        return self.info.context_length

    @property
    def generator(self) -> LLM:
        """Raises NotSupported: it is an encoder."""
        if self.llm is None:
            raise NotSupported(
                f"{self.name} is an embedding model: it generates no text. Use /v1/embeddings."
            )
        return self.llm

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raises RequestError for one that is not in the vocabulary."""
        check_ids(token_ids, self.info.vocab_size, param)


def check_files(config: Config, name: str, path: Path, *, is_default: bool) -> None:
    """See whether the model in `path` can be loaded, as far as that shows without its weights.
    Raises ModelLoadError."""
    if _holds_encoder(path):
        encoder.check(path, name=name)
        return
    rope = RopeOverrides.of(config) if is_default else None
    loader.check(path, name=name, trust_remote_code=config.trust_remote_code, rope=rope)


def open_entry(
    config: Config,
    worker: Worker,
    name: str,
    path: Path,
    *,
    is_default: bool,
    observe: Callable[[Finished], None],
    progress: Progress = UNTOLD,
) -> Entry:
    """Load the model in `path`.

    Args:
        is_default: It is the command line's, and so are the options that are about one model.
        progress: Is told how far it is.

    Raises:
        ModelLoadError: One line that names the mend.
    """
    if _holds_encoder(path):
        return _open_encoder(config, worker, name, path, progress)
    limits, defaults = Limits.of(config), Defaults.of(config)
    rope = RopeOverrides.of(config) if is_default else None
    control = control_vectors_of(config) if is_default else []

    def load(engines: Engines) -> EngineInfo:
        return load_engine(
            engines,
            path,
            name=name,
            limits=limits,
            max_models=config.max_models,
            trust_remote_code=config.trust_remote_code,
            rope=rope,
            control=(control, config.control_vector_layer_range),
            progress=progress,
        )

    info = worker.call(load)
    try:
        return _entry(config, worker, name, path, info, limits, defaults, is_default, observe)
    except Exception:
        worker.call(lambda engines: unload(engines, name))
        raise


def _entry(
    config: Config,
    worker: Worker,
    name: str,
    path: Path,
    info: EngineInfo,
    limits: Limits,
    defaults: Defaults,
    is_default: bool,
    observe: Callable[[Finished], None],
) -> Entry:
    tokenizer = Tokenizer.load(
        path,
        trust_remote_code=config.trust_remote_code,
        chat_template=config.chat_template if is_default else None,
        use_default_chat_template=config.use_default_chat_template,
        template_args=config.chat_template_args or {},
        eos_token_ids=info.eos_token_ids,
    )
    replies = ReplyForms(
        tokenizer,
        info.vocab_size,
        reasoning_format=config.reasoning_format,
        max_thinking_tokens=config.max_thinking_tokens,
    )
    replies.grammars.prepare()
    llm = LLM(
        name=name,
        path=str(path),
        worker=worker,
        tokenizer=tokenizer,
        vocab_size=info.vocab_size,
        replies=replies,
        context_length=info.context_length,
        trained_length=info.trained_length,
        kv_tokens=info.kv_tokens,
        num_slots=limits.max_batch_size,
        defaults=replace(defaults, model=info.sampling),
        observe=observe,
    )
    _check_defaults(defaults, info.vocab_size, replies)
    pooling = config.pooling or own_pooling(path) or "mean"
    embedder = Embedder(
        name, worker, tokenizer, info.vocab_size, info.context_length, pooling, info.kv_tokens
    )
    return Entry(name, path, info, tokenizer, embedder, llm, used=time.monotonic())


def _open_encoder(
    config: Config, worker: Worker, name: str, path: Path, progress: Progress
) -> Entry:
    def load(engines: Engines) -> EncoderInfo:
        return load_encoder(
            engines, path, name=name, chunk_size=config.prefill_chunk_size, progress=progress
        )

    info = worker.call(load)
    try:
        tokenizer = Tokenizer.load(path, trust_remote_code=config.trust_remote_code)
    except Exception:
        worker.call(lambda engines: unload(engines, name))
        raise
    embedder = Embedder.of_encoder(name, worker, tokenizer, info, config.pooling)
    return Entry(name, path, info, tokenizer, embedder, None, used=time.monotonic())


def _holds_encoder(path: Path) -> bool:
    file = path / "config.json"
    return file.is_file() and is_encoder(read_json(file))


def _check_defaults(defaults: Defaults, vocab_size: int, replies: ReplyForms) -> None:
    """Raises ModelLoadError for what would fail every request."""
    try:
        biased = [token for token, _ in defaults.flags.get("logit_bias", ())]
        check_ids(biased, vocab_size, "logit_bias")
    except RequestError as error:
        raise ModelLoadError(f"--logit-bias: {error.message}") from None
    if defaults.grammar is not None:
        try:
            replies.grammars.compile(defaults.grammar)
        except RequestError as error:
            raise ModelLoadError(f"{defaults.grammar.param}: {error.message}") from None
