"""The commands of an interactive chat: /help lists them. A new one is its function and a line
in COMMANDS."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_server.commands.conversation import SETTINGS
from mlx_server.commands.failures import ChatError

if TYPE_CHECKING:
    from mlx_server.commands.session import Session

OFF = ("off", "default")


class Leave(Exception):
    """The chat is to end."""


@dataclass(frozen=True, slots=True)
class Command:
    """
    Args:
        takes: What stands behind the name, for /help.
        run: Gets the session and that text. It raises ChatError with what is wrong.
    """

    name: str
    takes: str
    help: str
    run: Callable[[Session, str], None]


def run(session: Session, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        ChatError: It cannot be done.
        Leave: The chat is to end.
    """
    name, _, text = line.partition(" ")
    for command in COMMANDS:
        if command.name == name:
            if text.strip() and not command.takes:
                raise ChatError(f"{name} takes nothing behind it.")
            command.run(session, text.strip())
            return
    raise ChatError(f"There is no command {name}; /help lists them.")


def completions(session: Session, line: str) -> list[str]:
    """What a begun line may become."""
    name, space, text = line.partition(" ")
    if not line.startswith("/"):
        return []
    if not space:
        found = (command for command in COMMANDS if command.name.startswith(name))
        return [f"{c.name} " if c.takes else c.name for c in found]
    if name == "/set":
        words = [f"{setting} " for setting in SETTINGS]
    elif name == "/model":
        words = session.known_models
    elif name in ("/save", "/load"):
        words = _paths(text)
    else:
        words = []
    return [f"{name} {word}" for word in words if word.startswith(text)]


def _paths(text: str) -> list[str]:
    folder, name = os.path.split(text)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda e: e.name)
    except OSError:
        return []
    return [
        os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(name)
    ]


# ---------------------------------------------------------------- the commands


def _help(session: Session, text: str) -> None:
    width = max(len(f"{c.name} {c.takes}") for c in COMMANDS)
    for command in COMMANDS:
        session.screen.line(f"  {f'{command.name} {command.takes}':{width}}  {command.help}")
    session.screen.line('A backslash at a line\'s end, or """ around several, goes on below.')
    session.screen.line("Ctrl-C stops the reply, or ends the chat where nothing is typed.")


def _clear(session: Session, text: str) -> None:
    session.conversation.messages.clear()
    session.unanswered = None
    session.screen.note("The conversation begins anew.")


def _system(session: Session, text: str) -> None:
    conversation = session.conversation
    if text:
        conversation.system = None if text in OFF else text
    if conversation.system is None:
        session.screen.note("There is no system message.")
    else:
        session.screen.note(f"system: {conversation.system}")


def _model(session: Session, text: str) -> None:
    if text:
        session.conversation.model = text
    name = session.conversation.model or session.answering()
    unknown = text and session.known_models and text not in session.known_models
    session.screen.note(f"model: {name}" + (", which the server does not list" if unknown else ""))


def _models(session: Session, text: str) -> None:
    names = session.models()
    current = session.conversation.model or session.answering()
    for name in names:
        session.screen.line(f"{'*' if name == current else ' '} {name}")


def _set(session: Session, text: str) -> None:
    settings = session.conversation.settings
    name, _, value = text.partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if not name:
        told = (f"{key} {json.dumps(settings[key], ensure_ascii=False)}" for key in settings)
        session.screen.note("\n".join(told) or f"Nothing is set; there are {', '.join(SETTINGS)}.")
        return
    if name not in SETTINGS:
        raise ChatError(f"There is no setting {name!r}; there are {', '.join(SETTINGS)}.")
    if not value:
        raise ChatError(f"Give a value, as in /set {name} …, or /set {name} off.")
    if value in OFF:
        settings.pop(name, None)
        session.screen.note(f"{name}: the server's own")
        return
    try:
        settings[name] = SETTINGS[name](value)
    except ValueError as error:
        raise ChatError(f"{name} {value}: {error}.") from None
    session.screen.note(f"{name} {json.dumps(settings[name], ensure_ascii=False)}")


def _retry(session: Session, text: str) -> None:
    question = session.unanswered or session.conversation.undo()
    if question is None:
        raise ChatError("There is nothing to ask again.")
    session.ask(question)


def _undo(session: Session, text: str) -> None:
    question = session.conversation.undo()
    if question is None:
        raise ChatError("There is nothing to take back.")
    session.screen.note(f"taken back: {_shortened(question)}")


def _shortened(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _save(session: Session, text: str) -> None:
    path = _named(text, "/save chat.json")
    try:
        if path.exists() and not _is_saved(path):
            raise ChatError(f"{path} is there and no saved conversation; give another name.")
        saved = session.conversation.saved()
        path.write_text(json.dumps(saved, ensure_ascii=False, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ChatError(f"{path} cannot be written: {error.strerror or error}.") from None
    session.screen.note(f"saved: {path}, {len(saved['messages'])} messages")


def _load(session: Session, text: str) -> None:
    path = _named(text, "/load chat.json")
    try:
        session.conversation.restore(_read(path))
    except OSError as error:
        raise ChatError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{path} cannot be loaded: {error}.") from None
    session.unanswered = None
    session.screen.note(f"loaded: {path}, {len(session.conversation.messages)} messages")


def _named(text: str, example: str) -> Path:
    if not text:
        raise ChatError(f"Give a file, as in {example}.")
    return Path(os.path.expanduser(text))


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _is_saved(path: Path) -> bool:
    try:
        value = _read(path)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "messages" in value


def _stats(session: Session, text: str) -> None:
    session.screen.note(session.stats())


def _exit(session: Session, text: str) -> None:
    raise Leave


COMMANDS = (
    Command("/help", "", "this list", _help),
    Command("/clear", "", "forget the conversation; the system message stays", _clear),
    Command("/system", "TEXT", "set the system message (off: none); alone it shows it", _system),
    Command("/model", "NAME", "have another model answer; alone it says which one does", _model),
    Command("/models", "", "the models that the server knows", _models),
    Command("/set", "NAME VALUE", "as in /set temperature 0.7; off takes it back", _set),
    Command("/retry", "", "ask the last question again", _retry),
    Command("/undo", "", "take the last question and its reply back", _undo),
    Command("/save", "FILE", "write the conversation to a file", _save),
    Command("/load", "FILE", "go on with a saved one", _load),
    Command("/stats", "", "the figures of this chat", _stats),
    Command("/exit", "", "end, as Ctrl-D does", _exit),
)
