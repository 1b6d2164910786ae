"""How far what a backend computed lies from a model, fault planted or not: token by token.

Two ways to look. ``operation by operation``: each operation of the model on the backend's own
inputs, so that only what is wrong *there* counts. ``logits``: the model's whole run, of which the
backend's logits, or log-probabilities of a few tokens, are all that is known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from laguna_ref.checkpoint.formats import DenseWeight
from laguna_ref.conformance import statistics
from laguna_ref.conformance.operations import Points, operations
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.weights import SparseMLPWeights

TINY = 1e-30
Distances = Mapping[str, Array]
"""Trace point -> relative l2 distance of each token, float64 [T]."""


def by_operation(
    model: Laguna, tokens: Array, positions: Array, found: Points,
    only: Collection[str] | None = None,
) -> Distances:  # fmt: skip
    """Of every operation, or of those of ``only``, whose inputs and output ``found`` holds.

    A choice of experts lies 1 away where the set is another, as does an array of another shape.
    What is not one row a token is no input: who reads it is not looked at.
    """
    result: dict[str, Array] = {}
    rows = (len(tokens),)
    readable = {name for name, values in found.items() if np.shape(values)[:1] == rows}
    for op in operations(model, tokens, positions):
        wanted = only is None or op.point in only
        # Norms are computed even so: a planted fault may remember what one was given.
        if not wanted and not op.name.endswith("rms_norm"):
            continue
        if op.point not in found or not readable.issuperset(op.inputs):
            continue
        if ".topk_" in op.point:
            assert op.layer is not None
            expected = _routed(model, op.layer, found)[op.point.endswith("weights")]
            if op.point.endswith("ids"):
                result[op.point] = _other_sets(found[op.point], expected)
                continue
        else:
            expected = op.compute(found)
        if wanted:
            result[op.point] = relative(found[op.point], expected)
    return result


def of_logits(model: Laguna, tokens: Array, positions: Array, found: Array) -> Distances:
    """Of the logits [T, V], up to one constant a token; NaN in ``found`` is not looked at."""
    expected = np.asarray(model(tokens, positions=positions), np.float64)
    shown = np.asarray(found, np.float64)
    if shown.shape != expected.shape:
        return {"lm_head": np.ones(len(expected))}
    seen = np.isfinite(shown)
    seen &= seen.sum(axis=1, keepdims=True) > 1  # one number alone is all constant
    return {
        "lm_head": relative(statistics.centred(shown, seen), statistics.centred(expected, seen))
    }


def relative(found: Array, expected: Array) -> Array:
    """l2 distance of each token's vector over the expected one's length, [T]; 1 at most matters."""
    f = np.asarray(found, np.float64).reshape(len(found), -1)
    e = np.asarray(expected, np.float64).reshape(len(expected), -1)
    if f.shape != e.shape:
        return np.ones(len(e))
    off = np.sqrt(np.square(f - e).sum(axis=1))
    length = np.sqrt(np.square(e).sum(axis=1))
    known = np.where(np.isfinite(off), off / np.maximum(length, TINY), 1.0)
    return np.asarray(np.where(off == 0, 0.0, known))


def _routed(model: Laguna, layer: int, found: Points) -> tuple[Array, Array]:
    """The ids that the model's router chooses by the backend's logits, and its weights of the
    backend's ids where the sets are the same.

    Through the engine's own ``route``, so that a fault in it shows: the logits are its input, and
    its matrix is the identity.
    """
    at = f"model.layers.{layer}.mlp"
    logits = np.asarray(found[f"{at}.gate"], model.numerics.dtype)
    weights = model.weights.layers[layer].mlp
    assert isinstance(weights, SparseMLPWeights)
    identity = DenseWeight(f"{at}.gate.identity", np.eye(logits.shape[1], dtype=np.float32))
    _, ids, of_ids = model.engine.route(
        logits, identity, weights.e_score_correction_bias, model.router, model.numerics
    )
    theirs = np.asarray(found[f"{at}.topk_ids"], np.int64) if f"{at}.topk_ids" in found else ids
    if theirs.shape != ids.shape:
        return ids, of_ids
    order, wanted = np.argsort(ids, axis=1), np.argsort(np.argsort(theirs, axis=1), axis=1)
    aligned = np.take_along_axis(np.take_along_axis(of_ids, order, axis=1), wanted, axis=1)
    same = ~_other_sets(theirs, ids).astype(bool)
    # Weights of another set are no error of the weights: there the choice is what is wrong.
    return ids, np.where(same[:, None], aligned, _as_found(found, at, aligned))


def _as_found(found: Points, at: str, otherwise: Array) -> Array:
    weights = found.get(f"{at}.topk_weights")
    fits = weights is not None and np.shape(weights) == otherwise.shape
    return np.asarray(weights, np.float64) if fits else otherwise


def _other_sets(found: Array, expected: Array) -> Array:
    if np.shape(found) != np.shape(expected):
        return np.ones(len(expected))
    return statistics.other_sets(found, expected).astype(np.float64)
