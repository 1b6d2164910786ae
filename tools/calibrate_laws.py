"""How often would the laws accuse a legal backend? Measured on legal backends themselves.

    python tools/calibrate_laws.py --precision float32 --examples 60 --out laws-float32.json

Every example is put to n + 1 legal backends, n being what the judge measures a floor unit with.
They are alike, so each of them is the one to be judged with chance 1 / (n + 1): one example is
accused with the chance that the greatest deviation exceeds ``FACTOR`` times the second greatest,
over n + 1. The tool counts how often that is so, and prints the greatest quotient.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase

from laguna_ref.conformance.laws.case import Case
from laguna_ref.conformance.laws.catalogue import by_name
from laguna_ref.conformance.laws.example import Example
from laguna_ref.conformance.laws.judging import (
    FACTOR,
    FEW,
    MANY,
    Judge,
    LegalRuns,
)
from laguna_ref.conformance.laws.law import Claim, Law, NothingToSayError, Same, Setting
from laguna_ref.conformance.laws.legal import LegalBackend
from laguna_ref.conformance.precision import PRESETS


def quotients(law: Law, precision: str, count: int, seed: int) -> list[float]:
    """Greatest over second greatest deviation of legal backends, of the worst claim, by example."""
    judge, found = Judge(PRESETS[precision], exact=False), list[float]()
    setting = Setting(every_expert=PRESETS[precision].activations != "float32")

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(law.examples(setting))
    def measured(example: Example) -> None:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(example, Path(folder))
            try:
                judge.require_no_tie(law, case)
            except NothingToSayError:
                hypothesis.reject()
            found.append(_quotient(law, case, judge))

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):
        measured()
    return found


def _quotient(law: Law, case: Case, judge: Judge) -> float:
    runs = LegalRuns(law, case, judge.precision)
    worst = 0.0
    for at, claim in enumerate(_claims(law, case, judge)):
        if isinstance(claim, Same):
            values = runs.deviations(at, FEW + MANY + 1)
            second, greatest = np.sort(np.maximum(values, judge.precision.unit_roundoff))[-2:]
            worst = max(worst, float(greatest / second))
    return worst


def _claims(law: Law, case: Case, judge: Judge) -> list[Claim]:
    return list(law.check(case, lambda built: LegalBackend(built, judge.precision, 0)))


def main() -> None:
    """Measures every law and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="float32", choices=sorted(PRESETS))
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--laws", nargs="*")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for law in by_name(options.laws):
        start = time.perf_counter()
        found = quotients(law, options.precision, options.examples, options.seed)
        rows.append(
            {
                "law": law.name, "examples": len(found), "greatest": max(found, default=0.0),
                "accusable": sum(one > FACTOR for one in found),
            }
        )  # fmt: skip
        print(f"{rows[-1]} {time.perf_counter() - start:.0f} s", flush=True)
    examples = sum(row["examples"] for row in rows)
    accusable = sum(row["accusable"] for row in rows)
    summary = {"precision": options.precision, "factor": FACTOR, "legal_runs": FEW + MANY,
               "examples": examples, "accusable": accusable,
               "rate_an_example": accusable / max(1, examples) / (FEW + MANY + 1),
               "laws": rows}  # fmt: skip
    print({key: value for key, value in summary.items() if key != "laws"})
    if options.out:
        options.out.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
