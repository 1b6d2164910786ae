"""What the forward pass refuses before, and after, it computes."""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike

from laguna_ref.config import LagunaConfig
from laguna_ref.errors import InputError, NonFiniteError
from laguna_ref.numerics import Array


def tokens(tokens: ArrayLike, config: LagunaConfig, cached: int) -> Array:
    """Token ids as int64 [T]; raises InputError for what the model has no place for."""
    array = _integers(tokens, "tokens")
    if array.size == 0:
        raise InputError("tokens must not be empty")
    bad = np.flatnonzero((array < 0) | (array >= config.vocab_size))
    if bad.size:
        raise InputError(
            f"token {bad[0]} is not in the vocabulary",
            expected=f"ids 0 to {config.vocab_size - 1}",
            found=int(array[bad[0]]),
        )
    limit = config.max_position_embeddings
    if cached + len(array) > limit:
        raise InputError(
            "too many tokens for max_position_embeddings",
            expected=f"at most {limit}",
            found=f"{cached} cached and {len(array)} new",
        )
    return array.astype(np.int64)


def positions(positions: ArrayLike | None, config: LagunaConfig, start: int, count: int) -> Array:
    """Positions for RoPE as int64 [T], by default from ``start`` on; raises InputError."""
    if positions is None:
        return np.arange(start, start + count, dtype=np.int64)
    array = _integers(positions, "positions")
    if len(array) != count:
        raise InputError("positions must be one a token", expected=count, found=len(array))
    limit = config.max_position_embeddings
    if array.min() < 0 or array.max() >= limit:
        raise InputError(
            "position out of range",
            expected=f"0 to {limit - 1}",
            found=f"{array.min()} to {array.max()}",
        )
    return array.astype(np.int64)


def _integers(values: ArrayLike, what: str) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as problem:
        raise InputError(f"{what} must be a flat list of integers", found=values) from problem
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            f"{what} must be a flat list of integers",
            found=f"shape {array.shape} of {array.dtype}",
        )
    return array


def finite(x: Array, at: str) -> None:
    """Raises NonFiniteError naming the trace point, token and channel of a NaN or infinity."""
    if not np.isfinite(x).all():
        token, *rest = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise NonFiniteError(
            f"token {token}, channel {', '.join(map(str, rest))} is not finite",
            tensor=at,
            found=str(x[token, *rest]),
        )


def threads(limit: int | None) -> int | None:
    """A limit on threads as given; raises InputError unless it is None or 1 or more."""
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError("threads must be an integer, 1 or more", found=limit)
    return limit


def is_count(value: object) -> bool:
    """Whether ``value`` is an integer, 0 or more; NumPy's integers are too."""
    return type(value) is not bool and isinstance(value, Integral) and int(value) >= 0
