"""Config: every setting of the server with its default, help text and environment name.

This is their only home. `flags.py` derives the flags from the fields, the tables of
docs/settings.md are printed from them (`python -m mlx_server.config`), and nothing else
states a default. How texts are read is in settings_values.py; flags of other servers
that are more than another name are in compat.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

from mlx_server import compat
from mlx_server.settings_values import (
    LISTS,
    boolean,
    cache_type,
    comma_list,
    device,
    file_keys,
    file_text,
    finite,
    json_object,
    json_schema,
    layer_range,
    logit_bias,
    not_below_minus_one,
    not_negative,
    one_of,
    port_number,
    positive,
    positive_or_automatic,
    positive_or_none,
    reasoning_format,
    sampler_names,
    scaled_paths,
    size,
    size_or_zero,
    string_list,
    temperature,
    thinking_limit,
    token_limit,
    unescape,
    whole,
    within,
)

ENV_PREFIX = "MLX_SERVER_"


def option(
    default: Any,
    help: str,
    convert: Callable[[str], Any] = str,
    *,
    repeat: bool = False,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    group: str = "server",
    flags: tuple[str, ...] = (),
    env: tuple[str, ...] = (),
    smallest: bool = False,
    secret: bool = False,
) -> Any:
    """A Config field.

    Args:
        convert: Reads the text of a flag or environment variable.
        repeat: Collect every use of the flag in a tuple; where `convert` gives a list
            (settings_values.LISTS) its items. The variable is a list.
        flags, env: The names that it has in other servers.
        smallest: Of several uses the smallest counts, not the last.
        secret: Left out of the Config's repr.
    """
    metadata = {
        "flags": flags,
        "env": env,
        "smallest": smallest,
        "help": help,
        "convert": convert,
        "repeat": repeat,
        "choices": choices,
        "metavar": metavar,
        "group": group,
    }
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True)
class Config:
    """Settings of one server process. None means "not given" throughout."""

    # ---- model
    model: str | None = option(
        None, "Hugging Face repo id, local folder or .gguf file; the bundled demo model if left "
        "out", flags=("-m",), env=("LLAMA_ARG_MODEL",), group="model",
    )  # fmt: skip
    revision: str | None = option(
        None, "branch, tag or commit of the repo to download", group="model"
    )
    alias: tuple[str, ...] = option(
        (), "other names that requests may use for the model (commas between several)",
        string_list, flags=("-a",), env=("LLAMA_ARG_ALIAS",), group="model",
    )  # fmt: skip
    adapter_path: str | None = option(
        None, "LoRA or DoRA adapter folder that applies unless a request names another",
        group="model",
    )  # fmt: skip
    lora: tuple[str | tuple[str, float], ...] = option(
        (), "adapter: NAME=PATH makes NAME a model id of its own, PATH alone applies to every "
        "request (repeatable, or commas between several; they are summed). --lora-scaled PATH "
        "SCALE (or PATH:SCALE) applies it at that scale", string_list,
        repeat=True, metavar="[NAME=]PATH", group="model",
    )  # fmt: skip
    chat_template: str | None = option(
        None, "chat template to use instead of the model's: a file, the template itself, or the "
        "name that llama.cpp has for one, as in chatml", env=("LLAMA_ARG_CHAT_TEMPLATE",),
        group="model",
    )  # fmt: skip
    use_default_chat_template: bool = option(
        False, "use ChatML even where the model has a template", boolean, group="model"
    )
    chat_template_args: Mapping[str, Any] | None = option(
        None, "JSON object of variables for the chat template", json_object,
        flags=("--chat-template-kwargs",), env=("LLAMA_ARG_CHAT_TEMPLATE_KWARGS",), group="model",
    )  # fmt: skip
    trust_remote_code: bool = option(
        False, "run code that comes with the model or its tokenizer", boolean, group="model"
    )
    max_models: int = option(
        1, "models kept in memory; the least recently used goes first", positive,
        flags=("--models-max",), env=("LLAMA_ARG_MODELS_MAX",), group="model",
    )  # fmt: skip
    allow_download: bool = option(
        False, "let a request name a repo that is not in the local cache", boolean, group="model"
    )
    strict_model_names: bool = option(
        False, "answer 404 to unknown model names instead of using the loaded model", boolean,
        group="model",
    )  # fmt: skip

    hf_file: str | None = option(
        None, "file of the repo to load, a .gguf", flags=("-hff",), env=("LLAMA_ARG_HF_FILE",),
        group="model",
    )  # fmt: skip
    hf_token: str | None = option(
        None, "Hugging Face access token", flags=("-hft",), env=("HF_TOKEN",), secret=True,
        group="model",
    )  # fmt: skip
    lora_init_without_apply: bool = option(
        False, "load the adapters at scale 0; POST /lora-adapters applies them", boolean,
        group="model",
    )  # fmt: skip
    control_vector: tuple[str, ...] = option(
        (), "control vector to add, a .gguf (repeatable, or commas between several)",
        string_list, repeat=True, metavar="PATH", group="model",
    )  # fmt: skip
    control_vector_scaled: tuple[tuple[str, float], ...] = option(
        (), "control vector and its scale: PATH SCALE, or PATH:SCALE with commas between "
        "several (repeatable)", scaled_paths, repeat=True, metavar="PATH SCALE", group="model",
    )  # fmt: skip
    control_vector_layer_range: tuple[int, int] | None = option(
        None, "first and last layer that control vectors change, from 1: START END",
        layer_range, metavar="START END", group="model",
    )  # fmt: skip
    embedding: bool = option(
        False, "accepted; embeddings are served beside generation with or without it", boolean,
        flags=("--embeddings",), env=("LLAMA_ARG_EMBEDDINGS",), group="model",
    )  # fmt: skip
    pooling: Literal["mean", "last", "cls"] | None = option(
        None, "how an embedding is made of the tokens'; the model's own way if left out",
        choices=("mean", "last", "cls"), env=("LLAMA_ARG_POOLING",), group="model",
    )  # fmt: skip

    # ---- context and positions
    ctx_size: int = option(
        0, "tokens that fit all slots together; 0: as many as the model was made for",
        not_negative, flags=("-c",), env=("LLAMA_ARG_CTX_SIZE",), group="context",
    )  # fmt: skip
    parallel: int | None = option(
        None, "slots that the context is divided among, and sequences that run at the same time; "
        "-1: automatic", positive_or_automatic, flags=("-np",), env=("LLAMA_ARG_N_PARALLEL",),
        group="context",
    )  # fmt: skip
    keep: int = option(
        0, "prompt tokens that stay when a full context makes room; -1 keeps all",
        not_below_minus_one, group="context",
    )  # fmt: skip
    rope_scaling: str | None = option(
        None, "how positions beyond those of the training are scaled",
        choices=("none", "linear", "yarn"), env=("LLAMA_ARG_ROPE_SCALING_TYPE",), group="context",
    )  # fmt: skip
    rope_scale: float | None = option(
        None, "factor by which that extends the context", within(0.001, 1e6),
        env=("LLAMA_ARG_ROPE_SCALE",), group="context",
    )  # fmt: skip
    rope_freq_base: float | None = option(
        None, "base of the rotary periods", within(1e-3, 1e12),
        env=("LLAMA_ARG_ROPE_FREQ_BASE",), group="context",
    )  # fmt: skip
    rope_freq_scale: float | None = option(
        None, "factor on positions, one over --rope-scale", within(1e-6, 1e3),
        env=("LLAMA_ARG_ROPE_FREQ_SCALE",), group="context",
    )  # fmt: skip
    yarn_orig_ctx: int | None = option(
        None, "YaRN: tokens of the training's context; 0: the model's own", not_negative,
        env=("LLAMA_ARG_YARN_ORIG_CTX",), group="context",
    )  # fmt: skip
    yarn_ext_factor: float | None = option(
        None, "YaRN: share of extrapolation; negative: 1 with yarn, else 0", finite,
        env=("LLAMA_ARG_YARN_EXT_FACTOR",), group="context",
    )  # fmt: skip
    yarn_attn_factor: float | None = option(
        None, "YaRN: factor on the attention's magnitude", within(0, 1e3),
        env=("LLAMA_ARG_YARN_ATTN_FACTOR",), group="context",
    )  # fmt: skip
    yarn_beta_slow: float | None = option(
        None, "YaRN: rotations at which interpolation is whole", within(0, 1e6),
        env=("LLAMA_ARG_YARN_BETA_SLOW",), group="context",
    )  # fmt: skip
    yarn_beta_fast: float | None = option(
        None, "YaRN: rotations at which it ends", within(0, 1e6),
        env=("LLAMA_ARG_YARN_BETA_FAST",), group="context",
    )  # fmt: skip
    spm_infill: bool = option(
        False, "infill with suffix, prefix, middle instead of prefix, suffix, middle", boolean,
        group="context",
    )  # fmt: skip
    system_prompt_file: str | None = option(
        None, "file with what every /completion prompt begins with: text, or llama.cpp's JSON",
        flags=("-spf",), group="context",
    )  # fmt: skip

    # ---- sampling defaults; a request's own fields come first
    max_tokens: int | None = option(
        None, "default limit of generated tokens; -1 (or -2) until the context is full",
        token_limit, flags=("-n", "--predict", "--n-predict"), env=("LLAMA_ARG_N_PREDICT",),
        group="sampling",
    )  # fmt: skip
    temp: float | None = option(
        None, "default temperature; 0 or less is greedy", temperature, metavar="TEMP",
        flags=("--temperature",), env=("LLAMA_ARG_TEMPERATURE",), group="sampling",
    )  # fmt: skip
    top_p: float | None = option(
        None, "default top-p", within(0, 1), env=("LLAMA_ARG_TOP_P",), group="sampling"
    )
    top_k: int | None = option(
        None, "default top-k; 0 keeps all", not_negative, env=("LLAMA_ARG_TOP_K",),
        group="sampling",
    )  # fmt: skip
    min_p: float | None = option(
        None, "default min-p", within(0, 1), env=("LLAMA_ARG_MIN_P",), group="sampling"
    )

    seed: int | None = option(
        None, "default seed; negative draws one for each request", whole, flags=("-s",),
        group="sampling",
    )  # fmt: skip
    samplers: tuple[str, ...] | None = option(
        None, "llama.cpp's samplers in the order they are applied, as in top_k;top_p;temperature",
        sampler_names, metavar="NAMES", group="sampling",
    )  # fmt: skip
    typical: float | None = option(
        None, "default typical-p", within(0, 1), flags=("--typical-p",), group="sampling"
    )
    tfs: float | None = option(
        None, "default of tail free sampling", within(0, 1), group="sampling"
    )
    top_n_sigma: float | None = option(
        None, "default of top-n-sigma; negative is off", finite, flags=("--top-nsigma",),
        group="sampling",
    )  # fmt: skip
    xtc_probability: float | None = option(
        None, "default chance of XTC", within(0, 1), group="sampling"
    )
    xtc_threshold: float | None = option(
        None, "default threshold of XTC", within(0, 1), group="sampling"
    )
    repeat_penalty: float | None = option(
        None, "default repetition penalty; 1 is off", within(0.01, 100),
        env=("LLAMA_ARG_REPEAT_PENALTY",), group="sampling",
    )  # fmt: skip
    repeat_last_n: int | None = option(
        None, "tokens that penalties look back at; -1: the whole context", not_below_minus_one,
        group="sampling",
    )  # fmt: skip
    presence_penalty: float | None = option(
        None, "default presence penalty", within(-100, 100),
        env=("LLAMA_ARG_PRESENCE_PENALTY",), group="sampling",
    )  # fmt: skip
    frequency_penalty: float | None = option(
        None, "default frequency penalty", within(-100, 100),
        env=("LLAMA_ARG_FREQUENCY_PENALTY",), group="sampling",
    )  # fmt: skip
    penalize_nl: bool | None = option(
        None, "whether penalties count for newlines", boolean, group="sampling"
    )
    dry_multiplier: float | None = option(
        None, "default strength of the DRY penalty; 0 is off", within(0, 100), group="sampling"
    )
    dry_base: float | None = option(None, "default base of DRY", within(1, 100), group="sampling")
    dry_allowed_length: int | None = option(
        None, "repeated tokens that DRY allows", not_negative, group="sampling"
    )
    dry_penalty_last_n: int | None = option(
        None, "tokens that DRY looks back at; -1: the whole context", not_below_minus_one,
        group="sampling",
    )  # fmt: skip
    dry_sequence_breaker: tuple[str, ...] = option(
        (), "string that no repetition goes across (repeatable; \"none\": there are none)",
        repeat=True, group="sampling",
    )  # fmt: skip
    escape: bool = option(
        True, "read \\n, \\t and the like in --dry-sequence-breaker", boolean, flags=("-e",),
        group="sampling",
    )  # fmt: skip
    dynatemp_range: float | None = option(
        None, "how far the temperature may move with the entropy", within(0, 100),
        group="sampling",
    )  # fmt: skip
    dynatemp_exp: float | None = option(None, "exponent of that", within(0, 100), group="sampling")
    mirostat: int | None = option(
        None, "Mirostat: 0 off, 1, or 2 for Mirostat 2.0", one_of(0, 1, 2), group="sampling"
    )
    mirostat_lr: float | None = option(
        None, "Mirostat's learning rate eta", within(0, 100), group="sampling"
    )
    mirostat_ent: float | None = option(
        None, "Mirostat's target entropy tau", within(0, 100), group="sampling"
    )
    logit_bias: tuple[str, ...] = option(
        (), "bias on a token, as in 15043+1 or 15043-1 (repeatable)", logit_bias, repeat=True,
        flags=("-l",), metavar="TOKEN_ID(+/-)BIAS", group="sampling",
    )  # fmt: skip
    ignore_eos: bool = option(
        False, "go on past end tokens unless a request says otherwise", boolean, group="sampling"
    )
    grammar: str | None = option(
        None, "GBNF grammar that replies follow unless a request has one", group="sampling"
    )
    grammar_file: str | None = option(None, "file with such a grammar", group="sampling")
    json_schema: str | None = option(
        None, "JSON schema that replies follow unless a request has one", json_schema,
        flags=("-j",), group="sampling",
    )  # fmt: skip

    reasoning_format: str = option(
        "auto", "what becomes of a model's reasoning: auto (also named deepseek) gives it as "
        "`reasoning_content`, none leaves it in the content", reasoning_format,
        choices=("auto", "none"), env=("LLAMA_ARG_THINK",), group="sampling",
    )  # fmt: skip
    max_thinking_tokens: int | None = option(
        None, "default limit of reasoning tokens, after which a model has to answer; -1 sets none",
        thinking_limit, flags=("--reasoning-budget",), env=("LLAMA_ARG_THINK_BUDGET",),
        group="sampling",
    )  # fmt: skip

    # ---- engine
    max_batch_size: int = option(
        64, "sequences that run at the same time", positive, flags=("--decode-concurrency",),
        group="engine",
    )  # fmt: skip
    prefill_chunk_size: int = option(
        192, "prompt tokens computed per step beside other requests; four times as many for one "
        "that runs alone", positive, smallest=True, group="engine",
        flags=("-b", "--batch-size", "-ub", "--ubatch-size", "--prefill-step-size"),
        env=("LLAMA_ARG_BATCH", "LLAMA_ARG_UBATCH"),
    )  # fmt: skip
    max_queue: int = option(
        256, "sequences that may wait for a place; further requests get 503", positive,
        group="engine",
    )  # fmt: skip
    max_kv_bytes: int | None = option(
        None, "memory for keys and values, as in 8GB; automatic if left out", size, group="engine"
    )
    prompt_cache_bytes: int | None = option(
        None, "how much of it may hold what ended requests have computed, for others to go on "
        "from; 0 turns that off, left out it is all that running ones do not need",
        size_or_zero, metavar="SIZE", group="engine",
    )  # fmt: skip
    prompt_cache_size: int = option(
        512, "how many ended requests' prompts and replies it may hold", not_negative,
        group="engine",
    )  # fmt: skip
    kv_bits: int | None = option(
        None, "store keys and values in so many bits: 4 or 8", one_of(4, 8), metavar="BITS",
        group="engine",
    )  # fmt: skip
    kv_group_size: int | None = option(
        None, "numbers that share a scale there: 32, 64 or 128; 64, or 32 where a model's heads "
        "need it, if left out", one_of(32, 64, 128), metavar="SIZE",
        group="engine",
    )  # fmt: skip
    quantized_kv_start: int = option(
        0, "tokens that a request has before its keys and values are quantised", not_negative,
        group="engine",
    )  # fmt: skip

    cont_batching: bool = option(
        True, "let sequences join a running batch", boolean, flags=("-cb",),
        env=("LLAMA_ARG_CONT_BATCHING",), group="engine",
    )  # fmt: skip
    prompt_concurrency: int | None = option(
        None, "prompts that are computed in one step; no limit but the chunk's if left out",
        positive, group="engine",
    )  # fmt: skip
    max_total_seq_length: int | None = option(
        None, "tokens whose keys and values may exist at the same time; None: automatic",
        positive_or_none, group="engine",
    )  # fmt: skip
    cache_type_k: str | None = option(
        None, "type of the stored keys: f32, f16, bf16 (the model's own), q8_0, q4_0", cache_type,
        flags=("-ctk",), env=("LLAMA_ARG_CACHE_TYPE_K",), group="engine",
    )  # fmt: skip
    cache_type_v: str | None = option(
        None, "type of the stored values, the same as of the keys", cache_type,
        flags=("-ctv",), env=("LLAMA_ARG_CACHE_TYPE_V",), group="engine",
    )  # fmt: skip
    device: str | None = option(
        None, "device to compute on: metal, cuda, gpu, cpu or auto, with an id as in cuda:1",
        device, flags=("-dev",), env=("LLAMA_ARG_DEVICE",), group="engine",
    )  # fmt: skip
    enable_tracing: bool = option(
        False, "record requests' ways through the engine for GET /debug/dump_event_trace",
        boolean, group="engine",
    )  # fmt: skip
    trace_file: str | None = option(
        None, "file that the trace is written to when the server stops", group="engine"
    )

    # ---- slots and what is told of them
    slots: bool = option(
        True, "answer GET /slots", boolean, env=("LLAMA_ARG_ENDPOINT_SLOTS",), group="slots"
    )
    slot_save_path: str | None = option(
        None, "folder for saved slots, made if it is missing; without it they are not saved",
        env=("LLAMA_ARG_SLOT_SAVE_PATH",), group="slots",
    )  # fmt: skip
    slot_prompt_similarity: float = option(
        0.5, "share of a prompt that a slot must have had to be chosen for it; 0 turns that off",
        within(0, 1), flags=("-sps",), group="slots",
    )  # fmt: skip
    props: bool = option(
        False, "let POST /props change the system prompt", boolean,
        env=("LLAMA_ARG_ENDPOINT_PROPS",), group="slots",
    )  # fmt: skip
    metrics: bool = option(
        False, "answer GET /metrics", boolean, env=("LLAMA_ARG_ENDPOINT_METRICS",), group="slots"
    )

    # ---- HTTP
    path: str | None = option(
        None, "folder of static files to serve", env=("LLAMA_ARG_STATIC_PATH",), group="http"
    )
    webui: bool = option(
        True, "serve the built-in pages: the chat at / and the running engine at /engine/", boolean,
        flags=("--ui",), env=("LLAMA_ARG_UI", "LLAMA_ARG_WEBUI"), group="http",
    )  # fmt: skip
    api_key_file: str | None = option(
        None, "file with API keys, one on each line", env=("LLAMA_ARG_API_KEY_FILE",), group="http"
    )
    ssl_key_file: str | None = option(
        None, "private key for TLS, PEM", env=("LLAMA_ARG_SSL_KEY_FILE",), group="http"
    )
    ssl_cert_file: str | None = option(
        None, "certificate for TLS, PEM", env=("LLAMA_ARG_SSL_CERT_FILE",), group="http"
    )
    allowed_methods: tuple[str, ...] = option(
        ("*",), "methods for CORS: a comma-separated or JSON list", string_list,
        flags=("--cors-methods",), env=("LLAMA_ARG_CORS_METHODS",), group="http",
    )  # fmt: skip
    allowed_headers: tuple[str, ...] = option(
        ("*",), "headers for CORS: a comma-separated or JSON list", string_list,
        flags=("--cors-headers",), env=("LLAMA_ARG_CORS_HEADERS",), group="http",
    )  # fmt: skip
    threads_http: int | None = option(
        None, "connections that are served at the same time; others wait; -1: no such bound",
        positive_or_automatic, env=("LLAMA_ARG_THREADS_HTTP",), group="http",
    )  # fmt: skip
    log_file: str | None = option(
        None, "file to log to beside the terminal", env=("LLAMA_LOG_FILE", "LLAMA_ARG_LOG_FILE"),
        group="http",
    )  # fmt: skip
    log_append: bool = option(
        True, "go on at the end of --log-file instead of beginning it anew", boolean, group="http"
    )

    host: str = option("127.0.0.1", "address to listen on", env=("LLAMA_ARG_HOST",), group="http")
    port: int = option(
        8080, "port to listen on; 0 takes any free one", port_number, env=("LLAMA_ARG_PORT",),
        group="http",
    )  # fmt: skip
    api_key: tuple[str, ...] = option(
        (), "key that clients must send as a bearer token (repeatable, or commas between several)",
        comma_list, repeat=True, env=("LLAMA_API_KEY",), secret=True, group="http",
    )  # fmt: skip
    allowed_origins: tuple[str, ...] = option(
        ("*",), "origins for CORS: a comma-separated or JSON list; localhost: any of this machine",
        string_list, flags=("--cors-origins",), env=("LLAMA_ARG_CORS_ORIGINS",), group="http",
    )  # fmt: skip
    allow_credentials: bool = option(
        False, "let browsers send credentials (the origin is then echoed)", boolean,
        flags=("--cors-credentials",), env=("LLAMA_ARG_CORS_CREDENTIALS",), group="http",
    )  # fmt: skip
    max_request_bytes: int = option(
        32 * 2**20, "largest request body", size, metavar="SIZE", group="http"
    )
    max_connections: int = option(
        512, "open connections; further ones get 503", positive, group="http"
    )
    read_timeout: float = option(
        60.0, "seconds to wait for a client that is silent or slow", within(0.1, 86400),
        flags=("-to", "--timeout"), env=("LLAMA_ARG_TIMEOUT",), group="http",
    )  # fmt: skip
    request_timeout: float | None = option(
        None, "seconds after which a request is ended", within(0.1, 86400), group="http"
    )
    log_format: str = option(
        "text", "how log lines look: text, or json with an object on each line", str.lower,
        choices=("text", "json"), group="http",
    )  # fmt: skip
    log_level: str = option(
        "INFO", "how much is logged", str.upper,
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), group="http",
    )  # fmt: skip

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> Config:
        """Settings from `given`, else from variables, else the defaults.

        Args:
            environ: MLX_SERVER_… variables come before those of other servers.
            given: Fields, and `hf_repo`, which comes before `model`.

        Raises:
            ValueError: A variable does not parse or asks for what cannot be done, a file
                cannot be read, or two settings contradict one another; the message names it.
        """
        compat.refuse_variables(environ)
        replaced = {name for field in given for name in _REPLACES.get(field, ())}
        values = _with_repo(_from_variables(environ))
        values = {name: value for name, value in values.items() if name not in replaced}
        return cls(**_settled(values | _with_repo(given)))


_REPLACES = {
    "model": ("hf_file",),
    "grammar": ("grammar_file", "json_schema"),
    "grammar_file": ("grammar", "json_schema"),
    "json_schema": ("grammar", "grammar_file"),
    "rope_scale": ("rope_freq_scale",),
    "rope_freq_scale": ("rope_scale",),
}
"""What says the same in another way: a flag comes before the variables of these, too."""


def _with_repo(values: Mapping[str, Any]) -> dict[str, Any]:
    rest = dict(values)
    repo = rest.pop(compat.HF_REPO, None)
    return rest if repo is None else {**rest, "model": repo}


def _from_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields that variables set: ours first, then the settings' other names."""
    values: dict[str, Any] = {}
    for f in fields(Config):
        found = [name for name in f.metadata["env"] if environ.get(name)]
        if environ.get(env_name(f)):
            values[f.name] = _read(f, env_name(f), environ)
        elif found and f.metadata["smallest"]:
            values[f.name] = min(_read(f, name, environ) for name in found)
        elif found:
            values[f.name] = _read(f, found[0], environ)
    lists = {f.name for f in fields(Config) if f.metadata["repeat"]}
    for row in compat.TRANSLATED:
        for name in row.env:
            if not environ.get(name) or (row.field in values and row.field not in lists):
                continue
            if row.field == compat.HF_REPO and environ.get(ENV_PREFIX + "MODEL"):
                continue  # ours come first
            value = _convert(row.convert or boolean, name, environ[name])
            if row.field in lists:
                values[row.field] = (*values.get(row.field, ()), *value)
            elif row.convert:
                values[row.field] = value
            elif value:
                values[row.field] = row.const
    return values


