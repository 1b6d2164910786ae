"""Greatest errors of exp, softplus, sigmoid, silu and tanh, and their special values.

Float32 is compared with NumPy's float64, every 4,099th of its 2**32 numbers, and all of them
under the nightly profile; float64 with NumPy's longdouble where that is wider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from numba_kernels import rows
from tests import tolerances
from tests.numba_kernels.drawn import generator

Function = Callable[[Any], Any]

NIGHTLY = settings().max_examples > 1000
STRIDE = 1 if NIGHTLY else 4099
BLOCK = 1 << 20

needs_a_wider_type = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63,
    reason="nothing wider than float64 to compare with; the bits are the same on every machine",
)


def kernel(body: Any) -> Function:
    """A kernel over flat arrays as a function of an array of any length."""

    def run(x: Any) -> Any:
        flat = np.append(x, np.zeros(-len(x) % 8, x.dtype))
        out = np.empty_like(flat)
        body(flat, out)
        return out[: len(x)]

    return run


def silu(x: Any) -> Any:
    """As half of the SwiGLU kernel: times one."""
    gate = np.append(x, np.zeros(-len(x) % 8, x.dtype))
    rows.swiglu(gate, np.ones_like(gate), False, False, False)
    return gate[: len(x)]


FOUND: dict[str, Function] = {
    "exp": kernel(rows.exp),
    "softplus": kernel(rows.softplus),
    "sigmoid": kernel(rows.sigmoid),
    "silu": silu,
    "tanh": kernel(rows.tanh),
}


def exact_sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


EXACT: dict[str, Function] = {
    "exp": np.exp,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "sigmoid": exact_sigmoid,
    "silu": lambda x: x * exact_sigmoid(x),
    "tanh": np.tanh,
}
NAMES = pytest.mark.parametrize("name", FOUND)
TYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])

SMALLEST_EXPONENT = {"float32": -87.0, "float64": -708.0}
"""Below, exp is not a normal number: silu multiplies what is left of its digits."""


def finite_float32(stride: int) -> Iterator[Any]:
    """Every ``stride``-th float32 that is a finite number, in blocks."""
    for first in range(0, 1 << 32, BLOCK * stride):
        codes = np.arange(first, min(first + BLOCK * stride, 1 << 32), stride, dtype=np.uint64)
        x = codes.astype(np.uint32).view(np.float32)
        yield x[np.isfinite(x)]


def greatest(name: str, blocks: Iterator[Any], wider: Any) -> dict[str, tuple[float, float]]:
    """Greatest error in ulp and where; ``silu``'s tail, where exp is subnormal, by itself."""
    worst: dict[str, tuple[float, float]] = {}
    for x in blocks:
        with np.errstate(over="ignore", under="ignore"):
            exact = EXACT[name](x.astype(wider))
        error = tolerances.in_ulp(FOUND[name](x), exact)
        tail = x < SMALLEST_EXPONENT[x.dtype.name]
        parts = {"silu": ~tail, "silu's tail": tail} if name == "silu" else {name: tail | ~tail}
        for part, where in parts.items():
            if where.any():
                place = int(error[where].argmax())
                found = (float(error[where][place]), float(x[where][place]))
                assert not np.isnan(found[0]), f"{part}({found[1]!r}) is not a number"
                worst[part] = max(worst.get(part, (0.0, 0.0)), found)
    return worst


@NAMES
def test_greatest_error_of_float32(name: str) -> None:
    for part, (error, x) in greatest(name, finite_float32(STRIDE), np.float64).items():
        limit = tolerances.GREATEST_ULP[part, "float32"]
        assert error <= limit, f"{part}({x!r}): {error:.3f} ulp"
        if NIGHTLY:
            assert error > limit - 0.01, f"stated as {limit}, measured {error:.4f}"


def float64_samples() -> Iterator[Any]:
    """Of every size and sign, dense where functions bend, and the ends of exp's range."""
    random = generator(1)
    for _ in range(40 if NIGHTLY else 1):
        sizes = 2.0 ** random.uniform(-1074, 1024, 30_000)
        bends = np.concatenate([random.uniform(-40, 40, 60_000), random.normal(0, 1, 60_000)])
        small = 2.0 ** random.uniform(-60, 3, 30_000)
        wide = random.uniform(-750, 750, 60_000)
        ends = random.uniform([-746, -709, 709, -38], [-744, -707, 710, -36], (5_000, 4)).ravel()
        yield np.concatenate([sizes, -sizes, bends, small, -small, wide, ends])


