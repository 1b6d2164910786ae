"""Runs that choose differently between tied experts: told from wrong choices, and set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref import checkpoint
from tests.peers import compare
from tests.peers.transformers_model import load_transformers, trace
from tests.strategies import Config, random_tensors, small_xs2

pytestmark = pytest.mark.peer

TOKENS = tuple(range(5, 17))
ROUTER = "model.layers.1.mlp"


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A model in whose layer 1 every token finds two experts equally good."""
    config = small_xs2("xs2", layer_ids=(0, 1, 2, 4)) | two_experts()
    tensors = random_tensors(config, seed=1)
    gate = tensors[f"{ROUTER}.gate.weight"]
    gate[1] = gate[0]
    tensors[f"{ROUTER}.experts.e_score_correction_bias"][:] = 0.25
    checkpoint.write(tmp_path / "model", config, tensors)
    return tmp_path / "model"


def two_experts() -> Config:
    return {"num_experts": 2, "num_experts_per_tok": 1, "torch_dtype": "float32"}


def flipped(found: dict[str, Any], token: int) -> dict[str, Any]:
    """The same trace with one token sent to the other expert of layer 1."""
    ids = found[f"{ROUTER}.topk_ids"].copy()
    ids[token] = 1 - ids[token]
    return found | {f"{ROUTER}.topk_ids": ids}


def test_a_tied_token_and_those_that_see_it_are_set_aside(tied: Path) -> None:
    model, truth = compare.run(tied, TOKENS, numerics="float64")
    comparable = compare.Comparable(model, truth, [flipped(truth, 8)], noise=1e-9)
    only = np.arange(len(TOKENS)) == 8
    np.testing.assert_array_equal(comparable.tied, only)
    assert comparable.rows("model.layers.1.mlp.gate").all()
    np.testing.assert_array_equal(comparable.rows("model.layers.1.mlp"), ~only)
    np.testing.assert_array_equal(comparable.rows("model.layers.2.self_attn.q_proj"), ~only)
    earlier = np.arange(len(TOKENS)) < 8
    np.testing.assert_array_equal(comparable.rows("model.layers.2.self_attn"), earlier)
    np.testing.assert_array_equal(comparable.clean, earlier)


def test_another_choice_by_a_clear_margin_is_an_error(tmp_path: Path) -> None:
    config = small_xs2("xs2") | two_experts()
    checkpoint.write(tmp_path / "model", config, random_tensors(config, seed=1))
    model, truth = compare.run(tmp_path / "model", TOKENS, numerics="float64")
    with pytest.raises(AssertionError, match=r"token 8 goes to other experts, by a margin"):
        compare.Comparable(model, truth, [flipped(truth, 8)], noise=1e-9)


def test_an_exact_tie_goes_to_the_lower_index_with_us(tied: Path) -> None:
    """Transformers' choice (torch.topk) may be any; what differs by it is set aside."""
    model, truth = compare.run(tied, TOKENS, numerics="float64")
    _, ours = compare.run(tied, TOKENS, numerics="float32")
    theirs = trace(load_transformers(tied), TOKENS)
    assert not truth[f"{ROUTER}.topk_ids"].any()
    assert not ours[f"{ROUTER}.topk_ids"].any()
    compare.float32_runs(model, truth, ours, theirs, compare.Tally())
