"""The first cause: which operation went wrong first, where, and how to see it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from laguna_ref.conformance.budget import Budget
from laguna_ref.conformance.comparisons import MODES, Comparisons, Key, Oracle
from laguna_ref.conformance.report import Divergence, PointResult
from laguna_ref.load import EMBEDDED
from laguna_ref.numerics import Array


def point_results(
    oracle: Oracle, comparisons: Comparisons, budget: Budget, threshold: float
) -> list[PointResult]:
    """The worst statistic of each point and mode, in order of execution within a mode.

    In the modes that follow a whole prompt, an error that is no greater in floor units than an
    earlier one is *inherited*: legal errors grow as the budget's scales do, and so did this one.
    """
    worst: dict[tuple[str, str], tuple[float, Key]] = {}
    for key, (value, _) in comparisons.values.items():
        scale = budget.scale(key)
        if scale is None:
            continue
        units = value / scale
        if units >= worst.get((key.mode, key.point), (-1.0, key))[0]:
            worst[key.mode, key.point] = (units, key)
    results, greatest = [], dict.fromkeys(MODES, 0.0)
    for mode in MODES:
        for op in oracle.operations:
            if (mode, op.point) not in worst:
                continue
            units, key = worst[mode, op.point]
            status = "inside" if units <= threshold else "outside"
            follows = mode in ("replayed", "free")
            if status == "outside" and follows and threshold < units <= greatest[mode]:
                status = "inherited"
            greatest[mode] = max(greatest[mode], units)
            value, token = comparisons.values[key]
            results.append(PointResult(op.point, mode, key.statistic, value, units, token, status))
    return results


def first(results: list[PointResult]) -> PointResult | None:
    """The first point outside, by the tightest mode that found one."""
    return next((result for result in results if result.status == "outside"), None)


def divergence(
    result: PointResult,
    oracle: Oracle,
    comparisons: Comparisons,
    budget: Budget,
    threshold: float,
    found: Mapping[str, Array],
    case: str,
) -> Divergence:
    """All that is to be said of a point that is outside."""
    op = next(op for op in oracle.operations if op.point == result.point)
    token = result.token
    if result.statistic == "deficit":
        scores = comparisons.scores[result.mode, result.point][token]
        top_k = oracle.model.router.top_k
        expected: Any = sorted(np.argsort(-scores, kind="stable")[:top_k].tolist())
        theirs: Any = sorted(np.asarray(found[result.point][token]).tolist())
        index: list[int] = []
        detail = f"the choice costs {result.value:.3g} of selection score"
    else:
        mine = np.asarray(comparisons.worst[result.mode, result.point][token], np.float64)
        other = np.asarray(found[result.point][token], np.float64).reshape(mine.shape)
        at = np.unravel_index(int(np.abs(other - mine).argmax()), mine.shape)
        index = [int(i) for i in at]
        expected, theirs = float(mine[at]), float(other[at])
        detail = _experts_in_common(result, comparisons, budget, threshold, found)
    return Divergence(
        case=case,
        statistic=result.statistic,
        point=result.point,
        layer=op.layer,
        token=_place(oracle, result, len(found[result.point])),
        floor_units=result.floor_units,
        expected=expected,
        found=theirs,
        mode=result.mode,
        operation=op.name,
        index=index,
        detail=detail,
        reproduce=command(oracle, result.point),
    )


def command(oracle: Oracle, point: str) -> str:
    """Writes the oracle's own values of a point to a file."""
    tokens = ",".join(str(token) for token in oracle.tokens.tolist())
    path = oracle.model.checkpoint.path
    own = path.resolve() == EMBEDDED.resolve()  # the default, which lies elsewhere for a reader
    return (
        f"laguna-ref trace {'' if own else f'--model {path} '}--numerics float64"
        f" --token-ids {tokens} --no-bos --point {point} --out expected.safetensors"
    )


def _place(oracle: Oracle, result: PointResult, rows: int) -> int:
    """The token's place in the prompt; a dump may hold the logits of some tokens only."""
    at = oracle.logits_at
    if result.point == "lm_head" and at is not None and rows != len(oracle.tokens):
        return int(at[result.token])
    return result.token


def _experts_in_common(
    result: PointResult,
    comparisons: Comparisons,
    budget: Budget,
    threshold: float,
    found: Mapping[str, Array],
) -> str:
    """The experts that every token outside went to and no token inside."""
    key = Key(result.mode, result.point, "l2")
    scale = budget.scale(key)
    ids = found.get(result.point.replace(".experts", ".topk_ids"))
    if not result.point.endswith(".mlp.experts") or scale is None or ids is None:
        return ""
    outside = comparisons.per_token[key] > threshold * scale
    if not outside.any() or outside.all():
        return ""
    suspects = set(ids[outside][0].tolist())
    for row in ids[outside]:
        suspects &= set(row.tolist())
    suspects -= set(np.asarray(ids[~outside]).ravel().tolist())
    if len(suspects) != 1:
        return ""
    return f"every token that went to expert {suspects.pop()}, and no other"


def results_without_oracle(
    comparisons: Comparisons, budget: Budget, threshold: float
) -> list[PointResult]:
    """The worst statistic of each point, in the order in which they were compared."""
    worst: dict[tuple[str, str], PointResult] = {}
    for key, (value, token) in comparisons.values.items():
        scale = budget.scale(key)
        if scale is None:
            continue
        units = value / scale
        status = "inside" if units <= threshold else "outside"
        at = (key.mode, key.point)
        if at not in worst or units > worst[at].floor_units:
            worst[at] = PointResult(key.point, key.mode, key.statistic, value, units, token, status)
    return list(worst.values())


def divergence_without_oracle(
    result: PointResult, comparisons: Comparisons, found: Mapping[str, Array], case: str
) -> Divergence:
    """Of a point that is outside, where no operation could be run."""
    mine = np.asarray(comparisons.worst[result.mode, result.point][result.token], np.float64)
    other = np.asarray(found[result.point][result.token], np.float64).reshape(mine.shape)
    at = np.unravel_index(int(np.abs(other - mine).argmax()), mine.shape)
    parts = result.point.split(".")
    return Divergence(
        case=case, statistic=result.statistic, point=result.point,
        layer=int(parts[2]) if result.point.startswith("model.layers.") else None,
        token=result.token, floor_units=result.floor_units, expected=float(mine[at]),
        found=float(other[at]), mode=result.mode, operation="", index=[int(i) for i in at],
        detail="", reproduce="",
    )  # fmt: skip
