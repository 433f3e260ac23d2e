"""Flags and variables of other servers that are no setting of ours under another name.

A plain other name of a setting stands beside the setting (`flags` and `env` in
config.py). Here is the rest of what llama.cpp's, MLC's and mlx-lm's servers take:

    TRANSLATED   says what a setting of ours says, in another form
    IGNORED      means nothing on MLX: accepted, and named in one line at the start
    REFUSED      would change the answers and cannot be done: one line, exit code 2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_server import settings_values as values
from mlx_server.sampler_names import lettered


@dataclass(frozen=True, slots=True)
class Translated:
    """
    Args:
        field: The field of Config that it sets, or HF_REPO.
        convert: Reads its text; None: it has none and stands for `const`. As a variable
            it then counts when it is true.
    """

    flags: tuple[str, ...]
    field: str
    convert: Callable[[str], Any] | None = None
    const: Any = None
    env: tuple[str, ...] = ()
    metavar: str | None = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """
    Args:
        takes: How many values follow it.
        may_take: Words that may follow it as well.
    """

    flags: tuple[str, ...]
    takes: int = 1
    env: tuple[str, ...] = ()
    may_take: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Refused:
    """
    Args:
        why: The reason and the way out, to stand behind the flag's name.
        harmless: Values that ask for what is done anyway.
    """

    flags: tuple[str, ...]
    why: str
    takes: int = 1
    env: tuple[str, ...] = ()
    harmless: frozenset[str] = frozenset()


HF_REPO = "hf_repo"
"""Beside `model`: with a repo, llama.cpp takes --model for the place to download to."""


def _existing_file(path: str) -> str:
    values.file_text(path)
    return path


TRANSLATED = (
    Translated(("-hf", "-hfr", "--hf-repo"), HF_REPO, values.hf_repo,
               env=("LLAMA_ARG_HF_REPO",), metavar="REPO"),
    Translated(("--lora-scaled",), "lora", values.scaled_paths,
               env=("MLX_SERVER_LORA_SCALED",), metavar="PATH SCALE"),
    Translated(("--chat-template-file",), "chat_template", _existing_file,
               env=("LLAMA_ARG_CHAT_TEMPLATE_FILE",), metavar="FILE"),
    Translated(("--sampling-seq", "--sampler-seq"), "samplers", lettered,
               metavar="LETTERS"),
    Translated(("-jf", "--json-schema-file"), "json_schema", values.file_schema, metavar="FILE"),
    Translated(("-nocb",), "cont_batching", const=False, env=("LLAMA_ARG_NO_CONT_BATCHING",)),
    Translated((), "slots", const=False, env=("LLAMA_ARG_NO_ENDPOINT_SLOTS",)),
    Translated(("-cram", "--cache-ram"), "prompt_cache_bytes", values.mebibytes,
               env=("LLAMA_ARG_CACHE_RAM",), metavar="MIB"),
    Translated(("--no-cache-prompt",), "prompt_cache_bytes", const=0),
    Translated(("-v", "--verbose", "--log-verbose"), "log_level", const="DEBUG"),
    Translated(("--verbosity",), "log_level", values.verbosity, metavar="N"),
    Translated(("-lv", "--log-verbosity"), "log_level", values.log_threshold,
               env=("LLAMA_ARG_LOG_VERBOSITY",), metavar="N"),
    Translated(("--log-disable",), "log_level", const="CRITICAL"),
    Translated(("--log-enable",), "log_level", const="INFO"),
    Translated(("--log-new",), "log_append", const=False),
)  # fmt: skip

_ON_OFF = frozenset({"on", "off", "auto", "0", "1", "true", "false", "enabled", "disabled"})

IGNORED = (
    # threads and cores: MLX chooses them
    Ignored(("-t", "--threads"), env=("LLAMA_ARG_THREADS",)),
    Ignored(("-tb", "--threads-batch"), env=("LLAMA_ARG_THREADS_BATCH",)),
    Ignored(("-C", "--cpu-mask")),
    Ignored(("-Cr", "--cpu-range")),
    Ignored(("--cpu-strict",)),
    Ignored(("--prio",)),
    Ignored(("--poll",)),
    Ignored(("-Cb", "--cpu-mask-batch")),
    Ignored(("-Crb", "--cpu-range-batch")),
    Ignored(("--cpu-strict-batch",)),
    Ignored(("--prio-batch",)),
    Ignored(("--poll-batch",)),
    Ignored(("--numa",), env=("LLAMA_ARG_NUMA",)),
    # where weights and caches lie: in unified memory
    Ignored(("--mlock",), 0, env=("LLAMA_ARG_MLOCK",)),
    Ignored(("--no-mmap", "--mmap"), 0, env=("LLAMA_ARG_MMAP", "LLAMA_ARG_NO_MMAP")),
    Ignored(("-lm", "--load-mode"), env=("LLAMA_ARG_LOAD_MODE",)),
    Ignored(("-ngl", "--gpu-layers", "--n-gpu-layers"), env=("LLAMA_ARG_N_GPU_LAYERS",)),
    Ignored(("-sm", "--split-mode"), env=("LLAMA_ARG_SPLIT_MODE",)),
    Ignored(("-ts", "--tensor-split"), env=("LLAMA_ARG_TENSOR_SPLIT",)),
    Ignored(("-mg", "--main-gpu"), env=("LLAMA_ARG_MAIN_GPU",)),
    Ignored(("-ot", "--override-tensor"), env=("LLAMA_ARG_OVERRIDE_TENSOR",)),
    Ignored(("-cmoe", "--cpu-moe"), 0, env=("LLAMA_ARG_CPU_MOE",)),
    Ignored(("-ncmoe", "--n-cpu-moe"), env=("LLAMA_ARG_N_CPU_MOE",)),
    Ignored(("-fit", "--fit"), env=("LLAMA_ARG_FIT",)),
    Ignored(("-fitt", "--fit-target"), env=("LLAMA_ARG_FIT_TARGET",)),
    Ignored(("-fitc", "--fit-ctx"), env=("LLAMA_ARG_FIT_CTX",)),
    Ignored(("-nkvo", "--no-kv-offload", "-kvo", "--kv-offload"), 0,
            env=("LLAMA_ARG_KV_OFFLOAD", "LLAMA_ARG_NO_KV_OFFLOAD")),
    Ignored(("--op-offload", "--no-op-offload"), 0),
    Ignored(("--repack", "-nr", "--no-repack"), 0, env=("LLAMA_ARG_REPACK",)),
    Ignored(("--no-host",), 0, env=("LLAMA_ARG_NO_HOST",)),
    # how it computes
    Ignored(("-fa", "--flash-attn"), 0, env=("LLAMA_ARG_FLASH_ATTN",), may_take=_ON_OFF),
    Ignored(("-dkvc", "--dump-kv-cache"), 0),
    Ignored(("-dt", "--defrag-thold"), env=("LLAMA_ARG_DEFRAG_THOLD",)),
    Ignored(("--check-tensors",), 0),
    Ignored(("-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified"), 0,
            env=("LLAMA_ARG_KV_UNIFIED",)),
    Ignored(("--swa-full",), 0, env=("LLAMA_ARG_SWA_FULL",)),
    Ignored(("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"),
            env=("LLAMA_ARG_CTX_CHECKPOINTS",)),
    Ignored(("--cache-prompt",), 0, env=("LLAMA_ARG_CACHE_PROMPT",)),
    Ignored(("--cache-reuse",), env=("LLAMA_ARG_CACHE_REUSE",)),
    Ignored(("--context-shift",), 0, env=("LLAMA_ARG_CONTEXT_SHIFT",)),
    Ignored(("--warmup", "--no-warmup"), 0),
    Ignored(("--perf", "--no-perf"), 0, env=("LLAMA_ARG_PERF",)),
    Ignored(("-bs", "--backend-sampling"), 0, env=("LLAMA_ARG_BACKEND_SAMPLING",)),
    # drafts: the answers are the same without
    Ignored(("-md", "--model-draft", "--draft-model"), env=("LLAMA_ARG_MODEL_DRAFT",)),
    Ignored(("--draft", "--draft-max", "--draft-n", "--num-draft-tokens"),
            env=("LLAMA_ARG_DRAFT_MAX",)),
    Ignored(("--draft-min", "--draft-n-min"), env=("LLAMA_ARG_DRAFT_MIN",)),
    Ignored(("--draft-p-min",), env=("LLAMA_ARG_DRAFT_P_MIN",)),
    Ignored(("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft"),
            env=("LLAMA_ARG_N_GPU_LAYERS_DRAFT",)),
    Ignored(("-lcs", "--lookup-cache-static")),
    Ignored(("-lcd", "--lookup-cache-dynamic")),
    # a server reads no prompt from its command line
    Ignored(("-p", "--prompt")),
    Ignored(("-f", "--file")),
    Ignored(("-bf", "--binary-file")),
    # logs
    Ignored(("-ld", "--logdir")),
    Ignored(("--log-test",), 0),
    Ignored(("--log-colors",), env=("LLAMA_ARG_LOG_COLORS",), takes=0, may_take=_ON_OFF),
    Ignored(("--log-prefix", "--no-log-prefix"), 0, env=("LLAMA_ARG_LOG_PREFIX",)),
    Ignored(("--log-timestamps", "--no-log-timestamps"), 0, env=("LLAMA_ARG_LOG_TIMESTAMPS",)),
    # always so here
    Ignored(("--jinja", "--no-jinja"), 0, env=("LLAMA_ARG_JINJA",)),
    Ignored(("--rerank", "--reranking"), 0, env=("LLAMA_ARG_RERANKING",)),
    Ignored(("--no-mmproj", "--no-mmproj-auto"), 0),
    # mlx-lm: several machines share a model
    Ignored(("--pipeline",), 0),
    # MLC: its compiled library of a model
    Ignored(("--model-lib", "--lib-path")),
)  # fmt: skip

_GROUPS = "group attention is not done on MLX; --rope-scaling and --rope-scale extend the context"
_IMAGES = "images are not read; this server takes text"

REFUSED = (
    Refused(("--override-kv",), "a model's metadata cannot be overridden; change the file, or "
            "config.json in the model's folder"),
    Refused(("-gan", "--grp-attn-n"), _GROUPS, env=("LLAMA_ARG_GRP_ATTN_N",),
            harmless=frozenset({"1"})),
    Refused(("-gaw", "--grp-attn-w"), _GROUPS, env=("LLAMA_ARG_GRP_ATTN_W",),
            harmless=frozenset({"512", "512.0"})),
    Refused(("-mu", "--model-url"), "models are not downloaded from a URL; give a Hugging Face "
            "repo with --hf-repo, or a local file with --model", env=("LLAMA_ARG_MODEL_URL",)),
    Refused(("-dr", "--docker-repo"), "models are not downloaded from Docker Hub; give a Hugging "
            "Face repo with --hf-repo", env=("LLAMA_ARG_DOCKER_REPO",)),
    Refused(("-mm", "--mmproj"), _IMAGES, env=("LLAMA_ARG_MMPROJ",)),
    Refused(("-mmu", "--mmproj-url"), _IMAGES, env=("LLAMA_ARG_MMPROJ_URL",)),
    Refused(("--rpc",), "computing on other machines is not done", env=("LLAMA_ARG_RPC",)),
    Refused(("-r", "--reverse-prompt"), "stop strings come with a request: send `stop`"),
    Refused(("--no-context-shift",), "a /completion always makes room when the context is full; "
            "bound it with --n-predict", 0),
    Refused(("-rea", "--reasoning"), "templates are told with --chat-template-args "
            "'{\"enable_thinking\": false}'", env=("LLAMA_ARG_REASONING",),
            harmless=frozenset({"auto"})),
    Refused(("--api-prefix",), "routes have no prefix here; let the proxy in front remove it",
            env=("LLAMA_ARG_API_PREFIX",)),
)  # fmt: skip


# ---------------------------------------------------------------- what the command line says twice

_PAIRS = ("--lora-scaled", "--control-vector-scaled", "--control-vector-layer-range")


def tidy(argv: Sequence[str]) -> list[str]:
    """The command line in the form that argparse can read.

    Two values of one flag are made one ("PATH SCALE"; today's llama-server writes
    PATH:SCALE), and the optional value of an ignored flag is left out.
    """
    optional = {flag: row.may_take for row in IGNORED if row.may_take for flag in row.flags}
    rest, found = list(argv), []
    while rest:
        word = rest.pop(0)
        found.append(word)
        if word == "--":
            return [*found, *rest]
        flag, _, value = word.partition("=")
        if flag in optional and value.lower() in optional[flag]:
            found[-1] = flag
        elif word in optional and rest and rest[0].lower() in optional[word]:
            rest.pop(0)
        elif word in _PAIRS and len(rest) > 1 and _is_number(rest[1]):
            found.append(f"{rest.pop(0)} {rest.pop(0)}")
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- variables


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """Those that are set and mean nothing here."""
    return [name for row in IGNORED for name in row.env if environ.get(name)]


def refuse_variables(environ: Mapping[str, str]) -> None:
    """Raises ValueError where one is set that asks for what cannot be done."""
    for row in REFUSED:
        for name in row.env:
            if environ.get(name) and environ[name] not in row.harmless:
                raise ValueError(f"{name}: {row.why}")


# ---------------------------------------------------------------- for docs/settings.md


def table() -> str:
    """What is ignored and what is refused, as Markdown."""
    rows = ["| flag | environment | here |", "| --- | --- | --- |"]
    for row in (*IGNORED, *REFUSED):
        here = row.why if isinstance(row, Refused) else "accepted, without a meaning"
        cells = (names(row.flags), names(row.env), here)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def names(words: Sequence[str]) -> str:
    """Names as a table's cell shows them."""
    return " ".join(f"`{word}`" for word in words)


if __name__ == "__main__":
    print(table())
