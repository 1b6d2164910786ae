"""Weights as kernels see them: addresses in a memory map, and how eight of them become numbers.

Each format is a named tuple of plain integers, so that a table of them can be built inside a
kernel. Weights come as vectors of the type of the array ``like``: ``weights8`` gives eight from an
address on, ``weights16`` sixteen of one row, ``weights8x2`` eight each of two rows. What a group's
weights share is made once for all of them, by ``factor8``, ``factor16`` and ``factor8x2``. The
formats whose name ends in ``Rounded`` round each weight to bfloat16 first, as the released loaders
do.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit, types
from numba.extending import overload

from numba_kernels import int4, target
from numba_kernels.simd import (
    both,
    high_half,
    load_bf16,
    load_bf16x16,
    load_f32,
    load_f32x16,
    load_f64,
    load_int4,
    load_int4x16,
    load_int8,
    load_int8x16,
    low_half,
    pair,
    round_bf16,
    scalar_bf16,
    scalar_f32,
    splat,
    to_f64,
)


class Bf16(NamedTuple):
    """bfloat16, two bytes a weight."""

    data: int
    columns: int


class F32(NamedTuple):
    """float32."""

    data: int
    columns: int


class F32Rounded(NamedTuple):
    """float32, each weight rounded to bfloat16."""

    data: int
    columns: int


class F64(NamedTuple):
    """float64, made by the caller for what kernels do not read themselves."""

    data: int
    columns: int


class Int4(NamedTuple):
    """INT4 in 32-bit words, one scale a group; ``wide`` is 1 for float32 scales, 0 for bf16."""

    data: int
    columns: int
    scales: int
    group: int
    wide: int


class Int4Rounded(NamedTuple):
    """INT4, each product with its scale rounded to bfloat16."""

    data: int
    columns: int
    scales: int
    group: int
    wide: int


class Int8(NamedTuple):
    """INT8 as bytes, one scale a group."""

    data: int
    columns: int
    scales: int
    group: int
    wide: int


class Int8Rounded(NamedTuple):
    """INT8, each product with its scale rounded to bfloat16."""

    data: int
    columns: int
    scales: int
    group: int
    wide: int


DENSE = (Bf16, F32, F32Rounded, F64)
INT4 = (Int4, Int4Rounded)
INT8 = (Int8, Int8Rounded)
ROUNDED = (F32Rounded, Int4Rounded, Int8Rounded)


def weights8(w, place, factor, like):
    """Eight weights from address ``place`` on, all of one group."""
    raise NotImplementedError("only inside compiled code")


def weights16(w, place, factor, like):
    """Sixteen weights of one row from address ``place`` on, all of one group."""
    raise NotImplementedError("only inside compiled code")


def weights8x2(w, first, second, factor, like):
    """Eight weights from each of two addresses, side by side."""
    raise NotImplementedError("only inside compiled code")


def factor8(w, scale, like):
    """What ``weights8`` needs to know of a group with this scale."""
    raise NotImplementedError("only inside compiled code")


def factor16(w, scale, like):
    """The same for ``weights16``."""
    raise NotImplementedError("only inside compiled code")


def factor8x2(w, first, second, like):
    """The same for ``weights8x2`` and the groups of two rows."""
    raise NotImplementedError("only inside compiled code")


@njit
def _plain(v):
    return v


def _by_table(kind):
    return kind in INT4 and target.wide_registers()


def _in_float32(kind, like):
    """Whether the product of code and scale is to be float32: exact, or rounded further.

    In float64 numerics a float32 scale times a code needs float64 to be exact.
    """
    return kind in ROUNDED or like.dtype == types.float32


def _steps(kind, like):
    """What becomes of a float32 weight: rounded if the format says so, then as wide as ``like``."""
    finish = round_bf16 if kind in ROUNDED else _plain
    widen = to_f64 if like.dtype == types.float64 else _plain
    return finish, widen


@overload(factor8)
def _factor8(w, scale, like):
    if _in_float32(w.instance_class, like):
        return lambda w, scale, like: splat(scale)
    return lambda w, scale, like: splat(types.float64(scale))


@overload(factor16)
def _factor16(w, scale, like):
    kind = w.instance_class
    finish, _ = _steps(kind, like)
    if _by_table(kind) and _in_float32(kind, like):
        return lambda w, scale, like: finish(int4.scaled(int4.values(), scale))
    return lambda w, scale, like: both(factor8(w, scale, like))


@overload(factor8x2)
def _factor8x2(w, first, second, like):
    return lambda w, first, second, like: pair(factor8(w, first, like), factor8(w, second, like))


@overload(weights8)
def _weights8(w, place, factor, like):
    kind = w.instance_class
    if kind is F64:
        return lambda w, place, factor, like: load_f64(place)
    return _reader(kind, like, load_f32, load_bf16, load_int4, load_int8)


@overload(weights16)
def _weights16(w, place, factor, like):
    kind = w.instance_class
    if kind is F64:
        return lambda w, place, factor, like: pair(load_f64(place), load_f64(place + 64))
    if _by_table(kind) and _in_float32(kind, like):
        _, widen = _steps(kind, like)
        return lambda w, place, factor, like: widen(
            int4.look_up(factor, int4.codes(place, place + 4))
        )
    return _reader(kind, like, load_f32x16, load_bf16x16, load_int4x16, load_int8x16)


def _reader(kind, like, from_f32, from_bf16, from_int4, from_int8):
    """Codes times their factor, or dense weights, as they are loaded."""
    finish, widen = _steps(kind, like)
    if kind in DENSE:
        load = from_bf16 if kind is Bf16 else from_f32
        return lambda w, place, factor, like: widen(finish(load(place)))
    load_codes = from_int4 if kind in INT4 else from_int8
    if _in_float32(kind, like):
        return lambda w, place, factor, like: widen(finish(load_codes(place) * factor))
    return lambda w, place, factor, like: to_f64(load_codes(place)) * factor


@overload(weights8x2)
def _weights8x2(w, first, second, factor, like):
    kind = w.instance_class
    if not _by_table(kind):
        return lambda w, first, second, factor, like: pair(
            weights8(w, first, low_half(factor), like),
            weights8(w, second, high_half(factor), like),
        )
    finish, widen = _steps(kind, like)
    if _in_float32(kind, like):
        return lambda w, first, second, factor, like: widen(
            finish(int4.look_up(int4.values(), int4.codes(first, second)) * factor)
        )
    return lambda w, first, second, factor, like: (
        to_f64(int4.look_up(int4.values(), int4.codes(first, second))) * factor
    )


def bytes_of(w, columns):
    """Bytes that so many weights of a row take, scales left out."""
    raise NotImplementedError("only inside compiled code")


@overload(bytes_of)
def _bytes_of(w, columns):
    kind = w.instance_class
    if kind in INT4:
        return lambda w, columns: columns >> 1
    size = 1 if kind in INT8 else 2 if kind is Bf16 else 8 if kind is F64 else 4
    return lambda w, columns: columns * size


def group_of(w):
    """Columns that share a scale; all of them in a dense weight."""
    raise NotImplementedError("only inside compiled code")


@overload(group_of)
def _group_of(w):
    if w.instance_class in DENSE:
        return lambda w: w.columns
    return lambda w: w.group


def scale_at(w, place):
    """The float32 scale of group ``place``, counted over all rows; 1 for a dense weight."""
    raise NotImplementedError("only inside compiled code")


@overload(scale_at)
def _scale_at(w, place):
    if w.instance_class in DENSE:
        return lambda w, place: types.float32(1.0)
    return lambda w, place: (
        scalar_f32(w.scales + 4 * place) if w.wide else scalar_bf16(w.scales + 2 * place)
    )


def placed(w, data, scales):
    """A weight of the format and width of ``w`` at other addresses."""
    raise NotImplementedError("only inside compiled code")


@overload(placed)
def _placed(w, data, scales):
    kind = w.instance_class
    if kind in DENSE:
        return lambda w, data, scales: kind(data, w.columns)
    return lambda w, data, scales: kind(data, w.columns, scales, w.group, w.wide)
