"""Progress: how those that work for long, downloads and loading, tell how far they are.

They know nothing of terminals: who shows it hands them a `Progress` (terminal/progress.py).
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Task(Protocol):
    """Something under way. A context manager: it is over when the block is left."""

    def advance(self, nbytes: int) -> None:
        """So many more bytes are done; fewer than none where some have to be done again. From
        any thread."""
        ...

    def __enter__(self) -> Task: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Progress(Protocol):
    def begin(self, what: str, total: int | None) -> Task:
        """Something begins.

        Args:
            what: What is done to what, as in "loading demo".
            total: Bytes of all of it; None where nobody knows.
        """
        ...


class _Untold:
    def begin(self, what: str, total: int | None) -> Task:
        return self

    def advance(self, nbytes: int) -> None:
        pass

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *raised: object) -> None:
        pass


UNTOLD: Progress = _Untold()
"""For those whom nobody watches."""
