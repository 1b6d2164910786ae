"""Cosines and sines of RoPE: the same everywhere, because float32 ones are correctly rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.engines import numba_engine
from laguna_ref.numerics import BFLOAT16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops import rope as plain
from laguna_ref.rope_spec import RopeSpec, parse_rope
from numba_kernels import angles
from tests import tolerances
from tests.numba_kernels.drawn import generator
from tests.small import rope_parameters

needs_a_wider_type = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63,
    reason="nothing wider than float64 to compare with; the bits are the same on every machine",
)


def cosine_and_sine(x: Any) -> tuple[Any, Any]:
    x = np.asarray(x, np.float64)
    missing = -len(x) % 8
    flat = np.append(x, np.zeros(missing))
    cosines, sines = np.empty_like(flat), np.empty_like(flat)
    angles.cosines_and_sines(flat, cosines, sines)
    return cosines[: len(x)], sines[: len(x)]


def samples() -> Any:
    """Of every size up to 2**20, and next to multiples of pi/4, where quarters change."""
    random = generator(0)
    multiples = np.arange(1, 60_000) * (np.pi / 4)
    return np.concatenate(
        [
            random.uniform(0, 7, 50_000),
            random.uniform(0, 2.0**20, 50_000),
            2.0 ** random.uniform(-60, 20, 50_000),
            multiples,
            np.nextafter(multiples, 0),
            np.nextafter(multiples, 1e9),
            random.integers(0, 2**20, 20_000).astype(np.float64),
            [0.0, 5e-324, 2.0**-30, 1.0, 2.0**20 - 2.0**-32],
        ]
    )


@needs_a_wider_type
def test_float64_within_the_stated_ulp() -> None:
    x = samples()
    wide = x.astype(np.longdouble)
    for name, found, exact in zip(
        ("cos", "sin"), cosine_and_sine(x), (np.cos(wide), np.sin(wide)), strict=True
    ):
        error = tolerances.in_ulp(found, exact)
        worst = int(error.argmax())
        limit = tolerances.GREATEST_ULP[name, "float64"]
        assert error[worst] <= limit, f"{name}({x[worst]!r}): {error[worst]:.3f} ulp"


def test_exact_values() -> None:
    cosines, sines = cosine_and_sine([0.0, 5e-324, 1e-300])
    assert cosines.tolist() == [1, 1, 1]
    assert sines.tolist() == [0, 5e-324, 1e-300]


def spec(theta: float, dim: int, **more: Any) -> RopeSpec:
    raw = {"rope_type": "default", "rope_theta": theta} | more
    return parse_rope(raw, dim, "config.json", "rope_parameters")


@needs_a_wider_type
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("dim", [64, 128])
def test_float32_tables_are_correctly_rounded(theta: float, dim: int) -> None:
    wanted = spec(theta, dim)
    positions = np.unique(generator(int(theta), dim).integers(0, 262_144, 4000))
    found = numba_engine.rope_tables(wanted, positions, FLOAT32)
    angle = positions[:, None].astype(np.float32) * wanted.inv_freq.astype(np.float32)
    wide = angle.astype(np.longdouble)
    for name, table, exact in zip(("cos", "sin"), found, (np.cos(wide), np.sin(wide)), strict=True):
        assert table.dtype == np.float32
        assert np.array_equal(table, exact.astype(np.float32)), name


@pytest.mark.parametrize("numerics", [FLOAT64, FLOAT32, BFLOAT16], ids=lambda n: n.name)
@given(
    raw=rope_parameters(8),
    positions=st.lists(st.integers(0, 262_143), min_size=1, max_size=9),
)
def test_tables_against_the_plain_ones(
    numerics: Numerics, raw: dict[str, Any], positions: list[int]
) -> None:
    wanted = parse_rope(raw, 8, "config.json", "rope_parameters")
    places = np.array(positions)
    found = numba_engine.rope_tables(wanted, places, numerics)
    for table, expected in zip(found, plain.rope_tables(wanted, places, numerics), strict=True):
        assert table.shape == expected.shape
        assert table.dtype == expected.dtype
        # A cosine each (ours, the library's, 1 ulp) and the product with the factor.
        error = 2 * tolerances.roundings(3, numerics.dtype)
        if numerics.rounds:
            error += tolerances.roundings(2, "bfloat16")
        assert (np.abs(table - expected) <= error * np.abs(expected)).all()
