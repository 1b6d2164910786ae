"""What the judge needs of a golden and of a dump: these attributes, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from laguna_ref.numerics import Array


class CaseLike(Protocol):
    """The prompt of a golden."""

    @property
    def name(self) -> str:
        """What the case is called."""

    @property
    def tokens(self) -> Sequence[int]:
        """[T]"""

    @property
    def positions(self) -> Sequence[int] | None:
        """[T], or None for 0, 1, 2, ..."""


class GoldenLike(Protocol):
    """A golden: the oracle's results for one case."""

    @property
    def case(self) -> CaseLike:
        """The prompt."""

    @property
    def points(self) -> Mapping[str, Array]:
        """Trace point -> value [T, ...]."""

    @property
    def logits(self) -> Any:
        """An array [T, V], or an object whose ``full`` is one [N, V] of the tokens ``at``."""

    @property
    def routing(self) -> Mapping[int, Any]:
        """By sparse layer: ``ids``, ``weights`` [T, K] and ``margin`` [T]."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """``dequant``, ``kv_cache``, ``effective_config`` and more."""

    @property
    def identity(self) -> Any:
        """Hashes of the checkpoint."""

    @property
    def budget(self) -> Mapping[str, Array]:
        """What ``Budget.to_arrays`` gave, possibly empty."""

    @property
    def budget_meta(self) -> dict[str, Any] | None:
        """Its metadata."""


class DumpLike(Protocol):
    """What a backend computed."""

    @property
    def tokens(self) -> Array:
        """int64 [T]."""

    @property
    def positions(self) -> Array:
        """int64 [T]."""

    @property
    def points(self) -> Mapping[str, Array]:
        """Trace point -> value [T, ...]; ids and weights of experts may be among them."""

    @property
    def routing(self) -> Mapping[int, Any] | None:
        """By layer, ``ids`` and ``weights`` (or None); None without."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """``backend``, ``version``, ``precision`` (a preset or an object), ``config``."""


def points_of(dump: DumpLike) -> dict[str, Array]:
    """All trace points of a dump, routing among them."""
    points = dict(dump.points)
    for layer, routing in (dump.routing or {}).items():
        points[f"model.layers.{layer}.mlp.topk_ids"] = routing.ids
        if routing.weights is not None:
            points[f"model.layers.{layer}.mlp.topk_weights"] = routing.weights
    return points


def logits_of(golden: GoldenLike) -> tuple[Array | None, Array | None]:
    """A golden's logits [N, V] and the tokens they belong to (None: all)."""
    logits = golden.logits
    if hasattr(logits, "full"):
        return logits.full, logits.at
    return logits, None
