"""Every fault, planted and diagnosed: found? named? at which rank?

    python tools/oracle_power.py --workers 2 --out docs/oracle-power.md

The culprit is laguna-tiny with the fault, in another engine (compiled kernels) for about half of
the faults and with legal noise (a variation that no budget has used) for the others, on prompts of
its own. Each is looked at with its full trace and with nothing but its logits, and compared with
the oracle in float64. What laguna-tiny cannot show, because its attention factor is 1, say, is
planted in a smaller checkpoint that can.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

import laguna_ref
from laguna_ref.conformance.budget import PromptRuns
from laguna_ref.conformance.diagnosis.diagnose import diagnose, searching
from laguna_ref.conformance.diagnosis.misfit import Floors, Observation
from laguna_ref.conformance.diagnosis.prompts import drawn
from laguna_ref.conformance.faults import CATALOGUE
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.replay import run
from laguna_ref.conformance.variations import draw, varied
from laguna_ref.model import Laguna

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.small import quantised, small, small_config

PROMPT_SEED, NOISE_SEED = 1, 2_000_000
"""Neither is used by a diagnosis itself."""
NUMERICS = {"float32": "float32", "bfloat16+fp8-kv": "bfloat16"}
WAYS = ("trace", "logits")


class Row(NamedTuple):
    """One diagnosis."""

    fault: str
    checkpoint: str
    precision: str
    way: str
    culprit: str
    visible: bool
    """Whether the float64 oracle computes other bits with the fault than without it."""
    verdict: str
    rank: int | None
    explained: float
    first: str


def laguna_tiny(**options: Any) -> Laguna:
    """The embedded checkpoint."""
    return laguna_ref.load(**options)


def telling(**options: Any) -> Laguna:
    """Three layers with an attention factor, short groups, scales below float16's normal range, a
    cache in FP8 that saturates, and one layer's cache in floating point."""
    config = quantised(small_config())
    config["rope_parameters"]["full_attention"]["attention_factor"] = 1.25
    of = small(config)
    for name, array in of.stored.items():
        if name.endswith("weight_scale") and ("up_proj" in name or "down_proj" in name):
            factor = 2.0**-14 if "up_proj" in name else 2.0**14
            of.stored[name][:] = array * array.dtype.type(factor)
    narrow = of.with_tensors({"model.layers.2.self_attn.v_scale": [2.0**-8]})
    return narrow.load(kv_cache_skip_layers=[0], **options)


def tied(**options: Any) -> Laguna:
    """Experts that score alike."""

    def change(name: str, value: Any) -> Any:
        if name.endswith("mlp.gate.weight"):
            return np.repeat(value[:1], len(value), axis=0)
        return np.zeros_like(value) if name.endswith("correction_bias") else None

    return small(small_config()).mapped(change).load(**options)


CHECKPOINTS: dict[str, Callable[..., Laguna]] = {
    "laguna-tiny": laguna_tiny, "telling": telling, "tied": tied,
}  # fmt: skip


def examine(fault: str, precision: str) -> list[Row]:
    """Both ways to look at one culprit, on the first checkpoint that shows it."""
    for name, load in CHECKPOINTS.items():
        oracle = load(numerics="float64", engine="numpy")
        if _visible(fault, oracle):
            return _diagnosed(fault, precision, name)
    return _diagnosed(fault, precision, "laguna-tiny", visible=False)


def _visible(fault: str, oracle: Laguna) -> bool:
    """Whether the oracle computes other bits with the fault, on any prompt."""
    with_it = CATALOGUE[fault].plant(oracle)
    return any(
        not np.array_equal(with_it(tokens, positions=at), oracle(tokens, positions=at))
        for tokens, at in _prompts(oracle)
    )


def _prompts(oracle: Laguna) -> list[tuple[Any, Any]]:
    return [
        (np.array(p.tokens), np.arange(len(p.tokens)) if p.positions is None else p.positions)
        for p in drawn(oracle.config, PROMPT_SEED)
    ]


