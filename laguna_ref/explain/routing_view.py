"""Where a prompt's tokens go: load of the experts, margins of the choices, near ties."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from laguna_ref.explain.running import OnPrefill, checked, in_chunks
from laguna_ref.golden.routing import sparse_layers
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.ops import router
from laguna_ref.trace import Recorder

BF16_ROUNDOFF = 2.0**-8
"""Greatest relative error of rounding to bfloat16."""


@dataclass(frozen=True)
class Choice:
    """One token's experts in one layer, in descending order of selection score."""

    layer: int
    position: int
    experts: tuple[int, ...]
    weights: tuple[float, ...]
    logits: tuple[float, ...]
    scores: tuple[float, ...]
    """What the choice goes by: scores plus correction bias."""
    runner_up: int | None
    """The expert that came next; None if all are chosen."""
    margin: float
    """Least score chosen less the runner-up's; infinite if all are chosen."""
    near_tie: bool
    """Whether rounding the two logits to bfloat16 could exchange the two experts."""


@dataclass(frozen=True)
class LayerRouting:
    """One sparse layer."""

    layer: int
    load: Array
    """[E] int64: tokens that each expert was chosen for."""
    weight: Array
    """[E] float64: the sum of its weights over them."""
    margins: Array
    """[T] float64, of every token; infinite if all experts are chosen."""
    near_ties: Array
    """[T] bool."""

    @property
    def effective_experts(self) -> float:
        """exp of the entropy of the load: E if it is even, 1 if one expert gets all."""
        share = self.load[self.load > 0] / self.load.sum()
        return float(np.exp(-np.sum(share * np.log(share))))


@dataclass(frozen=True)
class RoutingView:
    """All sparse layers of a model over one prompt."""

    tokens: Array
    """int64 [T]"""
    experts: int
    top_k: int
    layers: tuple[LayerRouting, ...]
    nearest: tuple[Choice, ...]
    """The choices with the least margins, least first."""


def routing(
    model: Laguna, tokens: ArrayLike, *, nearest: int = 10, on_prefill: OnPrefill | None = None
) -> RoutingView:
    """Routes a prompt, int [T], and counts; keeps the ``nearest`` choices with the least margins.

    Memory grows with the prompt by a margin a layer and token. Raises InputError.
    """
    ids = checked(model, tokens)
    found: dict[int, list[_Decisions]] = {index: [] for index, _ in sparse_layers(model)}
    chunk = Recorder("*.mlp.gate", "*.mlp.topk_ids", "*.mlp.topk_weights")
    least: list[Choice] = []
    runs = in_chunks(model, ids, trace=chunk, on_prefill=on_prefill) if found else ()
    for rows, _ in runs:
        for index in found:
            decisions = _decisions(model, index, chunk)
            closest = np.argsort(decisions.margins, kind="stable")[:nearest]
            least += [decisions.choice(int(row), rows.start) for row in closest]
            found[index].append(decisions.without_logits())
        least = heapq.nsmallest(nearest, least, key=lambda c: (c.margin, c.layer, c.position))
        chunk.clear()
    config = model.config
    layers = tuple(_counted(index, parts, config.num_experts) for index, parts in found.items())
    return RoutingView(ids, config.num_experts, config.num_experts_per_tok, layers, tuple(least))


def choices(model: Laguna, layer: int, recorder: Recorder, rows: Sequence[int]) -> list[Choice]:
    """The choices of some of the tokens recorded, positions counted from the first of them."""
    decisions = _decisions(model, layer, recorder)
    return [decisions.choice(row, 0) for row in rows]


@dataclass(frozen=True)
class _Decisions:
    """Of one layer, for T tokens."""

    layer: int
    ids: Array
    weights: Array
    margins: Array
    near_ties: Array
    logits: Array
    selection: Array
    ranked: Array
    """Experts by descending selection score, [T, E]."""

    def choice(self, row: int, first: int) -> Choice:
        chosen = self.ids[row]
        top_k = len(chosen)
        more = self.ranked.shape[1] > top_k
        return Choice(
            layer=self.layer,
            position=first + row,
            experts=tuple(int(x) for x in chosen),
            weights=tuple(float(x) for x in self.weights[row]),
            logits=tuple(float(x) for x in self.logits[row, chosen]),
            scores=tuple(float(x) for x in self.selection[row, chosen]),
            runner_up=int(self.ranked[row, top_k]) if more else None,
            margin=float(self.margins[row]),
            near_tie=bool(self.near_ties[row]),
        )

    def without_logits(self) -> _Decisions:
        nothing = np.empty((0, 0))
        return _Decisions(self.layer, self.ids, self.weights, self.margins, self.near_ties,
                          nothing, nothing, nothing)  # fmt: skip


def _decisions(model: Laguna, layer: int, recorder: Recorder) -> _Decisions:
    logits, ids, weights = (
        recorder[f"model.layers.{layer}.mlp.{name}"]
        for name in ("gate", "topk_ids", "topk_weights")
    )
    selection = _selection(model, layer, logits)
    ranked = np.argsort(-selection, axis=-1, kind="stable")
    margins = router.margins(selection, ids.shape[1])
    near = _near_ties(model, layer, logits, ranked, ids.shape[1])
    return _Decisions(layer, ids, weights, margins, near, logits, selection, ranked)


def _selection(model: Laguna, layer: int, logits: Array) -> Array:
    """Scores plus bias, [T, E], as the model's own engine computes them."""
    bias = dict(sparse_layers(model))[layer].e_score_correction_bias
    with model.engine.computing(model.threads):
        scores = model.engine.scores_of(logits, model.router.score_func)
    return router.biased(scores, bias, model.numerics)


def _near_ties(model: Laguna, layer: int, logits: Array, ranked: Array, top_k: int) -> Array:
    """[T]: whether the last chosen and the runner-up, each moved by a rounding, change places."""
    if top_k == logits.shape[1]:
        return np.zeros(len(logits), dtype=bool)
    moved = logits.copy()
    tokens = np.arange(len(logits))
    last, next_ = ranked[:, top_k - 1], ranked[:, top_k]
    moved[tokens, last] -= BF16_ROUNDOFF * np.abs(logits[tokens, last])
    moved[tokens, next_] += BF16_ROUNDOFF * np.abs(logits[tokens, next_])
    selection = _selection(model, layer, moved)
    return np.asarray(selection[tokens, last] <= selection[tokens, next_])


def _counted(layer: int, parts: list[_Decisions], experts: int) -> LayerRouting:
    ids = np.concatenate([part.ids for part in parts]).ravel()
    weights = np.concatenate([part.weights for part in parts]).ravel()
    return LayerRouting(
        layer=layer,
        load=np.bincount(ids, minlength=experts),
        weight=np.bincount(ids, weights=weights.astype(np.float64), minlength=experts),
        margins=np.concatenate([part.margins for part in parts]),
        near_ties=np.concatenate([part.near_ties for part in parts]),
    )
