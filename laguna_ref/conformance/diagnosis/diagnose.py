"""What is wrong with a backend: by its trace first, and by its logits where that names nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from laguna_ref.conformance import guards
from laguna_ref.conformance.diagnosis.diagnosis import (
    CONFORMING,
    INCONCLUSIVE,
    UNKNOWN,
    Diagnosis,
)
from laguna_ref.conformance.diagnosis.misfit import Floors, Observation, gather
from laguna_ref.conformance.diagnosis.search import EXPLAINED, Progress, Search
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.report import NOT_A_NUMBER
from laguna_ref.model import Laguna

FEW, FITTED, HELD_OUT = 16, 100, 200
"""Legal runs that measure the floor, and as many more that say how far a legal backend strays
above it: few tell a bug from noise. Where it is a close call, so many are fitted and held out: the
greatest of 200 is exceeded by a further one with chance 1/201, and there are two ways to look."""
CLOSE = 20.0
"""Times the greatest misfit of a legal run: below it, many are run."""


def diagnose(
    model: Laguna,
    observations: Sequence[Observation],
    precision: Precision,
    *,
    progress: Progress | None = None,
    floors: Floors | None = None,
) -> Diagnosis:
    """Fits what was observed against every fault.

    ``model``: the oracle of the checkpoint, its cache and dequantisation those that the backend
    was given. A trace is looked at first; where every operation is right, no fault explains what
    is wrong, or no trace is known, the logits. ``floors``: kept by who diagnoses the same prompts
    again with the same model.
    """
    progress = progress or (lambda what, done, total: None)
    bad = next(filter(None, map(_no_number, observations)), None)
    if bad is not None:
        return Diagnosis(UNKNOWN, bad)
    found: list[Diagnosis] = []
    search, where = None, ""
    for way in ("trace", "logits"):
        progress(f"noise of the {way}", 0, 1)
        search = searching(model, observations, precision, way, progress, floors) or search
        if search is None or search.way != way or search.deviation <= search.noise:
            continue
        found.append(search.diagnosis())
        where = f"; {search.where()}" if way == "trace" else where
        if found[-1].causes and found[-1].causes[0].explained >= EXPLAINED:
            break
    if found:
        best = max(found, key=lambda each: each.causes[0].explained if each.causes else 0.0)
        return replace(best, reason=best.reason + where) if best.verdict == UNKNOWN else best
    if search is None:
        return Diagnosis(INCONCLUSIVE, "nothing to look at: neither logits nor a trace")
    return Diagnosis(
        CONFORMING, "a legal run strays as far", looked_at=search.way, misfit=search.deviation,
        noise=search.noise,
    )  # fmt: skip


def _no_number(observed: Observation) -> str | None:
    """The first value that is no number, which no legal backend shows, and no fault explains."""
    points = dict(observed.points)
    if observed.partial and "lm_head" in points:
        logprobs = np.asarray(points["lm_head"], np.float64)
        points["lm_head"] = np.where(np.isnan(logprobs), 0.0, logprobs)
    bad = guards.not_finite(points)
    return None if bad is None else f"{bad[0]}, token {bad[1]}: {NOT_A_NUMBER}"


def searching(
    model: Laguna, observations: Sequence[Observation], precision: Precision, way: str,
    progress: Progress, floors: Floors | None,
) -> Search | None:  # fmt: skip
    """With as many legal runs as it takes; None where nothing can be looked at this way."""
    evidence = gather(model, observations, precision, way, FEW, FEW, floors)
    if not evidence:
        return None
    search = Search(model, evidence, progress)
    if search.noise < search.deviation < CLOSE * search.noise:
        evidence = gather(model, observations, precision, way, FITTED, HELD_OUT, floors)
        search = Search(model, evidence, progress)
    return search
