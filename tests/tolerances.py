"""Every tolerance of the tests, derived, with its reason. No test states a number of its own.

Errors of a value are given in units of its greatest magnitude over the run ("of its scale")
unless a unit is named.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from laguna_ref.config import LagunaConfig
from laguna_ref.numerics import Numerics

FLOAT32_UNIT_ROUNDOFF = 2.0**-24

FLOAT32_ERROR = 2e-5
"""Logits in float32, of their scale, against float64 or another float32 run.

A value of a model of up to five layers has some 100 roundings behind it, each 6e-8 of its
operand; they add up like a random walk (10), and attention's exponential, the norms and
outliers of heavy-tailed weights magnify what reaches them (some 30): 6e-8 * 10 * 30 = 1.8e-5.
An error of formula is a thousand times larger: an attention factor of 1.0 read as absent
moves logits by more than 1e-2.
"""

FLOAT32_INNER_ERROR = 5e-5
"""The same for values inside the model: there are hundreds of times more of them, so their
greatest error lies further out."""

ROUTER_NOISE = 0.25
"""Noise of a selection score in units of its router logit's: the sigmoid's greatest slope."""

TIED_TOKENS = 0.01
"""Most tokens of a run that may be left out because a tied choice of experts went either way.

Neighbouring scores lie some 1e-2 apart, float32 noise is some 1e-6: one choice in 10,000, and
a token makes at most five. A tied token spoils those that see it, some ten: 0.5 %.
"""


# Derived from operation counts: each function says what it counts. "Of the scale" of an array
# means relative to its greatest magnitude.


def unit_roundoff(dtype: DTypeLike) -> float:
    """Greatest relative error of one rounding to nearest; 2**-8 for bfloat16."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def roundings(count: int, dtype: DTypeLike) -> float:
    """Relative error of a value that was rounded ``count`` times, to first order."""
    return count * unit_roundoff(dtype)


def dot_difference(terms: int, dtype: DTypeLike) -> float:
    """Two dot products of the same numbers in different orders, of the sum of |a||b|.

    Each has one rounding a product and one an addition on any path through its sum, so it is
    off by at most ``terms`` of them (Higham, Accuracy and Stability, section 3.1).
    """
    return 2 * roundings(terms, dtype)


def model_roundings(config: LagunaConfig, tokens: int) -> int:
    """Roundings on the longest path from an embedding to a logit, every sum in index order."""
    hidden = config.hidden_size
    norm = hidden + 4  # squares and their sum, eps, root, quotient, weight
    total = norm + hidden  # final norm, head
    for layer in config.layers:
        total += norm + hidden  # input norm, q and k
        total += layer.head_dim + 4 + 4  # q_norm; products, sum and factor of RoPE
        total += layer.head_dim + 1 + tokens + 3 + tokens  # scores, softmax, values
        total += hidden + 4  # the gate: its logits, softplus, product
        total += layer.num_heads * layer.head_dim + 1  # o_proj, residual
        width = layer.intermediate_size
        total += norm + 2 * hidden + 4 + width + 1  # norm, gate and up, silu, down, residual
        if layer.mlp == "sparse":
            total += config.num_experts_per_tok + 4  # weighted sum, factor, shared expert
    return total


def model_error(config: LagunaConfig, tokens: int, dtype: DTypeLike, last: int = 0) -> float:
    """Difference of two evaluations of the whole forward pass, at any trace point, of its scale.

    All roundings of both, one after another, as if each went the same way. They do not: their
    signs are random and their sum grows like the root of the count, which leaves a factor of
    15 to 50 for what magnifies an error on the way (a norm's division by a small root mean
    square, an exponential). ``last`` is the greatest position where the angles are rounded too
    (below float64): an angle is off by two roundings of itself, at most that many radians.
    """
    return 2 * roundings(model_roundings(config, tokens) + 2 * last, dtype)


def bfloat16_model_error(config: LagunaConfig) -> float:
    """Difference of two bfloat16 runs whose float32 sums had different orders, of the scale.

    A different order moves a float32 sum by parts of 2**-24, which turns its rounding to
    bfloat16 only if it lies next to a midpoint; turned, the value moves by one ulp (two unit
    roundoffs). At worst that happens at each of the 17 rounding points on the path through a
    layer (numerics.ROUNDING_POINTS in its order) and at the 3 after them.
    """
    return 2 * roundings(17 * len(config.layers) + 3, ml_dtypes.bfloat16)


