"""Which fault, planted in the oracle, makes it compute what the backend computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from laguna_ref.conformance.diagnosis.diagnosis import (
    NAMED,
    UNKNOWN,
    Cause,
    Diagnosis,
)
from laguna_ref.conformance.diagnosis.fit import SHORT, Cost, coarse, fine
from laguna_ref.conformance.diagnosis.hypotheses import (
    Hypothesis,
    both,
    changed_by,
    dials,
    named,
    turned,
)
from laguna_ref.conformance.diagnosis.misfit import Evidence
from laguna_ref.conformance.faults import CATALOGUE
from laguna_ref.conformance.faults.dial import Dial
from laguna_ref.errors import LagunaError
from laguna_ref.model import Laguna

ENOUGH = 0.5
"""A cause is named when it explains more than what it leaves."""
PARTLY = 0.25
"""What a cause must explain of logits whose legal runs, with the fault, stray from each other as
far as they do from what was observed."""
EXPLAINED = 0.9
"""Less than that explained by one fault, and pairs are tried; by the trace, and the logits are
looked at too."""
ALIKE = 0.05
"""Causes that leave the same misfit to this share of the deviation are not told apart."""
SHOWN, SHOWN_SHARE = 8, 0.01
"""Causes listed at most, and what each explains at least."""
TURNED = 3
"""Continuous faults whose value is sought more closely than on a grid."""
PAIRED = 3
"""How many of the best are tried together with every other one."""
IMPOSSIBLE = (LagunaError, ArithmeticError, IndexError, ValueError)
"""What a planted model raises that cannot run at all: a base of 1 for RoPE, a missing row."""
CLOSER, LEGAL_RUNS = 6, 16
"""How many of the best are looked at again in legal runs of their own, and in how many."""

Progress = Callable[[str, int, int], None]
"""What is being done, how many of it are, and how many there are."""


@dataclass(frozen=True)
class Tried:
    """A hypothesis with its misfit."""

    hypothesis: Hypothesis
    misfit: float


class Search:
    """All hypotheses tried on all evidence."""

    def __init__(self, model: Laguna, evidence: Sequence[Evidence], progress: Progress) -> None:
        self.model, self.evidence, self.progress = model, evidence, progress
        self.way = evidence[0].way
        legal = np.sum([each.legal for each in evidence], axis=0)
        self.noise, self.usual = float(np.max(legal)), float(np.median(legal))
        self.deviation = sum(each.deviation for each in evidence)

    def diagnosis(self) -> Diagnosis:
        """Ranked causes of a deviation that is there."""
        singles = self._all(list(named(self.model)), "fault")
        if all(each.misfit > self.noise for each in singles):
            # Fitting takes most of the time, and none could do better than inside the noise.
            singles += self._all(self._turned(), "fault")
        tried = self._ranked(singles)
        if self.way == "logits" and tried and tried[0].misfit > self.noise:
            some = [t for t in tried[:CLOSER] if self.explained(t.misfit) >= SHOWN_SHARE]
            tried = self._ranked([*self._closer(some), *tried[len(some) :]])
        if tried and self.explained(tried[0].misfit) < EXPLAINED:
            tried = self._with_pairs(tried)
        causes = self._causes(tried)
        verdict, reason = self._verdict(tried, causes)
        return Diagnosis(verdict, reason, {}, self.way, self.deviation, self.noise, causes)

    def _verdict(self, tried: Sequence[Tried], causes: Sequence[Cause]) -> tuple[str, str]:
        """Named is what explains enough, or as much as it would of its own legal runs."""
        best = causes[0].explained if causes else 0.0
        if best > ENOUGH:
            return NAMED, f"{causes[0].fault} explains {best:.0%} of the deviation"
        if self.way == "logits" and best > PARTLY and self._rounds_as_much(tried[0].hypothesis):
            share = f"explains {best:.0%} of the deviation, and no more of its own legal runs"
            return NAMED, f"{causes[0].fault} {share}"
        return UNKNOWN, f"no fault of the catalogue explains more than {best:.0%} of the deviation"

    def where(self) -> str:
        """The trace point that most of the deviation belongs to, for what nothing explains."""
        total: dict[str, float] = {}
        for each in self.evidence:
            for point, misfit in each.by_point.items():
                total[point] = total.get(point, 0.0) + misfit
        worst = max(total, key=lambda point: total[point])
        return f"{total[worst] / self.deviation:.0%} of the trace's misfit is at {worst}"

    def _rounds_as_much(self, hypothesis: Hypothesis) -> bool:
        """Whether legal runs with the fault lie as far from each other as from what was seen.

        A fault that rounds, to bfloat16 say, leaves no two runs alike: none can explain the rest.
        """
        with np.errstate(all="ignore"):
            pairs = [each.own_noise(hypothesis.plant, LEGAL_RUNS) for each in self.evidence]
        seen = sum(misfit for misfit, _ in pairs)
        return bool(seen <= np.max(np.sum([own for _, own in pairs], axis=0)))

    def explained(self, misfit: float) -> float:
        """Share of the deviation beyond usual noise that a misfit leaves none of."""
        beyond = self.deviation - self.usual
        return float(np.clip((self.deviation - max(misfit, self.usual)) / beyond, 0, 1))

    def _turned(self) -> list[Hypothesis]:
        """The continuous faults nearest to what was seen, at the values that fit best.

        By the first prompt: the others take part in judging what comes out.
        """
        first, known = self.evidence[0], list(dials(self.model))
        rough = []
        for done, (dial, configured) in enumerate(known):
            self.progress(f"fitting {dial.name}", done, len(known))
            cost = _cost(first, dial)
            left, right = coarse(cost, configured * dial.low, configured * dial.high)
            # A valley narrower than the grid shows only when one walks down a little.
            rough.append((fine(cost, left, right, SHORT)[1], dial.name, dial, left, right))
        nearest = sorted(rough, key=lambda each: each[:2])[:TURNED]
        return [
            turned(self.model, dial, fine(_cost(first, dial), left, right)[0])
            for _, _, dial, left, right in nearest
        ]

    def _all(self, hypotheses: Sequence[Hypothesis], what: str) -> list[Tried]:
        result = []
        for done, hypothesis in enumerate(hypotheses):
            self.progress(f"{what} {hypothesis.name}", done, len(hypotheses))
            misfit = self._misfit(hypothesis)
            if misfit is not None:
                result.append(Tried(hypothesis, misfit))
        return result

    def _misfit(self, hypothesis: Hypothesis) -> float | None:
        """None where the planted model cannot run: no backend that answered has that fault.

        What leaves every operation that is off as it is explains nothing, and nothing else of it
        is computed.
        """
        try:
            with np.errstate(all="ignore"):
                planted = [(each, hypothesis.plant(each.truth)) for each in self.evidence]
                if self.way == "trace":
                    left = sum(each.misfit_of_suspects(model) for each, model in planted)
                    if left >= self.deviation:
                        return self.deviation
                return sum(each.misfit(model) for each, model in planted)
        except IMPOSSIBLE:
            return None

    def _closer(self, best: Sequence[Tried]) -> list[Tried]:
        """Each held against several legal runs with the fault, where one run leaves something."""
        result = []
        for done, each in enumerate(best):
            self.progress(f"legal runs of {each.hypothesis.name}", done, len(best))
            plant = each.hypothesis.plant
            with np.errstate(all="ignore"):
                misfit = sum(seen.nearest(plant, LEGAL_RUNS) for seen in self.evidence)
            result.append(Tried(each.hypothesis, misfit))
        return result

    def _with_pairs(self, tried: list[Tried]) -> list[Tried]:
        """Pairs of the best with all others, where one alone leaves much and two much less."""
        pairs: dict[frozenset[str], Hypothesis] = {}
        for first in tried[:PAIRED]:
            for second in tried:
                a, b = first.hypothesis, second.hypothesis
                if a.names != b.names and second.misfit < self.deviation:
                    pairs.setdefault(frozenset((*a.names, *b.names)), both(a, b))
        better = [
            pair
            for pair in self._all(list(pairs.values()), "together")
            if pair.misfit - self.usual < (tried[0].misfit - self.usual) / 2
        ]
        return self._ranked([*tried, *better])

    def _ranked(self, tried: Sequence[Tried]) -> list[Tried]:
        """Best first; of those that cannot be told apart, the simpler one."""
        left = sorted(tried, key=lambda each: each.misfit)
        result: list[Tried] = []
        while left:
            alike = [each for each in left if self._alike(left[0], each)]
            left = left[len(alike) :]
            result += sorted(alike, key=_complexity)
        return result

    def _alike(self, better: Tried, other: Tried) -> bool:
        inside = other.misfit <= self.noise
        return inside or other.misfit - better.misfit <= ALIKE * self.deviation

    def _causes(self, tried: Sequence[Tried]) -> list[Cause]:
        causes: list[Cause] = []
        rank, best = 1, None
        for each in tried[:SHOWN]:
            share = self.explained(each.misfit)
            if share < SHOWN_SHARE:
                break
            if best is None or not self._alike(best, each):
                rank, best = len(causes) + 1, self._least_alike(each, tried)
            causes.append(self._cause(each.hypothesis, share, rank))
        return causes

    def _least_alike(self, one: Tried, tried: Sequence[Tried]) -> Tried:
        """The best of those that ``one`` cannot be told apart from and that are ranked after it."""
        after = tried[tried.index(one) :]
        return min(after, key=lambda each: each.misfit)

    def _cause(self, hypothesis: Hypothesis, share: float, rank: int) -> Cause:
        changed = changed_by(self.model, hypothesis)
        used = {key: new for key, (new, _) in changed.items()}
        instead = {key: old for key, (_, old) in changed.items()}
        description = "; ".join(
            CATALOGUE[name].description if name in CATALOGUE else "another value"
            for name in hypothesis.names
        )
        return Cause(
            hypothesis.name, share, rank, hypothesis.point, description, used, instead,
            tuple(dict.fromkeys(hypothesis.references)),
        )  # fmt: skip


def _cost(evidence: Evidence, dial: Dial) -> Cost:
    """How badly the model fits with the dial at a value."""

    def cost(value: float) -> float:
        try:
            with np.errstate(all="ignore"):
                return evidence.smooth(dial.plant(evidence.truth, value))
        except IMPOSSIBLE:
            return float("inf")

    return cost


def _complexity(tried: Tried) -> tuple[int, int, float, str]:
    hypothesis = tried.hypothesis
    return len(hypothesis.names), hypothesis.fitted, tried.misfit, hypothesis.name
