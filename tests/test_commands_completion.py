"""The shells' completion: sourced in the shells that are installed, and read by its lines."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from mlx_server import commands, compat
from mlx_server.commands import completion
from mlx_server.flags import COMMANDS, SHELLS, parser, read_command

SHELL_CHECKS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "mlx_server.bash"
    file.write_text(completion.script("bash"))
    return file


def completed(script: Path, *words: str, folder: Path, **environ: str) -> list[str]:
    """What bash offers for the last of the words."""
    code = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '"$(complete -p mlx_server | sed "s/.*-F \\([^ ]*\\).*/\\1/")"; printf "%s\\n" '
        '"${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", str(script), "mlx_server", *words],
        capture_output=True, text=True, cwd=folder, check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environ},
    )  # fmt: skip
    assert not done.stderr
    return sorted(set(done.stdout.split("\n")) - {""})


def actions(of: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in of._actions if action.help != argparse.SUPPRESS]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([""], sorted(COMMANDS)),
        (["c"], ["chat"]),
        (["--log-le"], ["--log-level"]),
        (["--log-level", ""], ["CRITICAL", "DEBUG", "ERROR", "INFO", "WARNING"]),
        (["--pooling", "m"], ["mean"]),
        (["--print-completion", ""], ["bash", "fish", "zsh"]),
        (["serve", "--log-le"], ["--log-level"]),
        (["serve", "some"], ["some.gguf", "somewhere"]),
        (["--model", "some"], ["some.gguf", "somewhere"]),
        (["--model", "own"], ["owner/name"]),
        (["--port", "80", "--model", "owner/n"], ["owner/name"]),
        (["--slot-save-path", ""], ["hub", "somewhere"]),
        (["--log-file", "some"], ["some.gguf", "somewhere"]),
        (["chat", "--te"], ["--temp", "--temperature"]),
        (["chat", "--cacert", "some.g"], ["some.gguf"]),
        (["chat", "--model", "some"], []),
        (["list", "--j"], ["--json"]),
        (["list", "--mod"], []),
        (["--thread"], ["--threads-http"]),  # --threads means nothing here
    ],
)
def test_bash_offers(bash_script: Path, tmp_path: Path, words: list[str], found: list[str]) -> None:
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "some.gguf").touch()
    (tmp_path / "hub" / "models--owner--name").mkdir(parents=True)
    (tmp_path / "hub" / "datasets--owner--data").mkdir()
    given = completed(bash_script, *words, folder=tmp_path, HF_HOME=str(tmp_path))
    assert given == found


def test_bash_registers_the_command(bash_script: Path, tmp_path: Path) -> None:
    code = f"source {bash_script} && complete -p mlx_server"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip().endswith(" mlx_server") and done.returncode == 0


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_its_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    file = tmp_path / "script"
    file.write_text(completion.script(shell))
    done = subprocess.run([*SHELL_CHECKS[shell], str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def spelled(shell: str, option: str) -> str:
    """A flag as the script of a shell has it."""
    if shell != "fish":
        return option
    if option.startswith("--"):
        return f"-l {option[2:]} "
    return f"-{'s' if len(option) == 2 else 'o'} {option[1:]} "


@pytest.mark.parametrize("shell", SHELLS)
def test_every_flag_is_there_and_no_suppressed_one(shell: str) -> None:
    text = completion.script(shell)
    for action in actions(parser()):
        for option in action.option_strings:
            assert spelled(shell, option) in text, option
    hidden = {flag for row in (*compat.IGNORED, *compat.REFUSED) for flag in row.flags}
    shown = {option for action in actions(completion.whole_parser())
             for option in action.option_strings}  # fmt: skip
    assert not hidden & shown
    assert "--flash-attn" not in text and "-l flash-attn" not in text


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_help_comes_with_the_flags(shell: str) -> None:
    text = completion.script(shell).replace("\\", "")
    assert "port to listen on; 0 takes any free one" in text
    assert "the server's own" in text
    assert all(about in text for about in COMMANDS.values())


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("log-level", "-r -f -a 'DEBUG INFO WARNING ERROR CRITICAL'"),
        ("log-file", "-r -F"),
        ("path", "-r -f -a '(__fish_complete_directories)'"),
        ("model", "-s m -r -F -a '(__mlx_server_repos)'"),
        ("port", "-r -f"),
        ("version", "-d 'show version and build'"),
    ],
)
def test_fish_offers(flag: str, value: str) -> None:
    lines = completion.script("fish").splitlines()
    found = [line for line in lines if f"is none' -l {flag} " in line]
    assert len(found) == 1 and f" -l {flag} {value}" in found[0]


def test_fish_quotes_what_it_is_given() -> None:
    for line in completion.script("fish").splitlines():
        if line.startswith("complete"):
            bare = line.replace("\\\\", "").replace("\\'", "")
            assert bare.count("'") % 2 == 0, line


def test_every_flag_that_takes_a_path_completes_paths() -> None:
    named = completion.FILES | completion.FOLDERS | completion.MODELS
    known = {option for of in (parser(), completion.chat.parser())
             for action in actions(of) for option in action.option_strings}  # fmt: skip
    assert named <= known
    within_a_repo = {"--hf-file"}
    for action in actions(parser()):
        takes_a_value = action.nargs is None and action.choices is None
        words = {*"".join(action.option_strings).split("-"), str(action.metavar)}
        if takes_a_value and words & {"file", "path", "FILE", "PATH", "[NAME=]PATH"}:
            assert named & set(action.option_strings) or within_a_repo & set(action.option_strings)


@pytest.mark.parametrize("argv", [["--print-completion", "bash"], ["--print-completion=bash"]])
def test_the_flag_prints_the_script(argv: list[str], capsys) -> None:
    assert commands.dispatch(argv) == 0
    assert capsys.readouterr().out == completion.script("bash")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--print-completion", "tcsh"], "bash"),
        (["--print-completion"], "expected one argument"),
        (["--print-completion", "bash", "--port", "1"], "--port"),
    ],
)
def test_what_it_cannot_print(argv: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        commands.dispatch(argv)
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [[], ["serve", "chat"], ["--model", "chat"], ["./chat"], ["--model", "list"], ["serve"],
     ["--port", "1", "chat"]],
)  # fmt: skip
def test_only_the_first_word_is_a_command(argv: list[str]) -> None:
    assert commands.dispatch(argv) is None
    model = {"chat", "list", "./chat"} & set(argv)
    assert read_command(argv, {})[0].model == (model.pop() if model else None)


@pytest.mark.parametrize("flag", ["--list-models", "--print-completion"])
def test_a_command_behind_other_flags_is_refused(flag: str, capsys) -> None:
    argv = ["--port", "1", flag, "bash"][: 4 if flag == "--print-completion" else 3]
    assert commands.dispatch(argv) is None
    with pytest.raises(SystemExit) as error:
        read_command(argv, {})
    assert error.value.code == 2 and "give it first" in capsys.readouterr().err
