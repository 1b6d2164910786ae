"""Layer numbers as people write them."""

from __future__ import annotations

from collections.abc import Iterable


def ranges(indices: Iterable[int]) -> str:
    """Indices as ranges.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    return ", ".join("-".join(map(str, run)) for run in runs)
