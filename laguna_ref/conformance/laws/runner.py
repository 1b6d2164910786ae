"""Putting laws to a backend: Hypothesis draws and shrinks, the judge judges."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase

from laguna_ref.conformance.backend import Backend, Opener
from laguna_ref.conformance.laws.bench import Bench, make_bench
from laguna_ref.conformance.laws.catalogue import by_name
from laguna_ref.conformance.laws.example import Example, from_blob
from laguna_ref.conformance.laws.law import (
    BrokenLawError,
    Law,
    LawResult,
    NothingToSayError,
)
from laguna_ref.errors import InputError
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
        bench = make_bench(opener, backend, oracle, Path(parent), examples_database)
        return [_put(bench, law, examples, seed, progress) for law in laws]


def replay(
    opener: Opener | None,
    backend: Backend | None,
    reproduce: str,
    *,
    oracle: Laguna | None = None,
) -> LawResult:
    """Judges one saved example again: ``reproduce`` is a folder or a blob of a LawResult.

    A backend that fails is reported as ``run`` reports it. Raises InputError where ``reproduce``
    is neither, BackendError for a backend that cannot be opened.
    """
    saved = os.path.join(reproduce, "example.json")
    if os.path.isfile(saved):  # unlike Path, no for a blob that is too long to be a name
        raw = read_json(Path(saved), InputError)
        name, example = str(raw.get("law")), Example.from_json(raw.get("example") or {})
    else:
        name, example = from_blob(reproduce)
    (law,) = by_name([name])
    if example.config and opener is None:
        raise InputError("this example needs a backend that opens drawn models", found=name)
    with tempfile.TemporaryDirectory() as parent:
        bench = make_bench(opener if example.config else None, backend, oracle, Path(parent), None)
        reason = bench.why_not(law)
        if reason is not None:
            return LawResult(law.name, "not applicable", 0, reason, "")
        try:
            bench.judge(law, example)
        except NothingToSayError as nothing:
            return LawResult(law.name, "not applicable", 0, str(nothing), "")
        except BrokenLawError as broken:
            return LawResult(law.name, "broken", 1, str(broken), reproduce)
        except Exception as problem:  # whatever a peer raises
            return _failed(law, 0, problem)
        return LawResult(law.name, "holds", 1, "", "")


def _put(bench: Bench, law: Law, examples: int, seed: int, progress: Progress | None) -> LawResult:
    """One law, ``examples`` times."""
    reason = bench.why_not(law)
    if reason is not None:
        return LawResult(law.name, "not applicable", 0, reason, "")
    attempt = _Attempt(bench, law, examples, progress)
    try:
        attempt.run(seed)
    except BrokenLawError as broken:
        detail = f"{broken}; {_described(attempt.example)}"
        saved = bench.save(law, attempt.example, detail)
        return LawResult(law.name, "broken", attempt.judged + 1, detail, saved)
    except hypothesis.errors.Unsatisfiable:
        pass
    except Exception as problem:  # whatever a peer raises: the other laws are put all the same
        return _failed(law, attempt.judged, problem)
    if not attempt.judged:
        said = attempt.why_silent or "no example of it could be drawn"
        return LawResult(law.name, "not applicable", 0, f"every example: {said}", "")
    left_out = sum(attempt.silent.values())
    detail = f"{left_out} more not judged: {attempt.why_silent}" if left_out else ""
    return LawResult(law.name, "holds", attempt.judged, detail, "")


def _failed(law: Law, judged: int, problem: Exception) -> LawResult:
    detail = f"the backend failed: {type(problem).__name__}: {problem}"
    return LawResult(law.name, "failed", judged, detail, "")


@dataclass
class _Attempt:
    """One law under Hypothesis; what was judged is remembered, so that a replay costs nothing."""

    bench: Bench
    law: Law
    examples: int
    progress: Progress | None
    judged: int = 0
    silent: Counter[str] = field(default_factory=Counter)
    """How often there was nothing to say, by reason."""
    failures: dict[str, str] = field(default_factory=dict)
    tried: int = 0
    _example: Example | None = None

    @property
    def example(self) -> Example:
        """The smallest that fails."""
        assert self._example is not None
        return self._example

    @property
    def why_silent(self) -> str:
        """The reason for most of the examples that were not judged."""
        return next((reason for reason, _ in self.silent.most_common(1)), "")

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
            self.silent[str(nothing)] += 1
            hypothesis.reject()
        except BrokenLawError as broken:
            self.failures[example.key] = str(broken)
            return str(broken)
        if not self.failures:
            self.judged += 1
            if self.progress:
                self.progress(self.law.name, self.judged, self.examples)
        return None


def _described(example: Example) -> str:
    """Config, weights and tokens in one line."""
    parts = [f"tokens {list(example.tokens)}", f"chosen {dict(example.chosen)}"]
    if example.config:
        config = json.dumps(example.config, separators=(",", ":"))
        parts += [f"weights of seed {example.seed} {list(example.traits)}", f"config {config}"]
    return ", ".join(parts)
