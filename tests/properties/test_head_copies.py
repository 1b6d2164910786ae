"""Laws of grouped-query attention: copies of heads that share their work change nothing.

Catches: a wrong query-to-key head mapping, head counts of the other kind of layer, gates by
position instead of by head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given

from tests import tolerances
from tests.small import Small, models, small, tokens_for, uniform_config

TOKENS = 6


def per_head(array: Any, head_dim: int) -> Any:
    """Rows [H * C, D] as [H, C, D]."""
    return array.reshape(-1, head_dim, array.shape[1])


@given(models(quantise=False))
def test_twins_of_all_heads_with_half_the_output_each(model: Small) -> None:
    config, head_dim = model.config, model.config["head_dim"]
    kv_heads = config["num_key_value_heads"]
    stored = dict(model.stored)
    for layer, heads in enumerate(config["num_attention_heads_per_layer"]):
        at = f"model.layers.{layer}.self_attn"
        group = heads // kv_heads
        # New key head j is old j // 2; the queries of each group come along.
        queries = [(g // 2) * group + i for g in range(2 * kv_heads) for i in range(group)]
        for name, order in (("q", queries), ("k", None), ("v", None)):
            rows = per_head(stored[f"{at}.{name}_proj.weight"], head_dim)
            order = order or [g // 2 for g in range(2 * kv_heads)]
            stored[f"{at}.{name}_proj.weight"] = rows[order].reshape(-1, rows.shape[2])
        gate = stored[f"{at}.g_proj.weight"]
        gate = gate.reshape(heads, -1, gate.shape[1])[queries]
        stored[f"{at}.g_proj.weight"] = gate.reshape(-1, gate.shape[2])
        out = per_head(stored[f"{at}.o_proj.weight"].T, head_dim)[queries]
        halved = (out.reshape(-1, out.shape[2]).T.astype(np.float32) / 2).astype(out.dtype)
        stored[f"{at}.o_proj.weight"] = halved
    twice = {
        "num_key_value_heads": 2 * kv_heads,
        "num_attention_heads_per_layer": [
            2 * heads for heads in config["num_attention_heads_per_layer"]
        ],
    }
    twins = Small(config | twice, model.values, stored)
    tokens = tokens_for(config, TOKENS)
    error = tolerances.model_error(twins.float64.config, TOKENS, np.float64)
    tolerances.assert_within(twins.float64(tokens), model.float64(tokens), error)


def test_one_key_head_for_every_query_head() -> None:
    """Grouped heads written out: G = H with each key head repeated for its group."""
    config = uniform_config(2, "sliding_attention")
    model = small(config)
    group, head_dim = 4 // config["num_key_value_heads"], config["head_dim"]
    stored = dict(model.stored)
    for layer in range(2):
        for name in ("k", "v"):
            weight = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            rows = np.repeat(per_head(stored[weight], head_dim), group, axis=0)
            stored[weight] = rows.reshape(-1, rows.shape[2])
    wide = Small(config | {"num_key_value_heads": 4}, model.values, stored)
    tokens = tokens_for(config, 9)
    error = tolerances.model_error(model.float64.config, 9, np.float64)
    tolerances.assert_within(wide.float64(tokens), model.float64(tokens), error)
