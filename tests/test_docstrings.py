"""Every public module, class and function says what it is.

In the rooms that others build on, everything public does. Elsewhere that may be left out which
says nothing more: fields and no methods, a function of one statement, an endpoint whose route
has a summary. Read from the source with `ast`; what a method overrides is looked up in the
running class.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlx_server"

CONTRACTS = {"cache", "models", "sampling", "engine", "text"}
"""Rooms where a docstring stands at everything that is public."""

TOOLS = {"demo"}
"""Rooms that nothing but their `__init__` is imported from: their modules say it."""

TOLD_TOGETHER = {
    "settings_values.py": "the module says what each function takes, gives and raises",
    "api/fields.py": "a comment says what a check returns and raises",
}
"""Files whose functions are alike, and where that is said."""

EXEMPT = {
    "__main__.py",
    "api/llama_bodies.py InfillBody",
    "api/openai_chat.py ChatBody",
    "api/openai_chat_reply.py ChatFormatter",
    "api/openai_completions.py CompletionBody",
    "api/openai_completions.py CompletionFormatter",
    "api/openai_reply.py Choice.add_logprobs",
    "api/openai_tools.py function_name",
    "arrival.py Arrival.cancel",
    "cli.py main",
    "commands/chat.py parser",
    "commands/client.py Address.url",
    "commands/conversation.py Reply.cached_tokens",
    "commands/failures.py not_a_server",
    "commands/listing.py context_text",
    "commands/listing.py parser",
    "commands/terminal.py ReplyView.show",
    "flags.py OneLineParser",
    "flags.py parser",
    "progress.py Progress",
    "recent.py Recent.runtime",
    "server/handler.py Handler.setup",
    "server/pump.py Pump",
    "server/watcher.py DisconnectWatcher.stop",
    "server/wire.py TimedSocket.readinto",
    "server/wire.py reply_head",
    "terminal/banner.py Facts.memory",
    "terminal/banner.py Facts.size",
    "terminal/progress.py Reporter.begin",
}
"""Names that speak for themselves. An entry that is not needed any more fails."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> list[str]:
    return sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text("utf-8"), filename=file)


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def is_public(node: ast.AST) -> bool:
    return isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")


def is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


def endpoints(node: ast.ClassDef) -> set[str]:
    """Methods that answer a route, whose summary says what they do."""
    return {
        member.name
        for member in node.body
        if isinstance(member, Function)
        and [argument.arg for argument in member.args.args] == ["self", "http", "pool"]
    }


def has_methods(node: ast.ClassDef) -> bool:
    return any(isinstance(member, Function) for member in node.body)


@cache
def pool_contract() -> frozenset[str]:
    """What `api/pool.py` declares, where it is told; the pool's classes implement it."""
    classes = {n.name: n for n in tree_of("api/pool.py").body if isinstance(n, ast.ClassDef)}
    return frozenset(m.name for m in classes["Pool"].body if isinstance(m, Function))


def inherited(file: str, class_name: str, name: str) -> bool:
    """Whether a base says what the method is for."""
    dotted = ".".join(["mlx_server", *Path(file).with_suffix("").parts]).removesuffix(".__init__")
    owner = getattr(importlib.import_module(dotted), class_name)
    found = (vars(base).get(name) for base in owner.__mro__[1:])
    return any(member is not None and member.__doc__ for member in found)


def says_more(node: ast.AST, file: str, owner: ast.ClassDef | None) -> bool:
    """Whether there is more to say of it than its name and its types do."""
    if isinstance(node, ast.ClassDef):
        return has_methods(node) and not endpoints(node)
    implements = owner is not None and node.name in pool_contract() and file.startswith("pool")
    return len(node.body) > 1 and not implements


def silent(file: str) -> Iterator[str]:
    """What is public in a file, and says nothing."""
    tree, strict = tree_of(file), room_of(file) in CONTRACTS
    if tree.body and not ast.get_docstring(tree):
        yield file
    if room_of(file) in TOOLS or file in TOLD_TOGETHER:
        return
    owners = [(node, None) for node in tree.body if is_public(node)]
    for node, _ in list(owners):
        if isinstance(node, ast.ClassDef) and not is_protocol(node):
            routed = endpoints(node)
            owners += [(m, node) for m in node.body if is_public(m) and m.name not in routed]
    for node, owner in owners:
        if ast.get_docstring(node) or not (strict or says_more(node, file, owner)):
            continue
        if owner is None:
            yield f"{file} {node.name}"
        elif not inherited(file, owner.name, node.name):
            yield f"{file} {owner.name}.{node.name}"


@pytest.mark.parametrize("file", source_files())
def test_everything_public_is_told_of(file: str) -> None:
    assert set(silent(file)) - EXEMPT == set()


def test_no_exemption_is_idle() -> None:
    files = {entry.split()[0] for entry in EXEMPT}
    assert EXEMPT - {entry for file in files for entry in silent(file)} == set()
    assert all(entry.split("/")[0] not in CONTRACTS for entry in EXEMPT)
    assert all((PACKAGE / file).is_file() for file in TOLD_TOGETHER)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(x):\n    x += 1\n    return x", ["a.py", "a.py f"]),
        ('"""."""\ndef f(x):\n    return x', []),
        ('"""."""\nclass C:\n    x: int', []),
        ('"""."""\nclass C:\n    def _m(self): ...', ["a.py C"]),
        (
            '"""."""\nclass C(Protocol):\n    """."""\n    def m(self):\n        x = 1\n        x',
            [],
        ),
        ('"""."""\ndef _f(x):\n    x += 1\n    return x', []),
    ],
)
def test_what_says_nothing_is_found(source: str, found: list[str], monkeypatch) -> None:
    monkeypatch.setitem(globals(), "tree_of", lambda file: ast.parse(source))
    assert list(silent("a.py")) == found
