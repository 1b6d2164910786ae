"""Weights made up for any config, with the statistics of a trained model.

Every tensor is a function of the seed and its name alone, so it can be made on demand, in any
order, and comes out the same on every machine. All randomness is the raw stream of a PCG64
generator (which NumPy guarantees to be stable), two bytes of which look up a value in a table
of normal quantiles: fast, and free of library functions that differ between machines.

Scales (D hidden width, F expert or MLP width, K experts chosen, C head dim):

- Embeddings have unit variance; each sublayer adds ``ADDED`` root mean square, so that the
  residual stream grows like the root of the depth.
- Linears that read a normed stream have variance 1/D: unit outputs.
- q_norm and k_norm are about ``sqrt(2.5)``: attention scores q.k / sqrt(C) have a standard
  deviation of 2.5, and a query attends to a small part of what it sees.
- The router's rows all have length 1: logits of unit variance whatever the expert, so that
  every expert is chosen equally often; the correction bias moves the load by some percent.
- lm_head gives logits with a standard deviation of ``LOGIT_STD``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint.formats.packed_int import BFLOAT16, words_per_row
from laguna_ref.checkpoint.names import TensorRule, tensor_rules
from laguna_ref.config import LagunaConfig

ADDED = 0.25
"""Root mean square of what one sublayer adds to the residual stream, which starts at 1."""
LOGIT_STD = 3.0
QK_NORM = math.sqrt(2.5)
NORM_SPREAD = 0.15
"""Standard deviation of the logarithm of norm weights."""
SCALE_SPREAD = 0.2
"""Standard deviation of the logarithm of quantisation scales."""
BIAS_STD = 0.004
"""Of the router's correction bias: moves the share of an expert by about a tenth."""
GATED_RMS = 0.6
"""Root mean square of silu(z) * z' for independent normal z and z'."""
ATTENDED_RMS = 0.5
"""Of attention's output after the softplus gate, for values of unit variance."""
NORMAL_MAX = 5.5
"""No key or value component of a few million exceeds so many standard deviations."""
E4M3_MAX = 448.0
CHUNK = 1 << 16
"""Elements made at once; a multiple of four, so that it does not show in the numbers."""


