"""A dump with its own mistakes named and, where that is possible, undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from laguna_ref.conformance import mistakes, statistics
from laguna_ref.conformance.budget import Budget
from laguna_ref.conformance.comparisons import Comparisons, Key, Oracle, fits
from laguna_ref.conformance.replay import routing_in, run
from laguna_ref.golden.dump import execution_order
from laguna_ref.numerics import Array


@dataclass(frozen=True)
class Mending:
    """Mends one dump; the mistakes found go to ``told``."""

    oracle: Oracle
    budget: Budget
    floor_units: float
    """What a legal report stays under."""
    told: list[str]

    def unlike(self, found: Mapping[str, Array], whole: Comparisons) -> list[str]:
        """Points of another shape than the oracle's, or outside the budget of a whole run."""
        return [
            point for point in found
            if ".topk_" not in point and (point in whole.misshapen or any(
                measured.value > self._limit(key)
                for key, measured in whole.values.items()
                if key.point == point and key.statistic == "l2"
            ))
        ]  # fmt: skip

    def mended(
        self, found: Mapping[str, Array], unlike: list[str], replayable: bool
    ) -> dict[str, Array]:
        """The points found, without those that cannot be put right nor compared."""
        oracle = self.oracle
        expected = oracle.free
        if replayable:
            expected = run(oracle.model, oracle.tokens, oracle.positions, routing_in(found))
        mended = dict(found)
        for point in unlike:
            wanted = oracle.like(point, found[point], expected[point])
            view = expected if wanted is expected[point] else {**expected, point: wanted}
            self._mend(mended, point, view, "replayed" if replayable else "free")
        self.told.sort(key=lambda text: execution_order(text.partition(" ")[0]))
        return mended

    def _mend(
        self, mended: dict[str, Array], point: str, expected: Mapping[str, Array], mode: str
    ) -> None:
        array = mended[point]
        mistake = mistakes.find(
            self.oracle.model, point, array, expected,
            lambda name, a, b: self._inside(mode, name, a, b),
        )  # fmt: skip
        if mistake is not None:
            self.told.append(str(mistake))
            if mistake.mended is None:
                del mended[point]
            else:
                mended[point] = mistake.mended
        elif not fits(array, expected[point]):
            del mended[point]
            self.told.append(another_shape(point, array, expected[point].shape))

    def _inside(self, mode: str, point: str, found: Array, expected: Array) -> bool:
        key = Key("logits" if mode == "free" and point == "lm_head" else mode, point, "l2")
        each = statistics.of_vectors(found, expected)["l2"]
        return float(each.max()) <= self._limit(key)

    def _limit(self, key: Key) -> float:
        """The greatest value that is inside; of what the budget does not know, any is."""
        scale = self.budget.scale(key)
        return np.inf if scale is None else self.floor_units * scale


def another_shape(point: str, array: Array, wanted: tuple[int, ...]) -> str:
    """The mistake of an array that is not of the shape wanted."""
    return f"{point} has shape {list(array.shape)}, expected {list(wanted)}"
