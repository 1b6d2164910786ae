"""float8 e4m3fn: every code, every tie, saturation, NaN."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.errors import NonFiniteError
from laguna_ref.numerics import BFLOAT16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops.fp8 import fp8_decode, fp8_encode
from tests import naive
from tests.small import BF16

ONE = np.float32(1)
CODES = np.arange(256, dtype=np.uint8)
FINITE = np.array([code for code in range(256) if code & 0x7F != 0x7F], dtype=np.uint8)


def encode(x: Any, scale: float = 1.0) -> Any:
    return fp8_encode(np.asarray(x, dtype=np.float32), np.float32(scale), "k_cached")


def test_every_code_decodes_as_defined_and_as_ml_dtypes_has_it() -> None:
    found = fp8_decode(CODES, ONE, FLOAT32)
    np.testing.assert_array_equal(found, [naive.e4m3_value(code) for code in range(256)])
    np.testing.assert_array_equal(found, CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize("numerics", [FLOAT64, FLOAT32, BFLOAT16], ids=lambda n: n.name)
@pytest.mark.parametrize("scale", [1.0, 0.03125, 448.0, 0.007])
def test_every_finite_code_survives_a_round_trip(numerics: Numerics, scale: float) -> None:
    scale = float(BF16.type(scale))
    values = fp8_decode(FINITE, np.float32(scale), numerics)
    assert values.dtype == numerics.dtype
    if numerics is not BFLOAT16:
        assert np.array_equal(encode(values, scale), FINITE)
    exact = [naive.e4m3_value(code) * scale for code in FINITE.tolist()]
    if numerics is BFLOAT16:
        exact = np.array(exact, np.float32).astype(BF16).astype(np.float32).tolist()
    assert values.tolist() == exact


def test_all_midpoints_tie_to_the_even_code() -> None:
    for code in range(0x7E):
        low, high = naive.e4m3_value(code), naive.e4m3_value(code + 1)
        middle = np.float32((low + high) / 2)
        even = code if code % 2 == 0 else code + 1
        below, above = np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(999))
        found = encode([below, middle, above, -below, -middle, -above]).tolist()
        expected = [code, even, code + 1]
        assert found == expected + [c | 0x80 for c in expected], f"between {low} and {high}"


@given(st.floats(-600, 600, width=32))
def test_against_a_search_of_all_codes(x: float) -> None:
    assert encode([x])[0] == naive.e4m3_code(x)


@given(st.floats(width=32, allow_nan=False), st.floats(2.0**-126, 2.0**100, width=32))
def test_any_value_over_any_scale_gives_a_finite_code(x: float, scale: float) -> None:
    code = int(encode([x], scale)[0])
    assert code & 0x7F != 0x7F
    assert (code >> 7) == (math.copysign(1, x) < 0)


@pytest.mark.parametrize(
    ("x", "code"),
    [(448, 0x7E), (464, 0x7E), (464.1, 0x7E), (3.4e38, 0x7E), (np.inf, 0x7E), (-np.inf, 0xFE)],
)
def test_saturation(x: float, code: int) -> None:
    assert encode([x]).tolist() == [code]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saturation_beyond_float32_is_silent(dtype: Any) -> None:
    x = np.array([np.finfo(dtype).max, -np.finfo(dtype).max])
    codes = fp8_encode(x, np.float32(1e-6), "k_cached")
    assert codes.tolist() == [0x7E, 0xFE]


def test_the_smallest_subnormal_and_what_ties_to_zero() -> None:
    found = encode([2.0**-9, 2.0**-10, np.nextafter(np.float32(2.0**-10), np.float32(1)), -0.0])
    assert found.tolist() == [0x01, 0x00, 0x01, 0x80]


def test_a_worked_example() -> None:
    """Measured with torch 2.13 for s = 1/32; 12.5 / s = 400 ties to the even code."""
    x, scale = [1, -3.3125, 12.5, 0.010009765625, 20], 0.03125
    codes = encode(x, scale)
    assert codes.tolist() == [0x60, 0xED, 0x7C, 0x2A, 0x7E]
    back = fp8_decode(codes, np.float32(scale), FLOAT32)
    assert back.tolist() == [1, -3.25, 12, 0.009765625, 14]


def test_the_division_is_a_division_in_float32() -> None:
    """Products with the reciprocal, and quotients rounded to bfloat16, give other codes."""
    x = np.linspace(0.001, 4, 200_001, dtype=np.float32)
    scale = np.float32(0.0073)
    codes = fp8_encode(x, scale, "k_cached")
    quotient = (x / scale).astype(np.float32)
    expected = np.clip(quotient, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(codes, expected)
    in_bf16 = np.clip(quotient.astype(BF16).astype(np.float32), -448, 448)
    assert (codes != in_bf16.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).any()


def test_a_nan_is_refused_by_name_and_place() -> None:
    x = np.zeros((3, 2, 4))
    x[1, 0, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"layer\.k_cached: NaN.*\(1, 0, 2\)"):
        fp8_encode(x, ONE, "layer.k_cached")
