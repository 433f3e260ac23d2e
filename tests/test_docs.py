"""README and the pages in docs/ and examples/: links lead somewhere, flags exist, commands parse,
code compiles, and what their curl commands ask for is answered."""

from __future__ import annotations

import ast
import json
import re
from itertools import chain
from pathlib import Path

import mlx.core as mx
import pytest
import requests
from pages import ROOT, SHELLS, Block, Command, Page, commands

from mlx_server.cache.kv import KVCache
from mlx_server.cache.storage import Quantization
from mlx_server.commands import chat, completion, listing
from mlx_server.flags import parser, read_command
from mlx_server.server.http import HttpServer
from mlx_server.terminal.banner import Facts, banner

ADDRESS = "http://127.0.0.1:8080"
FILES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        ROOT / "mlx_server" / "demo" / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
PAGES = {path.relative_to(ROOT).as_posix(): Page.read(path) for path in FILES}
EXTENDING = "docs/extending.md"
"""Its examples have routes and flags that it shows how to add."""

every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
OURS = [name for name in PAGES if not name.startswith("examples/") and name != EXTENDING]


def told(page: Page, block: Block | Command, what: object) -> str:
    return f"{page.path.relative_to(ROOT)}:{block.line}: {what}"


def shell_calls(page: Page, program: str, *more: str) -> list[Command]:
    """Args: more: Languages of blocks beside the shells'."""
    return [call for block in page.code(*SHELLS, *more) for call in commands(block, program)]


# ---------------------------------------------------------------- links


def lost(page: Page, link: str) -> bool:
    """Whether it leads nowhere. Other hosts are not asked."""
    if re.match(r"[a-z]+:", link):
        return False
    place, _, anchor = link.partition("#")
    target = page.path.parent / place if place else page.path
    if not target.exists():
        return True
    return bool(anchor) and anchor not in Page.read(target).anchors()


@every_page
def test_links_lead_somewhere(page: Page) -> None:
    assert [link for link in page.links() if lost(page, link)] == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen, left = set(), [ROOT / "README.md"]
    while left:
        path = left.pop().resolve()
        if path in seen or path.suffix != ".md" or not path.exists():
            continue
        seen.add(path)
        places = (link.partition("#")[0] for link in Page.read(path).links() if ":" not in link)
        left += [path.parent / place for place in places if place]
    assert [path for path in FILES if path.resolve() not in seen] == []


# ---------------------------------------------------------------- flags and commands

OTHER_PROGRAMS = {
    "--edit-format": "aider",
    "--openai-api-base": "aider",
    "--openai-api-key": "aider",
    "--cacert": "curl",
    "--no-buffer": "curl",
    "--force-reinstall": "pip",
    "--no-deps": "pip",
    "--adapter-path": "mlx_lm.lora",
    "--data": "mlx_lm.lora",
    "--fine-tune-type": "mlx_lm.lora",
    "--iters": "mlx_lm.lora",
    "--num-layers": "mlx_lm.lora",
    "--save-every": "mlx_lm.lora",
    "--train": "mlx_lm.lora",
    "--hf-path": "mlx_lm.convert",
    "--mlx-path": "mlx_lm.convert",
    "--q-bits": "mlx_lm.convert",
    "--all-files": "pre-commit",
    "--check": "ruff",
    "--help": "everybody",
}


def known_flags() -> set[str]:
    parsers = (parser(), chat.parser(), listing.parser(), completion.whole_parser())
    return {name for found in parsers for name in found._option_string_actions}


def benchmark_flags() -> set[str]:
    """What the modules of benchmarks/ take, read from their sources."""
    sources = (path.read_text("utf-8") for path in (ROOT / "benchmarks").rglob("*.py"))
    return {flag for text in sources for flag in re.findall(r"[\"'](--[a-z][\w-]*)[\"']", text)}


@pytest.mark.parametrize("name", OURS)
def test_every_flag_exists(name: str) -> None:
    text = PAGES[name].path.read_text("utf-8")
    flags = {flag for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text) if flag[-1] != "-"}
    assert sorted(flags - known_flags() - OTHER_PROGRAMS.keys() - benchmark_flags()) == []


def check(words: tuple[str, ...]) -> None:
    """Have the command line read, as far as that goes without running it."""
    first, *rest = words or ("",)
    if first == "chat":
        chat.parser().parse_intermixed_args(rest)
    elif first in ("list", "--list-models"):
        listing.parser().parse_args(rest)
    elif first == "--print-completion":
        assert completion.script(*rest)
    elif "--help" not in words and "--version" not in words:
        read_command(list(words), {})


