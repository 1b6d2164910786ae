"""Prompts to put to a backend, taken from goldens or from a file of cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.conformance import guards
from laguna_ref.errors import InputError
from laguna_ref.golden.cases import COMMITTED_CASES, Case, read_cases
from laguna_ref.golden.golden import Golden
from laguna_ref.golden.golden_file import read_golden
from laguna_ref.golden.identity import Identity, identity_of
from laguna_ref.golden.verify import COMMITTED_GOLDENS, golden_files
from laguna_ref.load import EMBEDDED
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array


@dataclass(frozen=True)
class Rows:
    """Which tokens' logits a dump may hold instead of all; the values are computed when judged."""

    at: tuple[int, ...] | None
    full: None = None


@dataclass(frozen=True)
class Prepared:
    """A prompt with what the judge wants to know of it; the oracle computes the rest."""

    case: Case
    identity: Identity
    settings: Mapping[str, Any]
    logits: Rows
    budget: Mapping[str, Array] = field(default_factory=dict)
    budget_meta: dict[str, Any] | None = None
    points: Mapping[str, Array] = field(default_factory=dict)
    routing: Mapping[int, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Array, Array]:
        """Token ids and positions, int64 [T] each."""
        return np.asarray(self.case.tokens, np.int64), guards.positions_of(self)

    def with_budget(self, arrays: Mapping[str, Array], meta: dict[str, Any]) -> Prepared:
        """The same with a measured budget."""
        return replace(self, budget=arrays, budget_meta=meta)


def prepared(model: Laguna, paths: Sequence[Path]) -> list[Prepared]:
    """The prompts of goldens in files and folders, each once, in their order, no two of one name.

    Without paths: the committed goldens for the embedded checkpoint, and the committed cases'
    prompts for any other. Two goldens of one prompt differ in their cache or calls, which is the
    backend's own affair here. Raises GoldenError for goldens of another checkpoint.
    """
    identity = identity_of(model.checkpoint)
    if not paths and model.checkpoint.path.resolve() == EMBEDDED.resolve():
        paths = [COMMITTED_GOLDENS]
    if paths:
        goldens = [read_golden(file, model) for path in paths for file in golden_files(path)]
        found = [_of_golden(golden, identity, model) for golden in goldens]
    else:
        settings = settings_of_oracle(model)
        found = [
            Prepared(case, identity, settings, Rows(case.logits_at))
            for case in read_cases(COMMITTED_CASES, model.config)
        ]
    return _named_apart(_each_once(found))


def chosen(cases: Sequence[Prepared], names: Sequence[str]) -> list[Prepared]:
    """Those of these names, all without names; raises InputError for a name of none."""
    known = [case.case.name for case in cases]
    for name in names:
        if name not in known:
            raise InputError(
                "no such case (of several with one prompt, the first is kept)", key="--case",
                expected=", ".join(known), found=name,
            )  # fmt: skip
    return [case for case in cases if not names or case.case.name in names]


def settings_of_oracle(model: Laguna) -> dict[str, Any]:
    """What the judge compares with the model it is given."""
    fp8 = [index for index, kv in enumerate(model.kv_formats) if kv.fp8]
    return {
        "dequant": model.numerics.dequant,
        "kv_cache": "fp8" if fp8 else "float",
        "kv_cache_fp8_layers": fp8,
    }


def _of_golden(golden: Golden, identity: Identity, model: Laguna) -> Prepared:
    """Its own budget is kept where it was measured for just this oracle."""
    settings = settings_of_oracle(model)
    same = all(golden.settings.get(key) == settings[key] for key in ("dequant",
               "kv_cache_fp8_layers"))  # fmt: skip
    kept = golden.budget_meta if same else None
    return Prepared(
        golden.case, identity, settings, Rows(golden.case.logits_at),
        golden.budget if kept else {}, kept,
    )  # fmt: skip


def _each_once(found: Iterable[Prepared]) -> list[Prepared]:
    """One a prompt: of several, the first that has a budget, or else the first."""
    by_prompt: dict[Any, Prepared] = {}
    for one in found:
        key = tuple(one.case.tokens), one.case.positions
        if key not in by_prompt or (by_prompt[key].budget_meta is None and one.budget_meta):
            by_prompt[key] = one
    return list(by_prompt.values())


def _named_apart(found: Iterable[Prepared]) -> list[Prepared]:
    """Reports tell cases apart by name, so of equal names the second becomes ``NAME (2)``."""
    cases = list(found)
    taken = {one.case.name for one in cases}
    named: dict[str, Prepared] = {}
    for one in cases:
        name = one.case.name
        if name in named:
            name = next(new for n in count(2) if (new := f"{name} ({n})") not in taken)
            taken.add(name)
        named[name] = replace(one, case=replace(one.case, name=name))
    return list(named.values())
