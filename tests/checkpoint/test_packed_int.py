"""Packing, unpacking and quantising, against worked examples and plain loops."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.checkpoint.formats import DenseWeight, PackedIntWeight
from laguna_ref.checkpoint.formats.packed_int import (
    BFLOAT16,
    pack,
    padding_is_zero,
    quantise,
    unpack,
    unpack_as,
    words_per_row,
)
from laguna_ref.errors import CheckpointError
from tests.tolerances import quantisation_error

BITS = pytest.mark.parametrize("bits", [4, 8])

# Examples made with compressed-tensors 0.20: its ``pack_to_int32`` and ``dequantize``.
INT4_CODES = [-8, -7, -1, 0, 1, 2, 6, 7]
INT4_BYTES = bytes.fromhex("1087A9FE")
INT4_WORDS = [-22444272]
INT8_CODES = [-128, -1, 0, 127, 1, 2, 3, -127]
INT8_BYTES = bytes.fromhex("007F80FF81828301")
INT8_WORDS = [-8356096, 25395841]


@pytest.mark.parametrize(
    ("bits", "codes", "words", "stored"),
    [(4, INT4_CODES, INT4_WORDS, INT4_BYTES), (8, INT8_CODES, INT8_WORDS, INT8_BYTES)],
)
def test_worked_packing(bits: int, codes: list[int], words: list[int], stored: bytes) -> None:
    packed = pack(np.array([codes]), bits)
    assert packed.tolist() == [words]
    assert packed.tobytes() == stored
    assert unpack(packed, bits, 8).tolist() == [codes]


def test_worked_dequantisation() -> None:
    scale = np.array([[0.00909423828125]], BFLOAT16)
    packed = np.array([[0x37AA7756]], np.int32)
    weight = PackedIntWeight("w", packed, scale, 4, 8, (1, 8))
    codes = [-2, -3, -1, -1, 2, 2, -1, -5]
    assert unpack(packed, 4, 8).tolist() == [codes]
    exact = [code * 0.00909423828125 for code in codes]
    assert weight.rows(dtype=np.float64).tolist() == [exact]
    assert weight.rows(dtype=np.float32).tolist() == [exact]
    rounded = weight.rows(dequant="bf16")[0]
    assert rounded[:2].tolist() == [-0.0181884765625, -0.02734375]
    assert exact[1] == -0.02728271484375


def naive_pack(codes: np.ndarray, bits: int) -> list[list[int]]:
    """The layout as a definition: code i takes bits [i * bits, (i + 1) * bits) of its row."""
    rows = []
    for row in codes.tolist():
        stream = sum((code + 2 ** (bits - 1)) << (i * bits) for i, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        words = [(stream >> (32 * w)) & 0xFFFFFFFF for w in range(count)]
        rows.append([word - 2**32 if word >= 2**31 else word for word in words])
    return rows


@BITS
@given(data=st.data())
def test_packing_is_the_definition(bits: int, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    low = -(2 ** (bits - 1))
    row = st.lists(st.integers(low, -low - 1), min_size=columns, max_size=columns)
    codes = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    packed = pack(codes, bits)
    assert packed.shape == (rows, words_per_row(columns, bits))
    assert packed.tolist() == naive_pack(codes, bits)
    assert np.array_equal(unpack(packed, bits, columns), codes)
    for dtype in (np.float32, np.float64):
        numbers = unpack_as(packed, bits, columns, dtype)
        assert numbers.dtype == dtype
        assert numbers.flags.c_contiguous
        assert np.array_equal(numbers, codes)
    assert padding_is_zero(packed, bits, columns)


@pytest.mark.parametrize(("bits", "columns"), [(4, 5), (4, 6), (4, 7), (8, 5), (8, 6), (8, 7)])
def test_every_padding_bit_is_looked_at(bits: int, columns: int) -> None:
    packed = pack(np.zeros((2, columns), np.int8), bits)
    for bit in range(columns * bits, packed.shape[1] * 32):
        spoiled = packed.view(np.uint32).copy()
        spoiled[1, bit // 32] |= np.uint32(1) << np.uint32(bit % 32)
        assert not padding_is_zero(spoiled.view(np.int32), bits, columns)


@BITS
def test_codes_out_of_range_are_refused(bits: int) -> None:
    for code in (2 ** (bits - 1), -(2 ** (bits - 1)) - 1):
        with pytest.raises(ValueError, match="do not fit"):
            pack(np.array([[code]]), bits)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="4 or 8 bits"):
        pack(np.zeros((1, 8), np.int8), 3)


@BITS
@given(data=st.data())
def test_quantiser_is_the_bfloat16_formula(bits: int, data: st.DataObject) -> None:
    """Element by element: each operation in float32, then rounded to bfloat16.

    Rounding a float32 quotient of two bfloat16 numbers to bfloat16 equals rounding the exact
    quotient: 24 bits are enough for two roundings to be one (2 * 8 + 2 <= 24).
    """

    def bf16(value: float) -> float:
        return float(np.float32(value).astype(BFLOAT16))

    group = data.draw(st.sampled_from([1, 2, 4, 8]))
    number = st.floats(-4, 4, width=32)
    row = data.draw(st.lists(number, min_size=8, max_size=8))
    codes, scales = quantise(np.array([row], np.float32), bits, group)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for start in range(0, 8, group):
        values = [bf16(value) for value in row[start : start + group]]
        largest = max(abs(value) for value in values)
        scale = bf16(np.float32(largest) / np.float32((high - low) / 2)) or 2.0**-7
        assert float(scales[0, start // group]) == scale
        for offset, value in enumerate(values):
            ratio = bf16(np.float32(value) / np.float32(scale))
            assert codes[0, start + offset] == round(min(max(ratio, low), high))


@BITS
@given(data=st.data())
def test_quantised_weights_come_back(bits: int, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    weight = np.random.default_rng(seed).standard_normal((3, 16)).astype(BFLOAT16)
    codes, scale = quantise(weight, bits, 8)
    packed = PackedIntWeight("w", pack(codes, bits), scale, bits, 8, (3, 16))
    back = packed.rows(dtype=np.float64)
    step = np.repeat(scale.astype(np.float64), 8, axis=1)
    wide = weight.astype(np.float64)
    assert (np.abs(wide - back) <= step * quantisation_error(wide / step, bits)).all()


def test_quantiser_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        quantise(np.ones((1, 6), np.float32), 4, 4)
    with pytest.raises(ValueError, match="not finite"):
        quantise(np.array([[1, np.nan]], np.float32), 4, 2)


@BITS
@given(data=st.data())
def test_rows_are_code_times_scale(bits: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    low = -(2 ** (bits - 1))
    codes = rng.integers(low, -low, (5, 12))
    scale = np.exp(rng.standard_normal((5, 3)) * 3).astype(BFLOAT16)
    weight = PackedIntWeight("w", pack(codes, bits), scale, bits, 4, (5, 12))
    start = data.draw(st.integers(0, 5))
    stop = data.draw(st.integers(start, 5))
    exact = codes * np.repeat(scale.astype(np.float64), 4, axis=1)
    for dtype in (np.float32, np.float64):
        assert np.array_equal(weight.rows(start, stop, dtype=dtype), exact[start:stop])
        rounded = weight.rows(start, stop, dtype=dtype, dequant="bf16")
        assert rounded.dtype == dtype
        # A product exact in float32 is rounded once.
        assert np.array_equal(rounded, exact.astype(np.float32).astype(BFLOAT16)[start:stop])


def test_bf16_of_other_scale_types_rounds_in_the_scale_first() -> None:
    codes = np.arange(-8, 8).reshape(1, 16)
    scale = np.array([[0.1]], np.float16)
    weight = PackedIntWeight("w", pack(codes, 4), scale, 4, 16, (1, 16))
    expected = (codes.astype(np.float16) * scale).astype(np.float32).astype(BFLOAT16)
    assert np.array_equal(weight.rows(dequant="bf16"), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_are_checked_at_the_first_touch(bad: float) -> None:
    scale = np.ones((2, 2), BFLOAT16)
    scale[1, 0] = bad
    weight = PackedIntWeight(
        "layer.proj", pack(np.zeros((2, 8)), 4), scale, 4, 4, (2, 8), Path("x.safetensors")
    )
    with pytest.raises(CheckpointError) as caught:
        weight.rows(0, 1)
    line = str(caught.value)
    assert "x.safetensors" in line
    assert "layer.proj.weight_scale" in line
    assert "row 1" in line
    assert "\n" not in line


def test_unknown_dequantisation_is_refused() -> None:
    weight = PackedIntWeight(
        "w", pack(np.zeros((1, 8)), 4), np.ones((1, 1), BFLOAT16), 4, 8, (1, 8)
    )
    with pytest.raises(ValueError, match="dequant"):
        weight.rows(dequant="fp16")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_dense_rows_widen_exactly(dtype: type) -> None:
    array = np.random.default_rng(0).standard_normal((4, 6)).astype(dtype)
    weight = DenseWeight("w", array)
    assert weight.shape == (4, 6)
    assert weight.nbytes == array.nbytes
    assert weight.format.kind == "dense"
    for wide in (np.float32, np.float64):
        rows = weight.rows(1, 3, dtype=wide, dequant="bf16")
        assert rows.dtype == wide
        assert np.array_equal(rows, array[1:3].astype(wide))
