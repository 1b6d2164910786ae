"""Weights of a drawn model: a function of config, seed and traits, and of nothing else.

The scales are those of ``checkpoint.synthesis``: unit activations, scores with a spread of a few
units, logits with a standard deviation of three. Traits make them hard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from laguna_ref.checkpoint.names import TensorRule, tensor_rules
from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.laws.example import Config
from laguna_ref.numerics import Array

Tensors = dict[str, Array]

BF16 = np.dtype(ml_dtypes.bfloat16)

TRAITS = {
    "outliers": "one channel in sixteen of every matrix is eight times as large",
    "near ties": "experts' router rows differ by an eighth of their length only",
    "zero groups": "one eighth of every matrix's columns is zero in half of its rows",
    "saturating": "key and value scales so small that some of what is cached exceeds 448",
    "tiny norms": "input and post-attention norm weights near 2**-7",
    "flat attention": "queries an eighth as long: every visible key has a share",
}
"""What weights may have that makes a law harder to keep."""

LOGIT_STD = 3.0
QK_NORM = math.sqrt(2.5)
LARGEST = 6.0
"""Hardly any key or value component exceeds so many units before q_norm's or k_norm's weight."""
E4M3_MAX = 448.0


def tensors(config: Config, seed: int, traits: Sequence[str] = ()) -> Tensors:
    """Every tensor of a config by published name, in the type it is stored in."""
    random = np.random.default_rng(seed)
    parsed = LagunaConfig.from_dict(config)
    result: Tensors = {}
    for rule in tensor_rules(parsed):
        if rule.part == "shape" or (rule.part == "kv_scale" and not parsed.kv_cache_fp8):
            continue
        result[rule.name] = _MAKERS[rule.part](parsed, rule, random, traits)
    return result


def _embedding(config: LagunaConfig, rule: TensorRule, random: Any, traits: Any) -> Array:
    return _bf16(random.normal(0, 1, rule.shapes[0]))


def _norm(config: LagunaConfig, rule: TensorRule, random: Any, traits: Sequence[str]) -> Array:
    centre = QK_NORM if rule.name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0
    if rule.name.endswith("q_norm.weight") and "flat attention" in traits:
        centre /= 8
    if rule.name.endswith("layernorm.weight") and "tiny norms" in traits:
        centre = 2.0**-7
    return _bf16(centre * np.exp(random.normal(0, 0.2, rule.shapes[0])))


def _linear(config: LagunaConfig, rule: TensorRule, random: Any, traits: Sequence[str]) -> Array:
    rows, columns = rule.matrix
    gain = LOGIT_STD if rule.name.startswith("lm_head") else 1.0
    matrix = random.normal(0, gain / math.sqrt(columns), (rows, columns))
    if rule.name.endswith("mlp.gate.weight") and "near ties" in traits:
        matrix = matrix[:1] + matrix / 8
    elif "outliers" in traits:
        matrix[:, random.integers(0, 16) :: 16] *= 8
    if "zero groups" in traits:
        first = int(random.integers(0, columns))
        matrix[: rows // 2, first : first + columns // 8] = 0
    return _bf16(matrix)


def _packed(config: LagunaConfig, rule: TensorRule, random: Any, traits: Sequence[str]) -> Array:
    """Codes -8, -6, ... 6 of INT4 (INT8 alike): even, so that their halves are codes too."""
    bits = rule.format.bits or 4
    half = 1 << (bits - 2)
    return pack(2 * random.integers(-half, half, rule.matrix), bits)


def _scale(config: LagunaConfig, rule: TensorRule, random: Any, traits: Sequence[str]) -> Array:
    bits, shape = rule.format.bits or 4, rule.shapes[0]
    typical = 1.7 / (1 << (bits - 1)) / math.sqrt(rule.matrix[1])
    scale = typical * np.exp(random.normal(0, 0.2, shape))
    if "zero groups" in traits:
        scale[: shape[0] // 2, int(random.integers(0, shape[1]))] = 0
    return _bf16(scale)


def _correction_bias(config: LagunaConfig, rule: TensorRule, random: Any, traits: Any) -> Array:
    return np.asarray(random.normal(0, 0.1, rule.shapes[0]), dtype=np.float32)


def _kv_scale(config: LagunaConfig, rule: TensorRule, random: Any, traits: Sequence[str]) -> Array:
    largest = LARGEST * (QK_NORM if rule.name.endswith("k_scale") else 1.0)
    if "saturating" in traits:
        largest /= 8
    # Not a power of two: a scale left out must show on the grid of codes.
    return _bf16(np.array([largest / E4M3_MAX * random.uniform(0.8, 1.2)]))


_MAKERS: dict[str, Callable[[LagunaConfig, TensorRule, Any, Sequence[str]], Array]] = {
    "embedding": _embedding,
    "norm": _norm,
    "linear": _linear,
    "packed": _packed,
    "scale": _scale,
    "correction_bias": _correction_bias,
    "kv_scale": _kv_scale,
}


def pack(codes: Array, bits: int) -> Array:
    """Signed codes [rows, columns] as compressed-tensors packs them: int32 [rows, words]."""
    rows, columns = codes.shape
    each = 32 // bits
    stored = np.zeros((rows, -(-columns // each) * each), dtype=np.uint32)
    stored[:, :columns] = codes + (1 << (bits - 1))
    shifts = (np.arange(each) * bits).astype(np.uint32)
    words = (stored.reshape(rows, -1, each) << shifts).sum(axis=2, dtype=np.uint32)
    return np.asarray(words.view(np.int32))


def unpack(words: Array, bits: int, columns: int) -> Array:
    """The inverse of ``pack``, int64 [rows, columns]."""
    each = 32 // bits
    shifts = (np.arange(each) * bits).astype(np.uint32)
    stored = (words.view(np.uint32)[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    codes: Array = stored.reshape(len(words), -1)[:, :columns].astype(np.int64)
    return codes - (1 << (bits - 1))


def _bf16(array: Array) -> Array:
    return np.asarray(array).astype(BF16)
