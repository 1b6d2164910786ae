"""Everything that is compared of one run of a backend, each against what the oracle expects.

Modes, from the tightest to the widest:

``added``     one operation on the backend's own inputs
``layers``    one layer on the backend's own input, experts as the backend chose
``replayed``  the whole prompt, experts as the backend chose
``free``      the whole prompt, experts as the oracle chooses
``logits``    the same, of the logits alone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from laguna_ref.conformance import statistics
from laguna_ref.conformance.operations import (
    Operation,
    evaluate_layer,
    layer_input,
    operations,
    weights_of_chosen,
)
from laguna_ref.conformance.replay import routing_in, run, watched
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.ops.router import biased, scores_of
from laguna_ref.weights import SparseMLPWeights

MODES = ("added", "layers", "replayed", "free", "logits")


class Key(NamedTuple):
    """What a comparison is of."""

    mode: str
    point: str
    statistic: str

    def __str__(self) -> str:
        return " ".join(self)


class Measured(NamedTuple):
    """Its value, and the token it was found at (-1: all tokens together)."""

    value: float
    token: int


@dataclass
class Comparisons:
    """All comparisons of one run."""

    values: dict[Key, Measured] = field(default_factory=dict)
    score_noise: dict[Key, float] = field(default_factory=dict)
    """Greatest difference of a selection score, for each comparison of a choice."""
    worst: dict[tuple[str, str], dict[int, Array]] = field(default_factory=dict)
    """The oracle's rows by mode and point, of those tokens at which some statistic is greatest:
    whole arrays are let go, since those of a long prompt take more memory than a dump."""
    scores: dict[tuple[str, str], Array] = field(default_factory=dict)
    """What a choice goes by, [T, E], by mode and ``topk_ids`` point."""
    places: dict[str, Array] = field(default_factory=dict)
    """Place of the oracle's top token in the backend's order, [T], by mode."""
    misshapen: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Points of another shape than the oracle's, which is given; they are not compared."""
    per_token: dict[Key, Array] = field(default_factory=dict)
    flips: Array | None = None
    """[sparse layers, T]: where other experts were chosen than in the oracle's free run."""

    def note(self, key: Key, each: Array) -> None:
        """Takes in a statistic of every token, [T]."""
        token = int(np.argmax(each))
        self.values[key] = Measured(float(each[token]), token)
        self.per_token[key] = each

    def vectors(self, mode: str, point: str, found: Array, expected: Array) -> None:
        """Takes in an array [T, ...] and what it should be; trailing axes may be joined."""
        if not fits(found, expected):
            self.misshapen[point] = expected.shape
            return
        each = statistics.of_vectors(found, expected)
        for name, value in each.items():
            self.note(Key(mode, point, name), value)
        rms = float(np.sqrt(np.mean(np.square(each["l2"]))))
        self.values[Key(mode, point, "rms")] = Measured(rms, int(np.argmax(each["l2"])))
        if point == "lm_head":
            of_logits = statistics.of_logits(found, expected)
            for name, value in of_logits.items():
                self.note(Key(mode, point, name), value)
            each |= of_logits
            self.places[mode] = statistics.ranks(found, expected)
        tokens = {int(np.argmax(value)) for value in each.values()}
        self.worst[mode, point] = {token: np.array(expected[token]) for token in tokens}


def fits(found: Array, expected: Array) -> bool:
    """Whether they can be compared: of one shape, or the last axes of what was found are one."""
    joined = len(found) == len(expected) and found.ndim == 2 and found.size == expected.size
    return found.shape == expected.shape or joined


class Oracle:
    """The oracle on one prompt: the float64 run, and its operations one by one.

    ``logits_at``: indices of the tokens whose logits a dump may hold instead of all.
    """

    def __init__(
        self, model: Laguna, tokens: Array, positions: Array, logits_at: Array | None = None
    ) -> None:
        self.model = model
        self.logits_at = None if logits_at is None else np.asarray(logits_at)
        self.tokens, self.positions = np.asarray(tokens), np.asarray(positions)
        self.operations = operations(model, self.tokens, self.positions)

    @cached_property
    def free(self) -> dict[str, Array]:
        """Every trace point of the oracle's own run, [T, ...] each."""
        return run(self.model, self.tokens, self.positions)

    def like(self, point: str, found: Array, expected: Array) -> Array:
        """The rows of ``expected`` [T, ...] that ``found`` has: all, but for some logits."""
        if point == "lm_head" and self.logits_at is not None and len(found) != len(expected):
            return np.asarray(expected[self.logits_at])
        return expected

    def layers(self) -> Iterable[tuple[int, list[Operation]]]:
        """Each layer with its operations."""
        for spec in self.model.config.layers:
            yield spec.index, [op for op in self.operations if op.layer == spec.index]

    def selection_scores(self, layer: int, logits: Array) -> Array:
        """What the choice goes by, float64 [T, E], from router logits."""
        scores = scores_of(np.asarray(logits, np.float64), self.model.router.score_func)
        return biased(scores, self.bias(layer), self.model.numerics)

    def bias(self, layer: int) -> Array:
        """A router's correction bias, as stored, [E]."""
        weights = self.model.weights.layers[layer].mlp
        assert isinstance(weights, SparseMLPWeights)
        return weights.e_score_correction_bias

    def sparse_layers(self) -> list[int]:
        """Layers with a router."""
        return [spec.index for spec in self.model.config.layers if spec.mlp == "sparse"]


