"""Legal variations of the oracle: what a correct backend of a declared precision may compute.

A variation is the oracle with an engine and a numerics of its own, drawn from a seed. The same
seed always gives the same run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.roundings import StochasticNumerics
from laguna_ref.conformance.sums import KINDS, ODDS, Sums
from laguna_ref.conformance.varied_engine import Manner, varied_engine
from laguna_ref.model import Laguna
from laguna_ref.numerics import BF16, FLOAT32, FLOAT64, ROUNDING_POINTS, Numerics

CACHE_TYPES = {"float32": np.float32, "bfloat16": BF16, "float16": np.float16}
NEVER_LEFT_OUT = frozenset({"weight", "residual"})
"""Rounding points that every bfloat16 implementation keeps: the residual stream and the weights
lie in memory between kernels."""


@dataclass(frozen=True)
class Variation:
    """One legal way to compute, all of it settled by ``seed``."""

    seed: int
    precision: Precision
    sums: str
    manner: Manner
    rounds: frozenset[str]
    stochastic: bool

    def __str__(self) -> str:
        left_out = len(ROUNDING_POINTS) - len(self.rounds)
        rounding = "stochastic" if self.stochastic else f"{left_out} points left out"
        return f"variation {self.seed}: {self.sums} sums, {rounding}, {self.manner}"


def draw(precision: Precision, seed: int) -> Variation:
    """The variation of a seed.

    bfloat16: a third of the runs round wherever the released implementation does, the others
    leave out each point with a chance that is itself drawn; one in eight rounds at random.
    """
    random = np.random.default_rng([seed, 1])
    bf16 = precision.activations == "bfloat16"
    rounds: frozenset[str] = frozenset()
    if bf16:
        rounds = frozenset(ROUNDING_POINTS)
        if random.random() > 1 / 3:
            chance = random.random()
            optional = sorted(rounds - NEVER_LEFT_OUT)
            rounds = NEVER_LEFT_OUT | {p for p in optional if random.random() > chance}
    manner = Manner(
        attention=str(random.choice(("eager", "fused"))),
        experts=str(random.choice(("grouped", "loop", "reversed"))),
        rope=str(random.choice(("released", "nudged", "exact"))),
        router=str(random.choice(("rounded", "float32"))),
        fold_scale=bool(random.random() < 0.5),
        int8_block=int(random.choice((32, 1 << 30))) if precision.activations == "int8" else 0,
        fp8_queries="fp8_queries" in precision.options,
    )
    sums = str(random.choice(KINDS, p=ODDS))
    return Variation(seed, precision, sums, manner, rounds, bf16 and bool(random.random() < 1 / 8))


def truth_of(model: Laguna, precision: Precision, matrices: Matrices) -> Laguna:
    """The same model in float64, with the kind of cache the precision declares: what every run
    is held against."""
    sums = Sums("blas", np.random.default_rng(0))
    numerics = replace(FLOAT64, dequant=model.numerics.dequant)
    return _built(model, numerics, Manner(), sums, matrices, _fp8_layers(model, precision))


def varied(model: Laguna, variation: Variation, matrices: Matrices) -> Laguna:
    """The model that computes as ``variation`` does; for one run, its sums draw as they go."""
    precision = variation.precision
    random = np.random.default_rng([variation.seed, 2])
    dequant = model.numerics.dequant
    if precision.weights != "as judged":
        dequant = "bf16" if precision.weights == "bf16" else "exact"
    # A float cache that nobody declared otherwise holds what the activations are.
    held = "float32" if precision.activations != "bfloat16" else "bfloat16"
    kv = held if precision.kv == "as judged" else precision.kv
    numerics: Numerics = replace(
        FLOAT32,
        cache_dtype=np.dtype(CACHE_TYPES[kv]),
        dequant=dequant,
        rounds=variation.rounds,
    )
    if variation.stochastic:
        numerics = StochasticNumerics(
            numerics.name, numerics.dtype, numerics.cache_dtype, numerics.dequant,
            numerics.rounds, random,
        )  # fmt: skip
    sums = Sums(variation.sums, random, precision.accumulate)
    fp8 = _fp8_layers(model, precision)
    return _built(model, numerics, variation.manner, sums, matrices, fp8)


def _built(
    model: Laguna, numerics: Numerics, manner: Manner, sums: Sums, matrices: Matrices,
    fp8: list[bool],
) -> Laguna:  # fmt: skip
    engine = varied_engine(sums, manner, matrices)
    return Laguna(model.checkpoint, engine, numerics, fp8, model.threads)


def _fp8_layers(model: Laguna, precision: Precision) -> list[bool]:
    return [stored.fp8 and precision.kv == "as judged" for stored in model.kv_formats]
