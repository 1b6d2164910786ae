"""Is the stated false-alarm rate the measured one? Fresh legal variations against a budget.

    python tools/calibrate_budget.py --precision float32 --fresh 1000 --out curve.json

Measures a budget of laguna-tiny, then as many variations that it has not seen, and prints, for
several stated rates, the share of them that a report would accuse. ``--plot`` draws the curve
(needs matplotlib).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import laguna_ref
from laguna_ref.conformance.budget import DEFAULT_RUNS, PromptRuns, maxima_of, measure, threshold_of
from laguna_ref.conformance.comparisons import MODES
from laguna_ref.conformance.precision import PRESETS

REPORTS = {
    "trace with routing": ("added", "layers", "replayed"),
    "trace without routing": ("added", "free", "logits"),
    "logits alone": ("logits",),
}
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
FRESH_SEEDS = 1_000_000
"""Where seeds begin that no budget has used."""


def calibrate(precision: str, tokens: int, runs: int, fresh: int, kv_cache: str) -> dict[str, Any]:
    """Stated and measured rates of each kind of report."""
    model = laguna_ref.load(engine="numpy", kv_cache=kv_cache)
    ids = np.random.default_rng(0).integers(70, model.config.vocab_size, tokens)
    places = np.arange(tokens)
    budget = measure(model, ids, places, PRESETS[precision], runs=runs)
    prompt = PromptRuns(model, ids, places, PRESETS[precision])
    scale = dict(zip(budget.keys, budget.scales.tolist(), strict=True))
    rows = []
    for seed in range(FRESH_SEEDS, FRESH_SEEDS + fresh):
        rows.append(maxima_of(prompt.legal(seed), scale))
        if len(rows) % 50 == 0:
            print(f"{len(rows)} of {fresh}", flush=True)
    maxima = np.array(rows)
    curves: dict[str, Any] = {}
    for name, modes in REPORTS.items():
        values = maxima[:, [MODES.index(mode) for mode in modes]].max(axis=1)
        held_out = budget.run_maxima(modes)
        limits = [threshold_of(held_out, rate) for rate in RATES]
        curves[name] = {
            "stated": [limit.rate for limit in limits],
            "accused": [int((values > limit.floor_units).sum()) for limit in limits],
            "floor_units": [limit.floor_units for limit in limits],
        }
    return {
        "precision": precision, "kv_cache": kv_cache, "tokens": tokens, "runs": runs,
        "fresh": fresh, "flips_a_token": float(budget.flips.mean()), "reports": curves,
    }  # fmt: skip


def plot(results: list[dict[str, Any]], target: Path) -> None:
    """Measured against stated rate, logarithmic, with the line of equality."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5))
    axes.plot([0.003, 1], [0.003, 1], color="0.6", linewidth=1)
    for result in results:
        for name, curve in result["reports"].items():
            measured = np.maximum(np.array(curve["accused"]) / result["fresh"], 3e-4)
            axes.plot(curve["stated"], measured, marker="o", markersize=3,
                      label=f"{result['precision']}, {name}")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="stated false-alarm rate",
             ylabel="measured on fresh legal runs (0 drawn at 3e-4)")  # fmt: skip
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--precision", action="append", choices=PRESETS)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--runs", type=int, default=DEFAULT_RUNS)
    parser.add_argument("--fresh", type=int, default=1000)
    parser.add_argument("--kv-cache", default="checkpoint")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    results = []
    for precision in args.precision or list(PRESETS):
        result = calibrate(precision, args.tokens, args.runs, args.fresh, args.kv_cache)
        results.append(result)
        print(json.dumps(result, indent=1), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