def router_margin(config: LagunaConfig, tokens: int, dtype: DTypeLike, last: int = 0) -> float:
    """Selection scores closer than this may swap: the model's error at the router's logits.

    A score function's slope is at most 1/4 (sigmoid, softmax) or 1/2 (the root of softplus);
    logits of the tests' models stay below 8 in size.
    """
    return 8 * 0.5 * model_error(config, tokens, dtype, last)


def yarn_float32(low: float, high: float) -> float:
    """Inverse frequencies computed in float32 against float64, relative.

    A power (2 ulp in the libraries' own statements: 4 roundings), its reciprocal, the product
    with the factor, the ramp (2), its complement, two products and a sum: 12 roundings. The
    complement 1 - ramp is at least 1 / (high - low) where it is not zero, so its absolute error
    is magnified by as much.
    """
    return roundings(12 + 2 * int(high - low), "float32")


def angle_shift(config: LagunaConfig, tokens: int, last: int) -> float:
    """Two float64 runs whose positions differ by a shift of up to ``last``, of the scale.

    Beside what any two runs differ by, each layer's angles: p * f is rounded once, so an angle
    is off by at most ``last`` roundings, and a score depends on the difference of two of them,
    in both runs.
    """
    angles = 4 * roundings(last, "float64") * len(config.layers)
    return model_error(config, tokens, "float64") + angles


UNIT = 1.0
"""Size of the activations of ``tests/small.py``'s models: a narrow sub-layer's output may by
chance be much smaller, its errors are those of the unit values it was made from."""


def assert_within(
    actual: ArrayLike, expected: ArrayLike, error: float, what: str = "", *, unit: float = 0.0
) -> None:
    """``actual`` is ``expected`` to ``error`` of the greatest magnitude in ``expected``.

    ``unit``: the least that counts as that magnitude.
    """
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    assert np.isfinite(a).all(), f"{what}: not finite"
    if not a.size:
        return
    scale = max(float(np.abs(b).max()), unit) or 1.0
    off = np.abs(a - b)
    worst = np.unravel_index(int(off.argmax()), off.shape)
    where = tuple(int(i) for i in worst)
    assert off[worst] <= error * scale, (
        f"{what} at {where}: found {a[worst]!r}, expected {b[worst]!r}; "
        f"off by {off[worst] / scale:.3e} of the scale, allowed {error:.3e}"
    )


STANDARD_DEVIATIONS = 5.0
"""A count of random draws further from its expectation is a fault: one in 2 million is not."""

FP8_RUNS_WITH_A_MOVED_CODE = 0.3
"""Most runs in which float32 noise may move a cached value across the border of two codes.

Codes are 2**-4 apart, noise is some 1e-6 of a value: one value in 50,000; a drawn run caches
some 4,000 in each of three runs.
"""

CODES_MOVED_BY_BFLOAT16_DIVISION = 1 / 16
"""Most FP8 codes that change when the quotient is rounded to bfloat16 first.

There are 16 bfloat16 numbers from one code to the next, one of which lies in the middle: one
quotient in 16 is rounded to it, half of them from the side that ties-to-even then leaves.
"""

FLOAT32_SUM = 512 * FLOAT32_UNIT_ROUNDOFF
"""Difference between two orders of a float32 sum of up to 256 products, over the sum of their
magnitudes: each order errs by at most one unit roundoff an addition."""

BFLOAT16_WITHOUT_SUMS = {
    "embed", "apply_rope", "gate_values", "apply_gate", "add", "combine", "topk_ids",
}  # fmt: skip
"""Operations that must have equal bits on equal inputs: element by element, or a choice."""

BFLOAT16_PRODUCTS = {"linear", "router logits", "experts"}
"""Operations that must, too, once every product with a weight is exact."""

