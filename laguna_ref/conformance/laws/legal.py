"""A legal backend: the oracle that computes every call in another legal way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from zlib import crc32

from laguna_ref.conformance.adapters.oracle_backend import OracleBackend
from laguna_ref.conformance.laws.case import Built
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.variations import draw, varied
from laguna_ref.kv_cache import KVCache
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array

CALLS = 100
"""More than a law makes of one model."""


class LegalBackend:
    """The variations of one seed after another, one a call; never the same bits twice.

    What it is off by when a law is put to it is what the law has to allow.
    """

    name = "a legal backend"

    def __init__(self, built: Built, precision: Precision, seed: int) -> None:
        self._built, self._precision = built, precision
        # Two models of one law must not be computed alike: their noise would cancel.
        self._next = 10_000 * crc32(built.name.encode()) + CALLS * seed
        self._model = base_oracle(built, precision)
        self.capabilities: Collection[str] = OracleBackend(self._model).capabilities

    def logits(self, tokens: Sequence[int], **options: Sequence[int] | None) -> Array:
        """Logits [T, V]."""
        return self._one().logits(tokens, positions=options.get("positions"))

    def trace(self, tokens: Sequence[int], points: Sequence[str]) -> Mapping[str, Array]:
        """The trace points asked for."""
        return self._one().trace(tokens, points)

    def prefill(self, tokens: Sequence[int]) -> tuple[KVCache, Array]:
        """A cache that holds the tokens, and their logits."""
        return self._one().prefill(tokens)

    def decode(self, state: KVCache, tokens: Sequence[int]) -> tuple[KVCache, Array]:
        """Any number of tokens more."""
        return self._one().decode(state, tokens)

    def batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Each by itself, in a way of its own."""
        return [self._one().logits(sequence) for sequence in sequences]

    def _one(self) -> OracleBackend:
        self._next += 1
        variation = draw(self._precision, self._next)
        return OracleBackend(varied(self._model, variation, self._built.matrices))


def base_oracle(built: Built, precision: Precision) -> Laguna:
    """The oracle whose variations a backend of this precision is held to."""
    return built.oracle("bfloat16" if precision.activations == "bfloat16" else "float32")
