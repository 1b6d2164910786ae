"""Powers and logarithms that are correctly rounded, and so the same on every machine.

Libraries differ between CPUs in the last place, and RoPE multiplies what they return by
positions up to 262,144. The decimal module computes to any number of digits by definition.
"""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache

_DIGITS = Context(prec=60, Emax=99_999, Emin=-99_999)
"""Enough that rounding to float64 (17 digits) comes out right unless 43 digits conspire."""


@lru_cache(maxsize=4096)
def power(base: float, exponent: Fraction) -> float:
    """``base ** exponent`` for a positive base, the nearest float64."""
    top, bottom = Decimal(exponent.numerator), Decimal(exponent.denominator)
    logarithm = _DIGITS.ln(Decimal(base))
    return float(_DIGITS.exp(_DIGITS.divide(_DIGITS.multiply(logarithm, top), bottom)))


def log(x: float) -> float:
    """The natural logarithm of a positive number, the nearest float64."""
    return float(_DIGITS.ln(Decimal(x)))
