"""Which body computes each operation: plain NumPy, or a compiled kernel.

An engine is a module with the functions below. The model knows nothing else of how numbers
are computed, so a fault, or a forced routing, is an engine with one function replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, Protocol, cast

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.errors import InputError
from laguna_ref.kv_cache import KVSlice
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.router import RouterSpec
from laguna_ref.rope_spec import RopeSpec
from laguna_ref.weights import MLPWeights

ENGINES = ("numpy", "numba")


class Engine(Protocol):
    """The operations of the forward pass; shapes and formulas stand in ``laguna_ref/ops``."""

    def computing(self, threads: int | None) -> AbstractContextManager[None]: ...
    def embed(self, tokens: Array, weight: Weight, numerics: Numerics) -> Array: ...
    def rms_norm(self, x: Array, weight: Array, eps: float, numerics: Numerics) -> Array: ...
    def linear(self, x: Array, weight: Weight, numerics: Numerics) -> Array: ...
    def rope_tables(
        self, spec: RopeSpec, positions: Array, numerics: Numerics
    ) -> tuple[Array, Array]: ...
    def apply_rope(self, x: Array, cos: Array, sin: Array, numerics: Numerics) -> Array: ...
    def attention(self, q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array: ...
    def gate_values(self, gate_logits: Array, activation: str, numerics: Numerics) -> Array: ...
    def apply_gate(self, attention: Array, gate: Array, numerics: Numerics) -> Array: ...
    def mlp(self, x: Array, weights: MLPWeights, numerics: Numerics) -> Array: ...
    def route(
        self, x: Array, weight: Weight, bias: Array, spec: RouterSpec, numerics: Numerics
    ) -> tuple[Array, Array, Array]: ...
    def scores_of(self, logits: Array, score_func: str) -> Array: ...
    def experts(
        self,
        x: Array,
        ids: Array,
        weights: Array,
        expert_weights: Sequence[MLPWeights],
        numerics: Numerics,
    ) -> Array: ...
    def combine(
        self, routed: Array, shared: Array, scaling_factor: float, numerics: Numerics
    ) -> Array: ...
    def add(self, residual: Array, x: Array, numerics: Numerics) -> Array: ...


def engine_by_name(name: str) -> Engine:
    """The engine called ``numpy`` or ``numba``; raises InputError."""
    if name == "numpy":
        from laguna_ref.engines import numpy_engine

        return numpy_engine
    if name == "numba":
        from laguna_ref.engines import numba_engine

        return numba_engine
    raise InputError("unknown engine", expected=" or ".join(ENGINES), found=name)


def with_replaced(engine: Engine, **functions: Any) -> Engine:
    """The same engine with some of its functions replaced; it no longer has a name.

    Raises InputError for a function that no engine has.
    """
    names = [name for name in dir(Engine) if not name.startswith("_")]
    unknown = sorted(set(functions) - set(names))
    if unknown:
        raise InputError("no such operation", expected=", ".join(names), found=unknown[0])
    namespace = SimpleNamespace(**{name: getattr(engine, name) for name in names} | functions)
    return cast(Engine, namespace)


def with_wrapped(engine: Engine, **functions: Any) -> Engine:
    """The same engine, under its own name, with functions that compute what its own do."""
    wrapped: Any = with_replaced(engine, **functions)
    wrapped.__name__ = getattr(engine, "__name__", "")
    return cast(Engine, wrapped)
