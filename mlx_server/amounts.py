"""Numbers as people read them."""

from __future__ import annotations

_THOUSANDS = ("", "k", "M", "G", "T")


def size(nbytes: float) -> str:
    """Bytes: "512 B", "8.42 MB", "40.1 GB"; thousands, as disks and the hub count."""
    power = 0
    while abs(nbytes) >= 999.5 and power < len(_THOUSANDS) - 1:
        nbytes /= 1000
        power += 1
    return f"{_short(nbytes)} {_THOUSANDS[power]}B"


def count(number: int) -> str:
    """Parameters: "260k", "4.2M", "3.21B"."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{_short(number / unit)}{name}"
    return str(number)


def duration(seconds: float) -> str:
    """ "0.004 s", "1.24 s", "42 s", "4:42", "1:04:42"."""
    if seconds < 0.0995:
        return f"{seconds:.3f} s"
    if seconds < 9.95:
        return f"{seconds:.2f} s"
    return f"{round(seconds)} s" if seconds < 59.5 else clock(seconds)


def clock(seconds: float) -> str:
    """ "0:42", "4:42", "1:04:42"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(value: float) -> str:
    """Three digits, without zeros behind the point."""
    text = f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
