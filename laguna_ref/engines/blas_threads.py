"""How many threads NumPy's matrix products use while a model computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

from threadpoolctl import ThreadpoolController


def computing(threads: int | None) -> AbstractContextManager[None]:
    """A context inside which BLAS uses at most ``threads``; None leaves it as it is."""
    if threads is None:
        return nullcontext()
    context: AbstractContextManager[None] = _pools().limit(limits=threads)
    return context


@lru_cache
def _pools() -> ThreadpoolController:
    # Finding the loaded libraries takes milliseconds: once, not once a token.
    return ThreadpoolController()
