"""What every stored weight matrix can do, whatever its format."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from laguna_ref.quantization import WeightFormat

DEQUANT = ("exact", "bf16")
"""``"exact"``: integer times scale. ``"bf16"``: that product rounded as the loaders do."""

FloatType = type[np.float32] | type[np.float64]
"""The types in which a weight may be asked for."""


class Weight(Protocol):
    """A weight matrix [out, in] in its stored form; immutable, a view of the checkpoint."""

    @property
    def name(self) -> str:
        """Module path as published, for instance ``model.layers.1.self_attn.q_proj``."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def format(self) -> WeightFormat:
        """Kind, bits and group size."""

    @property
    def nbytes(self) -> int:
        """Bytes on disk, scales included."""

    def rows(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: FloatType = np.float32,
        dequant: str = "exact",
    ) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` as numbers: [stop - start, in] of ``dtype``."""
