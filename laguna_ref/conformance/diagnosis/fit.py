"""The value of a continuous fault under which the model fits best."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

GRID = 13
STEPS = 24
GOLDEN = (math.sqrt(5) - 1) / 2


def least(cost: Callable[[float], float], low: float, high: float) -> float:
    """The positive number between ``low`` and ``high`` with the least cost.

    A grid even in the logarithm finds the valley, golden section its bottom (to 1e-5 of the
    interval between three points of the grid).
    """
    grid = np.geomspace(low, high, GRID).tolist()
    best = int(np.argmin([cost(value) for value in grid]))
    left, right = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    a, b = math.log(left), math.log(right)
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    at_c, at_d = cost(math.exp(c)), cost(math.exp(d))
    for _ in range(STEPS):
        if at_c <= at_d:
            b, d, at_d = d, c, at_c
            c = b - GOLDEN * (b - a)
            at_c = cost(math.exp(c))
        else:
            a, c, at_c = c, d, at_d
            d = a + GOLDEN * (b - a)
            at_d = cost(math.exp(d))
    return math.exp(c if at_c <= at_d else d)
