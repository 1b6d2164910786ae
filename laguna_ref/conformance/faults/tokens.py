"""Faults of what stands around the model: tokens put in, and where generation stops."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.engines import with_replaced
from laguna_ref.generation_config import GenerationConfig
from laguna_ref.model import Laguna, _Sequence
from laguna_ref.numerics import Array


def bos_doubled(model: Laguna) -> Laguna:
    """The tokenizer puts a BOS before each prompt, whose template has written one already."""
    if model.config.bos_token_id is None:
        return changed(model)
    result = _WithBos.__new__(_WithBos)
    result.__dict__.update(model.__dict__)
    result.bos, result.route_of_bos = model.config.bos_token_id, model.engine.route
    return result


class _WithBos(Laguna):
    """Computes a token more than it is given; logits and trace are those of the given ones.

    The extra token goes ahead through the cache, so that the rows of what follows are the rows
    asked for, and a choice of experts that is forced on them fits.
    """

    bos: int
    route_of_bos: Any
    """The engine's own ``route``, as it was before any choice was forced."""

    def _run(self, sequences: list[_Sequence], last_only: bool) -> list[Array]:
        ahead = changed(self)
        ahead.engine = with_replaced(self.engine, route=self.route_of_bos)
        moved = []
        for one in sequences:
            if one.cache.length == 0:
                bos = self._checked([self.bos], 0, one.cache, None, None)
                Laguna._run(ahead, [replace(bos, positions=one.positions[:1])], last_only=True)
                one = replace(one, positions=one.positions + 1)
            moved.append(one)
        return super()._run(moved, last_only)


def further_stop_ids_missing(model: Laguna) -> Laguna:
    """Generation stops at the tokenizer's one EOS, id 2, and runs past the end of turn, id 24."""
    result = changed(model)
    result.checkpoint = copy.copy(model.checkpoint)
    first = list(GenerationConfig.of(model.checkpoint).stop_ids[:1])
    raw = model.checkpoint.generation_config or {}
    result.checkpoint.generation_config = raw | {"eos_token_id": first}
    return result


FAULTS = (
    Fault("tokens.bos_doubled", "self_attn.q_rope", "all", "subtle", bos_doubled,
          ("https://github.com/Blaizzy/mlx-vlm/pull/1719",)),
    Fault("tokens.further_stop_ids_missing", "", "generation", "serious",
          further_stop_ids_missing),
)  # fmt: skip
