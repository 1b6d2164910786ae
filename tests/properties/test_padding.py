"""Laws of padding: rows and neurons of zeros, and words nobody says, change nothing.

Catches: sums over padded columns, a norm that counts them, softmax over padded experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests import tolerances
from tests.small import Small, models, tokens_for

TOKENS = 6


def padded(array: Any, rows: int, columns: int = 0) -> Any:
    widths = [(0, rows), (0, columns)][: array.ndim]
    return np.pad(array, widths)


@given(models(quantise=False), st.integers(1, 5))
def test_mlp_neurons_of_zeros(model: Small, extra: int) -> None:
    stored = dict(model.stored)
    for name, array in model.stored.items():
        if ".mlp." in name and name.endswith(("gate_proj.weight", "up_proj.weight")):
            stored[name] = padded(array, extra)
        elif ".mlp." in name and name.endswith("down_proj.weight"):
            stored[name] = padded(array, 0, extra)
    keys = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
    config = model.config | {key: model.config[key] + extra for key in keys}
    wide = Small(config, model.values, stored)
    tokens = tokens_for(config, TOKENS)
    error = tolerances.model_error(wide.float64.config, TOKENS, np.float64)
    tolerances.assert_within(wide.float64(tokens), model.float64(tokens), error)


@given(models(), st.integers(1, 9))
def test_words_that_nobody_says(model: Small, extra: int) -> None:
    stored = dict(model.stored)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in stored:
            stored[name] = padded(stored[name], extra)
    count = model.config["vocab_size"]
    wide = Small(model.config | {"vocab_size": count + extra}, model.values, stored)
    tokens = tokens_for(model.config, TOKENS)
    found = wide.float64(tokens)
    assert not found[:, count:].any()
    error = tolerances.model_error(model.float64.config, TOKENS, np.float64)
    tolerances.assert_within(found[:, :count], model.float64(tokens), error)


@given(models(quantise=False))
def test_an_expert_that_the_bias_forbids(model: Small) -> None:
    """One more expert of NaN whose correction bias keeps it from ever being chosen."""
    config = model.config
    if config["moe_router_score_func"] == "softmax":
        return  # a further logit changes every score
    stored = dict(model.stored)
    for layer, kind in enumerate(config["mlp_layer_types"]):
        if kind == "sparse":
            at = f"model.layers.{layer}.mlp"
            stored[f"{at}.gate.weight"] = padded(stored[f"{at}.gate.weight"], 1)
            bias = stored[f"{at}.experts.e_score_correction_bias"]
            stored[f"{at}.experts.e_score_correction_bias"] = np.append(bias, np.float32(-99))
            for part in ("gate", "up", "down"):
                like = stored[f"{at}.experts.0.{part}_proj.weight"]
                name = f"{at}.experts.{config['num_experts']}.{part}_proj.weight"
                stored[name] = np.full_like(like, np.nan)
    wide = Small(config | {"num_experts": config["num_experts"] + 1}, model.values, stored)
    tokens = tokens_for(config, TOKENS)
    error = tolerances.model_error(wide.float64.config, TOKENS, np.float64)
    tolerances.assert_within(wide.float64(tokens), model.float64(tokens), error)
