"""Static files: a front end's folder (--path), our own pages behind it, and /completion.js.

path ─> segments, decoded ─> below the folder? ─> file │ index.html │ redirect │ None
                                                    └─> 304 where the client has it already
"""

from __future__ import annotations

import contextlib
import mimetypes
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from mlx_server.api.base import RawReply
from mlx_server.server.router import decode
from mlx_server.server.tls import SetupError

BUILT_IN = Path(__file__).parent / "web"
ALWAYS = (["completion.js"],)
"""What of it is no page, and is served without --webui too, by the segments of its path."""

PIECE = 64 * 1024

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""With our own pages, which show what models write: whatever that is, no script of it runs and
nothing is asked of another host (https://www.w3.org/TR/CSP3/)."""

_TYPES = {
    ".html": "text/html", ".htm": "text/html", ".css": "text/css", ".js": "text/javascript",
    ".mjs": "text/javascript", ".json": "application/json", ".map": "application/json",
    ".txt": "text/plain", ".md": "text/markdown", ".svg": "image/svg+xml", ".png": "image/png",
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp",
    ".ico": "image/x-icon", ".wasm": "application/wasm", ".woff": "font/woff",
    ".woff2": "font/woff2", ".webmanifest": "application/manifest+json",
}  # fmt: skip
"""The usual ones, alike on every system; the system's own table knows the others."""


@dataclass(frozen=True, slots=True)
class FileReply:
    """An open file, sent piece by piece. Whoever sends it closes it.

    Args:
        size: Bytes that are sent, however the file changes meanwhile.
    """

    file: BinaryIO
    size: int
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200

    def pieces(self) -> Iterator[bytes]:
        """At most `size` bytes; fewer where the file has become shorter."""
        left = self.size
        while left and (piece := self.file.read(min(PIECE, left))):
            left -= len(piece)
            yield piece


class StaticFiles:
    """
    Args:
        folder: What is served first; None: only what is built in.
        webui: Serve the pages that are built in.

    Raises:
        SetupError: There is no such folder.
    """

    def __init__(self, folder: str | None, *, webui: bool = True) -> None:
        self._webui = webui
        self._built_in = BUILT_IN.resolve()
        self._roots = [self._built_in]
        if folder is not None:
            root = Path(os.path.expanduser(folder))  # as it is, of an unknown user
            if not root.is_dir():
                raise SetupError(f"--path {folder}: there is no such folder")
            self._roots.insert(0, root.resolve())

    def reply(self, raw_path: str, if_none_match: str | None = None) -> FileReply | RawReply | None:
        """The file at a path, or 304 in its place; None: there is none.

        Args:
            raw_path: As sent: percent-encoded, without its query.
            if_none_match: That header, the entity tags that the client has.
        """
        segments = _segments(raw_path)
        if segments is None:
            return None
        for root in self._roots:
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a loop
                found = self._below(root, segments, raw_path.endswith("/"))
                if isinstance(found, FileReply) and _matches(if_none_match, found.headers["ETag"]):
                    found.file.close()
                    return RawReply(b"", found.content_type, 304, found.headers)
                if found is not None:
                    return found
        return None

    def _below(
        self, root: Path, segments: list[str], is_folder: bool
    ) -> FileReply | RawReply | None:
        if root != self._built_in:
            return _find(root, segments, is_folder)
        if not (self._webui or segments in ALWAYS):
            return None
        found = _find(root, segments, is_folder)
        if isinstance(found, FileReply) and found.content_type.startswith("text/html"):
            return replace(found, headers={**found.headers, **PAGE_HEADERS})
        return found


def _segments(raw_path: str) -> list[str] | None:
    """The path's parts; None where one of them is no plain name.

    A decoded part may hold no separator, so nothing leads up or away; what begins with a dot
    (.git, .env) is hidden, but for /.well-known.
    """
    parts = [decode(part) for part in raw_path.split("/") if part]
    for part in parts:
        hidden = part.startswith(".") and part != ".well-known"
        if hidden or any(c in part for c in "/\\\0"):
            return None
    return parts


def _matches(if_none_match: str | None, tag: str) -> bool:
    """Whether the header names the tag (RFC 9110, 13.1.2: compared weakly, "*" is any)."""
    tags = [part.strip().removeprefix("W/") for part in (if_none_match or "").split(",")]
    return "*" in tags or tag in tags


def _find(root: Path, segments: list[str], is_folder: bool) -> FileReply | RawReply | None:
    """Raises OSError where there is nothing that can be read."""
    path = root.joinpath(*segments).resolve(strict=True)
    if not path.is_relative_to(root):
        return None  # a link that leads out of the folder
    if not path.is_dir():
        return None if is_folder else _open(path)
    if segments and not is_folder:
        (path / "index.html").resolve(strict=True)
        # Relative links in it are right only below a slash.
        location = "/" + "/".join(quote(segment, safe="") for segment in segments) + "/"
        return RawReply(b"", "text/plain", 301, {"Location": location})
    index = (path / "index.html").resolve(strict=True)
    return _open(index) if index.is_relative_to(root) else None


def _open(path: Path) -> FileReply | None:
    # Opening a pipe would wait for whoever writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return None
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",  # kept, but asked for again: an upgrade changes it
        "ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"',
    }
    file = os.fdopen(descriptor, "rb", buffering=0)
    return FileReply(file, status.st_size, _content_type(path), headers)


def _content_type(path: Path) -> str:
    kind = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name, strict=False)[0]
    if kind is None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
