"""bfloat16 numerics against Transformers in bfloat16 (eager attention, grouped_mm experts).

Each operation is given the inputs that Transformers' module saw. Where no sum is involved, or
all sums are exact, the results have equal bits: every rounding point is where it should be.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from transformers import LagunaConfig
from transformers.models.laguna import modeling_laguna

from laguna_ref import checkpoint
from laguna_ref.checkpoint import DenseWeight
from laguna_ref.numerics import NUMERICS, round_to_bf16
from laguna_ref.ops.activations import sigmoid, silu, softplus
from laguna_ref.ops.router import RouterSpec, route
from tests import tolerances
from tests.peers import compare
from tests.peers.bfloat16_ops import Pair, pairs, ulp
from tests.peers.settings import PEER_CONFIGS, draw
from tests.peers.transformers_model import load_transformers, trace
from tests.strategies import Example, Tensors, examples, with_selectors

pytestmark = pytest.mark.peer


@dataclass
class Count:
    """How many elements of an operation's results differ, and by how much."""

    unequal: int = 0
    elements: int = 0
    greatest: float = 0.0
    """Greatest difference in ulp of the result's greatest magnitude."""

    def add(self, pair: Pair) -> None:
        self.unequal += int((pair.ours != pair.theirs).sum())
        self.elements += pair.ours.size
        difference = np.abs(pair.ours.astype(np.float64) - pair.theirs)
        self.greatest = max(
            self.greatest, float(difference.max(initial=0) / ulp(compare.scale_of(pair.theirs)))
        )

    def __str__(self) -> str:
        share = self.unequal / max(self.elements, 1)
        return (
            f"{self.unequal} of {self.elements} unequal ({share:.1e}), by {self.greatest:.2g} ulp"
        )


def random_weights(example: Example) -> Tensors:
    return example.tensors()


def selectors(example: Example) -> Tensors:
    return with_selectors(example.tensors(), example.seed)


@pytest.mark.parametrize(
    ("weights", "exact"),
    [
        (random_weights, tolerances.BFLOAT16_WITHOUT_SUMS),
        (selectors, tolerances.BFLOAT16_WITHOUT_SUMS | tolerances.BFLOAT16_PRODUCTS),
    ],
    ids=["random weights", "weights that make every product exact"],
)
def test_every_operation_on_equal_inputs(
    weights: Callable[[Example], Tensors], exact: set[str], figures: dict[str, str]
) -> None:
    counts: dict[str, Count] = {}
    whole_runs: list[tuple[float, float]] = []

    @draw(max(20, PEER_CONFIGS // 2))
    @given(examples())
    def agree(example: Example) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = example.config | {"torch_dtype": "bfloat16"}
            checkpoint.write(folder, config, weights(example))
            theirs = trace(load_transformers(folder, torch.bfloat16), example.tokens)
            model, ours = compare.run(folder, example.tokens, numerics="bfloat16")
            _, truth = compare.run(folder, example.tokens, numerics="float64")
        for pair in pairs(model, example.tokens, theirs):
            counts.setdefault(pair.op, Count()).add(pair)
            check_linear(pair)
        scale = compare.scale_of(truth["lm_head"])
        whole_runs.append(
            tuple(root_mean_square(x["lm_head"] - theirs["lm_head"]) / scale for x in (ours, truth))
        )

    agree()
    for op, count in counts.items():
        figures[f"bfloat16, {weights.__name__}, {op}"] = str(count)
        if op in exact:
            assert count.unequal == 0, f"{op}: {count}"
        else:
            share, most = tolerances.BFLOAT16_OF_SUMS[op]
            assert count.unequal <= share * count.elements, f"{op}: {count}"
            assert count.greatest <= most, f"{op}: {count}"
    ours_to_theirs, noise = np.transpose(whole_runs)
    apart = float(np.mean(ours_to_theirs > noise / 2))
    figures[f"bfloat16, {weights.__name__}, logits of whole runs"] = (
        f"{np.mean(ours_to_theirs == 0):.0%} equal, {apart:.0%} further apart than half their noise"
    )
    assert apart <= tolerances.BFLOAT16_RUNS_APART


def check_linear(pair: Pair) -> None:
    """A product differs by one ulp of itself, or by what float32 sums may differ."""
    if pair.sums is None or pair.op != "linear":
        return
    larger = np.maximum(np.abs(pair.ours), np.abs(pair.theirs))
    allowed = ulp(larger) + tolerances.FLOAT32_SUM * pair.sums
    assert np.all(np.abs(pair.ours - pair.theirs) <= allowed), pair.at


def root_mean_square(x: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def test_the_correction_bias_is_rounded() -> None:
    """1.003 and 1.004 lie on either side of a border: unrounded, the first expert would win."""
    bias = np.array([1.003, 1.004, 0.0], np.float32)
    logits = np.array([[0.0078125, 0.0, 0.0]], np.float32)  # scores 0.002 apart, then 0.5
    config = LagunaConfig(hidden_size=3, num_experts=3, num_experts_per_tok=1)
    router = modeling_laguna.LagunaTopKRouter(config)
    router.weight.data, router.e_score_correction_bias.data = torch.eye(3), torch.tensor(bias)
    with torch.inference_mode():
        _, _, theirs = router.bfloat16()(torch.tensor(logits).bfloat16())
    identity = DenseWeight("identity", np.eye(3, dtype=np.float32))
    spec = RouterSpec(1, "sigmoid", 0.0, True)
    assert route(logits, identity, bias, spec, NUMERICS["float32"])[1].tolist() == [[0]]
    assert route(logits, identity, bias, spec, NUMERICS["bfloat16"])[1].tolist() == [[1]]
    assert theirs.tolist() == [[1]]


BFLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
FINITE = BFLOAT16[np.isfinite(BFLOAT16)]


def test_softplus_of_every_bfloat16_number() -> None:
    theirs = torch.nn.functional.softplus(torch.tensor(FINITE)).bfloat16().float().numpy()
    np.testing.assert_array_equal(round_to_bf16(softplus(FINITE)), theirs)


def test_silu_of_every_bfloat16_number() -> None:
    """Below -88 torch's exponential overflows and it returns zero; one other number is a tie."""
    theirs = torch.nn.functional.silu(torch.tensor(FINITE).bfloat16()).float().numpy()
    ours = round_to_bf16(silu(FINITE))
    differ = (ours != theirs) & (FINITE > -88)
    assert differ.sum() <= tolerances.SILU_UNEQUAL
    assert np.all(np.abs(ours - theirs)[differ] <= ulp(theirs[differ]))
    assert np.all(np.abs(ours[FINITE <= -88]) < np.finfo(np.float32).tiny * 128)


def test_sigmoid_of_every_bfloat16_number() -> None:
    """In float32, where the router computes it; below -88 torch's exponential overflows."""
    theirs = torch.sigmoid(torch.tensor(FINITE)).numpy()
    ours = sigmoid(FINITE)
    tiny = FINITE <= -88
    assert np.all(
        np.abs(ours - theirs)[~tiny] <= tolerances.SIGMOID_ULP * np.spacing(theirs[~tiny])
    )
    assert np.all(ours[tiny] < np.finfo(np.float32).tiny)
