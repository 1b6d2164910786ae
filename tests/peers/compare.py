"""Comparing runs of one model: errors in units of a value's own scale, and tied expert choices.

Two runs in float32 may choose different experts for a token when two selection scores are
equal to within their noise. What follows from the choice then differs by far more than
rounding, and later tokens see it through attention. Such values are set aside, counted, and
only if the choice was in truth a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laguna_ref import Recorder, load
from laguna_ref.model import Laguna
from laguna_ref.ops.activations import sigmoid
from tests import tolerances

Trace = dict[str, NDArray[Any]]


@dataclass
class Tally:
    """Sums over all examples of a run."""

    tokens: int = 0
    ties: int = 0
    """Tokens whose choice of experts differed between runs, being tied."""
    left_out: int = 0
    """Tokens without comparable logits: tied ones, and those that see a tied one."""
    worst: dict[str, float] = field(default_factory=dict)
    """Greatest error by what was compared."""

    def note(self, what: str, error: float) -> float:
        self.worst[what] = max(error, self.worst.get(what, 0.0))
        return error

    def report(self, title: str, figures: dict[str, str]) -> None:
        """Adds the sums to the figures printed after the run."""
        compared = self.tokens - self.left_out
        errors = ", ".join(f"{what} {worst:.1e}" for what, worst in self.worst.items())
        figures[title] = (
            f"{compared} of {self.tokens} tokens, {self.ties} tied; greatest error {errors}"
        )
        assert self.left_out <= tolerances.TIED_TOKENS * self.tokens


def scale_of(truth: NDArray[Any]) -> float:
    """Greatest magnitude: the unit in which errors of a value are given."""
    return float(np.max(np.abs(truth), initial=0.0)) or 1.0


def error(found: NDArray[Any], expected: NDArray[Any], scale: float) -> float:
    """Greatest absolute difference in units of ``scale``; infinite if either holds a NaN."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    if found.size == 0:
        return 0.0
    greatest = np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)))
    return float(greatest) / scale if np.isfinite(greatest) else np.inf


def selection_scores(model: Laguna, trace: Trace, layer: int) -> NDArray[Any]:
    """Scores plus correction bias, [T, E], from a trace's router logits."""
    bias = model.checkpoint.tensor(f"model.layers.{layer}.mlp.experts.e_score_correction_bias")
    return sigmoid(trace[f"model.layers.{layer}.mlp.gate"]) + bias.astype(np.float64)


def margins(model: Laguna, trace: Trace, layer: int) -> NDArray[Any]:
    """How far the last expert chosen stands above the first one left, [T]; inf if none is left."""
    scores = np.sort(selection_scores(model, trace, layer), axis=-1)[:, ::-1]
    top_k = model.config.num_experts_per_tok
    if top_k == scores.shape[1]:
        return np.full(len(scores), np.inf)
    margin: NDArray[Any] = scores[:, top_k - 1] - scores[:, top_k]
    return margin


BEFORE_ATTENTION = (
    "input_layernorm",
    *(f"self_attn.{x}_proj" for x in "qkvg"),
    *(f"self_attn.{x}" for x in ("q_norm", "k_norm", "q_rope", "k_rope", "gate")),
    *(f"self_attn.{x}" for x in ("k_cached", "v_cached")),
)
BEFORE_EXPERTS = (
    *(f"self_attn.{x}" for x in ("attention", "o_proj")),
    "self_attn",
    "post_attention_layernorm",
    "mlp.gate",
    "mlp.shared_experts",
)


class Comparable:
    """Which tokens of which values may be compared between runs that chose tied experts.

    ``noise`` is the most by which a selection score may differ between two runs. Raises
    AssertionError for a choice that differs without being a tie.
    """

    def __init__(self, model: Laguna, truth: Trace, others: Sequence[Trace], noise: float) -> None:
        tokens = len(truth["model.embed_tokens"])
        self.tied = np.zeros(tokens, bool)
        """Tokens that go to other experts in one of the runs."""
        self._rows: dict[str, NDArray[np.bool_]] = {"model.embed_tokens": np.ones(tokens, bool)}
        clean = np.ones(tokens, bool)
        for layer in model.config.layers:
            at = f"model.layers.{layer.index}"
            self._rows |= {f"{at}.{point}": clean for point in BEFORE_ATTENTION}
            clean = np.logical_and.accumulate(clean)  # a token sees all before it
            self._rows |= {f"{at}.{point}": clean for point in BEFORE_EXPERTS}
            if layer.mlp == "sparse":
                differs = clean & _choices_differ(truth, others, f"{at}.mlp.topk_ids")
                margin = margins(model, truth, layer.index)
                assert np.all(margin[differs] <= 2 * noise), (
                    f"{at}.mlp: token {np.flatnonzero(differs & (margin > 2 * noise))[0]} goes to "
                    f"other experts, by a margin of {margin[differs].max():.3g}; noise {noise:.3g}"
                )
                self.tied |= differs
                clean = clean & ~differs
            after = ("mlp.experts", "mlp.topk_ids", "mlp.topk_weights", "mlp")
            self._rows |= {f"{at}.{point}": clean for point in after} | {at: clean}
        self.clean = self._rows["model.norm"] = self._rows["lm_head"] = clean
        """Tokens whose logits may be compared."""

    def rows(self, point: str) -> NDArray[np.bool_]:
        """The tokens whose value at a trace point may be compared."""
        return self._rows[point]


