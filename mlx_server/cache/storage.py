"""How keys and values are stored, and attended to as they are stored: plain, or quantised.

A storage turns new keys and values [rows, kv_heads, tokens, head_dim] into the arrays
that a slab holds, each [rows, kv_heads, tokens, width]: tokens are always the third
axis, so slots are cut, copied and written without knowing which storage they have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_server.cache.attention import attention, bias
from mlx_server.config import Config
from mlx_server.errors import ModelLoadError
from mlx_server.settings_values import CACHE_TYPES


@dataclass(frozen=True, slots=True)
class Quantization:
    """Of keys and values.

    Args:
        bits: Of one number.
        group_size: Neighbouring numbers of a head that share a scale and a bias; None: 64, or
            32 where the heads need it.
        start: Tokens that a sequence has before any of them are quantised.
    """

    bits: int
    group_size: int | None = None
    start: int = 0

    def fitted(self, head_dims: Collection[int]) -> Quantization:
        """With the group size that it has with heads of these sizes.

        Raises:
            ValueError: They cannot be cut into groups of it.
        """
        sizes = (64, 32) if self.group_size is None else (self.group_size,)
        for size in sizes:
            wrong = [head_dim for head_dim in head_dims if head_dim % size]
            if not wrong:
                return replace(self, group_size=size)
        raise ValueError(
            f"heads of {wrong[0]} cannot be quantised in groups of {sizes[-1]}; "
            f"--kv-group-size must divide {wrong[0]}"
        )


def quantization_of(config: Config) -> Quantization | None:
    """What --kv-bits and llama.cpp's --cache-type-k and --cache-type-v ask for.

    One of the two types holds for both. Blocks are MLX's, `--kv-group-size` numbers with a
    scale and a bias, not llama.cpp's 32 with a scale.

    Raises:
        ModelLoadError: A type that there is not here, or settings that contradict each other.
    """
    given = {
        flag: value
        for flag, value in (
            ("--cache-type-k", config.cache_type_k),
            ("--cache-type-v", config.cache_type_v),
        )
        if value is not None
    }
    for flag, name in given.items():
        if name.lower() not in CACHE_TYPES:
            raise ModelLoadError(
                f"{flag} {name} is not known here; keys and values can be stored as they are "
                "computed (f32, f16, bf16), in 8 bits (q8_0) or in 4 (q4_0)."
            )
    bits = {flag: CACHE_TYPES[name.lower()] for flag, name in given.items()}
    if len(set(bits.values())) > 1:
        raise ModelLoadError(
            "--cache-type-k and --cache-type-v must agree: keys and values are stored alike, not "
            f"{given['--cache-type-k']} and {given['--cache-type-v']}."
        )
    chosen = next(iter(bits.values()), config.kv_bits)
    if config.kv_bits is not None and chosen != config.kv_bits:
        flag, name = next(iter(given.items()))
        raise ModelLoadError(f"{flag} {name} contradicts --kv-bits {config.kv_bits}; give one.")
    if chosen is None:
        return None
    return Quantization(chosen, config.kv_group_size, config.quantized_kv_start)


class Storage(ABC):
    """
    Attributes:
        widths: (last dimension, type) of each array that keys and values make together.
    """

    widths: list[tuple[int, mx.Dtype]]

    @abstractmethod
    def encode(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        """The arrays to store.

        Args:
            keys, values: [rows, kv_heads, tokens, head_dim].

        Returns:
            As many as `widths` names, [rows, kv_heads, tokens, width] each.
        """

    @abstractmethod
    def attend(
        self,
        queries: mx.array,
        stored: Sequence[mx.array],
        scale: float,
        mask: mx.array | str | None,
    ) -> mx.array:
        """Scaled dot-product attention.

        Args:
            queries: [rows, heads, tokens, head_dim].
            stored: What `encode` made, [rows, kv_heads, columns, width] each.
            mask: Boolean, [rows, 1, 1, columns] or [tokens, columns]; "causal", where
                the last query sees all columns; None shows everything.

        Returns:
            As `queries`.
        """

    def mask(self, seen: mx.array) -> mx.array:
        """A boolean mask in the form that `attend` takes soonest; made once for all layers.

        Args:
            seen: bool, [rows, 1, 1, columns] or [tokens, columns].
        """
        return seen

    def bytes_per_token(self, num_kv_heads: int) -> int:
        """Bytes that one token takes in one layer, keys and values together."""
        return num_kv_heads * sum(width * dtype.size for width, dtype in self.widths)


class Plain(Storage):
    """Keys and values as the model computes them.

    Args:
        head_dim: Numbers of a head.
        dtype: The type that the model computes them in.
    """

    def __init__(self, head_dim: int, dtype: mx.Dtype) -> None:
        self.widths = [(head_dim, dtype)] * 2
        self._composed = mx.default_device() == mx.cpu and dtype == mx.float32

    def __str__(self) -> str:
        return f"as {self.widths[0][1]}"

    def encode(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        return keys, values

    def mask(self, seen: mx.array) -> mx.array:
        return bias(seen) if self._composed else seen

    def attend(
        self,
        queries: mx.array,
        stored: Sequence[mx.array],
        scale: float,
        mask: mx.array | str | None,
    ) -> mx.array:
        keys, values = stored
        if self._composed:
            return attention(queries, keys, values, scale, mask)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


class Quantized(Storage):
    """Keys and values in `bits` bits, scaled in groups along the head, as in mlx-lm.

    Attention multiplies with them as they are; nothing is ever unpacked as a whole. Three
    arrays each: packed uint32, scales, biases (`mx.quantize`).

    Args:
        head_dim: Numbers of a head, a multiple of the group size.
        dtype: Of the scales and biases.
        bits: Of one number.
        group_size: Neighbours that share a scale and a bias.
    """

    def __init__(self, head_dim: int, dtype: mx.Dtype, bits: int, group_size: int) -> None:
        self.bits, self.group_size = bits, group_size
        packed = (head_dim * bits // 32, mx.uint32)
        self.widths = [packed, (head_dim // group_size, dtype), (head_dim // group_size, dtype)] * 2

    def __str__(self) -> str:
        return f"in {self.bits} bits, groups of {self.group_size}, scales as {self.widths[1][1]}"

    def encode(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        return (
            *mx.quantize(keys, group_size=self.group_size, bits=self.bits),
            *mx.quantize(values, group_size=self.group_size, bits=self.bits),
        )

    def attend(
        self,
        queries: mx.array,
        stored: Sequence[mx.array],
        scale: float,
        mask: mx.array | str | None,
    ) -> mx.array:
        shape, kv_heads, columns = queries.shape, stored[0].shape[1], stored[0].shape[2]
        # The query heads of one key head become rows of one product.
        queries = (queries * scale).reshape(shape[0], kv_heads, -1, shape[3])
        scores = self._product(queries, stored[:3], transpose=True)
        if mask is not None:
            if isinstance(mask, str):
                mask = mx.tri(shape[2], columns, columns - shape[2], dtype=mx.bool_)
            by_head = scores.reshape(*shape[:3], columns)
            lowest = mx.finfo(scores.dtype).min
            scores = mx.where(mask, by_head, lowest).reshape(scores.shape)
        scores = mx.softmax(scores, axis=-1, precise=True)
        return self._product(scores, stored[3:], transpose=False).reshape(shape)

    def _product(self, x: mx.array, quantized: Sequence[mx.array], *, transpose: bool) -> mx.array:
        packed, scales, biases = quantized
        return mx.quantized_matmul(
            x, packed, scales, biases, transpose, group_size=self.group_size, bits=self.bits
        )
