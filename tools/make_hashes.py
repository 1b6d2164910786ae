"""Recomputes ``laguna_ref/data/golden/laguna-tiny.json``; run it when the embedded weights change.

python tools/make_hashes.py
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from laguna_ref.chat.tokenizer import Tokenizer
from laguna_ref.golden.hashes import COMMITTED, HashCase, to_json
from laguna_ref.load import EMBEDDED

SOURCE = """def is_prime(n):
    if n < 2:
        return False
    for i in range(2, int(n ** 0.5) + 1):
        if n % i == 0:
            return False
    return True
"""


def prompts() -> dict[str, list[int]]:
    """Text, control tokens, one token over and over, and random ids twice round the window."""
    tokenizer = Tokenizer.from_folder(EMBEDDED)
    return {
        "text": [2, *tokenizer.encode(SOURCE)],
        "control tokens": [*range(70)],
        "repeated": [100] * 65,
        "random": np.random.Generator(np.random.PCG64(7)).integers(70, 3072, 129).tolist(),
    }


def main() -> None:
    """Writes the file anew."""
    cases = [
        HashCase(name, tuple(tokens), numerics, kv_cache, chunk=64, sha256="")
        for name, tokens in prompts().items()
        for numerics in ("float32", "float64", "bfloat16")
        for kv_cache in ("checkpoint", "float")
    ]
    done = [replace(case, sha256=case.recompute("numba")) for case in cases]
    COMMITTED.parent.mkdir(exist_ok=True)
    COMMITTED.write_text(json.dumps(to_json(done), indent=1) + "\n")
    print(f"{len(done)} cases in {COMMITTED}")


if __name__ == "__main__":
    main()