class SynthTensors(Mapping[str, NDArray[Any]]):
    """The tensors of a config by published name; each is made when it is asked for."""

    def __init__(self, config: LagunaConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._rules = {
            rule.name: rule
            for rule in tensor_rules(config)
            if rule.part != "shape" and (rule.part != "kv_scale" or config.kv_cache_fp8)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __contains__(self, name: object) -> bool:
        return name in self._rules

    def __getitem__(self, name: str) -> NDArray[Any]:
        rule = self._rules[name]
        return _MAKERS[rule.part](self._config, rule, _Stream(self._seed, name))


def synth(config: LagunaConfig | dict[str, Any], seed: int = 0) -> Mapping[str, NDArray[Any]]:
    """Made-up weights for ``config``: a lazy mapping for ``write``, shapes as published.

    Quantised Linears come ready packed; everything else is bfloat16, the correction bias and
    only that float32.

    Raises ConfigError for a bad config and UnsupportedFormatError for a format that cannot be
    written.
    """
    if isinstance(config, dict):
        config = LagunaConfig.from_dict(config)
    return SynthTensors(config, seed)


class _Stream:
    """Random numbers that depend on the seed and the tensor's name only."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "little"))

    def look_up(self, table: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """An array whose elements are drawn from a table of 65,536, by chunks that fit a cache.

        (NumPy widens indices to eight bytes; at once, those of the embedding take 1.6 GB.)
        """
        result = np.empty(math.prod(shape), table.dtype)
        for start in range(0, result.size, CHUNK):
            chunk = result[start : start + CHUNK]
            words = np.asarray(self._bits.random_raw(-(-chunk.size // 4)))
            chunk[:] = table.take(words.view(np.uint16)[: chunk.size])
        return result.reshape(shape)

    def normal(self, shape: tuple[int, ...], std: float) -> NDArray[Any]:
        """Normal numbers of the given standard deviation, bfloat16."""
        return self.look_up((_normal_quantiles() * std).astype(BFLOAT16), shape)

    def log_normal(self, shape: tuple[int, ...], median: float, spread: float) -> NDArray[Any]:
        """Positive numbers, ``spread`` the standard deviation of their logarithm; bfloat16."""
        return self.look_up((median * np.exp(spread * _normal_quantiles())).astype(BFLOAT16), shape)


def _embedding(config: LagunaConfig, rule: TensorRule, stream: _Stream) -> NDArray[Any]:
    std = 1.0
    if config.tie_word_embeddings:
        std = LOGIT_STD / math.sqrt(config.hidden_size)
    return stream.normal(rule.shapes[0], std)


def _norm(config: LagunaConfig, rule: TensorRule, stream: _Stream) -> NDArray[Any]:
    of_head = rule.module.endswith((".q_norm", ".k_norm"))
    return stream.log_normal(rule.shapes[0], QK_NORM if of_head else 1.0, NORM_SPREAD)


def _linear(config: LagunaConfig, rule: TensorRule, stream: _Stream) -> NDArray[Any]:
    weight = stream.normal(rule.matrix, linear_std(config, rule))
    if rule.module.endswith(".mlp.gate"):
        wide = weight.astype(np.float64)
        weight = (wide / np.sqrt((wide * wide).sum(axis=1, keepdims=True))).astype(BFLOAT16)
    return weight


def linear_std(config: LagunaConfig, rule: TensorRule) -> float:
    """The standard deviation of a Linear's elements that keeps activations in range."""
    layer_type = rule.module.rpartition(".")[2]
    columns = rule.matrix[1]
    added = ADDED
    if config.tie_word_embeddings:  # the stream starts as small as the embedding is
        added *= LOGIT_STD / math.sqrt(config.hidden_size)
    if layer_type == "lm_head":
        return LOGIT_STD / math.sqrt(columns)
    if layer_type == "o_proj":
        return added / ATTENDED_RMS / math.sqrt(columns)
    if layer_type == "down_proj":
        gain = GATED_RMS
        if ".mlp.experts." in rule.module:
            # K outputs of weight 1/K each, independent of each other, times the factor.
            gain *= config.moe_routed_scaling_factor / math.sqrt(config.num_experts_per_tok)
        return added / gain / math.sqrt(columns)
    return 1.0 / math.sqrt(columns)


def _packed(config: LagunaConfig, rule: TensorRule, stream: _Stream) -> NDArray[np.int32]:
    """Bell-shaped codes, drawn two or four bytes at a time from a table."""
    bits = rule.format.bits or 0
    rows, columns = rule.matrix
    words = words_per_row(columns, bits)
    stored = stream.look_up(_packed_pairs(bits), (rows, words * (32 // bits) // 2))
    packed = stored.view(np.int32).reshape(rows, words)
    spare = words * 32 - columns * bits
    if spare:  # the bits after the last column are zero
        packed[:, -1] &= np.int32((1 << (32 - spare)) - 1)
    return packed


def _scale(config: LagunaConfig, rule: TensorRule, stream: _Stream) -> NDArray[Any]:
    """Scales that give the codes of ``_packed`` the standard deviation of ``linear_std``."""
    codes = _code_quantiles(rule.format.bits or 0).astype(np.float64)
    code_rms = math.sqrt(float((codes * codes).mean()))
    rms_of_spread = math.exp(SCALE_SPREAD**2)
    median = linear_std(config, rule) / code_rms / rms_of_spread
    return stream.log_normal(rule.shapes[0], median, SCALE_SPREAD)


def _correction_bias(config: LagunaConfig, rule: TensorRule, stream: _Stream) -> NDArray[Any]:
    return stream.normal(rule.shapes[0], BIAS_STD).astype(np.float32)


def _kv_scale(config: LagunaConfig, rule: TensorRule, stream: _Stream) -> NDArray[Any]:
    """As calibration finds it: the largest value over 448, a little different in each layer."""
    layer = config.layers[int(rule.module.split(".")[2])]
    largest = NORMAL_MAX
    if rule.name.endswith("k_scale"):
        largest_norm = QK_NORM * math.exp(2.5 * NORM_SPREAD)
        largest *= largest_norm * max(1.0, layer.rope.attention_factor)
    return stream.log_normal((1,), largest / E4M3_MAX, SCALE_SPREAD / 4)


_MAKERS = {
    "embedding": _embedding,
    "norm": _norm,
    "linear": _linear,
    "packed": _packed,
    "scale": _scale,
    "correction_bias": _correction_bias,
    "kv_scale": _kv_scale,
}


@lru_cache
def _normal_quantiles() -> NDArray[np.float64]:
    """The normal quantiles at the 65,536 midpoints (i + 1/2) / 65536: up to 4.3 in size."""
    inverse = NormalDist().inv_cdf
    half = np.array([inverse((i + 0.5) / 65536) for i in range(32768, 65536)])
    return np.concatenate((-half[::-1], half))


@lru_cache
def _code_quantiles(bits: int) -> NDArray[np.int16]:
    """256 codes with the frequencies of a normal weight quantised by group.

    The largest of 128 normal numbers is typically 2.6 standard deviations, which quantisation
    maps to the end of the range: so one standard deviation is (2^(bits-1) - 1/2) / 2.6 codes.
    """
    unit = (2 ** (bits - 1) - 0.5) / 2.6
    lowest = -(2 ** (bits - 1))
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    codes: NDArray[Any] = np.clip(np.rint(normal * unit), lowest, -lowest - 1)
    return codes.astype(np.int16)


@lru_cache
def _packed_pairs(bits: int) -> NDArray[Any]:
    """Two packed codes for every 16-bit random number: a byte for INT4, two for INT8."""
    stored = (_code_quantiles(bits) + 2 ** (bits - 1)).astype(np.uint16)
    index = np.arange(1 << 16)
    pair: NDArray[Any] = stored[index & 255] | (stored[index >> 8] << bits)
    return pair.astype(np.uint8 if bits == 4 else np.uint16)
