"""A golden: what the oracle computes for one case, with all that is needed to compute it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laguna_ref.errors import InputError
from laguna_ref.golden import routing as routes
from laguna_ref.golden.cases import Case
from laguna_ref.golden.identity import Identity, identity_of
from laguna_ref.golden.logits import FULL_UP_TO, Logits, keep
from laguna_ref.golden.routing import Routing
from laguna_ref.golden.settings import settings_of
from laguna_ref.load import fp8_cache_layers
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder, trace_points

Budget = Callable[[Laguna, Case], tuple[Mapping[str, Array], dict[str, Any]]]
"""Measures the noise of a case: arrays and JSON of its own making, kept with the golden."""
ELSEWHERE = ("lm_head", "mlp.topk_ids", "mlp.topk_weights")
"""Trace points that are not among a golden's ``points``, because ``logits`` and ``routing`` are."""


@dataclass(frozen=True, repr=False)
class Golden:
    """The results of one case. Arrays of a golden read from a file are read-only views of it."""

    case: Case
    identity: Identity
    settings: Mapping[str, Any]
    """See ``laguna_ref/golden/settings.py``."""
    points: Mapping[str, Array]
    """Trace point -> value, in order of execution, all chunks joined; see ``ELSEWHERE``."""
    logits: Logits
    routing: Mapping[int, Routing]
    """By the index of each sparse layer."""
    budget: Mapping[str, Array] = field(default_factory=dict)
    """The arrays of whoever measured the noise; empty without."""
    budget_meta: dict[str, Any] | None = None
    """Its JSON; None without."""

    def __repr__(self) -> str:
        count = len(self.case.tokens)
        return f"<Golden {self.case.name}: {count} tokens, {self.settings['numerics']}>"

    @property
    def positions(self) -> tuple[int, ...]:
        """Of RoPE, one a token."""
        given = self.case.positions
        return tuple(range(len(self.case.tokens))) if given is None else given

    def require_model(self, model: Laguna, file: str = "golden") -> None:
        """Raises GoldenError, showing both values, if it is another checkpoint's."""
        self.identity.require(identity_of(model.checkpoint), file)


def make(
    model: Laguna,
    case: Case,
    *,
    kv_cache_skip_layers: Iterable[int | str] = (),
    full_logits_up_to: int = FULL_UP_TO,
    budget: Budget | None = None,
    progress: Callable[[int], None] | None = None,
) -> Golden:
    """Computes a case.

    model: loaded with the case's ``kv_cache`` and the same ``kv_cache_skip_layers``; its
        numerics are those of the golden. Raises InputError if its cache is another.
    full_logits_up_to: the largest vocabulary whose logits are kept in full.
    budget: called with the model and the case; what it returns is kept as it is.
    progress: called with the number of tokens of each chunk that is done.
    """
    skipped = tuple(str(entry) for entry in kv_cache_skip_layers)
    require_cache(model, case, skipped)
    kept = [name for name in trace_points(model.config) if _is_kept(name, case)]
    recorder = Recorder(*kept, *routes.patterns(model)) if kept or routes.patterns(model) else None
    at = tuple(range(len(case.tokens))) if case.logits_at is None else case.logits_at
    logits = _run(model, case, at, recorder, progress)
    arrays, meta = budget(model, case) if budget is not None else ({}, None)
    return Golden(
        case=case,
        identity=identity_of(model.checkpoint),
        settings=settings_of(model, case.kv_cache, skipped),
        points={} if recorder is None else {name: recorder[name] for name in kept},
        logits=keep(at, logits, full_logits_up_to),
        routing={} if recorder is None else routes.routing_of(model, recorder),
        budget=dict(arrays),
        budget_meta=meta,
    )


def require_cache(model: Laguna, case: Case, kv_cache_skip_layers: Iterable[int | str]) -> None:
    """Raises InputError unless the model's cache is of the types that the case asks for."""
    expected = fp8_cache_layers(model.config, case.kv_cache, kv_cache_skip_layers)
    found = tuple(stored.fp8 for stored in model.kv_formats)
    if expected != found:
        raise InputError(
            f"the model's cache is not the one of case {case.name}", key="kv_cache",
            expected=f"{case.kv_cache}: {sum(expected)} FP8 layers", found=f"{sum(found)}",
        )  # fmt: skip


def _is_kept(name: str, case: Case) -> bool:
    wanted = bool(case.points) and Recorder(*case.points).wants(name)
    return wanted and not name.endswith(ELSEWHERE)


def _run(
    model: Laguna,
    case: Case,
    at: tuple[int, ...],
    recorder: Recorder | None,
    progress: Callable[[int], None] | None,
) -> Array:
    """Logits at ``at``, [N, V]; of a chunk's logits nothing else outlives the chunk."""
    cache, rows, start = model.new_cache(), [], 0
    positions = None if case.positions is None else np.array(case.positions, dtype=np.int64)
    wanted = np.array(at, dtype=np.int64)
    for count in case.chunks:
        stop = start + count
        logits = model(
            case.tokens[start:stop],
            cache=cache,
            positions=None if positions is None else positions[start:stop],
            trace=recorder,
        )
        rows.append(logits[wanted[(wanted >= start) & (wanted < stop)] - start])
        start = stop
        if progress is not None:
            progress(count)
    return np.concatenate(rows)
