"""Products of tokens with a stored weight: matrix times vector, matrix times matrix.

The plain twin is ``laguna_ref/ops/linear.py``. One token streams the weight through registers
(``dots``), several share panels of it that fit the cache (``panels``); the sums are the same.
"""

from __future__ import annotations

from numba import njit, prange

from numba_kernels.dots import rows_times_vector
from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.jit import kernel
from numba_kernels.panels import PANEL_ROWS, aligned, pack_neighbours, rows_times_pairs


@njit
def rows_a_task(rows):
    """So that some thirty threads have work, if there are so many; a multiple of eight."""
    return max(16, min(PANEL_ROWS, rows // 32 // 8 * 8))


@kernel
def matrix_vector(w, rows, x, out):
    """x [columns] -> out [rows]."""
    chunk = rows_a_task(rows)
    for task in prange((rows + chunk - 1) // chunk):
        mode = exact_floats()
        first, last = task * chunk, min(rows, (task + 1) * chunk)
        rows_times_vector(w, first, last, x, 0, out, first)
        restore_floats(mode)


@kernel
def matrix_matrix(w, rows, x, tokens, out):
    """x [tokens, columns], flat -> out [tokens, rows], flat, with room for an even number of
    tokens: they are worked on in pairs."""
    columns = w.columns
    pairs = (tokens + 1) // 2
    packed = aligned(pairs * columns * 2, x)
    for pair in prange(pairs):
        pack_neighbours(x, columns, tokens, packed, pair)
    chunk = rows_a_task(rows)
    for task in prange((rows + chunk - 1) // chunk):
        mode = exact_floats()
        first, last = task * chunk, min(rows, (task + 1) * chunk)
        if rows % 4 == 0:
            rows_times_pairs(w, first, last, packed, pairs, out[first:], rows)
        else:  # a tile's fourth row would fall on the next token's first
            totals = aligned(2 * pairs * chunk, x)
            rows_times_pairs(w, first, last, packed, pairs, totals, chunk)
            for token in range(tokens):
                for row in range(first, last):
                    out[token * rows + row] = totals[token * chunk + row - first]
        restore_floats(mode)
