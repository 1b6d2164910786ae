"""The attention output gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from laguna_ref.numerics import BFLOAT16, FLOAT32, FLOAT64
from laguna_ref.ops.gate import apply_gate, gate_values
from tests import naive, tolerances


def drawn(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize(
    ("name", "formula"), [("softplus", naive.softplus), ("sigmoid", naive.sigmoid)]
)
def test_activations(name: str, formula: Any) -> None:
    logits = 5 * drawn(4, 3)
    expected = [[formula(z) for z in row] for row in logits.tolist()]
    found = gate_values(logits, name, FLOAT64)
    tolerances.assert_within(found, expected, tolerances.roundings(16, np.float64))


def test_per_head_every_element_of_a_head_has_the_same_gate() -> None:
    attention, gate = drawn(2, 3, 4), drawn(2, 3)
    expected = (attention * gate[:, :, None]).reshape(2, 12)
    assert np.array_equal(apply_gate(attention, gate, FLOAT64), expected)


def test_per_element_every_element_has_its_own() -> None:
    attention, gate = drawn(2, 3, 4), drawn(2, 12)
    expected = attention.reshape(2, 12) * gate
    assert np.array_equal(apply_gate(attention, gate, FLOAT64), expected)


def test_a_head_of_one_element() -> None:
    attention, gate = drawn(2, 3, 1), drawn(2, 3)
    assert np.array_equal(apply_gate(attention, gate, FLOAT64), attention[..., 0] * gate)


def test_bfloat16_rounds_the_gate_and_the_product() -> None:
    def r(x: Any) -> Any:
        return BFLOAT16.round_at("gate.product", np.asarray(x, np.float32))

    logits, attention = r(drawn(2, 3)), r(drawn(2, 3, 4))
    gate = gate_values(logits, "softplus", BFLOAT16)
    assert np.array_equal(gate, r(gate_values(logits, "softplus", FLOAT32)))
    product = apply_gate(attention, gate, BFLOAT16)
    assert np.array_equal(product, r(attention * gate[:, :, None]).reshape(2, 12))
