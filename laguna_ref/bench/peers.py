"""Other implementations on the same weights and tokens, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from laguna_ref.bench.runs import Result, Runs
from laguna_ref.bench.timing import Effort, Timing
from laguna_ref.bench.work import Storage, attention_work, weights_work
from laguna_ref.errors import LagunaError
from laguna_ref.sizes import sizes

ADAPTERS = "laguna_ref.conformance.adapters"
HEADROOM = 1.15
"""Room asked for, as a multiple of the weights' own."""
LEAST_AGREEMENT = 0.999
"""Correlation of logits below which it is not the same model that is timed."""
REQUANTISED = 0.5
"""The same for weights that a peer quantised once more from those of a variant before.

Which is another model: experts change. Only a file that went wrong is refused.
"""


class PeerError(LagunaError):
    """A peer that cannot be run, or that computes something else."""


@dataclass(frozen=True)
class Variant:
    """One way to run a peer, a row of its own: its name, and how it holds numbers."""

    name: str
    weight_bytes: float
    """Bytes of a weight, scales included."""
    kv_bytes: int
    """Bytes of a cached number."""
    head_bytes: float | None = None
    """Bytes of a weight of the head, where that has a type of its own."""
    least_agreement: float = LEAST_AGREEMENT


@dataclass(frozen=True)
class Peer:
    """An implementation: what it needs, the script that runs it, and what is timed of it."""

    title: str
    packages: tuple[str, ...]
    """Modules that must be there to be imported."""
    extra: str
    """The extra of this package that installs them."""
    script: str
    """A module of ``conformance/adapters``."""
    variants: Mapping[str, Variant]
    """By the name that the script knows them by."""
    memory_bytes: float
    """Memory that it takes for each weight of the model."""
    disk_bytes: float = 0.0
    """Temporary files, for each weight of the model."""

    def installed(self) -> bool:
        """Whether its packages can be imported, without importing them."""
        return all(find_spec(name) for name in self.packages)

    def missing_memory(self, runs: Runs) -> int:
        """How many bytes of memory are missing for its weights; 0 when there are enough."""
        return _missing(runs, self.memory_bytes, available_bytes())

    def missing_disk(self, runs: Runs) -> int:
        """The same of room for temporary files."""
        return _missing(runs, self.disk_bytes, shutil.disk_usage(tempfile.gettempdir()).free)


PEERS = {
    "transformers": Peer(
        "Transformers", ("torch", "transformers"), "peers", "transformers_speed",
        {
            # Its ways to compute experts: its default, and the loop over experts.
            experts: Variant(f"transformers float32 ({experts})", 4, 4)
            for experts in ("grouped_mm", "eager")
        },
        memory_bytes=4,
    ),
    "llamacpp": Peer(
        "llama.cpp", ("llama_cpp", "gguf"), "llamacpp", "llamacpp_speed",
        {
            "BF16": Variant("llama.cpp BF16", 2, 2),
            # Blocks of 32 four-bit codes and a float16; its quantiser gives the head Q6_K.
            "Q4_0": Variant("llama.cpp Q4_0", 18 / 32, 2, 210 / 256, REQUANTISED),
        },
        memory_bytes=2, disk_bytes=2 + 18 / 32,
    ),
}  # fmt: skip
"""By the name that ``bench --peer`` takes."""


def _missing(runs: Runs, per_weight: float, available: int) -> int:
    needed = int(HEADROOM * per_weight * sizes(runs.model.config).parameters)
    return max(0, needed - available)


def available_bytes() -> int:
    """Memory that a new process may take without swapping; a great number where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return 1 << 62
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(found["MemAvailable"].split()[0]) * 1024


def measure(
    peer: Peer, runs: Runs, ours: Sequence[Result], threads: int, effort: Effort
) -> tuple[list[Result], str]:
    """A peer on the same runs: decoding at context 1, and prefill.

    A result for each run and each of its variants, and a note on what was run. Raises
    PeerError.
    """
    prompts = [
        runs.decode_tokens() if one.what == "decode" else runs.prompt(one.tokens) for one in ours
    ]
    asked = [
        {"decode": one.what == "decode", "tokens": prompt.tolist()}
        for one, prompt in zip(ours, prompts, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="laguna-ref-bench-") as folder:
        answer = _ask(
            peer,
            {
                "path": str(runs.model.checkpoint.path.resolve()),
                "folder": folder,
                "threads": threads,
                "variants": list(peer.variants),
                "effort": asdict(effort),
                "runs": asked,
            },
        )
    for key, variant in peer.variants.items():
        if not answer["agreement"][key] >= variant.least_agreement:
            raise PeerError(
                f"{variant.name} computes another function",
                expected=f"logits that correlate by {variant.least_agreement} or more",
                found=answer["agreement"][key],
            )
    results = [
        _result(runs, one, Timing(tuple(seconds)), variant)
        for key, variant in peer.variants.items()
        for one, seconds in zip(ours, answer["seconds"][key], strict=True)
    ]
    versions = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    agreement = ", ".join(f"{value:.6f} ({key})" for key, value in answer["agreement"].items())
    return results, f"{versions}; its logits and ours correlate by {agreement}"


def _result(runs: Runs, one: Result, timing: Timing, variant: Variant) -> Result:
    """The peer's result for a run of ours, which needs other bytes."""
    config = runs.model.config
    kv_bytes = (variant.kv_bytes,) * len(config.layers)
    storage = Storage(variant.weight_bytes, kv_bytes, variant.head_bytes)
    attention = attention_work(config, storage, one.context, one.tokens)
    work = weights_work(config, storage, one.tokens, one.hits) + attention
    return replace(
        one, timing=timing, work=work, attention=attention, peer=variant.name, operations={}
    )


def _ask(peer: Peer, request: dict[str, Any]) -> Any:
    """The answer of the peer's script, run with this package importable."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", f"{ADAPTERS}.{peer.script}"],
        input=json.dumps(request), capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerError(f"{peer.title} failed", found=last)
    return json.loads(done.stdout)
