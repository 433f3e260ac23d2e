"""Weights that are described, not yet read: into memory, piece by piece, so that it can be told
how far they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import mlx.core as mx

from mlx_server.progress import Progress

PIECE = 64 * 2**20
"""Bytes that are read at once. Files are read in parallel within a piece, so a small one would
cost time."""


def read_in(arrays: Iterable[mx.array], what: str, progress: Progress) -> None:
    """Evaluate arrays of any shapes that were loaded lazily.

    Args:
        what: As of `Progress.begin`.
    """
    arrays = list(arrays)
    with progress.begin(what, sum(array.nbytes for array in arrays)) as task:
        for piece, nbytes in _pieces(arrays):
            mx.eval(piece)
            task.advance(nbytes)


def _pieces(arrays: list[mx.array]) -> Iterator[tuple[list[mx.array], int]]:
    """Neighbours of about `PIECE` bytes together, and their bytes."""
    piece: list[mx.array] = []
    nbytes = 0
    for array in arrays:
        piece.append(array)
        nbytes += array.nbytes
        if nbytes >= PIECE:
            yield piece, nbytes
            piece, nbytes = [], 0
    if piece:
        yield piece, nbytes
