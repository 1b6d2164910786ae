"""Remakes ``laguna_ref/data/budgets``: what the goldens' prompts may be off by.

    python tools/make_budgets.py --workers 2

One file a prompt and a way to be judged, so that nobody waits for them: 400 legal runs of 13
prompts take a core 17 minutes each way. Run it when a legal variation, a comparison or the cases
change; the tests hold fresh legal runs against what is committed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import numpy as np

import laguna_ref
from laguna_ref.conformance import budget_cache
from laguna_ref.conformance.budget import measure
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.prepared import Prepared, prepared

WAYS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("float32", {"dequant": "exact", "kv_cache": "checkpoint"}),
    ("float32", {"dequant": "exact", "kv_cache": "float"}),
    ("bfloat16", {"dequant": "bf16", "kv_cache": "float"}),
    ("bfloat16+fp8-kv", {"dequant": "bf16", "kv_cache": "checkpoint"}),
)
"""A declared precision, and how the oracle that judges such a backend is loaded."""


def make(way: int, at: int) -> str:
    """Measures the budget of the ``at``-th prompt and writes its file."""
    precision = PRESETS[WAYS[way][0]]
    model = laguna_ref.load(numerics="float64", engine="numpy", **WAYS[way][1])
    case = prepared(model, [])[at]
    tokens, positions = prompt_of(case)
    name = budget_cache.name_of(model, tokens, positions, precision, budget="whole")
    arrays, meta = measure(model, tokens, positions, precision).to_arrays()
    budget_cache.write(budget_cache.committed_file(name), arrays, meta)
    return f"{WAYS[way][0]} {WAYS[way][1]} {case.case.name}"


def prompt_of(case: Prepared) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Token ids and positions."""
    tokens = np.array(case.case.tokens)
    given = case.case.positions
    return tokens, np.arange(len(tokens)) if given is None else np.array(given)


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
