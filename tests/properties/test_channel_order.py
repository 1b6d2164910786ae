"""Laws of names without meaning: vocabulary, residual channels and MLP neurons may be permuted.

Catches: rows and columns exchanged, gate and up halves exchanged, weights off by one.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests import tolerances
from tests.small import Small, models, tokens_for

TOKENS = 6


def same(model: Small, other: Any, tokens: Any, columns: Any = slice(None)) -> None:
    error = tolerances.model_error(model.float64.config, TOKENS, np.float64)
    tolerances.assert_within(other, model.float64(tokens)[:, columns], error)


@given(models(), st.integers(0, 2**16))
def test_the_vocabulary(model: Small, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(model.config["vocab_size"])
    stored = dict(model.stored)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in stored:
            stored[name] = stored[name][order]
    tokens = tokens_for(model.config, TOKENS)
    renamed = np.argsort(order)[tokens]
    same(model, Small(model.config, model.values, stored).float64(renamed), tokens, order)


@given(models(quantise=False), st.integers(0, 2**16))
def test_the_residual_stream(model: Small, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(model.config["hidden_size"])

    def change(name: str, value: Any) -> Any:
        if re.search(r"layernorm|model\.norm", name):
            return value[order]
        if re.search(r"[oa-z]*(o_proj|down_proj)\.weight", name):
            return value[order]
        if re.search(r"([qkvg]|gate|up)_proj|embed_tokens|lm_head|mlp\.gate\.", name):
            return value[:, order]
        return None

    tokens = tokens_for(model.config, TOKENS)
    same(model, model.mapped(change).float64(tokens), tokens)


@given(models(quantise=False), st.integers(0, 2**16))
def test_the_neurons_of_every_mlp(model: Small, seed: int) -> None:
    def change(name: str, value: Any) -> Any:
        if not re.search(r"mlp\..*(gate|up|down)_proj|mlp\.(gate|up|down)_proj", name):
            return None
        width = value.shape[1] if "down_proj" in name else value.shape[0]
        order = np.random.default_rng([seed, width]).permutation(width)
        return value[:, order] if "down_proj" in name else value[order]

    tokens = tokens_for(model.config, TOKENS)
    same(model, model.mapped(change).float64(tokens), tokens)
