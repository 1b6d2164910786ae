"""Faults of RMSNorm, where it is computed and where it is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics


def norm_eps_1e_5(model: Laguna) -> Laguna:
    """Every norm adds 1e-5 to the mean square, whatever rms_norm_eps says."""
    result = changed(model)
    result.config = replace(model.config, rms_norm_eps=1e-5)
    return result


def norm_plus_one(model: Laguna) -> Laguna:
    """Norms multiply by 1 + weight, Gemma's convention."""

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        return model.engine.rms_norm(x, weight.astype(np.float32) + 1, eps, numerics)

    return changed(model, rms_norm=rms_norm)


def weight_before_cast(model: Laguna) -> Laguna:
    """The weight multiplies the unrounded vector, which is cast to bfloat16 once, as in Gemma.

    Nothing changes where nothing is rounded, in float32.
    """

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        fused = replace(numerics, rounds=numerics.rounds - {"norm.normalised"})
        return model.engine.rms_norm(x, weight, eps, fused)

    return changed(model, rms_norm=rms_norm)


def cast_before_weight(model: Laguna) -> Laguna:
    """Vectors are cast to bfloat16 before the weight even in a model that runs in float32.

    Nothing changes in bfloat16, where they are.
    """

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        cast = replace(numerics, rounds=numerics.rounds | {"norm.normalised"})
        return model.engine.rms_norm(x, weight, eps, cast)

    return changed(model, rms_norm=rms_norm)


def final_norm_missing(model: Laguna) -> Laguna:
    """The head reads the last layer's output without the final norm."""
    final = model.weights.norm

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        return x if weight is final else model.engine.rms_norm(x, weight, eps, numerics)

    return changed(model, rms_norm=rms_norm)


_FIRST = "input_layernorm"
FAULTS = (
    Fault("norm.eps_1e_5", _FIRST, "all", "subtle", norm_eps_1e_5),
    Fault("norm.plus_one", _FIRST, "all", "fatal", norm_plus_one),
    Fault("norm.weight_before_cast", _FIRST, "all", "subtle", weight_before_cast),
    Fault("norm.cast_before_weight", _FIRST, "all", "subtle", cast_before_weight),
    Fault("norm.final_missing", "model.norm", "model", "fatal", final_norm_missing),
)
