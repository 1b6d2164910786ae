"""Weights stored as packed INT4 or INT8 codes with one scale a group (``pack-quantized``).

Layout of compressed-tensors 0.20, ``compressors/pack_quantized``: a signed code q is stored
as the unsigned u = q + 2^(bits-1); the codes of a row fill its 32-bit words from the least
significant bit up, so that in memory (little-endian) an INT4 row is bytes of two codes, the
even column in the low half, and an INT8 row is bytes of one code, in order. A row whose
length does not fill its last word is padded with zero bits.

    w[r, c] = (u[r, c] - 2^(bits-1)) * scale[r, c // group_size]

The product of a code and a bfloat16 scale has at most 16 significant bits: exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint.formats.weight import DEQUANT, FloatType
from laguna_ref.errors import CheckpointError
from laguna_ref.quantization import WeightFormat

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BFLOAT16_EPS = 2.0**-7
"""Distance from 1 to the next bfloat16."""


@dataclass(frozen=True, eq=False)
class PackedIntWeight:
    """A matrix [out, in] as stored: int32 words [out, words] and scales [out, in / group].

    ``file`` is only for error messages. ``stored_shape`` is the checkpoint's ``weight_shape``
    tensor if it has one.
    """

    name: str
    packed: NDArray[np.int32]
    scale: NDArray[Any]
    bits: int
    group_size: int
    shape: tuple[int, int]
    file: Path | None = None
    stored_shape: NDArray[Any] | None = None

    @property
    def format(self) -> WeightFormat:
        """``pack-quantized`` with this weight's bits and group size."""
        return WeightFormat(kind="pack-quantized", bits=self.bits, group_size=self.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes on disk of words and scales."""
        return self.packed.nbytes + self.scale.nbytes

    @cached_property
    def checked_scale(self) -> NDArray[Any]:
        """``scale`` itself, after one look at its values and at ``weight_shape``.

        Raises CheckpointError as ``check_scale`` and ``check_shape`` do.
        """
        self.check_scale()
        self.check_shape()
        return self.scale

    def check_scale(self) -> None:
        """Raise CheckpointError, naming file and tensor, for a NaN or infinite scale."""
        finite = np.isfinite(self.scale)
        if not finite.all():
            row, group = np.argwhere(~finite)[0]
            raise CheckpointError(
                f"scale of row {row}, group {group} is not a number",
                file=self.file,
                tensor=f"{self.name}.weight_scale",
                expected="finite scales",
                found=str(self.scale[row, group]),
            )

    def check_shape(self) -> None:
        """Raise CheckpointError for a ``weight_shape`` that is not this matrix's shape."""
        if self.stored_shape is not None and tuple(self.stored_shape.tolist()) != self.shape:
            raise CheckpointError(
                "weight_shape is not the weight's shape",
                file=self.file,
                tensor=f"{self.name}.weight_shape",
                expected=list(self.shape),
                found=self.stored_shape.tolist(),
            )

    def rows(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: FloatType = np.float32,
        dequant: str = "exact",
    ) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` as numbers: [stop - start, in] of ``dtype``.

        ``dequant="exact"`` is the product of code and scale, exact in float64 and, for
        bfloat16 scales, in float32. ``"bf16"`` follows the released loaders: the product in
        the scale's own type, then bfloat16 (compressed-tensors ``_dequantize``).

        Raises ValueError for another ``dequant``, CheckpointError at the first call if a scale is
        not finite.
        """
        if dequant not in DEQUANT:
            raise ValueError(f"dequant must be one of {DEQUANT}, not {dequant!r}")
        scale = self.checked_scale[start:stop]
        product_type = dtype if dequant == "exact" else np.float32
        codes = unpack_as(self.packed[start:stop], self.bits, self.shape[1], product_type)
        groups = codes.reshape(*scale.shape, self.group_size)
        # The codes are this call's own array, so the product may overwrite them.
        np.multiply(groups, scale.astype(product_type)[:, :, None], out=groups)
        if dequant == "bf16":
            if scale.dtype != BFLOAT16:
                groups = groups.astype(scale.dtype)
            groups = groups.astype(BFLOAT16)
        return groups.reshape(codes.shape).astype(dtype, copy=False)


def words_per_row(columns: int, bits: int) -> int:
    """32-bit words that hold ``columns`` codes: ceil(columns * bits / 32)."""
    return -(-columns * bits // 32)


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Signed codes [out, in] in [-2^(bits-1), 2^(bits-1)) as words int32 [out, words].

    Raises ValueError for codes outside that range or bits other than 4 and 8.
    """
    offset = _offset(bits)
    if codes.size and not (-offset <= int(codes.min()) and int(codes.max()) < offset):
        raise ValueError(f"codes outside [{-offset}, {offset}) do not fit {bits} bits")
    rows, columns = codes.shape
    stored = np.zeros((rows, words_per_row(columns, bits) * 32 // bits), np.uint8)
    stored[:, :columns] = codes.astype(np.int16) + offset
    if bits == 4:
        stored = (stored[:, 0::2] | (stored[:, 1::2] << 4)).astype(np.uint8)
    return np.ascontiguousarray(stored).view(np.int32)


def unpack(packed: NDArray[np.int32], bits: int, columns: int) -> NDArray[np.int8]:
    """Words int32 [out, words] as signed codes int8 [out, columns]; the inverse of ``pack``."""
    offset = _offset(bits)
    stored = np.ascontiguousarray(packed).view(np.uint8)
    if bits == 4:
        stored = np.stack((stored & 15, stored >> 4), axis=-1).reshape(
            len(packed), packed.shape[1] * 8
        )
    return (stored[:, :columns].astype(np.int16) - offset).astype(np.int8)


def unpack_as(packed: NDArray[np.int32], bits: int, columns: int, dtype: FloatType) -> NDArray[Any]:
    """``unpack(...).astype(dtype)``, C-contiguous [out, columns], as fast as NumPy goes."""
    if bits == 8:
        stored = np.ascontiguousarray(packed).view(np.uint8)[:, :columns]
        return np.subtract(stored, dtype(_offset(bits)), dtype=dtype)
    half_words = np.ascontiguousarray(packed).view(np.uint16)
    codes = _codes_of_half_word(np.dtype(dtype)).take(half_words, axis=0)
    return np.ascontiguousarray(codes.reshape(len(packed), packed.shape[1] * 8)[:, :columns])


def padding_is_zero(packed: NDArray[np.int32], bits: int, columns: int) -> bool:
    """Whether the bits after the last column of words [out, words] are zero, as packing does it."""
    stored = np.ascontiguousarray(packed).view(np.uint8)
    used, half = divmod(columns * bits, 8)
    if half and (stored[:, used] >> half).any():
        return False
    return not stored[:, used + (half > 0) :].any()


def quantise(
    weight: NDArray[Any], bits: int, group_size: int
) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Codes int8 [out, in] and bfloat16 scales [out, in / group_size] of a float weight.

    The symmetric ``memoryless_minmax`` observer of compressed-tensors in its bfloat16
    arithmetic (each step rounds to bfloat16):

        scale = max|w of the group| / ((2^bits - 1) / 2),   or eps where that is zero
        q     = round_half_even(clamp(w / scale, -2^(bits-1), 2^(bits-1) - 1))

    Raises ValueError when ``group_size`` does not divide the columns or a weight is not
    finite.
    """
    offset = _offset(bits)
    rows, columns = weight.shape
    if columns % group_size:
        raise ValueError(f"group size {group_size} does not divide {columns} columns")
    if not np.isfinite(weight).all():
        raise ValueError("cannot quantise a weight that is not finite")
    scale = group_scales(weight, bits, group_size)
    groups = weight.astype(BFLOAT16).reshape(rows, -1, group_size)
    ratio = (groups / scale[:, :, None]).astype(np.float32)
    codes = np.rint(np.clip(ratio, -offset, offset - 1))
    return codes.astype(np.int8).reshape(rows, columns), scale


def group_scales(weight: NDArray[Any], bits: int, group_size: int) -> NDArray[Any]:
    """The scales of ``quantise``: bfloat16 [out, in / group_size]."""
    groups = weight.astype(BFLOAT16).reshape(len(weight), -1, group_size)
    half_range = BFLOAT16.type((2**bits - 1) / 2)
    scale = np.abs(groups).max(axis=-1).astype(BFLOAT16) / half_range
    return np.where(scale == 0, BFLOAT16_EPS, scale).astype(BFLOAT16)


def _offset(bits: int) -> int:
    if bits not in (4, 8):
        raise ValueError(f"pack-quantized weights have 4 or 8 bits here, not {bits}")
    return 1 << (bits - 1)


@lru_cache
def _codes_of_half_word(dtype: np.dtype[Any]) -> NDArray[Any]:
    """The four INT4 codes of every 16-bit value: [65536, 4] (1 MB in float32).

    One look-up then yields four numbers, five times faster than shifting and masking.
    """
    values = np.arange(1 << 16, dtype=np.uint16)
    unsigned = np.stack([(values >> shift) & 15 for shift in (0, 4, 8, 12)], axis=1)
    table: NDArray[Any] = (unsigned.astype(np.int16) - 8).astype(dtype)
    table.flags.writeable = False
    return table
