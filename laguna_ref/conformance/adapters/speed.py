"""What the scripts that time a peer have in common: the prompt to agree on, and the runs.

Each is started by ``bench.peers`` in a process of its own, reads a JSON request from stdin and
writes JSON to stdout. They time a peer; they judge nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import laguna_ref
from laguna_ref.bench.timing import Effort, timed
from laguna_ref.numerics import Array

AGREEMENT_TOKENS = 8


class Agreement:
    """Our logits of a short prompt, to hold a peer's against."""

    def __init__(self, path: str, dequant: str = "exact") -> None:
        model = laguna_ref.load(path, engine="numpy", kv_cache="float", dequant=dequant)
        drawn = np.random.default_rng(0).integers(model.config.vocab_size, size=AGREEMENT_TOKENS)
        self.tokens: list[int] = drawn.tolist()
        self._ours = model(drawn)

    def with_logits(self, theirs: Array) -> float:
        """The correlation with a peer's logits of ``tokens``, [T, V]."""
        return float(np.corrcoef(self._ours.ravel(), theirs.ravel())[0, 1])


def seconds(
    run: Callable[[Sequence[int]], object],
    request: dict[str, Any],
    after: Callable[[], object] = lambda: None,
) -> list[tuple[float, ...]]:
    """Times every run asked for; ``run`` is given a prompt and starts from an empty cache.

    A prefill takes all its tokens at once; decoding takes one at a time, by turns. ``after``
    each run is not timed.
    """
    effort = Effort(**request["effort"])
    found = []
    for asked in request["runs"]:
        tokens = asked["tokens"]
        turns = itertools.cycle([[token] for token in tokens] if asked["decode"] else [tokens])
        found.append(timed(_taking(run, turns), effort, after=after).seconds)
    return found


def _taking(
    run: Callable[[Sequence[int]], object], turns: Iterator[Sequence[int]]
) -> Callable[[], object]:
    return lambda: run(next(turns))
