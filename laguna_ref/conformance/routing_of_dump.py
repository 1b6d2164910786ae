"""The experts that a dump names: checked, and worked out where it has only the router's logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from laguna_ref.conformance import guards, localise, mending, routing
from laguna_ref.conformance.budget import Budget
from laguna_ref.conformance.comparisons import Oracle
from laguna_ref.conformance.operations import weights_of_chosen
from laguna_ref.conformance.report import DIVERGES, Divergence, Report
from laguna_ref.numerics import Array
from laguna_ref.ops.router import choose, margins, scores_of


@dataclass(frozen=True)
class RoutingOfDump:
    """Routing of one dump; what is wrong with it goes to the report."""

    oracle: Oracle
    budget: Budget
    report: Report

    def completed(self, found: Mapping[str, Array]) -> dict[str, Array]:
        """The dump's points, with ids and weights that follow from the router's logits.

        Concludes the report with the first choice of experts that is none.
        """
        model, oracle = self.oracle.model, self.oracle
        points = self._without_misshapen(found)
        for layer in oracle.sparse_layers():
            at = f"model.layers.{layer}.mlp"
            gate, ids, weights = f"{at}.gate", f"{at}.topk_ids", f"{at}.topk_weights"
            rows = (len(oracle.tokens), model.config.num_experts)
            if ids in points:
                problem = guards.bad_choice(points[ids], model.router.top_k, rows[1])
                if problem is not None:
                    self._invalid_choice(points[ids], layer, *problem)
                    return points
            if gate in points and points[gate].shape == rows:
                scores = scores_of(np.asarray(points[gate], np.float64), model.router.score_func)
                if ids not in points and self._choice_is_clear(layer, points[gate]):
                    bias = oracle.bias(layer)
                    points[ids] = choose(scores, bias, model.router, model.numerics)[0]
                if ids in points and weights not in points:
                    points[weights] = weights_of_chosen(points[ids], scores, model)
        return points

    def _without_misshapen(self, found: Mapping[str, Array]) -> dict[str, Array]:
        """Names ids and weights that are not of this prompt; they cannot be replayed."""
        kept, tokens = dict(found), len(self.oracle.tokens)
        for point in (point for point in found if ".topk_" in point):
            array, ids = found[point], found.get(point.replace("_weights", "_ids"))
            if point.endswith("_ids") and array.dtype.kind not in "iu":
                del kept[point]
                self.report.mistakes.append(f"{point} holds {array.dtype}, expected integers")
            elif len(array) != tokens or array.ndim != 2 or (
                ids is not None and len(ids) == len(array) and array.shape != ids.shape
            ):  # fmt: skip
                del kept[point]
                shape = (tokens, self.oracle.model.router.top_k)
                self.report.mistakes.append(mending.another_shape(point, array, shape))
        return kept

    def _choice_is_clear(self, layer: int, logits: Array) -> bool:
        """Whether a backend with these router logits can have chosen in one way only."""
        scale = self.budget.scale(routing.deficit_key(layer, "added"))
        scores = self.oracle.selection_scores(layer, logits)
        margin = margins(scores, self.oracle.model.router.top_k)
        return scale is not None and float(margin.min()) > scale

    def _invalid_choice(self, ids: Array, layer: int, token: int, text: str) -> None:
        point, model = f"model.layers.{layer}.mlp.topk_ids", self.oracle.model
        expected = f"{model.router.top_k} different experts, 0 to {model.config.num_experts - 1}"
        self.report.conclude(DIVERGES, f"{point} {text}")
        self.report.first_divergence = Divergence(
            self.report.case, "deficit", point, layer, token, None, expected,
            ids[token].tolist(), "added", "choice of experts", [], text,
            localise.command(self.oracle, point),
        )  # fmt: skip
