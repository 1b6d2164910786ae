"""Searches laguna-tiny for a prompt each of whose tokens meets a near tie between experts.

    python tools/find_near_ties.py [TOKENS]

Prints ids for ``[prompts]`` of ``laguna_ref/data/golden/cases.toml``. The prompt grows by one token
at a time: of many candidates, the one whose smallest margin over all layers is the least joins.
Margins are those of float64 and the checkpoint's own cache, so float32 or bfloat16 noise, or
another order of sums, decides such a choice. Run it again when the weights change.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from laguna_ref import Laguna, Recorder, load
from laguna_ref.golden.routing import margins, patterns, sparse_layers
from laguna_ref.kv_cache import KVCache

BATCH = 256
ORDINARY = 70
"""Ids below are special tokens, which a case of their own is for."""


def least_margins(model: Laguna, cache: KVCache, candidates: list[int]) -> list[float]:
    """The smallest margin of each candidate as the next token."""
    found: list[float] = []
    for start in range(0, len(candidates), BATCH):
        batch = candidates[start : start + BATCH]
        traces = [Recorder(*patterns(model)) for _ in batch]
        model.batch([[token] for token in batch], caches=[cache.copy() for _ in batch],
                    last_only=True, traces=traces)  # fmt: skip
        by_layer = [
            margins(model, layer, np.concatenate([t[f"model.layers.{layer}.mlp.gate"]
                                                  for t in traces]))
            for layer, _ in sparse_layers(model)
        ]  # fmt: skip
        found += np.min(by_layer, axis=0).tolist()
    return found


def main() -> None:
    """Prints the prompt and the margins met on the way."""
    length = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    model = load(numerics="float64")
    first = model.config.bos_token_id
    assert first is not None
    prompt, met, cache = [first], [], model.new_cache()
    model(prompt, cache=cache)
    candidates = list(range(ORDINARY, model.config.vocab_size))
    while len(prompt) < length:
        found = least_margins(model, cache, candidates)
        best = int(np.argmin(found))
        prompt.append(candidates[best])
        met.append(found[best])
        model(prompt[-1:], cache=cache)
    print(prompt)
    print("smallest margins:", ", ".join(f"{margin:.1e}" for margin in met))


if __name__ == "__main__":
    main()
