"""Rotary position embedding: plain on sliding layers, YaRN with partial rotary on full ones."""

from __future__ import annotations

import numpy as np

from laguna_ref.numerics import Array, Numerics
from laguna_ref.rope_spec import RopeSpec


def rope_tables(spec: RopeSpec, positions: Array, numerics: Numerics) -> tuple[Array, Array]:
    """Cosine and sine of every position's angles, times the attention factor.

    ``angle[t, j] = positions[t] * inv_freq[j]``

    Shapes: positions int64 [T] -> two arrays [T, rotary_dim/2].
    Dtypes: float64 numerics keep everything in float64. Otherwise as released: inverse
    frequencies rounded to float32, angles multiplied in float32, and the cosine and sine of
    that float32 angle correctly rounded to float32 (against float64 angles this moves up to
    2.4e-4 rad at position 4,000 and 7.8e-3 at 131,072).
    Rounds at: rope.table.
    Follows: Transformers ``LagunaRotaryEmbedding.forward``.
    Easy to get wrong: an ``attention_factor`` of 1.0 in the config is a value, not an absence
    (vllm-project/vllm#46280, ml-explore/mlx-lm#1507 derive 1.3466 instead).
    """
    angles = rope_angles(spec, positions, numerics)
    return scaled_table(np.cos(angles), spec, numerics), scaled_table(
        np.sin(angles), spec, numerics
    )


def rope_angles(spec: RopeSpec, positions: Array, numerics: Numerics) -> Array:
    """Every position's angles in radians, float64 [T, rotary_dim/2]; see ``rope_tables``."""
    inv_freq = spec.inv_freq.astype(numerics.dtype)
    angles: Array = positions[:, None].astype(numerics.dtype) * inv_freq
    return angles.astype(np.float64)


def scaled_table(values: Array, spec: RopeSpec, numerics: Numerics) -> Array:
    """Cosines or sines, [T, R/2], in the numerics' type, times the attention factor."""
    factor = numerics.dtype.type(spec.attention_factor)
    return numerics.round_at("rope.table", numerics.cast(values) * factor)


def apply_rope(x: Array, cos: Array, sin: Array, numerics: Numerics) -> Array:
    """Rotate the first ``rotary_dim`` dimensions of each head; the rest pass through.

    With halves ``a = x[: R/2]`` and ``b = x[R/2 : R]`` of the R rotated dimensions:
    ``a' = a cos - b sin``, ``b' = b cos + a sin``.

    Shapes: x [T, H, C], cos and sin [T, R/2] -> [T, H, C].
    Rounds at: rope.product (each product), rope.sum.
    Follows: Transformers ``apply_rotary_pos_emb`` (halves, not interleaved pairs).
    Easy to get wrong: the pass-through dimensions are not scaled by the attention factor;
    rotating the whole head on full layers (NVIDIA/TensorRT-LLM#15110).
    """
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    cos, sin = cos[:, None, :], sin[:, None, :]

    def rotate(first: Array, second: Array, sign: int) -> Array:
        straight = numerics.round_at("rope.product", first * cos)
        crossed = numerics.round_at("rope.product", sign * second * sin)
        return numerics.round_at("rope.sum", straight + crossed)

    return np.concatenate([rotate(a, b, -1), rotate(b, a, 1), x[..., 2 * half :]], axis=-1)
