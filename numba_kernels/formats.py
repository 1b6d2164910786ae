"""Weights as kernels see them: addresses in a memory map, and how eight of them become numbers.

Each format is a named tuple of plain integers, so that a table of them can be built inside a
kernel. ``weights8(w, place, scale, like)`` gives the eight weights at an address as a vector of
the type of the array ``like``, ``weights16`` sixteen; the formats whose name ends in ``Rounded``
round each weight to bfloat16 first, as the released loaders do.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit, types
from numba.extending import overload

from numba_kernels.simd import (
    both,
    load_bf16,
    load_bf16x16,
    load_f32,
    load_f32x16,
    load_f64,
    load_int4,
    load_int4x16,
    load_int8,
    load_int8x16,
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


def weights8(w, place, scale, like):
    """Eight weights from address ``place`` on; ``scale`` is their group's (dense: unused)."""
    raise NotImplementedError("only inside compiled code")


def weights16(w, place, scale, like):
    """Sixteen weights from address ``place`` on, all of one group."""
    raise NotImplementedError("only inside compiled code")


@njit
def _plain(v):
    return v


@njit
def _twice(scale):
    return both(splat(scale))


def _reader(kind, like, from_f32, from_bf16, from_int4, from_int8, spread):
    """The body of ``weights8`` or ``weights16`` for a format and a type of number."""
    widen = to_f64 if like.dtype == types.float64 else _plain
    finish = round_bf16 if kind in ROUNDED else _plain
    if kind in DENSE:
        load = from_bf16 if kind is Bf16 else from_f32
        return lambda w, place, scale, like: widen(finish(load(place)))
    load_codes = from_int4 if kind in INT4 else from_int8
    if kind in ROUNDED or like.dtype == types.float32:
        return lambda w, place, scale, like: widen(finish(load_codes(place) * spread(scale)))
    # A float32 scale times a code needs float64 to be exact.
    return lambda w, place, scale, like: to_f64(load_codes(place)) * spread(types.float64(scale))


@overload(weights8)
def _weights8(w, place, scale, like):
    if w.instance_class is F64:
        return lambda w, place, scale, like: load_f64(place)
    return _reader(w.instance_class, like, load_f32, load_bf16, load_int4, load_int8, splat)


@overload(weights16)
def _weights16(w, place, scale, like):
    if w.instance_class is F64:
        return lambda w, place, scale, like: pair(load_f64(place), load_f64(place + 64))
    return _reader(
        w.instance_class, like, load_f32x16, load_bf16x16, load_int4x16, load_int8x16, _twice
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
