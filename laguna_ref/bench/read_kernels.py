"""Kernels that do nothing but read: how fast memory can be, for a program compiled like ours.

Sums run over slices from their first element on, which LLVM turns into vector loads; over
``range(first, last)`` of the whole array it does not, and reads at a fifth of the speed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from numba_kernels.jit import kernel

PIECE = 1 << 13
"""Words (of eight bytes) of a piece: 64 KiB, as much as one step of a weight kernel."""


@njit  # type: ignore[untyped-decorator]
def _sum(words: Any) -> Any:
    total = np.int64(0)
    for i in range(len(words)):
        total += words[i]
    return total


@njit  # type: ignore[untyped-decorator]
def _sum_of_four(words: Any) -> Any:
    quarter = len(words) // 4
    a, b = words[:quarter], words[quarter : 2 * quarter]
    c, d = words[2 * quarter : 3 * quarter], words[3 * quarter :]
    total = np.int64(0)
    for i in range(quarter):
        total += a[i] + b[i] + c[i] + d[i]
    return total


@kernel
def one_stream(words: Any, parts: Any) -> None:
    """Each thread reads its own part from front to back; sums of the parts go to ``parts``."""
    count = len(parts)
    for part in prange(count):
        parts[part] = _sum(words[part * len(words) // count : (part + 1) * len(words) // count])


@kernel
def four_streams(words: Any, parts: Any) -> None:
    """Each thread reads four stretches of its part side by side, as a product reads four rows.

    A few words at the end, less than four for each thread, are left out.
    """
    count = len(parts)
    each = len(words) // (4 * count) * 4
    for part in prange(count):
        parts[part] = _sum_of_four(words[part * each : (part + 1) * each])


@kernel
def by_pieces(words: Any, parts: Any) -> None:
    """Threads take turns with pieces of 64 KiB, so that all of them read close together.

    What is left at the end, less than a piece, is left out.
    """
    count = len(parts)
    for part in prange(count):
        total = np.int64(0)
        for piece in range(part, len(words) // PIECE, count):
            total += _sum(words[piece * PIECE : (piece + 1) * PIECE])
        parts[part] = total


KERNELS = (one_stream, four_streams, by_pieces)
