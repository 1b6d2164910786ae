"""A small packed model with an FP8 cache, and cases of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import laguna_ref
from laguna_ref.golden import Case, Golden, make
from tests.small import Small, quantised, small, small_config, tokens_for

CONFIG = quantised(small_config())  # three layers, two of them sparse; window 4, vocabulary 40
TOKENS = tuple(int(token) for token in tokens_for(CONFIG, 9))


@cache
def checkpoint(seed: int = 0) -> Small:
    return small(CONFIG, seed)


@cache
def loaded(kv_cache: str = "fp8", **options: Any) -> laguna_ref.Laguna:
    return checkpoint().load(**{"numerics": "float64", "kv_cache": kv_cache} | options)


def case(**changes: Any) -> Case:
    points = ("model.layers.*.mlp.gate", "model.norm")
    plain = Case("plain", TOKENS, None, "fp8", (len(TOKENS),), points, (0, 8))
    return replace(plain, **changes)


@cache
def golden() -> Golden:
    return make(loaded(), case())


def written(folder: Path, seed: int = 0) -> Path:
    """The checkpoint on disk."""
    checkpoint(seed).write(folder)
    return folder
