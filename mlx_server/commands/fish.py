"""A completion script for fish, from an argparse parser with commands below it.

https://fishshell.com/docs/current/completions.html
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import shtab

_HEAD = """\
# fish completion for mlx_server; save it as ~/.config/fish/completions/mlx_server.fish

# whether the command in use is one of the arguments; none: there is no command
function __mlx_server_is
    set -l words (commandline -opc)
    set -l command none
    if contains -- "$words[2]" {commands}
        set command $words[2]
    end
    contains -- $command $argv
end

# the repos in the Hugging Face cache
function __mlx_server_repos
    set -l hub $HOME/.cache/huggingface/hub
    set -q HF_HOME; and set hub $HF_HOME/hub
    set -q HF_HUB_CACHE; and set hub $HF_HUB_CACHE
    for entry in $hub/models--*/
        string replace -r '.*/models--(.*)/$' '$1' -- $entry | string replace -a -- -- /
    end
end

complete -c mlx_server -n '__mlx_server_is chat list' -f
"""


def script(parser: argparse.ArgumentParser) -> str:
    """All commands and flags but the suppressed ones.

    Args:
        parser: As completion.whole_parser gives it.
    """
    commands: Mapping[str, argparse.ArgumentParser] = {}
    lines = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            commands = action.choices
            at_first = "__mlx_server_is none; and test (count (commandline -opc)) -eq 1"
            for name, command in commands.items():
                about = _quoted(command.description or "")
                lines.append(f"complete -c mlx_server -n '{at_first}' -a {name} -d {about}")
    for name, command in {"none": parser, **commands}.items():
        lines += _flag_lines(name, command)
    return _HEAD.format(commands=" ".join(commands)) + "\n" + "\n".join(lines) + "\n"


def _flag_lines(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        about = f" -d {_quoted(formatter._expand_help(action))}" if action.help else ""
        if action.option_strings:
            names = " ".join(map(_flag, action.option_strings))
            value = _value(action)
        elif getattr(action, "complete", None) is not None:
            names, value = "", _value(action).replace(" -r", "")
        else:
            continue
        line = f"complete -c mlx_server -n '__mlx_server_is {name}' {names}{value}{about}"
        yield " ".join(line.split("  "))


def _flag(option: str) -> str:
    """Long, of one letter, or of several behind one dash, as llama.cpp has them."""
    if option.startswith("--"):
        return f"-l {option[2:]}"
    return f"-{'s' if len(option) == 2 else 'o'} {option[1:]}"


def _value(action: argparse.Action) -> str:
    """What follows the flag: -r asks for a value, -f offers no files, -F does."""
    if action.nargs == 0:
        return ""
    complete: Any = getattr(action, "complete", None)
    if complete is shtab.FILE:
        return " -r -F"
    if complete is shtab.DIRECTORY:
        return " -r -f -a '(__fish_complete_directories)'"
    if complete is not None:
        return " -r -F -a '(__mlx_server_repos)'"
    if action.choices:
        return f" -r -f -a {_quoted(' '.join(map(str, action.choices)))}"
    return " -r -f"


def _quoted(text: str) -> str:
    r"""In single quotes, within which fish knows \' and \\ only."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