def compare(
    oracle: Oracle, found: Mapping[str, Array], modes: Iterable[str],
    earlier: Comparisons | None = None,
) -> Comparisons:  # fmt: skip
    """Compares what ``found`` holds, in the modes given; ``earlier``, of other modes, is added to.

    Shapes: found [T, ...] each.
    Experts chosen must be some of the model's.
    """
    result = earlier or Comparisons()
    for mode in modes:
        if mode == "added":
            _added(oracle, found, result)
        elif mode == "layers":
            _layers(oracle, found, result)
        elif mode == "replayed":
            _replayed(oracle, found, result)
        elif mode == "free":
            _whole("free", oracle, oracle.free, found, result)
            if has_routing(oracle, found):
                result.flips = _flips(oracle, found)
        elif mode == "logits" and "lm_head" in found:
            logits = oracle.like("lm_head", found["lm_head"], oracle.free["lm_head"])
            result.vectors("logits", "lm_head", found["lm_head"], logits)
    return result


def has_routing(oracle: Oracle, found: Mapping[str, Array]) -> bool:
    """Whether ids and weights [T, K] of every router are there."""
    return all(
        f"model.layers.{layer}.mlp.{part}" in found
        for layer in oracle.sparse_layers()
        for part in ("topk_ids", "topk_weights")
    )


def _added(oracle: Oracle, found: Mapping[str, Array], result: Comparisons) -> None:
    for op in oracle.operations:
        if op.point not in found or not all(name in found for name in op.inputs):
            continue
        if op.point.endswith("topk_ids"):
            assert op.layer is not None
            logits = found[op.inputs[0]]
            _choice("added", oracle, op.layer, logits, logits, found[op.point], result)
            continue
        expected = oracle.like(op.point, found[op.point], op.compute(found))
        result.vectors("added", op.point, found[op.point], expected)
        if op.point.endswith("topk_weights") and oracle.model.config.norm_topk_prob:
            off = np.abs(np.asarray(found[op.point], np.float64).sum(axis=1) - 1)
            result.note(Key("added", op.point, "sum"), off)


def _layers(oracle: Oracle, found: Mapping[str, Array], result: Comparisons) -> None:
    for layer, of_layer in oracle.layers():
        source, out = layer_input(layer), f"model.layers.{layer}"
        routing = (f"{out}.mlp.topk_ids", f"{out}.mlp.topk_weights")
        sparse = layer in oracle.sparse_layers()
        needed = (source, out, *routing) if sparse else (source, out)
        if all(name in found for name in needed):
            given = {name: found[name] for name in needed if name != out}
            result.vectors("layers", out, found[out], evaluate_layer(of_layer, given)[out])


def _replayed(oracle: Oracle, found: Mapping[str, Array], result: Comparisons) -> None:
    """Every point is compared as the run comes to it, and let go."""

    def seen(point: str, array: Array) -> None:
        if point.endswith("mlp.gate"):
            _replayed_choice(oracle, point.removesuffix(".gate"), array, found, result)
        if point in found and ".topk_" not in point:
            result.vectors("replayed", point, found[point], oracle.like(point, found[point], array))

    watched(oracle.model, oracle.tokens, oracle.positions, routing_in(found), seen)


def _replayed_choice(
    oracle: Oracle, at: str, logits: Array, found: Mapping[str, Array], result: Comparisons
) -> None:
    ids, theirs = found[f"{at}.topk_ids"], found.get(f"{at}.gate", logits)
    if theirs.shape == logits.shape:
        _choice("replayed", oracle, int(at.split(".")[2]), logits, theirs, ids, result)
    own = weights_of_chosen(ids, scores_of(logits, oracle.model.router.score_func), oracle.model)
    result.vectors("replayed", f"{at}.topk_weights", found[f"{at}.topk_weights"], own)


def _whole(
    mode: str, oracle: Oracle, expected: Mapping[str, Array], found: Mapping[str, Array],
    result: Comparisons,
) -> None:  # fmt: skip
    for point, array in expected.items():
        routing = point.endswith(("topk_ids", "topk_weights"))
        # Without the backend's own choice, two lists of experts have no order in common.
        if point in found and not point.endswith("topk_ids") and not (routing and mode == "free"):
            result.vectors(mode, point, found[point], oracle.like(point, found[point], array))


def _flips(oracle: Oracle, found: Mapping[str, Array]) -> Array:
    points = [f"model.layers.{layer}.mlp.topk_ids" for layer in oracle.sparse_layers()]
    rows = [statistics.other_sets(found[point], oracle.free[point]) for point in points]
    return np.array(rows).reshape(len(points), len(oracle.tokens))


def _choice(
    mode: str, oracle: Oracle, layer: int, logits: Array, theirs: Array, ids: Array,
    result: Comparisons,
) -> None:  # fmt: skip
    point = f"model.layers.{layer}.mlp.topk_ids"
    scores = oracle.selection_scores(layer, logits)
    key = Key(mode, point, "deficit")
    result.note(key, statistics.deficits(scores, ids))
    noise = np.abs(oracle.selection_scores(layer, theirs) - scores)
    result.score_noise[key] = float(noise.max())
    result.scores[mode, point] = scores
