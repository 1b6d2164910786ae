"""Examples on which legal backends may part ways: a near tie between experts, or between codes.

Noise there is not small: another expert is chosen, or a cached value falls to the next FP8 code.
Both are found by what legal runs of that example are off by; the laws are not put to them.
"""

from __future__ import annotations

import numpy as np

from laguna_ref.conformance.laws.case import Case
from laguna_ref.conformance.laws.legal import base_oracle
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.replay import run
from laguna_ref.conformance.variations import draw, truth_of, varied
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.ops.fp8 import fp8_encode
from laguna_ref.ops.router import biased, margins, scores_of
from laguna_ref.weights import SparseMLPWeights

RUNS = 3
GUARD = 16.0
"""How many times the greatest error seen in ``RUNS`` legal runs a margin must be."""


def near_a_tie(case: Case, precision: Precision) -> bool:
    """Whether any choice of the drawn model on the example's tokens is within the noise."""
    built = case.model()
    base = base_oracle(built, precision)
    tokens = np.asarray(case.tokens)
    places = np.arange(len(tokens))
    truth = truth_of(base, precision, built.matrices)
    exact = run(truth, tokens, places)
    legal = [
        run(varied(base, draw(precision, seed), built.matrices), tokens, places)
        for seed in range(RUNS)
    ]
    return _experts(truth, exact, legal) or (
        # In bfloat16 every run has its share of other codes: that is part of its noise.
        precision.activations == "float32" and _codes(truth, exact, legal)
    )


def _experts(model: Laguna, exact: dict[str, Array], legal: list[dict[str, Array]]) -> bool:
    for index, layer in enumerate(model.weights.layers):
        if not isinstance(layer.mlp, SparseMLPWeights):
            continue
        point, bias = f"model.layers.{index}.mlp.gate", layer.mlp.e_score_correction_bias

        def selection(points: dict[str, Array], point: str = point, bias: Array = bias) -> Array:
            scores = scores_of(points[point].astype(np.float64), model.router.score_func)
            return biased(scores, bias, model.numerics)

        scores = selection(exact)
        noise = max(float(np.abs(selection(points) - scores).max()) for points in legal)
        if (margins(scores, model.router.top_k) <= 2 * GUARD * noise).any():
            return True
    return False


def _codes(model: Laguna, exact: dict[str, Array], legal: list[dict[str, Array]]) -> bool:
    for index, stored in enumerate(model.kv_formats):
        if not stored.fp8:
            continue
        at = f"model.layers.{index}.self_attn"
        for point, scale in ((f"{at}.k_rope", stored.k_scale), (f"{at}.v_proj", stored.v_scale)):
            value = exact[point]
            noise = GUARD * max(float(np.abs(points[point] - value).max()) for points in legal)
            low, high = (fp8_encode(value + sign * noise, scale, point) for sign in (-1, 1))
            # The two zeros are one value.
            if ((low != high) & ((low & 0x7F) + (high & 0x7F) != 0)).any():
                return True
    return False
