"""The bytes of a download: how many there will be, and how many have come.

The hub library adds to its totals as it begins with one file after the other, so that it knows
the size of a large model only near the end. A dry run knows it before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mlx_server.progress import UNTOLD, Task

log = logging.getLogger(__name__)


def missing_bytes(snapshot: Callable[..., Any]) -> int | None:
    """Bytes of the files that are not there yet; None: nobody knows.

    Args:
        snapshot: `huggingface_hub.snapshot_download` of a repo.
    """
    try:
        files = snapshot(dry_run=True, tqdm_class=counting(UNTOLD.begin("", None)))
    except Exception as error:
        # Whatever is wrong, the download itself will tell.
        log.debug("the size of a download is not known: %s", error)
        return None
    sizes = [file.file_size for file in files if file.will_download]
    return None if None in sizes else sum(sizes)


def counting(task: Task) -> type:
    """A class for the hub library's `tqdm_class`: it draws nothing and tells `task` of bytes."""
    from huggingface_hub.utils import tqdm

    class Counting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # There is one that counts files, one for the bytes on the disk, and in newer
            # releases one for those on the wire, which may be packed.
            on_the_wire = (options.get("name") or "").endswith(".transfer")
            self._counts = options.get("unit") == "B" and not on_the_wire
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts and n:
                task.advance(int(n))

    return Counting
