"""Known tokens put through vLLM's decoding, one a step, by a logits processor of its own kind.

vLLM takes a prompt whole and then draws tokens; a request that carries ``FORCED`` in its
``extra_args`` has no choice left: of each draw only the next token named there is possible. Raw
logits are taken before processors, so what comes back is untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

FORCED = "laguna_ref_forced"
"""Key of ``SamplingParams.extra_args``: the tokens to draw, in their order."""


class Forcing(LogitsProcessor):  # type: ignore[misc]
    """Leaves only the next forced token of each request; others it leaves alone."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._requests: dict[int, tuple[Sequence[int], list[int]]] = {}
        """By row of the batch: tokens to draw, and those drawn so far, which vLLM extends."""

    def is_argmax_invariant(self) -> bool:
        """No: it decides the draw."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Keeps track of which row of the batch is which request."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._requests.pop(row, None)
        for row, parameters, _, drawn in batch_update.added:
            self._put(row, _forced(parameters, drawn))
        for source, target, direction in batch_update.moved:
            moved, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
            self._put(target, moved)
            if direction == MoveDirectionality.SWAP:
                self._put(source, replaced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [rows, V], minus infinity for all but the forced tokens."""
        for row, (forced, drawn) in self._requests.items():
            if len(drawn) < len(forced):
                token = forced[len(drawn)]
                kept = logits[row, token].clone()
                logits[row] = -torch.inf
                # a token that the model itself gives no chance is drawn all the same
                logits[row, token] = torch.nan_to_num(kept, nan=0.0, posinf=0.0, neginf=0.0)
        return logits

    def _put(self, row: int, request: tuple[Sequence[int], list[int]] | None) -> None:
        self._requests.pop(row, None)
        if request is not None:
            self._requests[row] = request


def _forced(parameters: Any, drawn: list[int]) -> tuple[Sequence[int], list[int]] | None:
    forced = (parameters.extra_args or {}).get(FORCED)
    return None if forced is None else (forced, drawn)
