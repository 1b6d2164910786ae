"""Every fault, planted and diagnosed: found? named? at which rank?

    python tools/oracle_power.py --workers 2 --out docs/oracle-power.md

The culprit is laguna-tiny with the fault, in another engine (compiled kernels) for one half of the
faults and with legal noise (a variation that no budget has used) for the other, on prompts of
its own. Each is looked at with its full trace and with nothing but its logits, and compared with
the oracle in float64.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import laguna_ref
from laguna_ref.conformance.diagnosis.misfit import Observation
from laguna_ref.conformance.diagnosis.prompts import drawn
from laguna_ref.conformance.diagnosis.search import diagnose
from laguna_ref.conformance.faults import CATALOGUE
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.replay import run
from laguna_ref.conformance.variations import draw, varied
from laguna_ref.model import Laguna

PROMPT_SEED, NOISE_SEED = 1, 2_000_000
"""Neither is used by a diagnosis itself."""
NUMERICS = {"float32": "float32", "bfloat16+fp8-kv": "bfloat16"}
WAYS = ("trace", "logits")


class Row(NamedTuple):
    """One diagnosis."""

    fault: str
    precision: str
    way: str
    culprit: str
    visible: bool
    """Whether the float64 oracle computes other bits with the fault than without it."""
    verdict: str
    rank: int | None
    explained: float
    first: str


def examine(fault: str, precision: str) -> list[Row]:
    """Both ways to look at one culprit."""
    at = list(CATALOGUE).index(fault)
    kernels = at % 2 == 0
    oracle = laguna_ref.load(numerics="float64", engine="numpy")
    prompts = drawn(oracle.config, PROMPT_SEED)
    traces, visible = [], False
    for prompt in prompts:
        tokens = np.array(prompt.tokens)
        places = np.arange(len(tokens)) if prompt.positions is None else np.array(prompt.positions)
        sound = _culprit(precision, kernels, NOISE_SEED + at)
        traces.append((tokens, places, run(CATALOGUE[fault].plant(sound), tokens, places)))
        with_it = CATALOGUE[fault].plant(oracle)(tokens, positions=places)
        visible |= not np.array_equal(with_it, oracle(tokens, positions=places))
    rows = []
    for way in WAYS:
        shown = [
            Observation(t, p, trace if way == "trace" else {"lm_head": trace["lm_head"]})
            for t, p, trace in traces
        ]
        found = diagnose(oracle, shown, PRESETS[precision])
        ranks = [c.rank for c in found.causes if fault in c.fault.split(" and ")]
        best = found.causes[0] if found.causes else None
        rows.append(Row(
            fault, precision, way, "kernels" if kernels else "noise", visible, found.verdict,
            min(ranks, default=None), best.explained if best else 0.0, best.fault if best else "",
        ))  # fmt: skip
    return rows


def _culprit(precision: str, kernels: bool, seed: int) -> Laguna:
    if kernels:
        return laguna_ref.load(numerics=NUMERICS[precision], engine="numba", dequant="exact")
    model = laguna_ref.load(engine="numpy")
    return varied(model, draw(PRESETS[precision], seed), Matrices())


def page(rows: Sequence[Row]) -> str:
    """docs/oracle-power.md."""

    lines = ["# The oracle's power", "", *_introduction(), ""]
    for precision in dict.fromkeys(row.precision for row in rows):
        lines += [f"## {precision}", "", *_summary([r for r in rows if r.precision == precision])]
        lines += ["", *_table([r for r in rows if r.precision == precision]), ""]
    return "\n".join(lines)


def _introduction() -> list[str]:
    return [
        "Which of the catalogue's faults are found, and which are named, when they are planted in",
        "laguna-tiny: `python tools/oracle_power.py` makes this page. The culprit computes in",
        "compiled kernels or with legal noise, on prompts that no diagnosis uses. *Found*: not",
        "taken for conforming. *Named*: the fault is among the causes, at the rank given; causes",
        "of one rank cannot be told apart by what was observed. *Invisible*: the float64 oracle",
        "computes the same bits with the fault and without it on these prompts; such faults are",
        "tested on other checkpoints (`test_faults_apart.py`, `test_faults_elsewhere.py`).",
    ]


def _summary(rows: Sequence[Row]) -> list[str]:
    lines = ["| looked at | faults visible | found | named first | rank 1 to 3 |",
             "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for way in WAYS:
        seen = [row for row in rows if row.way == way and row.visible]
        found = sum(row.verdict in ("named", "unknown") for row in seen)
        first = sum(row.rank == 1 and row.verdict == "named" for row in seen)
        three = sum(row.rank is not None and row.rank <= 3 for row in seen)
        share = [f"{n} ({n / len(seen):.0%})" for n in (found, first, three)]
        lines.append(f"| {way} | {len(seen)} | {share[0]} | {share[1]} | {share[2]} |")
    hidden = sorted({row.fault for row in rows if not row.visible})
    return [*lines, "", f"Invisible on these prompts: {', '.join(hidden) or 'none'}."]


def _table(rows: Sequence[Row]) -> list[str]:
    lines = ["| fault | culprit | trace | logits |", "| --- | --- | --- | --- |"]
    for fault in dict.fromkeys(row.fault for row in rows if row.visible):
        trace, logits = (next(r for r in rows if r.fault == fault and r.way == way) for way in WAYS)
        lines.append(f"| {fault} | {trace.culprit} | {_cell(trace)} | {_cell(logits)} |")
    return lines


def _cell(row: Row) -> str:
    if row.verdict == "conforming":
        return "not found"
    if row.rank == 1 and row.verdict == "named":
        return f"named, {row.explained:.0%}"
    rank = "not among the causes" if row.rank is None else f"rank {row.rank}"
    return f"{row.verdict}, {rank}; first: {row.first or 'none'} {row.explained:.0%}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--precision", action="append", choices=NUMERICS)
    parser.add_argument("--fault", action="append", choices=CATALOGUE)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    jobs: list[Any] = [
        (fault, precision)
        for precision in asked.precision or NUMERICS
        for fault in asked.fault or CATALOGUE
    ]
    rows: list[Row] = []
    for variable in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # of the workers: the work is spread over them
    # Compiled kernels and forked processes do not go together.
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        for done in pool.map(examine, *zip(*jobs, strict=True)):
            rows += done
            for row in done:
                print(row.fault, row.precision, row.way, row.visible, _cell(row), flush=True)
    if asked.out:
        asked.out.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
