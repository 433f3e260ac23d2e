"""Settings under the names of other servers: what each means here, or why it does not."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mlx_server import compat, config
from mlx_server.config import Config
from mlx_server.flags import parser, read_command
from mlx_server.sampler_names import LETTERS
from mlx_server.sampling_params import SAMPLERS

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def read(*flags: str, **environ: str) -> Config:
    return read_command(flags, environ)[0]


def refusal(capsys: pytest.CaptureFixture[str], *flags: str, **environ: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as error:
        read(*flags, **environ)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlx_server: error: ")
    return line


# ---------------------------------------------------------------- the documents' tables


def known_flags() -> set[str]:
    return set(parser()._option_string_actions)


def known_variables() -> set[str]:
    rows = (*compat.TRANSLATED, *compat.IGNORED, *compat.REFUSED)
    found = {name for row in rows for name in row.env}
    return found | {name for f in fields(Config) for name in f.metadata["env"]}


def document(name: str) -> str:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip("../shared is absent")
    return path.read_text("utf-8")


def test_every_flag_and_variable_of_llama_cpps_document_is_known() -> None:
    text = document("llama-cpp-server.txt")
    table = text[text.index("Argument Explanation") : text.index("Note: If both command line")]
    rows = re.findall(r"^(--?[a-zA-Z][\w-]*(?:, --?[a-zA-Z][\w-]*)*)", table, re.MULTILINE)
    flags = {flag for row in rows for flag in row.split(", ")}
    assert len(flags) > 150
    assert flags - known_flags() == set()
    variables = set(re.findall(r"\(env: (\w+)\)", table))
    variables |= set(re.findall(r"^ +(LLAMA_\w+):", text, re.MULTILINE))  # docker compose
    assert len(variables) > 20
    assert variables - known_variables() == set()


@pytest.mark.parametrize("name", ["mlc-llm-rest.txt", "mlc-chat-rest.txt", "mlx-lm-server.txt"])
def test_every_flag_of_the_other_documents_is_known(name: str) -> None:
    # pip's and the like aside, what begins with two dashes there is a flag of the server.
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", document(name))) - {"--help"}
    assert flags
    assert flags - known_flags() == set()


def test_no_name_means_two_things() -> None:
    rows = (*compat.TRANSLATED, *compat.IGNORED, *compat.REFUSED)
    names = [name for row in rows for name in (*row.flags, *row.env)]
    for f in fields(Config):
        names += [config.flag_name(f), *f.metadata["flags"], *f.metadata["env"]]
    assert sorted(names) == sorted(set(names))
    assert {row.field for row in compat.TRANSLATED} - {compat.HF_REPO} <= {
        f.name for f in fields(Config)
    }


def test_the_samplers_are_those_of_the_engine() -> None:
    assert sorted(LETTERS.values()) == sorted(SAMPLERS)


NO_SETTINGS = ("-h", "--help", "--usage", "--version", "--list-models", "--print-completion")


def test_the_tables_name_everything() -> None:
    shown = config.table() + compat.table()
    for name in known_flags() | known_variables():
        negated = name.startswith("--no-") and f"`--{name[5:]}`" in shown
        assert f"`{name}`" in shown or negated or name in NO_SETTINGS
    assert "secret" not in repr(Config(api_key=("secret",), hf_token="secret"))


# ---------------------------------------------------------------- what flags mean

CHAIN = ("top_k", "tfs_z", "typical_p", "top_p", "min_p", "temperature")


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("-m a/b -c 2048 -np 4 -a x,y", {"model": "a/b", "ctx_size": 2048, "parallel": 4,
                                         "alias": ("x", "y")}),
        ("serve a/b --port 1", {"model": "a/b", "port": 1}),
        ("a/b", {"model": "a/b"}),
        ("--port 1 serve --host h a/b", {"model": "a/b", "port": 1, "host": "h"}),
        ("serve", {"model": None}),
        ("serve --model a/b", {"model": "a/b"}),
        ("serve a/b --model a/b", {"model": "a/b"}),
        ("-fa a/b", {"model": "a/b"}),
        ("-fa on a/b", {"model": "a/b"}),
        ("--flash-attn=on a/b", {"model": "a/b"}),
        ("--flash-attn auto --mlock a/b", {"model": "a/b"}),
        ("a/b --model-lib lib.so --device cuda:1", {"model": "a/b", "device": "cuda:1"}),
        ("-hfr a/b -hff x.gguf -m models/x.gguf", {"model": "a/b", "hf_file": "x.gguf"}),
        ("-m models/x.gguf --hf-repo a/b", {"model": "a/b"}),
        ("-n -1", {"max_tokens": None}),
        ("--predict -2", {"max_tokens": -2}),
        ("--n-predict 5", {"max_tokens": 5}),
        ("-b 2048 -ub 512", {"prefill_chunk_size": 512}),
        ("-ub 64 --batch-size 2048", {"prefill_chunk_size": 64}),
        ("--prefill-step-size 300", {"prefill_chunk_size": 300}),
        ("-np -1", {"parallel": None}),
        ("--decode-concurrency 3 --prompt-concurrency 2", {"max_batch_size": 3,
                                                           "prompt_concurrency": 2}),
        ("--max-total-seq-length None", {"max_total_seq_length": None}),
        ("--max-total-seq-length 9", {"max_total_seq_length": 9}),
        ("--temp -1", {"temp": 0.0}),
        ("--temperature 0.5 --typical-p 0.5", {"temp": 0.5, "typical": 0.5}),
        ("--keep -1 --repeat-last-n -1", {"keep": -1, "repeat_last_n": -1}),
        ("--sampling-seq kfypmt", {"samplers": CHAIN}),
        ("--samplers top_k;tfs_z;typ_p;top_p;min_p;temperature", {"samplers": CHAIN}),
        ("--samplers Top-K,temp", {"samplers": ("top_k", "temperature")}),
        ("--sampler-seq edskk", {"samplers": ("penalties", "dry", "top_n_sigma", "top_k",
                                              "top_k")}),
        ("-l 15043+1 -l 2-inf", {"logit_bias": ("15043+1", "2-inf")}),
        ("-j {}", {"json_schema": "{}"}),
        ("-nocb", {"cont_batching": False}),
        ("--no-cont-batching", {"cont_batching": False}),
        ("-nocb -cb", {"cont_batching": True}),
        ("--no-slots --metrics --props", {"slots": False, "metrics": True, "props": True}),
        ("-v", {"log_level": "DEBUG"}),
        ("--verbosity 0", {"log_level": "INFO"}),
        ("--verbosity 3", {"log_level": "DEBUG"}),
        ("-lv 2", {"log_level": "WARNING"}),
        ("--log-disable", {"log_level": "CRITICAL"}),
        ("--log-disable --log-enable", {"log_level": "INFO"}),
        ("--log-new --log-file x.log", {"log_append": False, "log_file": "x.log"}),
        ("--log-new --log-append", {"log_append": True}),
        ("--api-key a,b --api-key c", {"api_key": ("a", "b", "c")}),
        ("-to 600", {"read_timeout": 600.0}),
        ("--threads-http -1", {"threads_http": None}),
        ("--threads-http 4", {"threads_http": 4}),
        ("--lora a --lora n=b,c", {"lora": ("a", "n=b", "c")}),
        ("--lora-scaled a.gguf 0.5 --lora-scaled b -1", {"lora": (("a.gguf", 0.5), ("b", -1.0))}),
        ("--lora-scaled a.gguf:0.5,b:2 m", {"lora": (("a.gguf", 0.5), ("b", 2.0)), "model": "m"}),
        ("--lora-scaled a 2 --lora b,n=c --lora-scaled d=e 3",
         {"lora": (("a", 2.0), "b", "n=c", ("d=e", 3.0))}),
        ("--control-vector x --control-vector-scaled y 2 --control-vector-layer-range 3 7",
         {"control_vector": ("x",), "control_vector_scaled": (("y", 2.0),),
          "control_vector_layer_range": (3, 7)}),
        ("-ctk Q8_0 -ctv bf16", {"cache_type_k": "q8_0", "cache_type_v": "bf16"}),
        ("--reasoning-format deepseek", {"reasoning_format": "auto"}),
        ("--reasoning-budget 0", {"max_thinking_tokens": 0}),
        ("-cram 2", {"prompt_cache_bytes": 2 * 2**20}),
        ("--cache-ram -1", {"prompt_cache_bytes": None}),
        ("--no-cache-prompt", {"prompt_cache_bytes": 0}),
        ("--device CUDA0", {"device": "cuda:0"}),
        ("--device Metal", {"device": "metal"}),
        ("-dev none", {"device": "cpu"}),
        ("--device auto:0", {"device": "auto:0"}),
        ('--allowed-methods ["GET"] --allowed-headers ["*"]', {"allowed_methods": ("GET",),
                                                               "allowed_headers": ("*",)}),
        (r"--dry-sequence-breaker \n --dry-sequence-breaker a\\b\x41\q",
         {"dry_sequence_breaker": ("\n", r"a\bA\q")}),
        (r"--no-escape --dry-sequence-breaker \n", {"dry_sequence_breaker": (r"\n",)}),
        ("--embeddings --ignore-eos --penalize-nl -s -1", {"embedding": True, "ignore_eos": True,
                                                           "penalize_nl": True, "seed": -1}),
    ],
)  # fmt: skip
def test_what_a_command_line_means(line: str, values: dict) -> None:
    found = read(*line.split())
    assert {name: getattr(found, name) for name in values} == values


@pytest.mark.parametrize(
    ("environ", "values"),
    [
        ({"LLAMA_ARG_MODEL": "/models/my.gguf", "LLAMA_ARG_CTX_SIZE": "4096",
          "LLAMA_ARG_N_PARALLEL": "2", "LLAMA_ARG_ENDPOINT_METRICS": "1", "LLAMA_ARG_PORT": "80"},
         {"model": "/models/my.gguf", "ctx_size": 4096, "parallel": 2, "metrics": True,
          "port": 80}),
        ({"LLAMA_ARG_PORT": "80", "MLX_SERVER_PORT": "81"}, {"port": 81}),
        ({"LLAMA_ARG_HF_REPO": "a/b", "LLAMA_ARG_MODEL": "c"}, {"model": "a/b"}),
        ({"LLAMA_ARG_HF_REPO": "a/b", "MLX_SERVER_MODEL": "c"}, {"model": "c"}),
        ({"LLAMA_ARG_BATCH": "2048", "LLAMA_ARG_UBATCH": "512"}, {"prefill_chunk_size": 512}),
        ({"LLAMA_ARG_BATCH": "8", "MLX_SERVER_PREFILL_CHUNK_SIZE": "16"},
         {"prefill_chunk_size": 16}),
        ({"LLAMA_API_KEY": "a, b"}, {"api_key": ("a", "b")}),
        ({"HF_TOKEN": "hf_x"}, {"hf_token": "hf_x"}),
        ({"LLAMA_ARG_NO_ENDPOINT_SLOTS": "1"}, {"slots": False}),
        ({"LLAMA_ARG_NO_ENDPOINT_SLOTS": "0"}, {"slots": True}),
        ({"LLAMA_ARG_NO_CONT_BATCHING": "true"}, {"cont_batching": False}),
        ({"LLAMA_ARG_CONT_BATCHING": "enabled"}, {"cont_batching": True}),
        ({"LLAMA_ARG_N_PREDICT": "-1"}, {"max_tokens": None}),
        ({"LLAMA_ARG_PORT": ""}, {"port": 8080}),
        ({"MLX_SERVER_LORA_SCALED": "a 1,b:2"}, {"lora": (("a", 1.0), ("b", 2.0))}),
        ({"MLX_SERVER_LORA_SCALED": "a 1", "MLX_SERVER_LORA": "b"}, {"lora": ("b", ("a", 1.0))}),
        ({"MLX_SERVER_LOGIT_BIAS": "1+1,2-1"}, {"logit_bias": ("1+1", "2-1")}),
        ({"LLAMA_ARG_TIMEOUT": "9", "LLAMA_ARG_ALIAS": "x"}, {"read_timeout": 9.0,
                                                               "alias": ("x",)}),
    ],
)  # fmt: skip
def test_what_variables_mean(environ: dict[str, str], values: dict) -> None:
    found = read(**environ)
    assert {name: getattr(found, name) for name in values} == values


@pytest.mark.parametrize(
    ("flags", "environ", "field", "value"),
    [
        (["-m", "x"], {"LLAMA_ARG_HF_REPO": "a/b"}, "model", "x"),
        (["x"], {"MLX_SERVER_MODEL": "y"}, "model", "x"),
        (["-ub", "900"], {"LLAMA_ARG_BATCH": "100"}, "prefill_chunk_size", 900),
        (["--slots"], {"LLAMA_ARG_NO_ENDPOINT_SLOTS": "1"}, "slots", True),
        (["-cb"], {"LLAMA_ARG_NO_CONT_BATCHING": "1"}, "cont_batching", True),
        (["--api-key", "a"], {"LLAMA_API_KEY": "b"}, "api_key", ("a",)),
        (["-m", "x.gguf"], {"LLAMA_ARG_HF_FILE": "y.gguf"}, "hf_file", None),
        (["-hf", "a/b"], {"LLAMA_ARG_HF_FILE": "y.gguf"}, "hf_file", "y.gguf"),
        (["--grammar", "x"], {"MLX_SERVER_JSON_SCHEMA": "{}"}, "json_schema", None),
        (["--json-schema", "{}"], {"MLX_SERVER_GRAMMAR": "x"}, "grammar", None),
        (["--rope-scale", "2"], {"LLAMA_ARG_ROPE_FREQ_SCALE": "0.1"}, "rope_freq_scale", None),
    ],
)
def test_a_flag_comes_before_any_variable(
    flags: list[str], environ: dict[str, str], field: str, value: object
) -> None:
    assert getattr(read(*flags, **environ), field) == value


# ---------------------------------------------------------------- without a meaning, refused


def test_what_means_nothing_is_accepted_and_named_once() -> None:
    line = (
        "--threads 4 -t -1 -tb 2 -C ff -Cr 0-3 --cpu-strict 1 --prio 2 --poll 50 -ngl 99 -sm none "
        "-ts 3,1 -mg 0 --mlock --no-mmap --numa isolate -fa -dkvc -nkvo -dt -1.0 --check-tensors "
        "-p Hello -f x.txt -bf y.bin -ld logs --log-test -gan 1 -gaw 512 -ngl=5"
    )
    environ = {"LLAMA_ARG_THREADS": "8", "LLAMA_ARG_FLASH_ATTN": "1", "LLAMA_ARG_NUMA": ""}
    found, ignored = read_command(line.split(), environ)
    assert found == Config()
    words = [w.partition("=")[0] for w in line.split() if re.match("--?[a-zA-Z]", w)]
    assert ignored == [*dict.fromkeys(words), "LLAMA_ARG_THREADS", "LLAMA_ARG_FLASH_ATTN"]


@pytest.mark.parametrize("row", compat.IGNORED, ids=lambda row: row.flags[-1])
def test_each_ignored_flag_takes_its_values_and_no_more(row: compat.Ignored) -> None:
    for flag in row.flags:
        found, ignored = read_command([flag, *["7"] * row.takes, "model"], {})
        assert (found, ignored) == (Config(model="model"), [flag])


@pytest.mark.parametrize("row", compat.REFUSED, ids=lambda row: row.flags[-1])
def test_each_refused_flag_says_why(
    row: compat.Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in row.flags:
        assert row.why in refusal(capsys, flag, *["7"] * row.takes)
    for name in row.env:
        assert f"{name}: {row.why}" in refusal(capsys, **{name: "7"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--device vulkan", "not with vulkan"),
        ("--device rocm:0", "not with rocm"),
        ("--device opencl", "not with opencl"),
        ("--device tpu", "expected one of auto, cpu, gpu, metal or cuda"),
        ("--device cuda:x", "expected one of"),
        ("--device CUDA0,CUDA1", "expected one of"),
        ("-hf a/b:Q4_K_M", "--hf-file"),
        ("-n 0", "at least 1"),
        ("-n x", "expected a whole number"),
        ("--seed 1.5", "expected a whole number"),
        ("--temp warm", "expected a number"),
        ("--max-kv-bytes xGB", "expected a number"),
        ("-n -3", "-1 or -2 (until the context is full)"),
        ("--samplers top_k;top_q", "no sampler 'top_q'"),
        ("--sampling-seq kz", "no sampler 'z'"),
        ("-l 15043", "as in 15043+1"),
        ("-l 5+nan", "as in 15043+1"),
        ("-j [", "this is not JSON"),
        ("-j 3", "expected a JSON schema"),
        ("--lora-scaled a.gguf", "a path and a scale"),
        ("--lora-scaled a.gguf:x", "a path and a scale"),
        ("--lora-scaled a.gguf x", "a path and a scale"),
        ("--lora-scaled :1", "a path and a scale"),
        ("--control-vector-layer-range 3", "the first and the last layer"),
        ("--control-vector-layer-range 7 3", "the first not behind the last"),
        ("--control-vector-layer-range 0 3", "from 1 on"),
        ("--keep -2", "at least -1"),
        ("-ctk q5_0", "MLX has no other types"),
        ("--pooling rank", "rank"),
        ("--reasoning-format deepseek-legacy", "deepseek-legacy"),
        ("--threads-http 0", "at least 1"),
        ("-hff x.gguf", "--hf-repo"),
        ("--ssl-key-file k.pem", "--ssl-cert-file"),
        ("--ssl-cert-file c.pem", "--ssl-key-file"),
        ("--grammar-file /nowhere/x", "--grammar-file /nowhere/x: the file cannot be read"),
        ("--api-key-file /nowhere/x", "--api-key-file /nowhere/x: the file cannot be read"),
        ("--api-key-file ~nobody-here/x", "the file cannot be read"),
        ("--json-schema-file /nowhere/x", "cannot be read"),
        ("--chat-template-file /nowhere/x", "cannot be read"),
        ("a/b c/d", "expected one model"),
        ("a/b --model c/d", "given twice"),
        ("a/b -hf c/d", "given twice"),
        ("serve --no-such-flag 3", "--no-such-flag"),
        ("-t", "expected 1 argument"),
        ("--override-kv", "expected 1 argument"),
        ("--allowed-origins [1]", "JSON list of strings"),
    ],
)
def test_what_is_wrong_is_one_line(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, *line.split())


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LLAMA_ARG_PORT": "x"}, "LLAMA_ARG_PORT='x'"),
        ({"LLAMA_ARG_NO_ENDPOINT_SLOTS": "x"}, "LLAMA_ARG_NO_ENDPOINT_SLOTS='x': expected true"),
        ({"LLAMA_ARG_HF_REPO": "a/b:Q8_0"}, "LLAMA_ARG_HF_REPO='a/b:Q8_0'"),
        ({"LLAMA_ARG_UBATCH": "0"}, "LLAMA_ARG_UBATCH='0': must be at least 1"),
        ({"LLAMA_ARG_POOLING": "rank"}, "LLAMA_ARG_POOLING='rank': expected one of"),
    ],
)
def test_a_wrong_variable_is_named(
    environ: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, **environ)


# ---------------------------------------------------------------- files


def test_files_are_read(tmp_path: Path) -> None:
    keys, grammar, schema = (tmp_path / name for name in ("keys", "g.gbnf", "s.json"))
    keys.write_text("# ours\none\n\n  two  \r\n")
    grammar.write_text('root ::= "ä"\n', "utf-8")
    schema.write_text('{"type": "object"}')
    found = read("--api-key", "zero", "--api-key-file", str(keys), "-jf", str(schema),
                 "--grammar-file", str(grammar))  # fmt: skip
    assert found.api_key == ("zero", "one", "two")
    assert found.grammar == 'root ::= "ä"\n'
    assert found.json_schema == '{"type": "object"}'


def test_the_flag_s_file_comes_before_the_variable_s_text(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("flag's")
    found = read("--grammar-file", str(tmp_path / "g"), MLX_SERVER_GRAMMAR="variable's")
    assert found.grammar == "flag's"


@pytest.mark.parametrize("text", ["", " , "])
def test_an_empty_key_does_not_open_the_door(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--api-key holds no key" in refusal(capsys, "--api-key", text, LLAMA_API_KEY="b")


@pytest.mark.parametrize("flag", ["--api-key-file", "--ssl-key-file", "--ssl-cert-file"])
def test_nor_does_an_empty_file_name(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = "--ssl-key-file" if flag == "--ssl-cert-file" else "--ssl-cert-file"
    assert f"{flag} names no file" in refusal(capsys, flag, "", other, "x.pem")


@pytest.mark.parametrize(
    "name",
    ["model", "adapter_path", "chat_template", "hf_file", "system_prompt_file", "grammar",
     "grammar_file", "trace_file", "slot_save_path", "path", "log_file", "host"],
)  # fmt: skip
def test_an_empty_text_says_nothing(name: str) -> None:
    """Not this folder for slots, nor every address for a host."""
    (f,) = (f for f in fields(Config) if f.name == name)
    assert read(config.flag_name(f), "") == Config()
    assert read(config.flag_name(f), "", **{config.env_name(f): "x"}) == Config()


@pytest.mark.parametrize("content", ["", "\n# nothing but this\n"])
def test_a_key_file_without_a_key_does_not_open_the_door(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text(content)
    assert "holds no key" in refusal(capsys, "--api-key-file", str(tmp_path / "keys"))


def test_no_secret_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_bytes(b"hunter2\xff")
    line = refusal(capsys, "--api-key-file", str(tmp_path / "keys"))
    assert "hunter2" not in line and "UTF-8" in line
    line = refusal(capsys, "--port", "x", LLAMA_API_KEY="[hunter2", HF_TOKEN="hunter2")
    assert "hunter2" not in line