@needs_a_wider_type
@NAMES
def test_greatest_error_of_float64(name: str) -> None:
    for part, (error, x) in greatest(name, float64_samples(), np.longdouble).items():
        limit = tolerances.GREATEST_ULP[part, "float64"]
        assert error <= limit, f"{part}({x!r}): {error:.3f} ulp"


INFINITE = np.inf
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [(0, 1), (-0.0, 1), (INFINITE, INFINITE), (-INFINITE, 0), (1e4, INFINITE), (-1e4, 0)],
    "softplus": [(INFINITE, INFINITE), (-INFINITE, 0), (1e30, 1e30), (-1e30, 0)],
    "sigmoid": [(0, 0.5), (-0.0, 0.5), (INFINITE, 1), (-INFINITE, 0), (1e30, 1), (-1e30, 0)],
    "silu": [(0, 0), (-0.0, -0.0), (INFINITE, INFINITE), (1e30, 1e30), (-1e30, -0.0)],
    "tanh": [(0, 0), (INFINITE, 1), (-INFINITE, -1), (1e30, 1), (-1e30, -1)],
}


@TYPES
@NAMES
def test_special_values(name: str, dtype: Any) -> None:
    x, expected = np.array(SPECIAL[name], dtype).T
    found = FOUND[name](x)
    assert np.array_equal(found, expected), dict(zip(x.tolist(), found.tolist(), strict=True))
    assert np.array_equal(np.signbit(found), np.signbit(expected))


@TYPES
@NAMES
def test_nan_stays_nan(name: str, dtype: Any) -> None:
    """Every one: quiet, signalling, negative, with any payload, beside any neighbour."""
    x = np.linspace(-3, 3, 40).astype(dtype)
    bits = x.view(np.uint32 if dtype is np.float32 else np.uint64)
    exponent = np.array(np.inf, dtype).view(bits.dtype)
    payloads = exponent + np.array([1, 2, 3], bits.dtype)
    sign = bits.dtype.type(1) << bits.dtype.type(8 * bits.itemsize - 1)
    bits[[1, 9, 18]] = payloads
    bits[[27, 28, 37]] = payloads | sign
    nan = np.isnan(x)
    assert nan.sum() == 6
    assert np.array_equal(np.isnan(FOUND[name](x)), nan)


@TYPES
@NAMES
def test_a_neighbour_lane_does_not_show(name: str, dtype: Any) -> None:
    x = np.concatenate([np.linspace(-90, 90, 64), [np.inf, -np.inf, 0.0, 1e-40]]).astype(dtype)
    alone = np.array([FOUND[name](x[i : i + 1])[0] for i in range(len(x))])
    with np.errstate(invalid="ignore"):
        assert np.array_equal(FOUND[name](x), alone, equal_nan=True)


@TYPES
def test_subnormal_results_are_kept(dtype: Any) -> None:
    lowest = -103.0 if dtype is np.float32 else -745.0
    x = np.linspace(lowest, SMALLEST_EXPONENT[np.dtype(dtype).name] - 1, 400).astype(dtype)
    tiny = np.finfo(dtype).tiny
    for name in ("exp", "softplus", "sigmoid"):
        found = FOUND[name](x)
        assert (found > 0).all(), name
        assert (found < tiny).all(), name
        assert (np.diff(found) >= 0).all(), name


@TYPES
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "exp", "softplus"])
def test_increasing_to_an_ulp(name: str, dtype: Any) -> None:
    """Neighbouring arguments may swap their results by no more than both are off."""
    start = generator(2).uniform(-30, 30, 2000).astype(dtype)
    x = [start]
    for _ in range(20):
        x.append(np.nextafter(x[-1], dtype(99)))
    values = FOUND[name](np.concatenate(x)).reshape(21, -1)
    fall = np.maximum(values[:-1] - values[1:], 0) / np.spacing(np.abs(values[1:]))
    assert fall.max() <= 2 * tolerances.GREATEST_ULP[name, np.dtype(dtype).name]


def test_the_table_of_errors_is_complete() -> None:
    parts = {*FOUND, "silu's tail"}
    stated = {key for key in tolerances.GREATEST_ULP if key[0] not in ("cos", "sin")}
    assert stated == {(part, dtype) for part in parts for dtype in ("float32", "float64")}
