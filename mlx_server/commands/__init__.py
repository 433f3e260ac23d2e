"""The commands beside serving: chat, list, and the shells' completion. No MLX here.

mlx_server chat …                     chat.py
mlx_server list …, --list-models …    listing.py
mlx_server --print-completion SHELL   completion.py
"""

from __future__ import annotations

from collections.abc import Sequence


def dispatch(argv: Sequence[str]) -> int | None:
    """Run the command that `argv` begins with; None where it begins with none.

    A model called chat or list is served by `serve chat` or `--model chat`.

    Returns:
        The exit code.
    """
    first, rest = (argv[0], argv[1:]) if argv else ("", ())
    if first == "chat":
        from mlx_server.commands import chat

        return chat.main(rest)
    if first in ("list", "--list-models"):
        from mlx_server.commands import listing

        return listing.main(rest)
    if first.partition("=")[0] == "--print-completion":
        from mlx_server.commands import completion

        return completion.main(argv)
    return None
