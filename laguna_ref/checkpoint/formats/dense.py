"""Weights stored as plain floating-point numbers: bfloat16, float16 or float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint.formats.weight import FloatType
from laguna_ref.quantization import WeightFormat


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """A matrix [out, in] as stored; ``array`` is a view of the checkpoint's memory map."""

    name: str
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.array.shape
        return rows, columns

    @property
    def format(self) -> WeightFormat:
        """Always the dense format."""
        return WeightFormat(kind="dense", bits=None, group_size=None)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.array.nbytes

    def rows(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: FloatType = np.float32,
        dequant: str = "exact",
    ) -> NDArray[Any]:
        """Rows ``start`` to ``stop``, widened to ``dtype`` (exact); ``dequant`` has no effect."""
        return self.array[start:stop].astype(dtype)
