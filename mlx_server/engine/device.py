"""What the process asks of the device before the first array is made."""

from __future__ import annotations

import logging
import os
import sys

import mlx.core as mx

from mlx_server.errors import ModelLoadError

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005
"""Seconds after which a handler thread yields the interpreter to the engine thread;
Python's 5 ms can cost a whole step."""

MEMORY_SHARE = 0.7
"""Share of the memory beside the weights that keys and values may take."""


SPARE_SHARE = 1 / 64
"""Share of the memory that freed buffers may keep for new arrays. MLX sets no bound: slabs
and prompt chunks of ever other sizes would pile up."""


def choose(description: str | None) -> None:
    """Compute on a device of the user's choice from now on.

    Args:
        description: "metal", "cuda", "gpu" or "cpu", with an id behind a colon or without;
            "auto" and None leave MLX's own choice.

    Raises:
        ModelLoadError: There is no such device here.
    """
    kind, _, number = (description or "auto").partition(":")
    if kind == "auto":
        return
    there = {"cpu": True, "metal": mx.metal.is_available(), "cuda": mx.cuda.is_available()}
    there["gpu"] = there["metal"] or there["cuda"]
    if not there.get(kind):
        known = ", ".join(name for name, found in there.items() if found)
        raise ModelLoadError(f"--device {description}: there is none here (there is: {known}).")
    device, index = mx.cpu if kind == "cpu" else mx.gpu, int(number or 0)
    if index >= (count := mx.device_count(device)):
        raise ModelLoadError(f"--device {description}: ids of that kind are below {count} here.")
    mx.set_default_device(mx.Device(device, index))


def name(description: str | None) -> str:
    """What the chosen device calls itself, and its kind; from any thread.

    Args:
        description: As for `choose`, which has found the device.
    """
    kind, _, number = (description or "auto").partition(":")
    device = mx.default_device()
    if kind != "auto":
        device = mx.Device(mx.cpu if kind == "cpu" else mx.gpu, int(number or 0))
    told = "CPU" if device.type == mx.cpu else "GPU"
    try:
        return f"{mx.device_info(device)['device_name']} ({told})"
    except (KeyError, RuntimeError, ValueError):
        return told  # a build that does not tell


def prepare() -> None:
    """Called once, on the engine thread."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    limit = mx.device_info().get("max_recommended_working_set_size")
    if limit is not None and mx.metal.is_available():
        mx.set_wired_limit(int(limit))
    mx.set_cache_limit(max(int(_total_memory() * SPARE_SHARE), 2**28))
    _check_compiler()


def release() -> None:
    """Called last on the engine thread: a stream that outlives its thread can abort the process."""
    mx.synchronize()
    mx.clear_streams()


def give_back() -> None:
    """Return freed buffers to the system."""
    mx.clear_cache()


def memory() -> dict[str, int]:
    """Bytes that arrays hold now, held at most, and that are kept for new ones."""
    return {
        "active_memory": mx.get_active_memory(),
        "peak_memory": mx.get_peak_memory(),
        "cache_memory": mx.get_cache_memory(),
    }


def _check_compiler() -> None:
    """On a CPU the first compiled function would raise where there is no C++ compiler."""
    try:
        mx.eval(mx.compile(lambda x: x * x + 1)(mx.zeros(2)))
    except Exception as error:
        mx.disable_compile()
        log.warning("functions are not compiled, which costs a little speed: %s", error)


def kv_budget(model_bytes: int) -> int:
    """Bytes for keys and values when the user names no number."""
    return max(int((_total_memory() - model_bytes) * MEMORY_SHARE), 256 * 2**20)


def _total_memory() -> int:
    """Bytes that the device lets one process use."""
    info = mx.device_info()
    keys = ("max_recommended_working_set_size", "total_memory", "memory_size")
    total = next((info[key] for key in keys if info.get(key)), None)
    if total is None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(total)
