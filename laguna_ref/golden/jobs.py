"""Making a folder of goldens: one job a case, each skipped when its file is complete already.

A job is all that a process on any machine needs that sees the checkpoint and the folder; it
writes its file itself, complete or not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from laguna_ref.golden.cases import Case
from laguna_ref.golden.errors import GoldenError
from laguna_ref.golden.golden import Budget, Golden, make
from laguna_ref.golden.golden_file import SUFFIX, read_golden, write_golden
from laguna_ref.golden.logits import FULL_UP_TO
from laguna_ref.golden.settings import SAME, settings_of
from laguna_ref.load import load, resolve
from laguna_ref.model import Laguna

_COMPUTING = threading.Lock()
"""Kernels take all the threads they may have, so one process computes one case at a time."""


@dataclass(frozen=True)
class ModelSpec:
    """How to load the model of a golden; what a case decides, its cache, is left open."""

    path: str
    numerics: str = "float64"
    engine: str = "numba"
    dequant: str | None = None
    kv_cache_skip_layers: tuple[str, ...] = ()
    threads: int | None = None
    ignore_config_keys: tuple[str, ...] = ()

    def load(self, kv_cache: str) -> Laguna:
        """The model, from the few that this process has opened already or anew."""
        return _load(self, kv_cache)


@lru_cache(maxsize=6)
def _load(spec: ModelSpec, kv_cache: str) -> Laguna:
    options = asdict(spec)
    return load(options.pop("path"), kv_cache=kv_cache, **options)


def absolute(path: str | Path | None) -> str:
    """The checkpoint's folder, as a process with another working directory needs it."""
    return str(resolve(path).absolute())


@dataclass(frozen=True)
class Job:
    """One case to be computed, and where to."""

    spec: ModelSpec
    case: Case
    folder: str
    overwrite: bool = False
    full_logits_up_to: int = FULL_UP_TO
    budget: Budget | None = None

    @property
    def path(self) -> Path:
        """The golden's file."""
        return Path(self.folder) / f"{self.case.name}{SUFFIX}"


@dataclass(frozen=True)
class Done:
    """What came of a job."""

    name: str
    path: str
    tokens: int
    computed: bool
    """False where the file was complete already."""


def run(job: Job, progress: Callable[[int], None] | None = None) -> Done:
    """Computes and writes a case, unless its file holds it already.

    Raises GoldenError if the file is damaged or holds something else, unless the job may
    overwrite.
    """
    count = len(job.case.tokens)
    with _COMPUTING:
        model = job.spec.load(job.case.kv_cache)
        if job.path.exists() and not job.overwrite and _is_complete(job, model):
            return Done(job.case.name, str(job.path), count, False)
        golden = make(
            model,
            job.case,
            kv_cache_skip_layers=job.spec.kv_cache_skip_layers,
            full_logits_up_to=job.full_logits_up_to,
            budget=job.budget,
            progress=progress,
        )
        write_golden(job.path, golden)
    return Done(job.case.name, str(job.path), count, True)


def jobs_for(
    spec: ModelSpec, cases: Iterable[Case], folder: str | Path, **options: Any
) -> list[Job]:
    """One a case; the folder is made if need be. ``options`` are those of ``Job``."""
    target = Path(folder).absolute()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise GoldenError(f"cannot be made ({problem.strerror})", file=target) from problem
    return [Job(spec, case, str(target), **options) for case in cases]


def _is_complete(job: Job, model: Laguna) -> bool:
    """Whether the file holds the job's golden; raises GoldenError if it holds another."""
    golden = read_golden(job.path, model)
    expected = asdict(job.case) | _same(settings_of(
        model, job.case.kv_cache, job.spec.kv_cache_skip_layers))  # fmt: skip
    found = asdict(golden.case) | _same(golden.settings)
    for key, value in expected.items():
        if found[key] != value:
            raise GoldenError(
                "holds another golden of this name; remove it, choose another folder, or overwrite",
                file=job.path, key=key, expected=value, found=found[key],
            )  # fmt: skip
    return _kept_as_asked(job, golden, model)


def _kept_as_asked(job: Job, golden: Golden, model: Laguna) -> bool:
    full = model.config.vocab_size <= job.full_logits_up_to
    return _has_its_budget(job, golden) and full == (golden.logits.full is not None)


def _has_its_budget(job: Job, golden: Golden) -> bool:
    """Whether the noise was measured as asked, if a budget can tell (``made``)."""
    if job.budget is None or golden.budget_meta is None:
        return job.budget is None
    made = getattr(job.budget, "made", None)
    return made is None or bool(made(golden.budget_meta))


def _same(settings: Any) -> dict[str, Any]:
    return {key: settings[key] for key in SAME}