BFLOAT16_OF_SUMS = {
    "rope_tables": (1e-3, 1.0),
    "rms_norm": (1e-3, 2.0),
    "linear": (1e-3, 1.0),
    "router logits": (1e-3, 1.0),
    "router logits, soft-capped": (1.0, 1.0),
    "topk_weights": (1e-3, 1.0),
    "silu(gate) * up": (1e-3, 1.0),
    "experts": (1e-2, 4.0),
    "attention": (1e-2, 4.0),
}
"""Share of unequal elements, and greatest difference in bfloat16 ulp of the greatest element.

Two float32 numbers that differ in their last bits (by order of summation, or of the last place
of an exponential, cosine or power) round to different bfloat16 ones when a border lies between
them: 2**-16 of a number is the distance of borders, some units of 2**-24 that of the numbers,
so about one in a hundred thousand, up to one in a thousand after cancellation. The difference
then is one ulp; two after the norm's second rounding. Experts and attention round inside, and
one element in that differs moves a whole row out: more elements, by a few ulp of the largest.
Soft-capped logits are float32: any two hyperbolic tangents differ in their last places.
"""

BFLOAT16_RUNS_APART = 1 / 16
"""Share of runs whose bfloat16 logits may be further from Transformers' than half of what these
are from float64. Elements that differ are rare, but each is one of bfloat16's own noise, and later
layers spread it: a run with such an element early is as far from Transformers' as both are from
the truth (further, if it tips a choice of experts), the others are equal. How many there are
depends on the processor, whose bfloat16 products torch takes: 2 of 100 with AVX512-BF16. A rounding
at another point would show in most runs.
"""

SILU_UNEQUAL = 2
"""Of 65,280 bfloat16 numbers: float32 values so close to a border (a few in 2**15 are within
an ulp of float32) that the last place of an exponential decides."""

SIGMOID_ULP = 4
"""Of float32, between two sigmoids: each has an exponential (1 ulp), a sum and a quotient."""

BFLOAT16_TWO_RUNS = 2.0
"""Distance of two bfloat16 runs over that of one from float64, root mean square, where the
machine may be any. Two runs that round independently are sqrt(2) apart."""

BFLOAT16_SAME_ROUNDINGS = 0.15
"""Distance of two bfloat16 runs that round at the same points, over that of one from float64.

Another order of float32 sums turns at most one rounding in a thousand (docs/numerics.md), at each
of 23 points, and a turned one moves by about as much as rounding there does at all: the root of
23 / 1000. Leaving a point out moves most elements, and comes to 0.5 or more.
"""


# The Numba engine's kernels (tests/numba_kernels).


