"""Asking a backend for one prompt: as much as it can tell, and what it says when it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.backend import (
    Backend,
    BackendDiedError,
    BackendError,
    can,
    precision_of,
)
from laguna_ref.conformance.inputs import CaseLike
from laguna_ref.numerics import Array
from laguna_ref.trace import trace_points


@dataclass(frozen=True)
class Answer:
    """What a backend computed for one prompt; a dump that was never written."""

    tokens: Array
    positions: Array
    points: Mapping[str, Array]
    meta: Mapping[str, Any]
    routing: None = None
    """Ids and weights of experts are among ``points``."""
    problem: str | None = None
    """Why not all of it is there, on one line."""
    died: bool = False
    """It will not answer again."""
    recorded: bool = False
    """It was read from a dump after all."""


@dataclass
class Asker:
    """Puts prompts to a backend, one after another, until it dies."""

    backend: Backend
    config: LagunaConfig
    died: str | None = field(default=None, init=False)

    def cannot(self, case: CaseLike) -> str | None:
        """Why the case is not applicable to this backend, or None."""
        if case.positions is not None and not can(self.backend, "positions"):
            return "the backend takes no positions"
        has = getattr(self.backend, "has", None)
        if getattr(self.backend, "recorded", False) and has is not None:
            return None if has(case.tokens, case.positions) else "no dump of this prompt"
        return None

    def ask(self, case: CaseLike) -> Answer:
        """Its answer; whatever it raises becomes ``problem``."""
        if self.died is not None:
            return self._answer(case, {}, f"not asked: {self.died}")
        try:
            return self._answer(case, self._points(case))
        except BackendDiedError as problem:
            self.died = one_line(problem)
            known = problem.known
            points = {} if known is None else {"lm_head": known}
            return self._answer(case, points, self.died)
        except (Exception, SystemExit) as problem:  # whatever a peer raises: others are judged
            return self._answer(case, {}, f"the backend failed: {one_line(problem)}")

    def _points(self, case: CaseLike) -> dict[str, Array]:
        options: dict[str, Any] = {}
        if case.positions is not None:
            options["positions"] = list(case.positions)
        tokens: Sequence[int] = list(case.tokens)
        if can(self.backend, "trace"):
            trace = self.backend.trace(  # type: ignore[attr-defined]
                tokens, list(trace_points(self.config)), **options
            )
            return {name: of_numbers(name, array) for name, array in trace.items()}
        return {"lm_head": of_numbers("lm_head", self.backend.logits(tokens, **options))}

    def _answer(
        self, case: CaseLike, points: dict[str, Array], problem: str | None = None
    ) -> Answer:
        count = len(case.tokens)
        places = range(count) if case.positions is None else case.positions
        return Answer(
            np.asarray(case.tokens, np.int64), np.asarray(places, np.int64), points, self.meta,
            problem=problem, died=self.died is not None,
            recorded=bool(getattr(self.backend, "recorded", False)),
        )  # fmt: skip

    @property
    def meta(self) -> dict[str, Any]:
        """What a dump of it would state; its config only where it was recorded. A backend that is
        asked opened the checkpoint itself: what it takes otherwise is a finding, no other model."""
        backend = self.backend
        recorded = getattr(backend, "recorded", False)
        return {
            "backend": backend.name,
            "version": getattr(backend, "version", None),
            "precision": precision_of(backend),
            "config": getattr(backend, "config", None) if recorded else None,
            "logits": getattr(backend, "logits_kind", None),
            "logprobs_k": getattr(backend, "logprobs_k", None),
        }


def of_numbers(point: str, value: Any) -> Array:
    """As an array [T, ...]; raises BackendError for what is none, or holds no real numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiuV":  # V: what ml_dtypes makes of bfloat16
        found = type(value).__name__ if array.dtype.kind == "O" else str(array.dtype)
        raise BackendError(f"{point}: no real numbers", expected="an array [T, ...]", found=found)
    if not array.size or not array.ndim:
        raise BackendError(f"{point}: wrong shape", expected="[T, ...]", found=list(array.shape))
    return array


def one_line(problem: BaseException) -> str:
    """Type and text of whatever was raised."""
    text = " ".join(str(problem).split())
    kind = type(problem).__name__
    return text if isinstance(problem, BackendDiedError) else f"{kind}: {text}" if text else kind
