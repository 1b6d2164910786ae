"""RoPE parameters of one kind of layer, and the inverse frequencies they come to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laguna_ref.errors import ConfigError
from laguna_ref.exact_math import log, power


@dataclass(frozen=True)
class RopeSpec:
    """What ``rope_parameters`` says of one kind of attention.

    ``rotary_dim`` counts the leading dimensions of a head that are rotated (the others pass
    through untouched); ``attention_factor`` multiplies cosine and sine, so it scales the
    rotated dimensions of q and of k.
    """

    rope_type: str
    rope_theta: float
    rotary_dim: int
    attention_factor: float
    attention_factor_from: str
    """``config`` when config.json states it, else the formula it was derived by."""
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @cached_property
    def inv_freq(self) -> NDArray[np.float64]:
        """Angle per position of each rotated pair, radians per token, float64 [rotary_dim/2].

        Plain RoPE (arXiv 2104.09864): ``theta ** (-2j/rotary_dim)``. YaRN (arXiv 2309.00071):
        slow pairs are interpolated (divided by ``factor``), fast ones kept, with a linear ramp
        between the pairs that turn ``beta_fast`` and ``beta_slow`` times over the original
        context. Follows Transformers ``modeling_rope_utils.py`` ``_compute_yarn_parameters``.
        """
        pairs = np.arange(self.rotary_dim // 2, dtype=np.float64)
        plain = np.array(
            [power(self.rope_theta, Fraction(-2 * j, self.rotary_dim)) for j in range(len(pairs))]
        )
        if self.rope_type != "default":
            low, high = self.yarn_ramp()
            ramp = np.clip((pairs - low) / (high - low), 0.0, 1.0)
            plain = plain / self.factor * ramp + plain * (1.0 - ramp)
        plain.flags.writeable = False
        return plain

    def yarn_ramp(self) -> tuple[float, float]:
        """The pair indices between which YaRN goes from extrapolation to interpolation."""
        assert self.original_max_position_embeddings is not None
        low = self._pair_of_rotations(self.beta_fast)
        high = self._pair_of_rotations(self.beta_slow)
        if self.truncate:
            low, high = float(math.floor(low)), float(math.ceil(high))
        low, high = max(low, 0.0), min(high, self.rotary_dim - 1.0)
        # As released: avoids a division by zero when both ends meet.
        return low, high + 0.001 if low == high else high

    def _pair_of_rotations(self, rotations: float) -> float:
        """The (fractional) pair that turns ``rotations`` times over the original context."""
        assert self.original_max_position_embeddings is not None
        context = self.original_max_position_embeddings
        turns = log(context / (rotations * 2 * math.pi))
        return self.rotary_dim * turns / (2 * log(self.rope_theta))


_USED = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
}


def parse_rope(
    raw: dict[str, Any],
    head_dim: int,
    source: str,
    key: str,
    unused: list[tuple[str, str]] | None = None,
) -> RopeSpec:
    """One kind's RoPE parameters; raises ConfigError for anything it cannot honour.

    Keys without effect are added to ``unused`` with the reason.
    """
    unused = [] if unused is None else unused

    def number(name: str, default: float | None = None) -> float:
        value = raw.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e38:
            raise ConfigError(
                "wrong value",
                file=source,
                key=f"{key}.{name}",
                expected="a positive number",
                found="nothing" if value is None else value,
            )
        return float(value)

    unknown = sorted(set(raw) - _USED)
    if unknown:
        raise ConfigError(
            "unknown RoPE key", file=source, key=f"{key}.{unknown[0]}", found=raw[unknown[0]]
        )
    rope_type = raw.get("rope_type", raw.get("type"))
    if raw.get("type", rope_type) != rope_type:
        raise ConfigError(
            "contradicts rope_type", file=source, key=f"{key}.type", expected=rope_type,
            found=raw["type"],
        )  # fmt: skip
    if rope_type not in ("default", "yarn"):
        raise ConfigError(
            "unsupported RoPE", file=source, key=f"{key}.rope_type", expected="default or yarn",
            found="nothing" if rope_type is None else rope_type,
        )  # fmt: skip
    partial = number("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * partial)
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise ConfigError(
            "rotated dimensions must be an even part of the head",
            file=source,
            key=f"{key}.partial_rotary_factor",
            expected=f"an even number of dimensions up to {head_dim}",
            found=f"{partial} of {head_dim} = {rotary_dim}",
        )
    theta = number("rope_theta")
    if theta <= 1:
        raise ConfigError("must exceed 1", file=source, key=f"{key}.rope_theta", found=theta)
    if rope_type == "default":
        # Transformers ignores every other key of plain RoPE, attention_factor included.
        plain = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        unused += [(f"{key}.{name}", "plain RoPE has none") for name in sorted(set(raw) - plain)]
        return RopeSpec("default", theta, rotary_dim, 1.0, "plain RoPE has none")
    context = number("original_max_position_embeddings")
    if context < 1 or context != int(context):
        raise ConfigError(
            "must be a whole number, 1 or more", file=source,
            key=f"{key}.original_max_position_embeddings", found=context,
        )  # fmt: skip
    truncate = raw.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ConfigError("must be a boolean", file=source, key=f"{key}.truncate", found=truncate)
    factor = number("factor")
    attention_factor, origin = _attention_factor(raw, factor, number, key, unused)
    return RopeSpec(
        "yarn",
        theta,
        rotary_dim,
        attention_factor,
        origin,
        factor,
        int(context),
        # Transformers: `get("beta_fast") or 32`.
        number("beta_fast", 32.0),
        number("beta_slow", 1.0),
        truncate,
    )


def _attention_factor(
    raw: dict[str, Any], factor: float, number: Any, key: str, unused: list[tuple[str, str]]
) -> tuple[float, str]:
    """What the config states, 1.0 included; only without it the paper's 0.1 ln(factor) + 1."""
    mscales = [name for name in ("mscale", "mscale_all_dim") if raw.get(name)]
    if raw.get("attention_factor") is not None:
        unused += [(f"{key}.{name}", "attention_factor decides") for name in mscales]
        return number("attention_factor"), "config"

    def mscale(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * log(factor) + 1.0

    if len(mscales) == 2:
        ratio = mscale(number("mscale")) / mscale(number("mscale_all_dim"))
        return ratio, "mscale / mscale_all_dim"
    unused += [(f"{key}.{name}", "has effect only beside the other mscale") for name in mscales]
    return mscale(1.0), "0.1 ln(factor) + 1"
