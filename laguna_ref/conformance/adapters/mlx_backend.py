"""``mlx``: mlx-lm's Laguna, in float32, on whatever device mlx takes by default."""

from __future__ import annotations

from pathlib import Path

from laguna_ref.conformance.adapters.installed import require
from laguna_ref.conformance.backend import Backend, BackendError, Opener


def opener(argument: str | None) -> Opener:
    """Raises BackendError where mlx-lm is missing; there is nothing to choose."""
    if argument is not None:
        raise BackendError("mlx takes no argument", found=argument)
    require("mlx-lm", ("mlx", "mlx_lm"), "mlx")

    def opened(folder: Path) -> Backend:
        from laguna_ref.conformance.adapters import mlx_model

        return mlx_model.opened(folder)

    return opened
