"""Products of matrices whose sums are taken in another legal order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from laguna_ref.numerics import Array, round_to_bf16

KINDS = ("blas", "permuted", "cut", "blocked", "sequential", "fused", "mixed")
"""``blas``: the library's own; ``permuted``: the reduction axis shuffled; ``cut``: two to six
parts at random places, added in random order; ``blocked``: equal blocks added one after another;
``sequential``: term by term, product and sum each rounded; ``fused``: term by term with one
rounding; ``mixed``: each product draws one of the cheap ones."""

ODDS = (0.1, 0.15, 0.25, 0.15, 0.03, 0.02, 0.3)
"""How often a run draws each kind. Term by term costs fifty times a BLAS product, so it is rare;
it is also the noisiest, and a budget of a few hundred runs sees it a dozen times."""


@dataclass
class Sums:
    """``dot`` in one kind of order; ``random`` settles the particulars of every call."""

    kind: str
    random: np.random.Generator
    accumulate: str = "float32"

    def dot(self, x: Array, matrix: Array) -> Array:
        """``x matrix^T``: x [T, in], matrix [out, in] -> [T, out] in the type of x."""
        kind = self.kind
        if kind == "blas":
            return self._part(x, matrix)
        if kind == "mixed":
            kind = str(self.random.choice(("blas", "cut", "blocked", "permuted")))
        if kind in ("sequential", "fused"):
            return _term_by_term(x, matrix, fused=kind == "fused")
        if kind == "permuted":
            order = self.random.permutation(x.shape[1])
            return self._part(x[:, order], matrix[:, order])
        if kind == "blas":  # drawn by a mixed run
            return self._part(x, matrix)
        parts = list(self._cuts(x.shape[1]) if kind == "cut" else _blocks(x.shape[1], self.random))
        total = self._part(x[:, parts[0]], matrix[:, parts[0]])
        for part in parts[1:]:
            total = total + self._part(x[:, part], matrix[:, part])
        return total

    def order(self, length: int) -> Array:
        """An order in which to add ``length`` terms of a plain sum."""
        if self.kind in ("blas", "sequential", "fused"):
            return np.arange(length)
        return self.random.permutation(length)

    def _part(self, x: Array, matrix: Array) -> Array:
        product: Array = x @ matrix.T
        return round_to_bf16(product) if self.accumulate == "bfloat16" else product

    def _cuts(self, length: int) -> Iterator[slice]:
        wanted = int(self.random.integers(1, 6))
        places = np.unique(self.random.integers(0, length + 1, wanted))
        edges = [0, *(int(p) for p in places if 0 < p < length), length]
        parts = [slice(a, b) for a, b in pairwise(edges)]
        return (parts[i] for i in self.random.permutation(len(parts)))


def _blocks(length: int, random: np.random.Generator) -> Iterator[slice]:
    size = int(random.choice((8, 16, 32, 64, 128)))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _term_by_term(x: Array, matrix: Array, *, fused: bool) -> Array:
    total = np.zeros((len(x), len(matrix)), dtype=x.dtype)
    columns = np.ascontiguousarray(matrix.T)
    for k in range(x.shape[1]):
        if fused:  # the product of two float32 numbers is exact in float64
            term = x[:, k, None].astype(np.float64) * columns[k].astype(np.float64)
            total = (total.astype(np.float64) + term).astype(x.dtype)
        else:
            total += x[:, k, None] * columns[k]
    return total
