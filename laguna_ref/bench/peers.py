"""Other implementations on the same weights and tokens, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from laguna_ref.bench.runs import Result, Runs
from laguna_ref.bench.timing import Effort, Timing
from laguna_ref.bench.work import Storage, attention_work, weights_work
from laguna_ref.errors import LagunaError
from laguna_ref.sizes import sizes

EXPERTS = ("grouped_mm", "eager")
"""Transformers' ways to compute experts: its default, and the loop over experts."""
FLOAT32_BYTES = 4
HEADROOM = 1.15
"""Memory asked for, as a multiple of the weights' own."""
LEAST_AGREEMENT = 0.999
"""Correlation of logits below which it is not the same model that is timed."""


class PeerError(LagunaError):
    """A peer that cannot be run, or that computes something else."""


def installed() -> bool:
    """Whether Transformers with a Laguna can be imported, without importing it."""
    return bool(find_spec("torch") and find_spec("transformers"))


def missing_bytes(runs: Runs) -> int:
    """How much memory is missing for all weights in float32; 0 when there is enough."""
    needed = int(HEADROOM * FLOAT32_BYTES * sizes(runs.model.config).parameters)
    return max(0, needed - available_bytes())


def available_bytes() -> int:
    """Memory that a new process may take without swapping; a great number where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return 1 << 62
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(found["MemAvailable"].split()[0]) * 1024


def transformers(
    runs: Runs, ours: Sequence[Result], threads: int, effort: Effort
) -> tuple[list[Result], str]:
    """Transformers in float32 on the same runs: decoding at context 1, and prefill.

    A result for each run and each way to compute experts, and a note on what was run. Raises
    PeerError.
    """
    prompts = [
        runs.decode_tokens() if one.what == "decode" else runs.prompt(one.tokens) for one in ours
    ]
    asked = [
        {"decode": one.what == "decode", "tokens": prompt.tolist()}
        for one, prompt in zip(ours, prompts, strict=True)
    ]
    answer = _ask(
        {
            "path": str(runs.model.checkpoint.path.resolve()),
            "threads": threads,
            "experts": EXPERTS,
            "effort": asdict(effort),
            "runs": asked,
        }
    )
    if not answer["agreement"] >= LEAST_AGREEMENT:
        raise PeerError(
            "Transformers computes another function",
            expected=f"logits that correlate by {LEAST_AGREEMENT} or more",
            found=answer["agreement"],
        )
    results = []
    for experts, timings in answer["seconds"].items():
        for one, seconds in zip(ours, timings, strict=True):
            name = f"transformers float32 ({experts})"
            results.append(_result(runs, one, Timing(tuple(seconds)), name))
    versions = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    note = f"{versions}; its logits and ours correlate by {answer['agreement']:.6f}"
    return results, note


def _result(runs: Runs, one: Result, timing: Timing, name: str) -> Result:
    """The peer's result for a run of ours: every weight and cached number takes four bytes."""
    config = runs.model.config
    storage = Storage(FLOAT32_BYTES, (FLOAT32_BYTES,) * len(config.layers))
    attention = attention_work(config, storage, one.context, one.tokens)
    work = weights_work(config, storage, one.tokens, one.hits) + attention
    return replace(one, timing=timing, work=work, attention=attention, peer=name, operations={})


def _ask(request: dict[str, Any]) -> Any:
    """The answer of ``transformers_speed``, run with this package importable."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "laguna_ref.conformance.adapters.transformers_speed"],
        input=json.dumps(request), capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerError("Transformers failed", found=last)
    return json.loads(done.stdout)
