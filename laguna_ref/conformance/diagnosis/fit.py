"""The value of a continuous fault under which the model fits best."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

GRID = 13
STEPS, SHORT = 24, 6
GOLDEN = (math.sqrt(5) - 1) / 2


Cost = Callable[[float], float]


def coarse(cost: Cost, low: float, high: float) -> tuple[float, float]:
    """The neighbours of the least cost on a grid even in the logarithm."""
    grid = np.geomspace(low, high, GRID).tolist()
    costs = [cost(value) for value in grid]
    best = int(np.argmin(costs))
    return grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]


def fine(cost: Cost, left: float, right: float, steps: int = STEPS) -> tuple[float, float]:
    """The bottom of the valley between two numbers and its cost, by golden section.

    To 1e-5 of their ratio in the usual number of steps.
    """
    a, b = math.log(left), math.log(right)
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    at_c, at_d = cost(math.exp(c)), cost(math.exp(d))
    for _ in range(steps):
        if at_c <= at_d:
            b, d, at_d = d, c, at_c
            c = b - GOLDEN * (b - a)
            at_c = cost(math.exp(c))
        else:
            a, c, at_c = c, d, at_d
            d = a + GOLDEN * (b - a)
            at_d = cost(math.exp(d))
    return (math.exp(c), at_c) if at_c <= at_d else (math.exp(d), at_d)
