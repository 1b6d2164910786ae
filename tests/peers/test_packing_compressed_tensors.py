"""Packing, unpacking, quantising and dequantising: the bits of compressed-tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import (
    pack_to_int32,
    unpack_from_int32,
)
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.checkpoint import PackedIntWeight
from laguna_ref.checkpoint.formats.packed_int import BFLOAT16, pack, quantise, unpack

pytestmark = pytest.mark.peer

BITS = pytest.mark.parametrize("bits", [4, 8])


def bfloat16_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)


def bfloat16_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)


@BITS
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), columns=st.integers(1, 80))
def test_words_are_equal(bits: int, seed: int, rows: int, columns: int) -> None:
    low = -(2 ** (bits - 1))
    codes = np.random.default_rng(seed).integers(low, -low, (rows, columns)).astype(np.int8)
    theirs = pack_to_int32(torch.from_numpy(codes), bits)
    ours = pack(codes, bits)
    assert np.array_equal(ours, theirs.numpy())
    back = unpack_from_int32(torch.from_numpy(ours), bits, torch.Size((rows, columns)))
    assert np.array_equal(back.numpy(), codes)
    assert np.array_equal(unpack(theirs.numpy(), bits, columns), codes)


@BITS
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([4, 16, 128]),
    spread=st.sampled_from([1e-30, 1e-3, 1.0, 1e3]),
    empty=st.booleans(),
)
def test_quantisation_is_equal(
    bits: int, seed: int, rows: int, groups: int, group_size: int, spread: float, empty: bool
) -> None:
    """Scales and codes of the memoryless_minmax observer, in bfloat16, and back to weights."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((rows, groups * group_size)) * spread).astype(BFLOAT16)
    if empty:
        weight[0, :group_size] = 0  # a group of zeros has a scale of its own
    args = QuantizationArgs(num_bits=bits, group_size=group_size, strategy="group", symmetric=True)
    theirs = bfloat16_tensor(weight)
    grouped = theirs.reshape(rows, groups, group_size)
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    codes = quantize(theirs, scale, zero_point, args, dtype=torch.int8)

    our_codes, our_scale = quantise(weight, bits, group_size)
    assert np.array_equal(our_scale, bfloat16_array(scale))
    assert np.array_equal(our_codes, codes.numpy())

    back = dequantize(codes, scale, None, args)
    ours = PackedIntWeight("w", pack(our_codes, bits), our_scale, bits, group_size, weight.shape)
    assert np.array_equal(ours.rows(dequant="bf16"), back.float().numpy())
