"""How many threads the matrix products of one model may use."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from threadpoolctl import ThreadpoolController

from laguna_ref.errors import InputError


class Threads:
    """A limit that holds only while the model computes; None leaves the process as it is."""

    def __init__(self, limit: int | None) -> None:
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise InputError("threads must be an integer, 1 or more", found=limit)
        self.limit = limit
        # Finding the loaded libraries takes milliseconds: once, not once a token.
        self._pools = None if limit is None else ThreadpoolController()

    def limited(self) -> AbstractContextManager[Any]:
        """A context inside which the limit holds."""
        if self._pools is None:
            return nullcontext()
        context: AbstractContextManager[Any] = self._pools.limit(limits=self.limit)
        return context
