"""float8 e4m3fn, the key/value cache's storage format.

Sign, four exponent bits (bias 7), three mantissa bits; no infinities, NaN is 0x7F and 0xFF,
largest value 448 (0x7E), smallest normal 2**-6, smallest subnormal 2**-9.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from laguna_ref.errors import NonFiniteError
from laguna_ref.numerics import Array, Numerics

E4M3FN_MAX = 448.0


def fp8_encode(x: Array, scale: np.float32, name: str) -> Array:
    """Codes of ``x`` in units of ``scale``: ``e4m3fn(clamp(float32(x) / scale, +-448))``.

    Shapes: any -> uint8 of the same shape. ``name`` is said in the NonFiniteError that a NaN
    raises, since a NaN in the cache would spread to every later token.
    An infinity saturates like any other number beyond 448.
    Dtypes: division in float32, then round to nearest even.
    Follows: vLLM ``csrc/cache_kernels.cu`` (a true division, saturating).
    Easy to get wrong: libraries disagree beyond 464 (torch saturates, ml_dtypes gives NaN), so
    the clamp comes first; multiplying by the reciprocal moves 1 code in 6.5 million, dividing
    in bfloat16 as compressed-tensors does 1 in 550.
    """
    if np.isnan(x).any():
        where = tuple(int(i) for i in np.argwhere(np.isnan(x))[0])
        raise NonFiniteError(f"NaN cannot be cached (index {where})", tensor=name)
    with np.errstate(over="ignore"):  # an overflow saturates below
        scaled = x.astype(np.float32) / np.float32(scale)
    clamped = np.clip(scaled, -E4M3FN_MAX, E4M3FN_MAX)
    codes: Array = clamped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return codes


def fp8_decode(codes: Array, scale: np.float32, numerics: Numerics) -> Array:
    """``float(code) * scale``: uint8 codes -> values, same shape.

    Exact in float64; in float32 too when the scale has at most 20 significant bits.
    Rounds at: kv_cache.read.
    Easy to get wrong: returning the codes without their scale (vllm-project/vllm#42580).
    """
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(numerics.dtype)
    return numerics.round_at("kv_cache.read", values * numerics.dtype.type(scale))
