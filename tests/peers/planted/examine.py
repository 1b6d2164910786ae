"""A planted model looked at and diagnosed as the kit does it."""

from __future__ import annotations

from functools import cache
from typing import Any

from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.asking import Asker
from laguna_ref.conformance.diagnosis.diagnose import diagnose
from laguna_ref.conformance.diagnosis.diagnosis import Diagnosis
from laguna_ref.conformance.diagnosis.misfit import Floors, Observation
from laguna_ref.conformance.diagnosis.prompts import drawn
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.load import EMBEDDED
from laguna_ref.model import Laguna
from tests.peers.judged import oracle_of
from tests.peers.planted.defect import Defect, planted

PRECISION = PRESETS["float32"]
FLOORS: dict[str, Floors] = {"float": {}, "fp8": {}}
"""By cache: legal runs are of the oracle alone, and those of one prompt serve every defect."""
ARGUMENTS = {"float": "transformers:float-cache", "fp8": "transformers"}


@cache
def backend_and_oracle(kv_cache: str) -> tuple[Any, Laguna]:
    """laguna-tiny in Transformers, in float32, and the oracle that judges it."""
    backend = opener(ARGUMENTS[kv_cache])(EMBEDDED)
    return backend, oracle_of(backend, EMBEDDED)


def observed(defect: Defect) -> list[Observation]:
    """The trace that the planted model shows for each of the defect's prompts.

    Of a model that puts in a token of its own, the rows of the tokens that it was given.
    """
    backend, oracle = backend_and_oracle(defect.cache)
    result = []
    with planted(backend.model, defect):
        for prompt in drawn(oracle.config):
            if prompt.name not in defect.prompts:
                continue
            answer = Asker(backend, oracle.config).ask(prompt)
            assert answer.problem is None, answer.problem
            rows = {name: of[-len(prompt.tokens) :] for name, of in answer.points.items()}
            result.append(Observation(answer.tokens, answer.positions, rows))
    assert len(result) == len(defect.prompts)
    return result


def diagnosed(defect: Defect, seen: list[Observation], way: str) -> Diagnosis:
    """By the whole trace, or by its logits alone (``way``: ``trace`` or ``logits``)."""
    _, oracle = backend_and_oracle(defect.cache)
    if way == "logits":
        seen = [Observation(s.tokens, s.positions, {"lm_head": s.points["lm_head"]}) for s in seen]
    return diagnose(oracle, seen, PRECISION, floors=FLOORS[defect.cache])


def ranked(diagnosis: Diagnosis, defect: Defect) -> int | None:
    """The rank of the best cause that means the defect; None where there is none."""
    ranks = [cause.rank for cause in diagnosis.causes if cause.fault in defect.faults]
    return min(ranks, default=None)


def told(diagnosis: Diagnosis, defect: Defect) -> str:
    """One cell of a table."""
    if diagnosis.verdict == "conforming":
        return "not found"
    best = diagnosis.causes[0] if diagnosis.causes else None
    first = "nothing explains it" if best is None else f"{best.fault} {best.explained:.0%}"
    rank = ranked(diagnosis, defect)
    return f"{diagnosis.verdict}, rank {rank or 'none'}; first: {first} ({diagnosis.looked_at})"
