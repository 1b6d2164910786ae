"""How often legal runs send a token to other experts than the float64 run does.

python tools/count_flips.py --precision bfloat16 --runs 20
laguna-ref synth --preset xs2-int4 --layers 2 --out slice   # 256 experts, 8 chosen; 1.3 GB
python tools/count_flips.py --model slice --runs 5
"""

from __future__ import annotations

import argparse

import numpy as np

import laguna_ref
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.replay import run
from laguna_ref.conformance.variations import draw, truth_of, varied


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--precision", choices=PRESETS, default="bfloat16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    model = laguna_ref.load(args.model, engine="numpy")
    tokens = np.random.default_rng(0).integers(70, model.config.vocab_size, args.tokens)
    places = np.arange(args.tokens)
    matrices = Matrices()
    precision = PRESETS[args.precision]
    sparse = [spec.index for spec in model.config.layers if spec.mlp == "sparse"]
    points = [f"model.layers.{layer}.mlp.topk_ids" for layer in sparse]
    truth = run(truth_of(model, precision, matrices), tokens, places)
    chosen = {point: np.sort(truth[point], axis=1) for point in points}
    rows = []
    for seed in range(args.runs):
        trace = run(varied(model, draw(precision, seed), matrices), tokens, places)
        rows.append([(np.sort(trace[p], axis=1) != chosen[p]).any(axis=1) for p in points])
    flips = np.array(rows)  # [runs, layers, T]
    print(f"{args.precision}, {args.runs} runs of {args.tokens} tokens")
    for layer, share in zip(sparse, flips.mean(axis=(0, 2)), strict=True):
        print(f"layer {layer}: {share:.2%} of choices")
    print(f"choices: {flips.mean():.2%}; tokens with any flip: {flips.any(axis=1).mean():.2%}; "
          f"runs with any flip: {flips.any(axis=(1, 2)).mean():.2%}")  # fmt: skip


if __name__ == "__main__":
    main()
