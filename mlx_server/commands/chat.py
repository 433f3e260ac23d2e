"""`mlx_server chat`: talk to a running server from the terminal.

With a message, or text on standard input, it answers once: the reply alone goes to standard
output, everything else to standard error. On a terminal it goes on until Ctrl-D.
"""

from __future__ import annotations

import argparse
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_server.commands.client import Address, Client
from mlx_server.commands.conversation import SETTINGS, Conversation, Piece, Reply
from mlx_server.commands.failures import ChatError
from mlx_server.commands.session import CUT, Session, receive
from mlx_server.commands.terminal import ReplyView, Screen, printable
from mlx_server.flags import OneLineParser, named
from mlx_server.settings_values import comma_list, within

URL = "http://127.0.0.1:8080"
KEY_VARIABLES = ("MLX_SERVER_API_KEY", "OPENAI_API_KEY")
INTERRUPTED = 130
"""The exit code that shells give a program that Ctrl-C ended."""


def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="mlx_server chat",
        usage="%(prog)s [flags] [MESSAGE …]",
        description="Talk to a running server. With a message, or text on standard input, it "
        'answers once: git diff | mlx_server chat "write a commit message"',
        allow_abbrev=False,
    )
    add = result.add_argument
    add("message", nargs="*", metavar="MESSAGE", help="what to ask; without one, a conversation")
    add("--url", default=URL, type=named(Address.read), help=f"the server (default: {URL})")
    add("--model", "-m", help="the model that is to answer; else the server's own")
    add("--system", "-s", metavar="TEXT", help="system message")
    add("--api-key", metavar="KEY", help=f"or {' or '.join(KEY_VARIABLES)} in the environment")
    for name, flags in (("temperature", ("--temp",)), ("top_p", ()), ("max_tokens", ("-n",))):
        metavar = "N" if name == "max_tokens" else "X"
        flag = f"--{name.replace('_', '-')}"
        add(flag, *flags, dest=name, type=named(SETTINGS[name]), metavar=metavar, help=_HELP[name])
    add("--no-stream", action="store_true", help="show the reply when it is complete")
    add("--cacert", metavar="FILE", help="certificates to trust for https, PEM")
    add("--insecure", action="store_true", help="do not check the certificate")
    add(
        "--timeout", type=named(within(0.1, 86400)), metavar="SECONDS",
        help="give up when nothing comes for so long (default: wait)",
    )  # fmt: skip
    return result


_HELP = {
    "temperature": "else the server's; 0 is greedy",
    "top_p": "else the server's",
    "max_tokens": "limit of the reply; -1: until the context is full",
}


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 1 where there was no reply or not all of it."""
    reader = parser()
    args = reader.parse_intermixed_args(argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a wrong byte is no reason to end
            stream.reconfigure(errors="replace")
    try:
        client = Client(args.url, _key(args, os.environ), _tls(args), args.timeout)
    except ValueError as error:
        reader.error(str(error))
    settings = {name: vars(args)[name] for name in _HELP if vars(args)[name] is not None}
    system = None if args.system is None else _readable(args.system)
    conversation = Conversation(args.model, system, settings=settings, stream=not args.no_stream)
    words = _readable(" ".join(args.message))
    try:
        if not words and sys.stdin is not None and sys.stdin.isatty():
            return Session(client, conversation, Screen(sys.stdout)).run()
        question = "\n\n".join(part for part in (words, _piped()) if part.strip())
        if not question:
            reader.error("there is nothing to ask: give a MESSAGE, or text on standard input")
        return _answer_once(client, conversation, question)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the reply has enough; Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _answer_once(client: Client, conversation: Conversation, question: str) -> int:
    """The reply's text goes to standard output as it comes; reasoning and figures are for people
    who watch, and go beside it."""
    conversation.messages.append({"role": "user", "content": question})
    answer, beside = Screen(sys.stdout), Screen(sys.stderr)
    watched = answer.is_terminal and beside.is_terminal
    asides = ReplyView(beside)
    reply = Reply()

    def show(piece: Piece) -> None:
        if piece.kind == "text":
            if reply.text == piece.text:
                asides.end()
            answer.write(piece.text)
        elif watched or piece.kind != "reasoning":
            asides.show(piece)

    failure = None
    try:
        receive(client, conversation, reply, show, beside.note)
    except ChatError as error:
        failure = error
    asides.end()
    if reply.text and not reply.text.endswith("\n"):
        answer.write("\n")
    if failure is not None:
        message = printable(failure.message) if beside.is_terminal else failure.message
        print(f"mlx_server chat: {message}", file=sys.stderr)
        return 1
    if reply.reason == "length":
        beside.note(CUT)
    if watched and (figures := reply.figures(conversation.stream)):
        beside.note(f"({figures})")
    return 0


def _piped() -> str:
    """What standard input has, if it is no terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def _readable(text: str) -> str:
    """Without the stand-ins for bytes of the command line that are no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _key(args: Any, environ: Mapping[str, str]) -> str | None:
    """The key to send; the server's variable may hold several, with commas between them.

    Raises:
        ValueError: It cannot stand in a header.
    """
    key = args.api_key
    for name in KEY_VARIABLES:
        if key is None and environ.get(name):
            key = next(iter(comma_list(environ[name])), None)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError("the key has characters that no header can carry; check --api-key")
    return key or None


def _tls(args: Any) -> ssl.SSLContext | None:
    """Raises ValueError where --cacert names no certificates."""
    if not args.url.secure:
        if args.cacert or args.insecure:
            flag = "--cacert" if args.cacert else "--insecure"
            raise ValueError(f"{flag} is for https://, and {args.url.url} is not encrypted")
        return None
    if args.insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    file = None if args.cacert is None else os.path.expanduser(args.cacert)
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise ValueError(f"--cacert {file} holds no certificate in PEM form") from None
    except OSError as error:
        raise ValueError(f"--cacert {file}: {error.strerror or error}") from None