def fixed_order_dot(terms: int, dtype: DTypeLike) -> float:
    """A kernel's dot product against BLAS's, of the sum of |a||b|.

    The kernel's longest path has a fused multiply-add for each eighth term and three additions
    of lanes; BLAS may add in any order, one product and one addition a term at most.
    """
    return roundings(-(-terms // 8) + 3 + terms, dtype)


GREATEST_ULP = {
    ("exp", "float32"): 0.98,
    ("softplus", "float32"): 3.67,
    ("sigmoid", "float32"): 2.41,
    ("silu", "float32"): 3.20,
    ("silu's tail", "float32"): 52.02,
    ("tanh", "float32"): 2.50,
    ("exp", "float64"): 0.98,
    ("softplus", "float64"): 3.36,
    ("sigmoid", "float64"): 2.29,
    ("silu", "float64"): 3.26,
    ("silu's tail", "float64"): 372.56,
    ("tanh", "float64"): 2.53,
    ("cos", "float64"): 1.54,
    ("sin", "float64"): 1.55,
}
"""Greatest errors of the kernels' functions, measured and rounded up; the bits, and so the
errors, are the same on every machine. Float32: over all 2**32 numbers. Float64: over 11 million
samples of every size (cosine and sine: 340,000, many of them next to a multiple of pi/4).

The tail of silu is where the exponential is no normal number (below -87, or -708): silu
multiplies the few digits that are left of it. Its results are themselves below 1e-36, or
1e-305.
"""


def in_ulp(found: ArrayLike, exact: ArrayLike) -> NDArray[np.float64]:
    """Distance from the exact value (of a wider type) in units of the last place of ``found``'s
    type at the exact value. Below the normal numbers that unit no longer shrinks; infinity
    counts as the number that would follow the greatest; a NaN is off by NaN unless both are."""
    values, wide = np.asarray(found), np.asarray(exact)
    info = np.finfo(values.dtype)
    beyond = np.ldexp(wide.dtype.type(1), int(info.maxexp))
    near = np.clip(values.astype(wide.dtype), -beyond, beyond)
    wide = np.clip(wide, -beyond, beyond)
    exponent = np.minimum(np.frexp(np.abs(wide))[1], info.maxexp) - 1
    unit = np.ldexp(np.ones_like(wide), np.maximum(exponent, info.minexp) - info.nmant)
    error = np.abs(near - wide) / unit
    return np.where(np.isnan(near) & np.isnan(wide), 0.0, error).astype(np.float64)


def two_activations(name: str, dtype: DTypeLike) -> float:
    """A kernel's activation against NumPy's, relative: the kernel's greatest error, and the
    library's (an exponential of 1 ulp, log1p of 1, a sum, a quotient: 8 roundings)."""
    ulp = GREATEST_ULP[name, np.dtype(dtype).name]
    return (2 * ulp + 8) * unit_roundoff(dtype)


def kl_error(vocabulary: int, greatest: float) -> float:
    """Rounding of a KL divergence in nats, computed two ways in float64; absolute.

    ``greatest`` is the largest |log-probability| of either side. A log-probability is off by the
    roundings of a sum of V exponentials, its logarithm and a difference, of its size: (V + 4) of
    them. A term p (log p - log q) takes two such errors, and one more in p times the bracket, at
    most 2 greatest; probabilities add up to one, and their sum rounds V times more.
    """
    scale = max(1.0, greatest)
    return 2 * roundings(2 * vocabulary + 8, np.float64) * scale * (2 + 2 * scale)


def score_error(numerics: Numerics, greatest: float) -> float:
    """Difference of two selection scores' rounding, absolute; ``greatest`` is the largest of them.

    A score function is two exponentials or logarithms of at most 2 ulp, a sum, a quotient, the
    bias, and under bfloat16 the rounding of the bias, which is below the greatest score.
    """
    rounded = unit_roundoff(ml_dtypes.bfloat16) if "router.bias" in numerics.rounds else 0.0
    return 2 * (roundings(12, numerics.dtype) + rounded) * max(1.0, greatest)


NEAR_TIE = 2.0**-9 / 64
"""A difference of scores that bfloat16 noise may turn: scores are below one, where half a unit of
the last place is 2**-9, and a router's logit of 128 terms of that size is off by some root of
128 of them, times the sigmoid's slope of a quarter; this is far inside of it."""

FLOAT32_NEAR_TIE = 128**0.5 * FLOAT32_UNIT_ROUNDOFF
"""The same in float32: a logit of 128 terms is off by some root of 128 units. The slope of a
quarter is left to the errors of the layers before, which come on top."""


SYNTHETIC_MOMENT = 0.01
"""Relative error of mean or standard deviation of a synthetic expert, at true width.

A million codes give the standard deviation to 1/sqrt(2e6) and the mean to 1e-3; 8,192 scales
of spread 0.2 add 0.2/sqrt(8192) = 2e-3. This is more than four of the greatest.
"""

SYNTHETIC_CORRELATION = STANDARD_DEVIATIONS / 512
"""Of two independent samples of 2048 * 128 normal numbers: their correlation has standard
deviation 1/512."""

ROUTER_ROW_LENGTH = 2.0**-9
"""Relative error of the length of a row of bfloat16 numbers: that of each element."""


def quantisation_error(ratio: ArrayLike, bits: int) -> np.ndarray:
    """Of a weight quantised to ``bits``, in units of its group's scale, given weight / scale.

    Half a step; bfloat16's rounding of weight / scale; and, because the positive end of the
    range lies half a step short of the greatest weight and the scale itself is rounded to
    bfloat16 (2**-9 of half the range), what is clamped.
    """
    rounding = 2.0**-8 * np.abs(np.asarray(ratio, dtype=np.float64))
    return 0.5 + rounding + 0.5 + 2.0**-9 * 2 ** (bits - 1)


# Conformance (tests/conformance).

ANGLE_BY_COSINE = 1e-6
"""Relative, of an angle of 1e-3 had from its cosine: 1 - cos is 5e-7 and keeps nine digits."""

KL_BY_DEFINITION = 1e-9
"""Relative, of a divergence of 1e-4 or more: sums of 30 terms of size one, to 1e-15."""

KL_BY_VARIANCE = 1e-5
"""Relative, of half the variance of a difference of 1e-6: the next term is the third cumulant,
1e-6 of it, and logits of size one hold such a difference to 1e-10."""

FLOAT64_REORDERED = FLOAT32_INNER_ERROR * 2.0**-29
"""Of a value's scale, between two float64 runs that add in other orders: what float32 runs may
show, in the units of float64's last place."""
