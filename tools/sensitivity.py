"""How small a defect is found: sizes of a few defects against floor units.

    python tools/sensitivity.py --runs 200

Each defect is planted in laguna-tiny at sizes a factor of ten apart; the table gives the greatest
comparison over the threshold (above 1: found), from a full trace and from logits alone, and the
size at which it would be 1 if it grew in proportion. One prompt; with an FP8 cache and a float one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from laguna_ref.conformance.judge import judge
from tests.conformance import defects
from tests.conformance.samples import budget_for, dump_of, golden_of, prompt, tiny

Plant = Callable[[Any], Any]


def attention_factor(layer: int, size: float) -> Plant:
    """One full layer's cosine and sine scaled: its q and k rotated part by ``1 + size``."""

    def plant(model: Any) -> Any:
        calls = iter(range(10**9))
        per_run = 2 * len(model.config.layers)  # queries and keys of each layer

        def apply_rope(x: Any, cos: Any, sin: Any, numerics: Any) -> Any:
            here = (next(calls) % per_run) // 2 == layer
            factor = np.float32(1 + size) if here else np.float32(1)
            return model.engine.apply_rope(x, cos * factor, sin * factor, numerics)

        return defects.fresh(model, apply_rope=apply_rope)

    return plant


def routed_factor(size: float) -> Plant:
    """moe_routed_scaling_factor off by ``size``, relative."""
    return lambda model: defects.scaling_factor(
        model.config.moe_routed_scaling_factor * (1 + size)
    )(model)


def one_scale(size: float) -> Plant:
    """One expert's down projection scaled by ``1 + size``."""

    def experts(old: Any) -> Any:
        new = list(old)
        scaled = defects.dense(lambda m: m * np.float32(1 + size))(new[5].down_proj)
        new[5] = replace(new[5], down_proj=scaled)
        return new

    return defects.layer_weights(2, "mlp", experts=experts)


def norm(size: float) -> Plant:
    """One layer's input norm scaled by ``1 + size``."""
    change = {"input_layernorm": lambda w: w.astype(np.float32) * np.float32(1 + size)}
    return defects.layer_weights(5, "", **change)


def gate(size: float) -> Plant:
    """One layer's gate projection scaled by ``1 + size``."""
    return defects.layer_weights(
        3, "self_attn", g_proj=defects.dense(lambda m: m * np.float32(1 + size))
    )


TABLE: dict[str, Callable[[float], Plant]] = {
    "attention factor of layer 0 (full)": lambda size: attention_factor(0, size),
    "attention factor of layer 4 (full)": lambda size: attention_factor(4, size),
    "moe_routed_scaling_factor": routed_factor,
    "one expert's down_proj, layer 2": one_scale,
    "input_layernorm of layer 5": norm,
    "g_proj of layer 3": gate,
}
SIZES = (1e-2, 1e-3, 1e-4, 1e-5)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    tokens = prompt(args.tokens)
    for cache in ("float", "checkpoint"):
        model = tiny(cache)
        golden = golden_of(
            tiny(cache, "float64"), tokens, budget_for(model, tokens, "float32", args.runs)
        )
        print(f"| {cache} cache | from | " + " | ".join(f"{size:g}" for size in SIZES) + " |")
        for name, plant in TABLE.items():
            shares: dict[str, list[float]] = {"trace": [], "logits": []}
            points = []
            for size in SIZES:
                dump = dump_of(plant(size)(model), tokens)
                for kind, given in (("trace", dump), ("logits", dump.only("lm_head"))):
                    report = judge(golden, given, model=model)
                    shares[kind].append(report.share_of_budget or 0.0)
                    if kind == "trace" and report.first_divergence is not None:
                        points.append(report.first_divergence.point)
            for kind, row in shares.items():
                print(f"| {name} | {kind} | " + " | ".join(f"{x:.3g}" for x in row) + " |",
                      flush=True)  # fmt: skip
            print(f"    first causes named: {', '.join(dict.fromkeys(points))}")


if __name__ == "__main__":
    main()
