"""An interactive chat: the loop of questions and replies, and what its commands work on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing

from mlx_server.commands import slash
from mlx_server.commands.client import Client, Json
from mlx_server.commands.conversation import Conversation, Piece, Reply
from mlx_server.commands.failures import ChatError
from mlx_server.commands.line_input import Interrupted, LineInput, history_file
from mlx_server.commands.terminal import ReplyView, Screen, printable

CUT = "(cut off: the limit of tokens, --max-tokens or the context, is reached)"


def receive(
    client: Client,
    conversation: Conversation,
    reply: Reply,
    show: Callable[[Piece], None],
    notice: Callable[[str], None],
) -> None:
    """Fill `reply` with the server's answer to the conversation.

    Raises:
        ChatError: None came, or not its end; `reply` has what came.
        KeyboardInterrupt: Ctrl-C; the request is cancelled.
    """
    try:
        with closing(client.chat(conversation.body(), notice)) as chunks:
            for chunk in chunks:
                for piece in reply.add(chunk):
                    show(piece)
    finally:
        reply.end()


class Session:
    """
    Attributes:
        unanswered: The last question, if it got no reply; /retry asks it.
        known_models: Names that the server told last.
    """

    def __init__(self, client: Client, conversation: Conversation, screen: Screen) -> None:
        self.client = client
        self.conversation = conversation
        self.screen = screen
        self.unanswered: str | None = None
        self.known_models: list[str] = []
        self._contexts: dict[str, int] = {}
        self._replies = 0
        self._completion_tokens = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._seconds = 0.0
        self._last: Reply | None = None

    def run(self) -> int:
        """Talk until the user has had enough. Returns the exit code."""
        try:
            models = self.models()
        except ChatError as error:
            self._complain(error)
            return 1
        model = self.conversation.model or (models[0] if models else "a model")
        self.screen.note(f"{model} at {self.client.address.url}; /help lists commands, Ctrl-D ends")
        lines = LineInput(history_file(), lambda line: slash.completions(self, line))
        try:
            while self._turn(lines):
                pass
        finally:
            lines.save_history()
        return 0

    def _turn(self, lines: LineInput) -> bool:
        """Read a line and do what it says. Returns whether to go on."""
        try:
            line = lines.read()
        except Interrupted as stopped:
            self.screen.line()
            return not stopped.empty
        except EOFError:
            self.screen.line()
            return False
        try:
            if line.startswith("/"):
                slash.run(self, line.rstrip())
            elif line.strip():
                self.ask(line)
        except ChatError as error:
            self._complain(error)
        except KeyboardInterrupt:  # within a command that asks the server
            self.screen.line()
        except slash.Leave:
            return False
        return True

    def _complain(self, error: ChatError) -> None:
        message = printable(error.message) if sys.stderr.isatty() else error.message
        print(f"mlx_server chat: {message}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------ questions

    def ask(self, question: str) -> None:
        """Send a question and show the reply. What came of a stopped or broken reply stays; a
        question without any is taken out again, since templates want the roles to alternate.

        Raises:
            ChatError: There was no reply, or not all of it.
        """
        conversation, reply, view = self.conversation, Reply(), ReplyView(self.screen)
        conversation.messages.append({"role": "user", "content": question})
        self.unanswered = question
        stopped = False
        try:
            receive(self.client, conversation, reply, view.show, self.screen.note)
        except KeyboardInterrupt:
            stopped = True
        finally:
            view.end()
            self._keep(reply)
        if stopped:
            self.screen.note("(stopped)")
            return
        if reply.reason == "length":
            self.screen.note(CUT)
        if figures := reply.figures(conversation.stream):
            self.screen.note(f"({figures})")

    def _keep(self, reply: Reply) -> None:
        if reply.is_empty and reply.reason is None:
            self.conversation.messages.pop()
            return
        self.unanswered = None
        self.conversation.messages.append(reply.message())
        self._last = reply
        self._replies += 1
        self._completion_tokens += reply.completion_tokens
        self._prompt_tokens += reply.prompt_tokens
        self._cached_tokens += reply.cached_tokens
        self._seconds += (reply.ended or time.monotonic()) - reply.started

    # ------------------------------------------------------------ for the commands

    def models(self) -> list[str]:
        """Names of the server's models. Raises ChatError."""
        data = self.client.get("/v1/models").get("data")
        cards: list[Json] = (
            [c for c in data if isinstance(c, dict)] if isinstance(data, list) else []
        )
        self.known_models = [c["id"] for c in cards if isinstance(c.get("id"), str)]
        for card in cards:
            if isinstance(card.get("id"), str) and isinstance(card.get("max_model_len"), int):
                self._contexts[card["id"]] = card["max_model_len"]
        return self.known_models

    def answering(self) -> str:
        """The model that answers where none is named, as far as it is known."""
        told = None if self._last is None else self._last.model
        return told or (self.known_models[0] if self.known_models else "the server's own")

    def stats(self) -> str:
        """Of the chat, and how full the context was with the last reply."""
        replies = "1 reply" if self._replies == 1 else f"{self._replies} replies"
        total = f"{replies}, {self._completion_tokens} tokens"
        total += f" in {self._seconds:.1f} s; prompts {self._prompt_tokens} tokens"
        total += f" ({self._cached_tokens} cached)"
        last = self._last
        if last is not None and last.usage:
            used = last.prompt_tokens + last.completion_tokens
            size = self._contexts.get(self.answering())
            of = f" of {size}" if size else ""
            total += f"; context {used}{of} tokens at the last reply"
        return total
