"""The command line: flags from Config's fields, and from compat.py what other servers take."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from importlib import metadata
from typing import Any, NoReturn

from mlx_server import __version__, compat
from mlx_server.config import Config, default_text, flag_name
from mlx_server.settings_values import LISTS, boolean


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line: the usage would be a page, and hide it."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


class _Version(argparse.Action):
    """Prints one line, which argparse's own would wrap."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        print(_version_text())
        parser.exit()


class _Command(argparse.Action):
    """A command in a flag's clothes. `commands.dispatch` runs it where it comes first."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        parser.error(f"{option}: give it first, as in `mlx_server {option}`")


class _Smallest(argparse.Action):
    """Of several uses the smallest counts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, min(values, getattr(namespace, self.dest, values)))


class _Ignore(argparse.Action):
    """Remembers the flag's name in `ignored`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        namespace.ignored = [*getattr(namespace, "ignored", ()), option]


class _Refuse(argparse.Action):
    def __init__(self, *args: Any, row: compat.Refused, **options: Any) -> None:
        super().__init__(*args, **options)
        self.row = row

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        if not values or values[0] not in self.row.harmless:
            parser.error(f"{option}: {self.row.why}")
        namespace.ignored = [*getattr(namespace, "ignored", ()), option]


SHELLS = ("bash", "zsh", "fish")

COMMANDS = {
    "serve": "serve a model; what happens without a command",
    "chat": "talk to a running server from the terminal",
    "list": "show the models in the local cache",
}
"""What the command line may begin with; each but serve has a --help of its own."""

_USAGE = """%(prog)s [serve] [MODEL] [flags]
       %(prog)s chat [flags] [MESSAGE …]    talk to a running server from the terminal
       %(prog)s list [--json]               show the models in the local cache"""


def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="mlx_server",
        usage=_USAGE,
        description="Serve language models on MLX to the programs around them.",
        epilog="Every flag is also an environment variable: --max-tokens is MLX_SERVER_MAX_TOKENS. "
        "Those of llama.cpp's server count too. Accepted without a meaning on MLX: "
        + " ".join(row.flags[-1] for row in compat.IGNORED),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    result.add_argument("-h", "--help", "--usage", action="help", help="show this and exit")
    result.add_argument("--version", action=_Version, nargs=0, help="show version and build")
    result.add_argument(
        "--list-models", action=_Command, nargs=0, help="show the models in the local cache"
    )
    result.add_argument(
        "--print-completion", action=_Command, choices=SHELLS,
        help="print a script by which the shell completes this command line",
    )  # fmt: skip
    groups: dict[str, Any] = {}
    for f in fields(Config):
        title = f.metadata["group"]
        if title not in groups:
            groups[title] = result.add_argument_group(title)
        _add_flag(groups[title], f)
    others = result.add_argument_group("other servers' forms of the same settings")
    for row in compat.TRANSLATED:
        _add_translated(others, row)
    for idle in compat.IGNORED:
        result.add_argument(
            *idle.flags, action=_Ignore, nargs=idle.takes, dest="ignored", help=argparse.SUPPRESS
        )
    for refused in compat.REFUSED:
        result.add_argument(
            *refused.flags, action=_Refuse, row=refused, nargs=refused.takes, dest="ignored",
            help=argparse.SUPPRESS,
        )  # fmt: skip
    return result


def _version_text() -> str:
    """Version and build, without importing what is heavy."""
    found = [f"Python {platform.python_version()}"]
    for name in ("mlx", "mlx-lm", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    found.append(f"{platform.system()} {platform.machine()}")
    return f"mlx_server {__version__} ({', '.join(found)})"


def _add_flag(group: Any, f: Field) -> None:
    meta = f.metadata
    default = default_text(f)
    help_text = meta["help"] + (f" (default: {default})" if default else "")
    help_text = help_text.replace("%", "%%")
    names = (flag_name(f), *meta["flags"])
    if meta["convert"] is boolean:
        switch = argparse.BooleanOptionalAction
        group.add_argument(*names, dest=f.name, action=switch, help=help_text)
        return
    action: Any = _Smallest if meta["smallest"] else "store"
    if meta["repeat"]:
        action = "extend" if meta["convert"] in LISTS else "append"
    group.add_argument(
        *names,
        dest=f.name,
        type=named(meta["convert"]),
        action=action,
        choices=meta["choices"],
        metavar=meta["metavar"] or (None if meta["choices"] else f.name.upper()),
        help=help_text,
    )


def _add_translated(group: Any, row: compat.Translated) -> None:
    if not row.flags:
        return
    help_text = f"sets {row.field.replace('_', '-')}"
    if row.convert is None:
        group.add_argument(
            *row.flags, dest=row.field, action="store_const", const=row.const,
            help=f"{help_text} to {row.const}",
        )  # fmt: skip
    else:
        action = "extend" if row.convert in LISTS else "store"
        group.add_argument(
            *row.flags, dest=row.field, type=named(row.convert), metavar=row.metavar,
            action=action, help=help_text,
        )  # fmt: skip


def named(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse hides a ValueError's message; this keeps it."""

    def read(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return read


def read_command(
    argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[Config, list[str]]:
    """The settings, and the flags and variables that were given and mean nothing here.

    What is wrong with the command line or the variables ends the process: one line, code 2.
    """
    result = parser()
    namespace, words = result.parse_known_args(compat.tidy(sys.argv[1:] if argv is None else argv))
    given = vars(namespace)
    ignored = given.pop("ignored", [])
    model = _model_among(words, result)
    if model is not None:
        if given.get("model", model) != model or compat.HF_REPO in given:
            result.error(f"{model}: the model is given twice, here and by a flag")
        given["model"] = model
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    try:
        config = Config.from_environment(environ, **given)
    except ValueError as error:
        result.error(str(error))
    return config, list(dict.fromkeys([*ignored, *compat.ignored_variables(environ)]))


def _model_among(words: Sequence[str], result: argparse.ArgumentParser) -> str | None:
    """The model in what is no flag: `serve MODEL`, `MODEL`, `serve` or nothing."""
    flags = [word for word in words if word.startswith("-") and word not in ("-", "--")]
    if flags:
        result.error(f"unrecognized arguments: {' '.join(flags)}")
    rest = [word for word in words if word != "--"]
    if rest and rest[0] == "serve":
        rest = rest[1:]
    if len(rest) > 1:
        result.error(f"expected one model, not {len(rest)}: {' '.join(rest)}")
    return rest[0] if rest else None