def _diagnosed(fault: str, precision: str, checkpoint: str, visible: bool = True) -> list[Row]:
    own, load = crc32(fault.encode()) % 1000, CHECKPOINTS[checkpoint]
    kernels = own % 2 == 0
    oracle, floors = _oracle(checkpoint, precision)
    traces = []
    for tokens, places in _prompts(oracle):
        culprit = CATALOGUE[fault].plant(_sound(load, precision, kernels, NOISE_SEED + own))
        traces.append((tokens, np.array(places), run(culprit, tokens, np.array(places))))
    rows = []
    for way in WAYS:
        shown = [
            Observation(t, p, trace if way == "trace" else {"lm_head": trace["lm_head"]})
            for t, p, trace in traces
        ]
        found = diagnose(oracle, shown, PRESETS[precision], floors=floors)
        ranks = [c.rank for c in found.causes if c.fault == fault]
        best = found.causes[0] if found.causes else None
        rows.append(Row(
            fault, checkpoint, precision, way, "kernels" if kernels else "noise", visible,
            found.verdict, min(ranks, default=None), best.explained if best else 0.0,
            best.fault if best else "",
        ))  # fmt: skip
    return rows


@lru_cache
def _oracle(checkpoint: str, precision: str) -> tuple[Laguna, Floors]:
    """All faults of one checkpoint are diagnosed on the same prompts: the floors are the same."""
    return CHECKPOINTS[checkpoint](numerics="float64", engine="numpy"), {}


def _sound(load: Callable[..., Laguna], precision: str, kernels: bool, seed: int) -> Laguna:
    if kernels:
        return load(numerics=NUMERICS[precision], engine="numba", dequant="exact")
    return varied(load(engine="numpy"), draw(PRESETS[precision], seed), Matrices())


class Alarms(NamedTuple):
    """Legal runs of laguna-tiny taken for faulty ones."""

    precision: str
    runs: int
    by_trace: int
    """By operations or by logits: what is looked at where a trace is known."""
    by_logits: int


def alarms(precision: str, runs: int) -> Alarms:
    """Fresh legal variations, judged as ``diagnose`` judges before it looks for a cause."""
    oracle, floors = _oracle("laguna-tiny", precision)
    prompts = [(np.array(tokens), np.array(at)) for tokens, at in _prompts(oracle)]
    legal = [PromptRuns(oracle, *prompt, PRESETS[precision]) for prompt in prompts]
    accused = []
    for seed in range(NOISE_SEED, NOISE_SEED + runs):
        seen = [Observation(each.oracle.tokens, each.oracle.positions, each.trace(seed))
                for each in legal]  # fmt: skip
        strays = {}
        for way in WAYS:
            search = searching(oracle, seen, PRESETS[precision], way, _silent, floors)
            strays[way] = search is not None and search.deviation > search.noise
        accused.append((any(strays.values()), strays["logits"]))
    by_trace, by_logits = np.sum(accused, axis=0).tolist()
    return Alarms(precision, runs, by_trace, by_logits)


def _silent(what: str, done: int, total: int) -> None:
    pass


def page(rows: Sequence[Row], legal: Sequence[Alarms]) -> str:
    """docs/oracle-power.md."""
    lines = ["# The oracle's power", "", *_introduction(), ""]
    for precision in dict.fromkeys(row.precision for row in rows):
        of = [row for row in rows if row.precision == precision]
        lines += [f"## {precision}", "", *_summary(of), ""]
        lines += [line for each in legal if each.precision == precision for line in _alarms(each)]
        lines += [*_table(of), ""]
    return "\n".join(lines)


def _introduction() -> list[str]:
    return [
        "Which of the catalogue's faults are found, and which are named, when they are planted:",
        "`python tools/oracle_power.py --out docs/oracle-power.md` makes this page. The culprit",
        "computes in compiled kernels or with legal noise, on prompts that no diagnosis uses.",
        "*Found*: not taken for conforming. *Named*: the verdict is that, and this fault, by",
        "itself, has the rank given; causes of one rank cannot be told apart by what was",
        "observed, the simplest is printed first. Faults are planted",
        "in laguna-tiny where it shows them, else in one of two smaller checkpoints that the",
        "script makes (`telling` has an attention factor, short groups, small scales and a cache",
        "that saturates; `tied` has experts that score alike). *Invisible*: the float64 oracle",
        "computes the same bits with the fault and without it on all three. What shows these:",
        "a second stop id is missed by `generate` alone, a ring that is one short by calls that",
        "continue a prompt (the law `chunks`), and the order of a cast where there are casts",
        "(`test_faults_apart.py`, `test_faults_elsewhere.py`).",
    ]


