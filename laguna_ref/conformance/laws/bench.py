"""The backend under test, and where its models and its failures are written."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from laguna_ref.conformance.asking import one_line
from laguna_ref.conformance.backend import Backend, BackendError, Opener, can, declared_precision
from laguna_ref.conformance.laws.case import Built, Case
from laguna_ref.conformance.laws.example import Config, Example, to_blob
from laguna_ref.conformance.laws.judging import Judge
from laguna_ref.conformance.laws.law import Law, NothingToSayError, Setting
from laguna_ref.conformance.laws.legal import LegalBackend
from laguna_ref.conformance.strategies import configs, fp8_cache
from laguna_ref.errors import InputError, LagunaError
from laguna_ref.model import Laguna


@dataclass
class Bench:
    """The backend under test and how it is judged."""

    opened: Callable[[Built], Backend]
    probe: Backend
    judges: Judge
    setting: Setting
    oracle: Laguna | None
    parent: Path
    database: Path | None
    no_fp8: str | None = None
    """What it said when it was given a model with an FP8 cache and would not open it."""

    @property
    def options(self) -> dict[str, Any]:
        """Of ``laguna_ref.load``, for the model that the backend says it is to be judged by."""
        return dict(getattr(self.probe, "oracle", {}))

    def why_not(self, law: Law) -> str | None:
        """Why a law is not applicable to this backend, or None."""
        missing = [need for need in law.needs if not can(self.probe, need)]
        if missing:
            return f"the backend has no {' and no '.join(missing)}"
        if self.setting.vocabulary is not None:
            if not law.given:
                return "it needs models drawn for it, and this backend serves one"
            if self.oracle is None and not self.judges.exact:
                return "its noise cannot be measured without the oracle of the model served"
        cache = self.options.get("kv_cache", self.judges.precision.kv)
        if law.fp8 and cache not in ("as judged", "checkpoint", "fp8"):
            return f"the backend's cache is {cache}"
        if law.fp8 and self.no_fp8 is not None:
            return f"the backend opens no model with an FP8 cache: {self.no_fp8}"
        return None

    def judge(self, law: Law, example: Example) -> None:
        """Raises BrokenLawError or NothingToSayError; returns if the law holds."""
        with tempfile.TemporaryDirectory(dir=self.parent) as folder:
            case = Case(example, Path(folder), self.oracle, **self.options)
            self.judges.judge(law, case, self.opened)

    def save(self, law: Law, example: Example, detail: str) -> str:
        """Where the failure lies: a folder with its models, or all of it in one word."""
        if self.database is None:
            return to_blob(law.name, example)
        target = self.database / f"{law.name}-{example.key}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        written = {"law": law.name, "detail": detail, "backend": self.probe.name,
                   "example": example.to_json()}  # fmt: skip
        (target / "example.json").write_text(json.dumps(written, indent=2) + "\n", "utf-8")
        if example.config:
            # Putting the law to a legal backend writes every model it asks for.
            case = Case(example, target / "models", **self.options)
            with suppress(LagunaError):
                list(law.check(case, lambda built: LegalBackend(built, self.judges.precision, 0)))
        return str(target)


def make_bench(
    opener: Opener | None, backend: Backend | None, oracle: Laguna | None, parent: Path,
    database: Path | None,
) -> Bench:  # fmt: skip
    """``parent``: folder for models; ``database``: for failures.

    Raises InputError, BackendError.
    """
    if opener is None and backend is None:
        raise InputError("laws need a backend, or what opens one")
    probe, no_fp8 = (backend, None) if opener is None else _probe(opener, parent)
    assert probe is not None
    precision = declared_precision(probe)
    partial = getattr(probe, "logits_kind", None) == "logprobs"
    judges = Judge(precision, can(probe, "exact"), partial)
    if opener is None:
        served = probe
        setting = Setting(vocabulary=_vocabulary(served, oracle))
        return Bench(lambda built: served, probe, judges, setting, oracle, parent, database)
    setting = Setting(every_expert=precision.activations != "float32")

    def opened(built: Built) -> Backend:
        assert built.folder is not None
        try:
            return opener(built.folder)
        except BackendError as problem:
            raise NothingToSayError(f"refused: {problem.message}", found=problem.found) from problem

    return Bench(opened, probe, judges, setting, None, parent, database, no_fp8)


def _probe(opener: Opener, parent: Path) -> tuple[Backend, str | None]:
    """The backend with a plain model, to ask what it can do: one with an FP8 cache, or what it
    said to that. Raises BackendError where it opens neither."""
    config = hypothesis.find(
        configs(Setting()), lambda found: True,
        settings=hypothesis.settings(
            database=None, derandomize=True, phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip

    def opened(name: str, more: Config) -> Backend:
        built = Case(Example(config | more, 0, (), (0,)), parent / name).model()
        assert built.folder is not None
        return opener(built.folder)

    try:
        return opened("probe with an FP8 cache", fp8_cache()), None
    except Exception as problem:  # a peer that refuses what it does not know, in a way of its own
        said = one_line(problem)
    try:
        return opened("probe", {}), said
    except Exception as problem:
        raise BackendError(f"it opens no drawn model: {one_line(problem)}") from problem


def _vocabulary(backend: Backend, oracle: Laguna | None) -> int:
    """How many tokens the given model knows."""
    if oracle is not None:
        return oracle.config.vocab_size
    config = getattr(backend, "config", None) or {}
    return int(config.get("vocab_size") or backend.logits([0]).shape[1])