def _choices_differ(truth: Trace, others: Sequence[Trace], point: str) -> NDArray[np.bool_]:
    chosen = np.sort(truth[point], axis=-1)
    differs = [(np.sort(other[point], axis=-1) != chosen).any(axis=-1) for other in others]
    return np.logical_or.reduce(differs)


def ranked_alike(
    model: Laguna, truth: Trace, other: Trace, layer: int, noise: float
) -> NDArray[np.bool_]:
    """[T]: whether ``other`` lists its experts in descending order of the truth's scores."""
    ids = other[f"model.layers.{layer}.mlp.topk_ids"]
    scores = np.take_along_axis(selection_scores(model, truth, layer), ids, axis=-1)
    return np.all(np.diff(scores, axis=-1) <= 2 * noise, axis=-1)


def by_expert(trace: Trace, layer: int) -> NDArray[Any]:
    """``topk_weights`` in order of expert id: runs may list equal experts in another order."""
    order = np.argsort(trace[f"model.layers.{layer}.mlp.topk_ids"], axis=-1)
    weights = trace[f"model.layers.{layer}.mlp.topk_weights"]
    return np.take_along_axis(weights, order, axis=-1)


def run(folder: Path, tokens: Sequence[int], **options: Any) -> tuple[Laguna, dict[str, Any]]:
    """A model of ``laguna_ref`` (NumPy engine) and the full trace of one run of it."""
    model = load(folder, engine="numpy", **options)
    recorder = Recorder()
    model(tokens, trace=recorder)
    return model, {name: recorder[name] for name in recorder}


def float32_runs(model: Laguna, truth: Trace, ours: Trace, theirs: Trace, tally: Tally) -> None:
    """Asserts that two float32 runs and a float64 one (``truth``) agree to float32 noise."""
    assert set(truth) == set(ours)
    assert set(truth) <= set(theirs)
    gates = [scale_of(truth[point]) for point in truth if point.endswith("mlp.gate")]
    noise = tolerances.ROUTER_NOISE * tolerances.FLOAT32_INNER_ERROR * max(gates, default=0.0)
    comparable = Comparable(model, truth, [ours, theirs], noise)
    tally.tokens += len(comparable.clean)
    tally.ties += int(comparable.tied.sum())
    tally.left_out += int((~comparable.clean).sum())

    for layer in [layer.index for layer in model.config.layers if layer.mlp == "sparse"]:
        at = f"model.layers.{layer}.mlp"
        rows = comparable.rows(at)
        for other in (ours, theirs):
            assert ranked_alike(model, truth, other, layer, noise)[rows].all(), at
        point = f"{at}.topk_weights"
        truth, ours, theirs = (t | {point: by_expert(t, layer)} for t in (truth, ours, theirs))

    for point in truth:
        if point.endswith("topk_ids"):
            continue
        rows = comparable.rows(point)
        scale = scale_of(truth[point][rows])
        logits = point == "lm_head"
        limit = tolerances.FLOAT32_ERROR if logits else tolerances.FLOAT32_INNER_ERROR
        kind = "logits" if logits else "trace"
        for who, found, expected in (
            ("ours-float64", ours, truth),
            ("theirs-float64", theirs, truth),
            ("ours-theirs", ours, theirs),
        ):
            found_error = error(found[point][rows], expected[point][rows], scale)
            tally.note(f"{kind} {who}", found_error)
            assert found_error <= limit, f"{point}: {who} {found_error:.3g} of {scale:.3g}"
    same_argmax(truth, ours, theirs, comparable.clean)


def same_argmax(truth: Trace, ours: Trace, theirs: Trace, rows: NDArray[np.bool_]) -> None:
    """The likeliest next token is the same wherever it is ahead by more than the noise."""
    logits = truth["lm_head"][rows]
    if not logits.size:
        return
    best = np.sort(logits, axis=-1)
    clear = best[:, -1] - best[:, -2] > 2 * tolerances.FLOAT32_ERROR * scale_of(logits)
    for other in (ours, theirs):
        found = other["lm_head"][rows].argmax(axis=-1)
        np.testing.assert_array_equal(found[clear], logits.argmax(axis=-1)[clear])
