"""Remakes ``laguna_ref/data/budgets``: what the goldens' prompts may be off by.

    python tools/make_budgets.py --workers 2

One file a prompt and a way to be judged, so that nobody waits for them: 400 legal runs of 13
prompts take a core 17 minutes each way. Run it when a legal variation, a comparison or the cases
change; the tests hold fresh legal runs against what is committed.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

import laguna_ref
from laguna_ref.conformance import budget_cache
from laguna_ref.conformance.budget import measure
from laguna_ref.conformance.budget_cache import WAYS
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.prepared import prepared


def make(way: int, at: int) -> str:
    """Measures the budget of the ``at``-th prompt and writes its file."""
    precision = PRESETS[WAYS[way][0]]
    model = laguna_ref.load(numerics="float64", engine="numpy", **WAYS[way][1])
    case = prepared(model, [])[at]
    name = budget_cache.name_of(model, *case.prompt, precision, budget="whole")
    arrays, meta = measure(model, *case.prompt, precision).to_arrays()
    budget_cache.write(budget_cache.committed_file(name), arrays, meta)
    return f"{WAYS[way][0]} {WAYS[way][1]} {case.case.name}"


def main() -> None:
    """Writes every file anew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    for path in budget_cache.COMMITTED.glob(f"*{budget_cache.SUFFIX}"):
        path.unlink()
    cases = prepared(laguna_ref.load(numerics="float64", engine="numpy"), [])
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of the workers
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        for way in range(len(WAYS)):
            for done in pool.map(make, repeat(way), range(len(cases))):
                print(done, flush=True)


if __name__ == "__main__":
    main()
