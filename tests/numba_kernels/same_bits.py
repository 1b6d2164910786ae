"""Logits of small checkpoints and their hashes; run as a module, it prints a table of them.

    python -m tests.numba_kernels.same_bits [--flush] FORMAT/NUMERICS ...

prints ``{"int4/float32": {"prefill, 1 thread": "<sha-256>", ...}}``. Whatever the processor
the code is compiled for, all of it must come out the same.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laguna_ref import Laguna
from numba_kernels import float_mode, jit
from tests.small import Config, Small, quantised, small, small_config, tokens_for

Array = NDArray[Any]

WINDOW = 10
TOKENS = 90
"""Beyond one block of 64 positions."""
DECODED = 4
"""Tokens at the end that are always given one by one."""

FORMATS = {"int4": (4, 32), "int8": (8, 16)}
"""Bits and group size."""
NUMERICS = ("float32", "float64", "bfloat16")
CASES = tuple(f"{stored}/{numerics}" for stored in FORMATS for numerics in NUMERICS)

CHUNKS = (TOKENS, 7, 1, WINDOW - 1, WINDOW, WINDOW + 1)


def config() -> Config:
    """Full and sliding layers, dense and sparse; rows that kernels read in place."""
    return small_config(
        hidden_size=64,
        intermediate_size=72,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=24,
        head_dim=16,
        sliding_window=WINDOW,
        vocab_size=61,
    )


@cache
def checkpoint(stored: str) -> Small:
    """With an FP8 cache; the head's last words have logits below the normal numbers."""
    model = small(quantised(config(), *FORMATS[stored]), seed=SEEDS[stored])
    head = model.values["lm_head.weight"].copy()
    head[50:] *= 2.0**-124
    return model.with_tensors({"lm_head.weight": head})


FLUSHING = 0x9FC0
"""What an x86 control register holds when results and operands are flushed to zero."""

SEEDS = {"int4": 0, "int8": 0}
"""Seeds of models in which float32 noise tips no choice of experts and no FP8 rounding."""


def prompt() -> Array:
    return tokens_for(config(), TOKENS)


def digest(logits: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def in_chunks(model: Laguna, chunk: int, rubbish: bool = False) -> Array:
    """The logits of the prompt's tokens: chunks, then decoding one by one."""
    tokens, cache, rows = prompt(), model.new_cache(), []
    start = 0
    while start < TOKENS:
        stop = min(start + chunk, TOKENS - DECODED) if start < TOKENS - DECODED else start + 1
        rows.append(model(tokens[start:stop], cache=cache))
        start = stop
        if rubbish:
            fill_dead_slots(cache)
    return np.concatenate(rows)


def fill_dead_slots(cache: Any) -> None:
    """NaN (for FP8 its code) wherever the cache holds nothing that may still be read."""
    for layer in cache.layers:
        window = layer.window
        slots = len(layer._keys)
        live = range(layer.length)
        if window is not None:
            live = range(max(0, layer.length - window + 1), layer.length)
        dead = np.setdiff1d(np.arange(slots), np.array(live, int) % max(slots, 1))
        rubbish = 0x7F if layer.format.fp8 else np.nan
        layer._keys[dead] = rubbish
        layer._values[dead] = rubbish


def in_a_batch(model: Laguna, place: int) -> Array:
    """The prompt as one of several sequences of other lengths, one of which is its own start."""
    sequences = [tokens_for(config(), 30, seed=1), prompt()[:13], tokens_for(config(), 1, seed=2)]
    sequences.insert(place, prompt())
    return model.batch(sequences)[place]


def with_small_work(limit: int, model: Laguna) -> Array:
    """Every kernel on all threads (0), or on the calling thread."""
    before, jit.SMALL_WORK = jit.SMALL_WORK, limit
    try:
        return np.concatenate([model(prompt()[:1]), model(prompt())[1:]])
    finally:
        jit.SMALL_WORK = before


def hashes(case: str, threads: tuple[int, ...] = (1, 2)) -> dict[str, str]:
    """All ways to the same logits, and their hashes."""
    stored, numerics = case.split("/")
    found = {}
    for count in threads:
        model = checkpoint(stored).load(numerics=numerics, engine="numba", threads=count)
        found[f"all at once, {count} threads"] = digest(model(prompt()))
        everywhere = digest(with_small_work(0, model))
        found[f"all at once, {count} threads in every kernel"] = everywhere
    found["on the calling thread"] = digest(with_small_work(1 << 60, model))
    for chunk in CHUNKS:
        found[f"chunks of {chunk}"] = digest(in_chunks(model, chunk))
    found["rubbish in dead slots"] = digest(in_chunks(model, 7, rubbish=True))
    for place in range(4):
        found[f"place {place} of a batch"] = digest(in_a_batch(model, place))
    return found


def main(arguments: list[str]) -> None:
    cases = [argument for argument in arguments if argument != "--flush"]
    for stored in FORMATS:
        checkpoint(stored)
    if "--flush" in arguments:
        # Before the first kernel starts its threads, which inherit the mode.
        float_mode.leave(np.int32(FLUSHING))
    json.dump({case: hashes(case, (1, 2, 3, 4)) for case in cases}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