def _read(f: Field, name: str, environ: Mapping[str, str]) -> Any:
    repeat, convert, choices = (f.metadata[key] for key in ("repeat", "convert", "choices"))
    text = environ[name]
    if repeat and convert not in LISTS:
        return tuple(_convert(convert, name, part) for part in _convert(string_list, name, text))
    value = _convert(convert, name, text)
    if choices and value not in choices:
        raise ValueError(f"{name}={text!r}: expected one of {', '.join(choices)}")
    return value


def _convert(convert: Callable[[str], Any], name: str, text: str) -> Any:
    try:
        return convert(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: {error}") from None


def _settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields once files are read and what belongs together is looked at together."""
    if values.get("api_key") == ():
        # As of a file below: `--api-key "$KEY"` without a KEY must not open the server.
        raise ValueError("--api-key holds no key; leave it out to serve without")
    for name in ("api_key_file", "ssl_key_file", "ssl_cert_file"):
        if values.get(name) == "":
            raise ValueError(
                f"--{name.replace('_', '-')} names no file; leave it out to serve without"
            )
    # `--slot-save-path "$DIR"` without a DIR says nothing, as an empty variable does.
    found = {name: value for name, value in values.items() if value != ""}
    if found.get("hf_file") and not found.get("model"):
        raise ValueError("--hf-file names a file of a repo; name the repo as well, with --hf-repo")
    if found.get("api_key_file"):
        keys = _from_file("--api-key-file", file_keys, found["api_key_file"])
        found["api_key"] = tuple(found.get("api_key", ())) + keys
    if found.get("grammar_file") and not found.get("grammar"):
        found["grammar"] = _from_file("--grammar-file", file_text, found["grammar_file"])
    if found.get("escape", True) and found.get("dry_sequence_breaker"):
        found["dry_sequence_breaker"] = tuple(map(unescape, found["dry_sequence_breaker"]))
    if bool(found.get("ssl_key_file")) != bool(found.get("ssl_cert_file")):
        raise ValueError("TLS takes both --ssl-key-file and --ssl-cert-file; only one is given")
    return found


def _from_file(flag: str, read: Callable[[str], Any], path: str) -> Any:
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{flag} {path}: {error}") from None


def env_name(f: Field) -> str:
    return ENV_PREFIX + f.name.upper()


def flag_name(f: Field) -> str:
    return "--" + f.name.replace("_", "-")


def default_text(f: Field) -> str:
    """The default as help texts show it; empty where nothing is set."""
    if isinstance(f.default, bool):
        return "on" if f.default else "off"
    if isinstance(f.default, tuple):
        return ",".join(f.default)
    return "" if f.default is None else str(f.default)


def table() -> str:
    """The settings as the Markdown table that docs/settings.md shows."""
    rows = [
        "| flag | other names | environment | default | what it does |",
        "| --- | --- | --- | --- | --- |",
    ]
    for f in fields(Config):
        translated = [row for row in compat.TRANSLATED if _sets(row, f)]
        flags = [*f.metadata["flags"], *(flag for row in translated for flag in row.flags)]
        env = [env_name(f), *f.metadata["env"], *(name for row in translated for name in row.env)]
        help_text = f.metadata["help"].replace("|", "\\|")
        cells = (
            f"`{flag_name(f)}`",
            compat.names(flags),
            compat.names(env),
            default_text(f),
            help_text,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _sets(row: compat.Translated, f: Field) -> bool:
    return row.field == f.name or (row.field == compat.HF_REPO and f.name == "model")


if __name__ == "__main__":
    print(table())
