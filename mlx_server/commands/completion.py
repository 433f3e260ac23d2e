"""`mlx_server --print-completion SHELL`: a script by which the shell completes the commands.

shtab writes those of bash and zsh from an argparse parser; fish.py writes fish's. The parser
is the server's with the commands below it, and with what each flag's value is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

import shtab

from mlx_server.commands import chat, fish, listing
from mlx_server.flags import COMMANDS, SHELLS, OneLineParser
from mlx_server.flags import parser as server_parser

FILES = frozenset(
    ("--adapter-path", "--lora", "--lora-scaled", "--chat-template", "--chat-template-file",
     "--control-vector", "--control-vector-scaled", "--system-prompt-file", "--grammar-file",
     "--json-schema-file", "--trace-file", "--api-key-file", "--ssl-key-file",
     "--ssl-cert-file", "--log-file", "--cacert")
)  # fmt: skip
FOLDERS = frozenset(("--slot-save-path", "--path"))
MODELS = frozenset(("--model",))
"""Flags by what their value names. A model is a folder, a .gguf file or a repo in the cache."""

MODEL_FUNCTION = "_mlx_server_model_files"
HUB = "${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}"

_BASH = f"""\
# files and folders, and the repos in the Hugging Face cache
{MODEL_FUNCTION}() {{
  local hub="{HUB}" entry
  compgen -f -- "$1"
  for entry in "$hub"/models--*; do
    [ -d "$entry" ] || continue
    entry="${{entry##*/models--}}"
    compgen -W "${{entry//--//}}" -- "$1"
  done
}}
"""

_ZSH = f"""\
# files and folders, and the repos in the Hugging Face cache
{MODEL_FUNCTION}() {{
  local hub="{HUB}"
  local -a repos
  repos=("$hub"/models--*(N/:t))
  repos=("${{(@)repos#models--}}")
  repos=("${{(@)repos//--//}}")
  compadd -a repos
  _files
}}
"""

MODEL: dict[str, Any] = {
    "bash": MODEL_FUNCTION,
    "zsh": MODEL_FUNCTION,
    "preamble": {"bash": _BASH, "zsh": _ZSH},
}
"""In shtab's form of a completion of one's own."""


def main(argv: Sequence[str]) -> int:
    """Args: argv: --print-completion and the shell."""
    reader = OneLineParser(prog="mlx_server", allow_abbrev=False)
    reader.add_argument("--print-completion", choices=SHELLS, required=True)
    print(script(reader.parse_args(argv).print_completion), end="")
    return 0


def script(shell: str) -> str:
    """The script for a shell.

    Args:
        shell: One of SHELLS.
    """
    parser = whole_parser()
    if shell == "fish":
        return fish.script(parser)
    return shtab.complete(parser, shell=shell).rstrip("\n") + "\n"


def whole_parser() -> argparse.ArgumentParser:
    """One parser that knows the server's flags and every command's, for completion only."""
    result = server_parser()
    commands = result.add_subparsers(title="commands", metavar="COMMAND")
    parents = {"chat": chat.parser(), "list": listing.parser(), "serve": _serve()}
    for name, parser in parents.items():
        commands.add_parser(
            name, parents=[parser], add_help=False, help=COMMANDS[name], description=COMMANDS[name]
        )
    for parser in (result, *parents.values()):
        for action in parser._actions:
            _describe_value(action, of_server=parser is not parents["chat"])
    return result


def _serve() -> argparse.ArgumentParser:
    result = server_parser()
    result.add_argument("model", nargs="?", metavar="MODEL", help="the model to serve")
    return result


def _describe_value(action: argparse.Action, of_server: bool) -> None:
    """Args: of_server: `--model` names what to load; chat's is a name that a server knows."""
    names = set(action.option_strings)
    if of_server and (names & MODELS or action.dest == "model"):
        action.complete = MODEL  # type: ignore[attr-defined]
    elif names & FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif names & FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    if isinstance(action.metavar, str):  # brackets and colons mean something to zsh
        action.metavar = re.sub(r"\W+", " ", action.metavar).strip()
