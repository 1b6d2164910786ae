"""What a run needs at least: bytes from memory, and floating-point operations.

Bytes: every dense weight once a run, of the routed experts those that some token of the run
chose, each once; one row of the embedding a token; the keys and values that the run's tokens may
look at, once. Activations are not counted: they fit the caches.

FLOPs: a multiply and an add for each weight a token is multiplied with, and for each channel of
each visible key and value; the head once a sequence, since only the last token needs logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from laguna_ref.config import LagunaConfig
from laguna_ref.sizes import FLOAT_BYTES, LinearSize, linears, weight_bytes

HEAD = "lm_head"
EXPERTS = "mlp.experts."


class Rates(NamedTuple):
    """What a machine can do at best with a number of threads."""

    read_gb_s: float
    sgemm_gflop_s: float


@dataclass(frozen=True)
class Work:
    """Bytes and FLOPs of one run."""

    nbytes: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.nbytes + other.nbytes, self.flops + other.flops)

    def seconds(self, rates: Rates) -> float:
        """The least time it can take."""
        return max(self._reading(rates), self._computing(rates))

    def bound_by(self, rates: Rates) -> str:
        """``memory`` or ``arithmetic``: which of the two takes longer."""
        return "memory" if self._reading(rates) >= self._computing(rates) else "arithmetic"

    def _reading(self, rates: Rates) -> float:
        return self.nbytes / (rates.read_gb_s * 1e9)

    def _computing(self, rates: Rates) -> float:
        return self.flops / (rates.sgemm_gflop_s * 1e9)


@dataclass(frozen=True)
class Storage:
    """How a program holds weights, keys and values; None: as the checkpoint stores weights."""

    float_bytes: float | None
    """Bytes of every weight, for a program that gives them all one type."""
    kv_bytes: tuple[int, ...]
    """Bytes of a cached number, by layer."""
    head_bytes: float | None = None
    """Bytes of a weight of the head, where that has a type of its own."""


def weights_work(
    config: LagunaConfig, storage: Storage, tokens: int, hits: Sequence[int], sequences: int = 1
) -> Work:
    """Every product with a weight, for ``tokens`` tokens of all sequences together.

    ``hits[layer]`` is how many different experts they chose in that layer.
    """
    stored = FLOAT_BYTES[config.torch_dtype]
    row_bytes = config.hidden_size * (storage.float_bytes or stored)
    work = Work(tokens * row_bytes, 0)
    for linear in linears(config):
        head = linear.name == HEAD
        nbytes: float
        if storage.float_bytes is None:
            nbytes = weight_bytes(linear.rows, linear.columns, linear.format, stored)
        else:
            own = storage.head_bytes if head else None
            nbytes = linear.parameters * (storage.float_bytes if own is None else own)
        read, multiplied = _counts(linear, hits)
        rows = sequences if head else tokens
        work += Work(read * nbytes, multiplied * rows * 2 * linear.parameters)
    return work


def _counts(linear: LinearSize, hits: Sequence[int]) -> tuple[int, int]:
    """How many matrices of this name are read, and how many a token is multiplied with."""
    if linear.layer is not None and linear.name.startswith(EXPERTS):
        return hits[linear.layer], linear.used
    return 1, linear.used


def attention_work(config: LagunaConfig, storage: Storage, context: int, tokens: int = 1) -> Work:
    """Scores and weighted values of the last ``tokens`` of ``context`` tokens of one sequence."""
    work = Work(0, 0)
    for layer, kv_bytes in zip(config.layers, storage.kv_bytes, strict=True):
        reach = layer.window or context
        held = min(context, reach + tokens - 1)
        seen = sum(min(last, reach) for last in range(context - tokens + 1, context + 1))
        width = layer.num_kv_heads * layer.head_dim
        work += Work(2 * held * width * kv_bytes, 4 * seen * layer.num_heads * layer.head_dim)
    return work
