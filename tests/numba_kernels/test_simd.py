"""The vector type: its tree, its conversions, its loads, against definitions and all codes."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numba import njit

from laguna_ref.checkpoint.formats.packed_int import pack
from numba_kernels import simd
from tests import naive
from tests.numba_kernels import definition
from tests.numba_kernels.drawn import generator


@njit
def total(x):  # type: ignore[no-untyped-def]
    return simd.total(simd.load(x, 0))


@njit
def greatest(x):  # type: ignore[no-untyped-def]
    return simd.greatest(simd.load(x, 0))


@njit
def arithmetic(a, b, c, out):  # type: ignore[no-untyped-def]
    x, y, z = simd.load(a, 0), simd.load(b, 0), simd.load(c, 0)
    results = (x + y, x - y, x * y, x / y, simd.fma(x, y, z), simd.sqrt(simd.absolute(x)))
    for i in range(len(results)):
        simd.store(out, 8 * i, results[i])


@njit
def decode(codes, out, kind):  # type: ignore[no-untyped-def]
    start = simd.address(codes)
    for k in range(0, len(out), 8):
        if kind == 0:
            simd.store(out, k, simd.load_e4m3(start + k))
        elif kind == 1:
            simd.store(out, k, simd.load_int8(start + k))
        elif kind == 2:
            simd.store(out, k, simd.load_int4(start + k // 2))
        elif kind == 3:
            simd.store(out, k, simd.load_bf16(start + 2 * k))
        else:
            simd.store(out, k, simd.load_f32(start + 4 * k))


@njit
def round_bf16(x, out):  # type: ignore[no-untyped-def]
    for k in range(0, len(x), 8):
        simd.store(out, k, simd.round_bf16(simd.load(x, k)))


E4M3, INT8, INT4, BF16, F32 = range(5)


def decoded(codes: Any, count: int, kind: int) -> Any:
    out = np.empty(count, np.float32)
    decode(codes, out, kind)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tree_of_a_sum(dtype: Any) -> None:
    """A permutation of these lanes has another sum in every other tree."""
    digits = np.finfo(dtype).nmant + 1
    base = np.array([2.0**digits, 1, 1, -(2.0**digits), 3, 2.0 ** (digits - 1), 1, 0.5], dtype)
    seen = set()
    for order in itertools.islice(itertools.permutations(range(8)), 0, None, 97):
        lanes = base[list(order)]
        assert total(lanes) == definition.tree(list(lanes)), lanes
        seen.add(float(total(lanes)))
    assert len(seen) > 4, "the case cannot tell trees apart"


def test_the_tree_of_a_sum_by_hand() -> None:
    """(0+4)+(2+6) + (1+5)+(3+7), where 2^24 + 1 is 2^24."""
    big = 2.0**24
    assert total(np.array([big, 0, 1, 0, -big, 0, 1, 0], np.float32)) == 2
    assert total(np.array([big, 1, 0, 0, 1, -big, 0, 0], np.float32)) == 1
    assert total(np.array([big, -big, 0, 0, 1, 1, 0, 0], np.float32)) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operations_are_ieee(dtype: Any) -> None:
    random = generator(3)
    for scale in (0, -20, 20):
        a, b, c = np.ldexp(random.normal(size=(3, 8)), scale).astype(dtype)
        c = -a * b  # cancels: what is left is what the product was rounded by
        out = np.empty(48, dtype)
        arithmetic(a, b, c, out)
        fused = [definition.fma(x, y, z) for x, y, z in zip(a, b, c, strict=True)]
        expected = [a + b, a - b, a * b, a / b, fused, np.sqrt(np.abs(a))]
        assert np.array_equal(out.reshape(6, 8), np.array(expected))
        assert not np.array_equal(fused, a * b + c), "the case cannot tell"


def test_the_greatest_lane() -> None:
    for order in itertools.islice(itertools.permutations(range(8)), 0, None, 501):
        x = np.array(order, np.float32) - 5
        assert greatest(x) == 2
    assert greatest(np.full(8, -np.inf, np.float32)) == -np.inf


def test_all_codes_of_e4m3() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = np.array([naive.e4m3_value(code) for code in range(256)], np.float32)
    finite = np.isfinite(expected)
    found = decoded(codes, 256, E4M3)
    assert np.array_equal(found[finite], expected[finite])
    assert np.array_equal(np.signbit(found), (codes & 0x80) > 0)
    assert finite.sum() == 254


def test_all_codes_of_int8() -> None:
    codes = np.arange(-128, 128)
    packed = pack(codes[None], 8)
    assert np.array_equal(decoded(packed.view(np.uint8)[0], 256, INT8), codes)


def test_all_pairs_of_int4_codes() -> None:
    codes = np.array(list(itertools.product(range(-8, 8), repeat=2))).reshape(1, -1)
    packed = pack(codes, 4)
    assert np.array_equal(decoded(packed.view(np.uint8)[0], codes.size, INT4), codes[0])


def test_all_bfloat16_numbers() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    expected = (codes.astype(np.uint32) << 16).view(np.float32)
    found = decoded(codes, 1 << 16, BF16)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("kind", "size"), [(E4M3, 1), (INT8, 1), (BF16, 2), (F32, 4)])
@pytest.mark.parametrize("offset", [0, 1, 3, 7])
def test_any_byte_is_a_place_to_load_from(kind: int, size: int, offset: int) -> None:
    raw = generator(kind).integers(0, 127, 64 * size + 8).astype(np.uint8)
    moved = np.concatenate([np.zeros(offset, np.uint8), raw])[offset:]
    assert np.array_equal(decoded(moved, 64, kind), decoded(raw, 64, kind), equal_nan=True)


LOWER_HALVES = np.array(
    [0, 1, 2, 0x1234, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0x8002, 0xABCD, 0xFFFE, 0xFFFF], np.uint32
)


@pytest.mark.parametrize("lower", LOWER_HALVES, ids=hex)
def test_rounding_to_bfloat16(lower: Any) -> None:
    """All upper halves, against ml_dtypes: ties to even, overflow, subnormals, infinities."""
    codes = (np.arange(1 << 16, dtype=np.uint32) << 16) | lower
    x = codes.view(np.float32)
    found = np.empty_like(x)
    round_bf16(x, found)
    with np.errstate(invalid="ignore"):  # signalling NaN
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    number = ~np.isnan(x)
    assert np.array_equal(found[number].view(np.uint32), expected[number].view(np.uint32))
    assert np.isnan(found[~number]).all()
