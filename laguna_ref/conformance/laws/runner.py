"""Putting laws to a backend: Hypothesis draws and shrinks, the judge judges."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from laguna_ref.conformance.backend import Backend, Opener, can, precision_of
from laguna_ref.conformance.laws.case import Built, Case
from laguna_ref.conformance.laws.catalogue import by_name
from laguna_ref.conformance.laws.example import Config, Example, from_blob, to_blob
from laguna_ref.conformance.laws.judging import BrokenLawError, Judge, NothingToSayError
from laguna_ref.conformance.laws.law import Law, LawResult, Setting
from laguna_ref.conformance.laws.legal import LegalBackend
from laguna_ref.conformance.precision import precision_by_name
from laguna_ref.conformance.strategies import configs, fp8_cache
from laguna_ref.errors import InputError, LagunaError
from laguna_ref.json_file import read_json
from laguna_ref.model import Laguna

Progress = Callable[[str, int, int], None]
"""Name of the law, examples done, examples in all."""

SHRINKING = 30
"""Examples tried to make a failure smaller; each costs a second stage of legal runs."""


def run(
    opener: Opener | None,
    backend: Backend | None = None,
    *,
    examples: int,
    seed: int,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    oracle: Laguna | None = None,
    examples_database: Path | None = None,
) -> list[LawResult]:
    """Puts the laws to a backend, ``examples`` of each.

    opener: opens drawn models. Without one the laws that need no drawn model are put to
        ``backend``, which has the one model it serves loaded.
    oracle: of the model that ``backend`` serves; noise is measured by it. Without one only bits
        can be compared, so laws are put to an exact backend alone.
    examples_database: folder that failures are written to, checkpoint and prompt.

    Raises InputError for an unknown law, BackendError for a backend that cannot be opened.
    """
    laws = by_name(names)
    with tempfile.TemporaryDirectory() as parent:
        bench = _bench(opener, backend, oracle, Path(parent), examples_database)
        return [bench.put(law, examples, seed, progress) for law in laws]


def replay(
    opener: Opener | None,
    backend: Backend | None,
    reproduce: str,
    *,
    oracle: Laguna | None = None,
) -> LawResult:
    """Judges one saved example again: ``reproduce`` is a folder or a blob of a LawResult.

    Raises InputError where it is neither.
    """
    folder = Path(reproduce)
    if len(reproduce) < 4096 and (folder / "example.json").is_file():
        raw = read_json(folder / "example.json", InputError)
        name, example = str(raw.get("law")), Example.from_json(raw.get("example") or {})
    else:
        name, example = from_blob(reproduce)
    (law,) = by_name([name])
    if example.config and opener is None:
        raise InputError("this example needs a backend that opens drawn models", found=name)
    with tempfile.TemporaryDirectory() as parent:
        bench = _bench(opener if example.config else None, backend, oracle, Path(parent), None)
        reason = bench.why_not(law)
        if reason is not None:
            return LawResult(law.name, "not applicable", 0, reason, "")
        try:
            bench.judge(law, example)
        except NothingToSayError as nothing:
            return LawResult(law.name, "not applicable", 0, str(nothing), "")
        except BrokenLawError as broken:
            return LawResult(law.name, "broken", 1, str(broken), reproduce)
        return LawResult(law.name, "holds", 1, "", "")


@dataclass
class _Bench:
    """The backend under test and how it is judged."""

    opened: Callable[[Built], Backend]
    probe: Backend
    judges: Judge
    setting: Setting
    oracle: Laguna | None
    parent: Path
    database: Path | None

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
        return None

    def put(self, law: Law, examples: int, seed: int, progress: Progress | None) -> LawResult:
        """One law, ``examples`` times."""
        reason = self.why_not(law)
        if reason is not None:
            return LawResult(law.name, "not applicable", 0, reason, "")
        attempt = _Attempt(self, law, examples, progress)
        try:
            attempt.run(seed)
        except BrokenLawError as broken:
            detail = f"{broken}; {_described(attempt.example)}"
            saved = self._saved(law, attempt.example, detail)
            return LawResult(law.name, "broken", attempt.judged + 1, detail, saved)
        except hypothesis.errors.Unsatisfiable:
            pass
        except Exception as problem:  # whatever a peer raises: the other laws are put all the same
            detail = f"the backend failed: {type(problem).__name__}: {problem}"
            return LawResult(law.name, "not applicable", attempt.judged, detail, "")
        if not attempt.judged:
            said = attempt.silent or "no example of it could be drawn"
            return LawResult(law.name, "not applicable", 0, f"every example: {said}", "")
        return LawResult(law.name, "holds", attempt.judged, "", "")

    def judge(self, law: Law, example: Example) -> None:
        """Raises BrokenLawError or NothingToSayError; returns if the law holds."""
        with tempfile.TemporaryDirectory(dir=self.parent) as folder:
            case = Case(example, Path(folder), self.oracle, **self.options)
            self.judges.judge(law, case, self.opened)

    def _saved(self, law: Law, example: Example, detail: str) -> str:
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


@dataclass
class _Attempt:
    """One law under Hypothesis; what was judged is remembered, so that a replay costs nothing."""

    bench: _Bench
    law: Law
    examples: int
    progress: Progress | None
    judged: int = 0
    silent: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    tried: int = 0
    _example: Example | None = None

    @property
    def example(self) -> Example:
        """The smallest that fails."""
        assert self._example is not None
        return self._example

    def run(self, seed: int) -> None:
        """Raises BrokenLawError of the smallest failure found."""

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=self.examples, database=None, deadline=None, report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
            derandomize=False, print_blob=False,
        )  # fmt: skip
        @hypothesis.given(self.law.examples(self.bench.setting))
        def holds(example: Example) -> None:
            self._one(example)

        holds()

    def _one(self, example: Example) -> None:
        if self.failures and example.key not in self.failures:
            self.tried += 1
            if self.tried > SHRINKING:
                return
        failure = self.failures.get(example.key) or self._judged(example)
        if failure is not None:
            self._example = example
            # Raised in one place: Hypothesis tells failures apart by where they come from.
            raise BrokenLawError(failure)

    def _judged(self, example: Example) -> str | None:
        try:
            self.bench.judge(self.law, example)
        except NothingToSayError as nothing:
            self.silent = str(nothing)
            hypothesis.reject()
        except BrokenLawError as broken:
            self.failures[example.key] = str(broken)
            return str(broken)
        if not self.failures:
            self.judged += 1
            if self.progress:
                self.progress(self.law.name, self.judged, self.examples)
        return None


def _bench(
    opener: Opener | None, backend: Backend | None, oracle: Laguna | None, parent: Path,
    database: Path | None,
) -> _Bench:  # fmt: skip
    if opener is None and backend is None:
        raise InputError("laws need a backend, or what opens one")
    probe = backend if opener is None or backend is not None else _probe(opener, parent)
    assert probe is not None
    precision = precision_by_name(precision_of(probe))
    judges = Judge(precision, can(probe, "exact"))
    if opener is None:
        served = probe
        setting = Setting(vocabulary=_vocabulary(served, oracle))
        return _Bench(lambda built: served, probe, judges, setting, oracle, parent, database)
    setting = Setting(every_expert=precision.activations != "float32")

    def opened(built: Built) -> Backend:
        assert built.folder is not None
        return opener(built.folder)

    return _Bench(opened, probe, judges, setting, None, parent, database)


def _probe(opener: Opener, parent: Path) -> Backend:
    """The backend with a plain model, to ask what it can do: one with an FP8 cache if it may."""
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
        return opened("probe with an FP8 cache", fp8_cache())
    except Exception:  # a peer that refuses what it does not know, in a way of its own
        return opened("probe", {})


def _vocabulary(backend: Backend, oracle: Laguna | None) -> int:
    """How many tokens the given model knows."""
    if oracle is not None:
        return oracle.config.vocab_size
    config = getattr(backend, "config", None) or {}
    return int(config.get("vocab_size") or backend.logits([0]).shape[1])


def _described(example: Example) -> str:
    """Config, weights and tokens in one line."""
    parts = [f"tokens {list(example.tokens)}", f"chosen {dict(example.chosen)}"]
    if example.config:
        config = json.dumps(example.config, separators=(",", ":"))
        parts += [f"weights of seed {example.seed} {list(example.traits)}", f"config {config}"]
    return ", ".join(parts)
