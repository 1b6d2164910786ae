"""The oracle itself as a backend, in any of its numerics: ``oracle``, ``oracle:bfloat16``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import laguna_ref
from laguna_ref.conformance.backend import CAPABILITIES, BackendError, Opener
from laguna_ref.conformance.replay import Routing, with_forced
from laguna_ref.golden.settings import effective_config
from laguna_ref.kv_cache import KVCache
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder

PRECISION = {"float64": "float32", "float32": "float32", "bfloat16": "bfloat16+fp8-kv"}
"""What a report holds each of the numerics to."""


class OracleBackend:
    """A loaded model behind the protocol of a backend; also what a mutant of the model wears."""

    version = laguna_ref.__version__

    def __init__(self, model: Laguna, name: str = "oracle", *, exact: bool = False) -> None:
        """``exact``: its engine gives the same bits however a prompt is cut (numba's does)."""
        self.model, self.name = model, name
        # A batch is ragged: nothing is padded, so padding has no influence.
        self.capabilities = frozenset(CAPABILITIES) - (frozenset() if exact else {"exact"})
        self.precision = PRECISION[model.numerics.name]
        self.config = effective_config(model.config)

    def logits(
        self, tokens: Sequence[int], *, positions: Sequence[int] | None = None,
        routing: Routing | None = None,
    ) -> Array:  # fmt: skip
        """Logits [T, V]."""
        return self._routed(routing)(tokens, positions=positions)

    def trace(
        self, tokens: Sequence[int], points: Sequence[str], *,
        positions: Sequence[int] | None = None, routing: Routing | None = None,
    ) -> Mapping[str, Array]:  # fmt: skip
        """The trace points asked for."""
        recorder = Recorder(*points)
        self._routed(routing)(tokens, positions=positions, trace=recorder)
        return {name: recorder[name] for name in recorder}

    def prefill(self, tokens: Sequence[int]) -> tuple[KVCache, Array]:
        """A cache that holds the tokens, and their logits."""
        return self.decode(self.model.new_cache(), tokens)

    def decode(self, state: KVCache, tokens: Sequence[int]) -> tuple[KVCache, Array]:
        """Any number of tokens more."""
        cache = state.copy()
        return cache, self.model(tokens, cache=cache)

    def batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Several sequences in one run."""
        return self.model.batch([np.asarray(tokens) for tokens in sequences])

    def _routed(self, routing: Routing | None) -> Laguna:
        return with_forced(self.model, routing) if routing else self.model


def opener(argument: str | None) -> Opener:
    """``argument``: the numerics; float32 where it is None."""
    numerics = argument or "float32"
    if numerics not in PRECISION:
        raise BackendError(
            "unknown numerics of the oracle", expected=", ".join(PRECISION), found=numerics
        )

    def opened(folder: Path) -> OracleBackend:
        return OracleBackend(laguna_ref.load(folder, numerics=numerics), exact=True)

    return opened