@every_page
def test_command_lines_are_understood(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.txt").write_text("a-key\n", "utf-8")
    for call in shell_calls(page, "mlx_server"):
        if "…" in " ".join(call.words):
            continue
        try:
            check(call.words[1:])
        except SystemExit:
            pytest.fail(told(page, call, capsys.readouterr().err))


def test_there_are_command_lines() -> None:
    assert len([call for page in PAGES.values() for call in shell_calls(page, "mlx_server")]) > 20


# ---------------------------------------------------------------- code


@every_page
def test_json_parses_and_python_compiles(page: Page) -> None:
    for block in page.code("json"):
        try:
            json.loads(block.text)
        except ValueError as error:
            pytest.fail(told(page, block, error))
    for block in page.code("python", "py"):
        try:
            compile(block.text, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError as error:
            pytest.fail(told(page, block, error))


# ---------------------------------------------------------------- curl

ADAPTERS = ("poet", "lawyer")


def write_adapter(folder: Path, model: Path) -> None:
    """One in mlx-lm's format for a Llama, that changes its first layer's queries."""
    config = json.loads((model / "config.json").read_text("utf-8"))
    size = config["hidden_size"]
    name = "model.layers.0.self_attn.q_proj"
    folder.mkdir(parents=True)
    tensors = {f"{name}.lora_a": mx.zeros((size, 2)), f"{name}.lora_b": mx.zeros((2, size))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    parameters = {"rank": 2, "scale": 1.0}
    text = json.dumps({"fine_tune_type": "lora", "lora_parameters": parameters})
    (folder / "adapter_config.json").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory: pytest.TempPathFactory) -> HttpServer:
    """The demo, with the adapters that the pages name, and with what they say is turned on."""
    from mlx_server import demo

    work = tmp_path_factory.mktemp("work")
    for name in ADAPTERS:
        write_adapter(work / "adapters" / name, demo.path())
    return serve(
        work,
        lora=tuple(f"{name}={work}/adapters/{name}" for name in ADAPTERS),
        max_tokens=32,
        metrics=True,
        slot_save_path=str(work),
    )


def request_of(words: tuple[str, ...]) -> tuple[str, str, str | None, dict[str, str]] | None:
    """Method, path, body and headers of a curl command to this server; None of another."""
    method, url, body = None, None, None
    headers: dict[str, str] = {}
    rest = iter(words[1:])
    for word in rest:
        if word in ("-d", "--data", "--json", "--data-binary"):
            body = next(rest)
        elif word in ("-H", "--header"):
            name, _, value = next(rest).partition(":")
            headers[name] = value.strip()
        elif word in ("-X", "--request"):
            method = next(rest)
        elif word in ("-o", "--output", "-w", "--write-out", "--max-time", "-m", "--cacert"):
            next(rest)
        elif word.startswith(ADDRESS):
            url = word
    if url is None or (body is not None and body.startswith("@")):
        return None
    return method or ("GET" if body is None else "POST"), url.removeprefix(ADDRESS), body, headers


CALLS = {
    f"{name}:{call.line}": (page, call)
    for name, page in PAGES.items()
    for call in shell_calls(page, "curl", "text")  # and those of the banner
    if name != EXTENDING and request_of(call.words) is not None and "$" not in " ".join(call.words)
}


@pytest.mark.parametrize("name", CALLS)
def test_what_curl_asks_for_is_answered(server: HttpServer, name: str) -> None:
    """With 200, or with the status that the comment behind it names."""
    page, call = CALLS[name]
    method, path, body, headers = request_of(call.words)
    expected = re.match(r"\d{3}\b", call.remark)
    reply = requests.request(
        method,
        server.url + (path or "/"),
        data=None if body is None else body.encode(),
        headers=headers,
        timeout=120,
    )
    assert reply.status_code == int(expected[0] if expected else 200), told(page, call, reply.text)
    assert '"error"' not in reply.text or expected, told(page, call, reply.text)


def test_there_are_curl_commands() -> None:
    assert len(CALLS) > 15


# ---------------------------------------------------------------- dependencies


def requirements() -> set[str]:
    """The packages that setup.py asks for, those of its extras among them."""
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    given = {n.arg: n.value for n in ast.walk(tree) if isinstance(n, ast.keyword)}
    extras = ast.literal_eval(given["extras_require"])
    lines = [*ast.literal_eval(given["install_requires"]), *chain(*extras.values())]
    return {re.match(r"[\w-]+", line)[0] for line in lines}


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = page.partition("## Dependencies\n")[2].partition("\n## ")[0]
    first_cells = " ".join(re.findall(r"^\|([^|]+)\|", table, re.MULTILINE))
    assert sorted(requirements() - set(re.findall(r"[\w-]+", first_cells))) == []


# ---------------------------------------------------------------- numbers


def test_the_table_of_keys_and_values_is_what_the_cache_takes() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text("utf-8")
    (table,) = re.findall(r"<!-- kv -->\n(.*?)<!-- /kv -->", page, re.DOTALL)
    rows = [line.strip("|").split("|") for line in table.strip().splitlines()][2:]
    assert len(rows) > 3
    for name, *cells in rows:
        layers, heads, size = (int(cell) for cell in cells[:3])
        long = [
            KVCache(layers, heads, size, mx.bfloat16, quantized).cost(32768)
            for quantized in (None, Quantization(8, 64), Quantization(4, 64))
        ]
        expected = [f"{long[0] / 32768 / 2**10:.0f} KiB", *(f"{n / 2**30:.2f} GiB" for n in long)]
        assert [cell.strip() for cell in cells[3:]] == expected, name


def test_readme_shows_the_banner_of_the_demo() -> None:
    """But for its sizes, which change with the demo and the machine."""
    facts = Facts(
        url=ADDRESS, listening=None, has_page=True, model="demo", name="demo", num_parameters=1,
        nbytes=1, bits=None, context_length=16384, kv_bytes=1, is_demo=True,
    )  # fmt: skip
    shown = next(block.text for block in PAGES["README.md"].code("text") if "Address" in block.text)

    def plain(text: str) -> str:
        return re.sub(r"(?<= )[\d.,]+( ?[kMGT]?B| ?[kMGT])?\b", "N", text).strip()

    assert plain(shown) == plain(banner(facts))
