"""Laws of the routed experts: their numbering, and those not chosen, do not matter.

Catches: expert weights off by one, a bias or scale indexed by slot, dense evaluation of all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from laguna_ref import Recorder
from tests import tolerances
from tests.small import Small, models, tokens_for

TOKENS = 6


def renumbered(model: Small, layer: int, order: list[int]) -> Small:
    """The model whose expert ``new`` of one layer was ``order[new]``."""
    at = f"model.layers.{layer}.mlp"
    stored = dict(model.stored)
    for name in (f"{at}.gate.weight", f"{at}.experts.e_score_correction_bias"):
        stored[name] = model.stored[name][order]
    for new, old in enumerate(order):
        prefix = f"{at}.experts.{old}."
        for name in [n for n in model.stored if n.startswith(prefix)]:
            stored[f"{at}.experts.{new}.{name.removeprefix(prefix)}"] = model.stored[name]
    return Small(model.config, model.values, stored)


def sparse_layer(model: Small) -> int:
    kinds = model.config["mlp_layer_types"]
    assume("sparse" in kinds)
    return int(kinds.index("sparse"))


@given(models(), st.randoms(use_true_random=False))
def test_renumbering_experts_changes_nothing(model: Small, random: Any) -> None:
    layer = sparse_layer(model)
    order = list(range(model.config["num_experts"]))
    random.shuffle(order)
    tokens = tokens_for(model.config, TOKENS)
    first, second = Recorder(), Recorder()
    whole = model.float64(tokens, trace=first)
    found = renumbered(model, layer, order).float64(tokens, trace=second)
    ids = f"model.layers.{layer}.mlp.topk_ids"
    assert np.array_equal(np.array(order)[second[ids]], first[ids])
    error = tolerances.model_error(model.float64.config, TOKENS, np.float64)
    tolerances.assert_within(found, whole, error, str(order))


@given(models(quantise=False), st.integers(0, 99))
def test_experts_that_no_token_chose_may_be_anything(model: Small, seed: int) -> None:
    """One token chooses K of E experts; the others' weights are not even read."""
    layer = sparse_layer(model)
    experts, chosen = model.config["num_experts"], model.config["num_experts_per_tok"]
    assume(experts > 1)
    fewer = {"num_experts_per_tok": min(chosen, experts - 1)}
    model = Small(model.config | fewer, model.values, model.stored)
    tokens = tokens_for(model.config, 1, seed)
    recorder = Recorder("*topk_ids")
    whole = model.float64(tokens, trace=recorder)
    at = f"model.layers.{layer}.mlp"
    unchosen = set(range(model.config["num_experts"])) - set(recorder[f"{at}.topk_ids"].flat)
    assert unchosen
    stored = dict(model.stored)
    for expert in unchosen:
        for part in ("gate", "up", "down"):
            name = f"{at}.experts.{expert}.{part}_proj.weight"
            stored[name] = np.full_like(stored[name], np.nan)
    assert np.array_equal(replace(model, stored=stored).load(numerics="float64")(tokens), whole)


@given(models(quantise=False))
def test_a_twin_of_every_expert_shares_its_work(model: Small) -> None:
    """Each expert twice and twice as many chosen: the pairs together weigh what one did."""
    config = model.config
    assume("sparse" in config["mlp_layer_types"])
    assume(bool(config["norm_topk_prob"]))
    assume(bool(config["moe_router_score_func"] != "softmax"))  # its scores halve, below the bias
    count = config["num_experts"]
    stored = dict(model.stored)
    for layer, kind in enumerate(config["mlp_layer_types"]):
        if kind == "sparse":
            at = f"model.layers.{layer}.mlp"
            for name in (f"{at}.gate.weight", f"{at}.experts.e_score_correction_bias"):
                stored[name] = np.concatenate([model.stored[name]] * 2)
            for expert in range(count):
                for part in ("gate", "up", "down"):
                    name = f"experts.{expert}.{part}_proj.weight"
                    twin = f"experts.{expert + count}.{part}_proj.weight"
                    stored[f"{at}.{twin}"] = model.stored[f"{at}.{name}"]
    twice = {"num_experts": 2 * count, "num_experts_per_tok": 2 * config["num_experts_per_tok"]}
    twins = Small(config | twice, model.values, stored)
    tokens = tokens_for(config, TOKENS)
    error = tolerances.model_error(twins.float64.config, TOKENS, np.float64)
    tolerances.assert_within(twins.float64(tokens), model.float64(tokens), error)
