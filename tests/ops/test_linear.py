"""Products with stored weights: blocks of rows, formats, what dequantisation rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from laguna_ref.checkpoint import DenseWeight
from laguna_ref.numerics import BFLOAT16, FLOAT32, FLOAT64
from laguna_ref.ops import linear as op
from laguna_ref.ops.linear import embed, linear, weight_rows
from tests import naive, tolerances
from tests.small import BF16, quantised, small, small_config

EXPERT = "model.layers.1.mlp.experts.2.up_proj"


def drawn(*shape: int) -> Any:
    return np.random.default_rng([*shape]).normal(size=shape)


@pytest.mark.parametrize("stored", [BF16, np.float16, np.float32])
@pytest.mark.parametrize("numerics", [FLOAT64, FLOAT32], ids=lambda n: n.name)
def test_against_the_naive_one(stored: Any, numerics: Any) -> None:
    weight = DenseWeight("w", drawn(7, 9).astype(stored))
    x = numerics.cast(drawn(4, 9))
    wide = weight.array.astype(np.float64)
    expected = [naive.matvec(wide, row) for row in x.astype(np.float64).tolist()]
    found = linear(x, weight, numerics)
    assert found.dtype == numerics.dtype
    size = np.abs(x) @ np.abs(wide).T
    allowed = tolerances.dot_difference(9, numerics.dtype) * size
    assert (np.abs(found - expected) <= allowed).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("numerics", [FLOAT64, FLOAT32], ids=lambda n: n.name)
def test_packed_rows_are_exactly_code_times_scale(bits: int, numerics: Any) -> None:
    model = small(quantised(small_config(), bits))
    weight = model.load().checkpoint.weight(EXPERT)
    values = model.values[f"{EXPERT}.weight"]
    assert np.array_equal(weight_rows(weight, 0, 8, numerics), values)
    assert np.array_equal(weight_rows(weight, 3, 5, numerics), values[3:5])


@pytest.mark.parametrize("bits", [4, 8])
def test_dequant_bf16_rounds_that_product(bits: int) -> None:
    model = small(quantised(small_config(), bits))
    weight = model.load().checkpoint.weight(EXPERT)
    exact = model.values[f"{EXPERT}.weight"]
    rounded = exact.astype(np.float32).astype(BF16).astype(np.float64)
    assert (rounded != exact).any(), "the case cannot tell"
    for numerics in (replace(FLOAT64, dequant="bf16"), replace(FLOAT32, dequant="bf16"), BFLOAT16):
        assert np.array_equal(weight_rows(weight, 0, 8, numerics), rounded), numerics.name
    assert np.array_equal(weight_rows(weight, 0, 8, replace(BFLOAT16, dequant="exact")), exact)


def test_bfloat16_takes_a_float32_weight_rounded() -> None:
    weight = DenseWeight("w", drawn(3, 5).astype(np.float32))
    rounded = weight.array.astype(BF16).astype(np.float32)
    assert np.array_equal(weight_rows(weight, 0, 3, BFLOAT16), rounded)
    assert np.array_equal(weight_rows(weight, 0, 3, FLOAT32), weight.array)


@pytest.mark.parametrize("nbytes", [1, 200])
def test_blocks_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    weight, x = DenseWeight("w", drawn(11, 9).astype(BF16)), drawn(3, 9)
    whole = linear(x, weight, FLOAT64)
    monkeypatch.setattr(op, "BLOCK_BYTES", nbytes)
    size = np.abs(x) @ np.abs(weight.array.astype(np.float64)).T
    off = np.abs(linear(x, weight, FLOAT64) - whole)
    assert (off <= tolerances.dot_difference(9, np.float64) * size).all()


def test_bfloat16_output_is_the_float32_sum_rounded() -> None:
    weight, x = DenseWeight("w", drawn(6, 9).astype(BF16)), drawn(3, 9).astype(np.float32)
    expected = linear(x, weight, FLOAT32).astype(BF16).astype(np.float32)
    assert np.array_equal(linear(x, weight, BFLOAT16), expected)


def test_an_embedding_is_rows_as_they_are() -> None:
    weight = DenseWeight("w", drawn(6, 4).astype(BF16))
    rows = embed(np.array([5, 0, 5]), weight, FLOAT32)
    assert np.array_equal(rows, weight.array[[5, 0, 5]].astype(np.float32))