def _summary(rows: Sequence[Row]) -> list[str]:
    lines = ["| looked at | visible | found | named at rank 1 | printed first | at rank 1 to 3 |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for way in WAYS:
        seen = [row for row in rows if row.way == way and row.visible]
        found = sum(row.verdict in ("named", "unknown") for row in seen)
        named = [row for row in seen if row.verdict == "named" and row.rank is not None]
        first = sum(row.rank == 1 for row in named)
        alone = sum(row.rank == 1 and row.first == row.fault for row in named)
        three = sum(row.rank is not None and row.rank <= 3 for row in named)
        share = [f"{n} ({n / max(len(seen), 1):.0%})" for n in (found, first, alone, three)]
        lines.append(f"| {way} | {len(seen)} | {' | '.join(share)} |")
    hidden = sorted({row.fault for row in rows if not row.visible})
    of = len({row.fault for row in rows})
    share_hidden = f"{len(hidden)} of {of} ({len(hidden) / max(of, 1):.1%})"
    return [*lines, "", f"Invisible: {share_hidden}: {', '.join(hidden) or 'none'}."]


def _alarms(legal: Alarms) -> list[str]:
    return [
        f"Of {legal.runs:,} fresh legal variations of laguna-tiny, {legal.by_trace} are taken for",
        f"faulty by trace and logits, {legal.by_logits} by logits alone (the stated rate is 1 %).",
        "",
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    lines = ["| fault | checkpoint | culprit | trace | logits |", "| --- | --- | --- | --- | --- |"]
    for fault in dict.fromkeys(row.fault for row in rows if row.visible):
        trace, logits = (next(r for r in rows if r.fault == fault and r.way == way) for way in WAYS)
        where = f"{fault} | {trace.checkpoint} | {trace.culprit}"
        lines.append(f"| {where} | {_cell(trace)} | {_cell(logits)} |")
    return lines


def _cell(row: Row) -> str:
    if row.verdict == "conforming":
        return "not found"
    if row.rank == 1 and row.verdict == "named":
        also = "" if row.first == row.fault else f", as is {row.first}"
        return f"named, {row.explained:.0%}{also}"
    rank = "not among the causes" if row.rank is None else f"rank {row.rank}"
    return f"{row.verdict}, {rank}; first: {row.first or 'none'} {row.explained:.0%}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--precision", action="append", choices=NUMERICS)
    parser.add_argument("--fault", action="append", choices=CATALOGUE)
    parser.add_argument("--legal", type=int, default=1000, help="legal runs held against the noise")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=Path, help="file that diagnoses are kept in: an interrupted "
                        "run of the same code goes on where it was")  # fmt: skip
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.fault and asked.out:
        parser.error("a page has all faults: --out without --fault")
    precisions = asked.precision or list(NUMERICS)
    kept = Kept(asked.rows)
    jobs = [
        (fault, precision)
        for precision in precisions
        for fault in asked.fault or CATALOGUE
        if not kept.has(fault, precision)
    ]
    for variable in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # of the workers: the work is spread over them
    # Compiled kernels and forked processes do not go together.
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        for done in pool.map(examine, *zip(*jobs, strict=True)) if jobs else ():
            kept.add(done)
            for row in done:
                print(row.fault, row.precision, row.way, row.visible, _cell(row), flush=True)
        counts = [asked.legal] * len(precisions)
        legal = list(pool.map(alarms, precisions, counts)) if asked.legal else []
    if asked.out:
        asked.out.write_text(page(kept.of(precisions), legal), encoding="utf-8")


class Kept:
    """Rows of this run and of earlier ones of the same file."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows = path, list[Row]()
        if path is not None and path.exists():
            lines = path.read_text("utf-8").splitlines()
            self.rows = [Row(**json.loads(line)) for line in lines]

    def has(self, fault: str, precision: str) -> bool:
        """Whether it has been diagnosed."""
        return any((row.fault, row.precision) == (fault, precision) for row in self.rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Both ways to look at one culprit."""
        self.rows += rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row._asdict()) + "\n" for row in rows)

    def of(self, precisions: Sequence[str]) -> list[Row]:
        """In the catalogue's order."""
        order = list(CATALOGUE)
        some = [row for row in self.rows if row.precision in precisions]
        return sorted(some, key=lambda r: (precisions.index(r.precision), order.index(r.fault)))


if __name__ == "__main__":
    main()
