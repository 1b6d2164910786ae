"""What every sum of the kernels is defined to be, in exact arithmetic rounded step by step.

Element k of a sum goes to lane ``k mod 8``, each lane adds with fused multiply-adds in order of
k, and the lanes are added by a fixed tree. Slow; it shares no code with the kernels and uses
neither a library's fma nor its order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LANES = 8
BLOCK = 64
"""Positions that attention's weighted sum of values takes by themselves."""
SEGMENT = 4096
"""Positions whose sums attention makes by themselves."""


def nearest(x: Fraction, dtype: Any) -> Any:
    """``x`` correctly rounded to float32 or float64 (in the range of normal numbers)."""
    near = float(x)  # Python divides integers with one rounding
    if np.dtype(dtype) == np.float64 or Fraction(near) == x:
        return np.dtype(dtype).type(near)
    # Rounding to float64 first must not make a tie: of the two neighbours take the odd one.
    other = np.nextafter(near, np.inf if x > Fraction(near) else -np.inf)
    odd = near if np.float64(near).view(np.int64) & 1 else other
    return np.dtype(dtype).type(odd)


def fma(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` rounded once, in the type of ``c``."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    return nearest(exact, c.dtype) if exact else c.dtype.type(0)


def tree(lanes: Sequence[Any]) -> Any:
    """Halves added until one is left: (0+4), (1+5), ..., then (0+2), (1+3), then (0+1)."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[i] + lanes[half + i] for i in range(half)]
    return lanes[0]


def dot(a: Iterable[Any], b: Iterable[Any], dtype: Any) -> Any:
    """The dot product of two vectors."""
    lanes = [np.dtype(dtype).type(0)] * LANES
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        lanes[k % LANES] = fma(x, y, lanes[k % LANES])
    return tree(lanes)


def product(x: Array, weight: Array) -> Array:
    """``x W^T``."""
    return np.array([[dot(row, token, x.dtype) for row in weight] for token in x], x.dtype)


def lane_sum(values: Iterable[Any], first: int, dtype: Any) -> Any:
    """A plain sum whose element k goes to lane ``(first + k) mod 8``."""
    lanes = [np.dtype(dtype).type(0)] * LANES
    for k, value in enumerate(values):
        lanes[(first + k) % LANES] = lanes[(first + k) % LANES] + value
    return tree(lanes)


def segments(first: int, count: int) -> list[slice]:
    """Of ``count`` positions from ``first`` on, those that share a segment."""
    ends = [*range((first // SEGMENT + 1) * SEGMENT, first + count, SEGMENT), first + count]
    return [slice(a - first, b - first) for a, b in pairwise([first, *ends])]


def attended(scores: Array, rows: Array, first: int, exp: Callable[[Array], Array]) -> Array:
    """Softmax of the scores of positions ``first``, ..., times their rows.

    Each segment relative to its own greatest score; segments merged in order.
    """
    top, weight = -np.inf, rows.dtype.type(0)
    total = np.zeros(rows.shape[1], rows.dtype)
    for part in segments(first, len(scores)):
        start, own_top = first + part.start, scores[part].max()
        e = exp(scores[part] - own_top)
        new_top = max(top, own_top)
        before, now = exp(np.array([top, own_top], rows.dtype) - new_top)
        weight = weight * before + lane_sum(e, start, rows.dtype) * now
        total = total * before + weighted_blocks(e, rows[part], start) * now
        top = new_top
    return total / weight


def weighted_blocks(weights: Array, rows: Array, first: int) -> Array:
    """Each block of 64 absolute positions by itself, these in order."""
    total = np.zeros(rows.shape[1], rows.dtype)
    for block in range(first // BLOCK * BLOCK, first + len(rows), BLOCK):
        part = np.zeros(rows.shape[1], rows.dtype)
        for position in range(max(block, first), min(block + BLOCK, first + len(rows))):
            row = rows[position - first]
            weight = weights[position - first]
            part = np.array([fma(weight, v, s) for v, s in zip(row, part, strict=True)])
        total = total + part
    return total
