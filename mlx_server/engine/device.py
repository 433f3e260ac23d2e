"""What the process asks of the device before the first array is made."""

from __future__ import annotations

import logging
import os
import sys

import mlx.core as mx

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005
"""Seconds after which a handler thread yields the interpreter to the engine thread;
Python's 5 ms can cost a whole step."""

MEMORY_SHARE = 0.7
"""Share of the memory beside the weights that keys and values may take."""


def prepare() -> None:
    """Called once, on the engine thread."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    limit = mx.device_info().get("max_recommended_working_set_size")
    if limit is not None and mx.metal.is_available():
        mx.set_wired_limit(limit)
    _check_compiler()


def release() -> None:
    """Called last on the engine thread: a stream that outlives its thread can abort the process."""
    mx.synchronize()
    mx.clear_streams()


def _check_compiler() -> None:
    """On a CPU the first compiled function would raise where there is no C++ compiler."""
    try:
        mx.eval(mx.compile(lambda x: x * x + 1)(mx.zeros(2)))
    except Exception as error:
        mx.disable_compile()
        log.warning("functions are not compiled, which costs a little speed: %s", error)


def kv_budget(model_bytes: int) -> int:
    """Bytes for keys and values when the user names no number."""
    info = mx.device_info()
    keys = ("max_recommended_working_set_size", "total_memory", "memory_size")
    total = next((info[key] for key in keys if info.get(key)), None)
    if total is None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(int((total - model_bytes) * MEMORY_SHARE), 256 * 2**20)
