"""GGUF files: their header, read without trusting it. No MLX.

    "GGUF", version, counts │ key, type, value … │ tensor: name, shape, type, offset … │ data

Every length that a file claims is held against the bytes it has, so a broken or
hostile one costs no memory and no crash, only a `ModelLoadError` of one line.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mlx_server.errors import ModelLoadError

SUFFIX = ".gguf"
MAGIC = b"GGUF"
MAX_STRING = 64 << 20
"""Bytes of one string; chat templates are the longest and have some ten thousand."""

MAX_DIMENSIONS = 4

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class TensorType(NamedTuple):
    """A way to store numbers: `block` values take `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


READABLE: Mapping[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    8: TensorType("Q8_0", 32, 34),
    30: TensorType("BF16", 1, 2),
}
"""The types that a model may have here, by their number in the file."""

OTHER_TYPES: Mapping[int, str] = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""Names of the types that are refused."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY, _UINT32 = 8, 9, 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
        shape: As MLX and numpy write it, the last dimension contiguous (the file has it reversed).
        type_name: "F32", "Q4_0", …; "type 99" where the number is unknown.
        readable: How it is stored; None for a type that is not read here.
        start: Its first byte in the file.
        nbytes: Of the data; 0 where the type is not read here.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    readable: TensorType | None
    start: int
    nbytes: int

    def raw(self, path: Path) -> np.ndarray:
        """Its bytes, mapped: uint8, the shape's last dimension in bytes."""
        rows = self.shape[:-1]
        return np.memmap(path, np.uint8, "r", self.start, (*rows, self.nbytes // math.prod(rows)))


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself.

    Attributes:
        metadata: Numbers, truth values and strings; an array of strings is a list, one of
            numbers a numpy array.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str | None:
        return self.text("general.architecture")

    def text(self, key: str) -> str | None:
        """A metadata value that is a text; None where there is none, or something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None


class _Broken(Exception):
    """What is wrong with a file, in a few words."""


def is_gguf(path: Path) -> bool:
    """Whether `path` is called a GGUF file, or begins like one: what links in the Hugging
    Face cache lead to has no suffix."""
    if path.is_dir():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The header of the file `path`.

    Raises:
        ModelLoadError: It is no GGUF file, of another version, truncated or corrupt.
    """
    return _read(path, stop_at=None)


def peek_architecture(path: Path) -> str | None:
    """`general.architecture`, which stands near the beginning; None where the file has none.

    Raises:
        ModelLoadError: As `read_header`.
    """
    return _read(path, stop_at="general.architecture").architecture


def split_files(path: Path) -> list[Path]:
    """The files that make up a model: `path` alone, or all of its -00001-of-00003 kind in order.

    Raises:
        ModelLoadError: One of them is not there; the message names it.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    names = [f"{match['stem']}-{i:05d}-of-{count:05d}{SUFFIX}" for i in range(1, count + 1)]
    present = {file.name for file in path.parent.glob(f"*{SUFFIX}")}
    missing = [name for name in names if name not in present]
    if missing or not names:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelLoadError(
            f"{path.parent} lacks {missing[0] if missing else path.name}{more} of the {count} "
            "parts of the model; put all of them there."
        )
    return [path.with_name(name) for name in names]


def model_files(names: list[str]) -> list[str]:
    """The GGUF files among `names` that can be a model, sorted: projectors of images are left
    out, and of a split one only the first part is there."""
    found = []
    for name in sorted(names):
        base = name.rpartition("/")[2]
        match = _SPLIT.fullmatch(base)
        is_model = base.lower().endswith(SUFFIX) and "mmproj" not in base.lower()
        if is_model and (match is None or int(match["number"]) == 1):
            found.append(name)
    return found


def split_patterns(name: str) -> str:
    """A pattern for the names of all parts of the file `name`; `name` itself if it is no part."""
    match = _SPLIT.fullmatch(name)
    return name if match is None else f"{match['stem']}-?????-of-{match['count']}{SUFFIX}"


# ---------------------------------------------------------------- parsing


def _read(path: Path, stop_at: str | None) -> Header:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise _Broken("is too short to be a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, tensors = _Parser(data, size).parse(stop_at)
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelLoadError(f"{path} cannot be read: {reason}.") from None
    except _Broken as error:
        raise ModelLoadError(f"{path} {error}; fetch it again.") from None
    return Header(path, MappingProxyType(metadata), MappingProxyType(tensors))


class _Parser:
    """Walks the header's bytes; every read is checked against the file's end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data = data
        self._size = size
        self._at = 0

    def parse(self, stop_at: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        start = self._bytes(4)
        if start == b"vers":  # https://git-lfs.github.com/spec/v1
            raise _Broken("is a Git LFS pointer, not the weights: run `git lfs pull`")
        if start != MAGIC:
            raise _Broken("is no GGUF file")
        version = self._scalar("I")
        if version not in (2, 3):
            raise _Broken(f"is of GGUF version {version}, and 2 and 3 can be read")
        num_tensors, num_keys = self._scalar("Q"), self._scalar("Q")
        # The shortest entries: a key of no letters with a byte, a tensor of no name and dimension.
        self._can_hold(num_keys, 13, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key, value = self._entry()
            if key in metadata:
                raise _Broken(f"has the metadata key {key!r} twice")
            metadata[key] = value
            if key == stop_at:
                return metadata, {}
        if stop_at is not None:
            return metadata, {}
        self._can_hold(num_tensors, 24, "tensors")
        return metadata, self._tensors(num_tensors, metadata.get("general.alignment", 32))

    def _entry(self) -> tuple[str, Any]:
        key, kind = self._string(), self._scalar("I")
        if key == "general.alignment" and kind != _UINT32:
            raise _Broken("has a general.alignment that is no uint32")
        return key, self._array() if kind == _ARRAY else self._value(kind)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise _Broken(f"has metadata of the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> Any:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == _STRING:
            self._can_hold(count, 8, "strings")
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise _Broken(f"has a metadata array of the type {kind}, which cannot be read")
        dtype = np.dtype("<" + _SCALARS[kind])
        self._can_hold(count, dtype.itemsize, "numbers")
        return np.frombuffer(self._bytes(count * dtype.itemsize), dtype)

    def _tensors(self, count: int, alignment: int) -> dict[str, Tensor]:
        if not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _Broken(f"has the general.alignment {alignment}, which is no power of two")
        entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name, dimensions = self._string(), self._scalar("I")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise _Broken(f"has the tensor {name[:80]!r} with {dimensions} dimensions")
            shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
            if name in entries:
                raise _Broken(f"has the tensor {name[:80]!r} twice")
            entries[name] = shape, self._scalar("I"), self._scalar("Q")
        begin = -(-self._at // alignment) * alignment
        return {name: self._tensor(name, *entry, begin) for name, entry in entries.items()}

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, at: int, begin: int) -> Tensor:
        known = READABLE.get(kind)
        if known is None:
            return Tensor(name, shape, OTHER_TYPES.get(kind, f"type {kind}"), None, begin + at, 0)
        if not all(shape) or shape[-1] % known.block:
            raise _Broken(f"has the tensor {name[:80]!r} of the impossible shape {shape}")
        nbytes = math.prod(shape) // known.block * known.nbytes
        if begin + at + nbytes > self._size:
            raise _Broken(f"is truncated: the data of {name[:80]!r} ends behind the file's end")
        return Tensor(name, shape, known.name, known, begin + at, nbytes)

    # ------------------------------------------------------------ bytes

    def _can_hold(self, count: int, each: int, what: str) -> None:
        if count * each > self._size - self._at:
            raise _Broken(f"is truncated or corrupt: it announces {count} {what}")

    def _bytes(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise _Broken("is truncated or corrupt: its header goes on behind the file's end")
        start, self._at = self._at, self._at + count
        return self._data[start : self._at]

    def _scalar(self, code: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack(self._bytes(layout.size))[0]

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > MAX_STRING:
            raise _Broken(f"is corrupt: it announces a string of {length} bytes")
        return self._bytes(length).decode("utf-8", "replace")
