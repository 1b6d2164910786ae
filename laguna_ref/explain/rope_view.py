"""Rotary position embedding: wavelengths, what YaRN changes, what the attention factor does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from laguna_ref.config import LagunaConfig
from laguna_ref.exact_math import log
from laguna_ref.numerics import Array
from laguna_ref.rope_spec import RopeSpec


@dataclass(frozen=True)
class KindOfRope:
    """One kind of attention's RoPE; arrays are [rotary_dim / 2], one value a rotated pair."""

    attention: str
    """``full_attention`` or ``sliding_attention``."""
    spec: RopeSpec
    layers: tuple[int, ...]
    head_dim: int
    wavelength: Array
    """Tokens after which the pair has turned once: 2 pi / inv_freq."""
    plain: Array
    """The same without YaRN."""
    turns: Array
    """Turns over the context that the model was trained on before YaRN (without YaRN: over the
    window, or else the whole context)."""
    turns_over: int
    """That number of tokens."""
    ramp: Array
    """0 where YaRN keeps the pair, 1 where it divides its frequency by the factor."""

    @property
    def stretch(self) -> Array:
        """How many times longer YaRN makes each wavelength."""
        return np.asarray(self.wavelength / self.plain)

    @property
    def score_factor(self) -> float:
        """What the attention factor multiplies a score's rotated part by: its square, as both
        the query and the key carry it. The pass-through dimensions are not scaled."""
        return self.spec.attention_factor**2

    @property
    def derived_factor(self) -> float | None:
        """The attention factor that YaRN's paper derives, ``0.1 ln(factor) + 1``; None for
        plain RoPE."""
        if self.spec.rope_type != "yarn":
            return None
        return 1.0 if self.spec.factor <= 1 else 0.1 * log(self.spec.factor) + 1.0


@dataclass(frozen=True)
class RopeView:
    """Every kind of attention that a config has."""

    max_position_embeddings: int
    kinds: tuple[KindOfRope, ...]


def rope(config: LagunaConfig) -> RopeView:
    """The RoPE of a config; no weights are needed.

    Formulas: arXiv 2104.09864 (RoPE), arXiv 2309.00071 (YaRN), as in ``laguna_ref/rope_spec.py``.
    """
    kinds = dict.fromkeys(layer.attention for layer in config.layers)
    return RopeView(config.max_position_embeddings, tuple(_kind(config, kind) for kind in kinds))


def _kind(config: LagunaConfig, attention: str) -> KindOfRope:
    of_kind = [layer for layer in config.layers if layer.attention == attention]
    spec, window = of_kind[0].rope, of_kind[0].window
    plain = replace(spec, rope_type="default").inv_freq
    over = spec.original_max_position_embeddings or window or config.max_position_embeddings
    ramp = np.zeros(len(plain))
    if spec.rope_type == "yarn":
        low, high = spec.yarn_ramp()
        ramp = np.clip((np.arange(len(plain)) - low) / (high - low), 0.0, 1.0)
    return KindOfRope(
        attention=attention,
        spec=spec,
        layers=tuple(layer.index for layer in of_kind),
        head_dim=of_kind[0].head_dim,
        wavelength=2 * math.pi / spec.inv_freq,
        plain=2 * math.pi / plain,
        turns=over * plain / (2 * math.pi),
        turns_over=over,
        ramp=ramp,
    )
