"""Whether a backend keeps a law on one example.

Equal bits are plain. *Within budget* is measured on the very example: the law is put to legal
backends too, and the greatest deviation that any of them shows is one floor unit. Two stages keep
it cheap: few legal runs let nearly every example pass, many more settle the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laguna_ref.conformance.laws.case import Case
from laguna_ref.conformance.laws.law import (
    BrokenLawError,
    Claim,
    Law,
    Moves,
    NothingToSayError,
    Open,
    Same,
)
from laguna_ref.conformance.laws.legal import LegalBackend
from laguna_ref.conformance.laws.ties import near_a_tie
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.statistics import TINY, centred
from laguna_ref.errors import NonFiniteError
from laguna_ref.numerics import Array

FEW, MANY = 5, 40
"""Legal runs of the first and of the second stage."""
FACTOR = 8.0
"""Floor units that break a law. docs/laws.md has the measured tail of legal backends: the chance
that a further one exceeds so many after both stages."""
RESOLVED = 32.0
"""A claim that something moves is made only where the oracle moves by so many units of noise."""


class LegalRuns:
    """What legal backends are off by in every claim of a law, on one example.

    ``claims``: those of the backend under test, if there is one; where it showed a few tokens
    alone, no more is looked at of a legal backend.
    """

    def __init__(
        self, law: Law, case: Case, precision: Precision, claims: Sequence[Claim] = ()
    ) -> None:
        self._law, self._case, self._precision = law, case, precision
        self._shown = {at: _known(claim) for at, claim in enumerate(claims) if claim.logits}
        self._runs: list[list[float]] = []

    def deviations(self, at: int, count: int) -> list[float]:
        """Of the claim at ``at``, in the first ``count`` runs."""
        while len(self._runs) < count:
            self._runs.append(self._run(len(self._runs)))
        return [run[at] for run in self._runs[:count]]

    def _run(self, seed: int) -> list[float]:
        claims = self._law.check(
            self._case, lambda built: LegalBackend(built, self._precision, seed)
        )
        return [deviation_of(claim, self._shown.get(at)) for at, claim in enumerate(claims)]


@dataclass(frozen=True)
class Judge:
    """How the backend under test is judged."""

    precision: Precision
    exact: bool
    """Equal bits may be demanded where the law is about them."""
    partial: bool = False
    """It shows log-probabilities of some tokens alone, NaN for the others."""

    def judge(self, law: Law, case: Case, opened: Open) -> None:
        """Raises BrokenLawError, or NothingToSayError; returns if the law holds."""
        bits = self.exact and law.exact
        self.require_no_tie(law, case)
        try:
            claims = list(law.check(case, opened))
        except NonFiniteError as problem:
            raise BrokenLawError(str(problem)) from problem
        if not claims:
            raise NothingToSayError("nothing claimed")
        legal = LegalRuns(law, case, self.precision, claims)
        for at, claim in enumerate(claims):
            if not self.partial:
                _require_finite(claim.what, claim.found, claim.expected)
            if isinstance(claim, Moves):
                self._moves(claim, legal.deviations(at, FEW))
            elif bits:
                _same_bits(claim)
            else:
                self._within(claim, at, legal)

    def require_no_tie(self, law: Law, case: Case) -> None:
        """Raises NothingToSayError where noise could change a choice that matters.

        A given model is taken as it is: the noise measured includes its flips.
        """
        matters = law.routed or not (self.exact and law.exact)
        if case.config and matters and near_a_tie(case, self.precision):
            raise NothingToSayError("near a tie")

    def _within(self, claim: Same, at: int, legal: LegalRuns) -> None:
        deviation, floor = deviation_of(claim), self.precision.unit_roundoff
        for runs in (0, FEW):
            if deviation <= max([floor, *legal.deviations(at, runs)]):
                return
        unit = max(floor, *legal.deviations(at, FEW + MANY))
        if deviation > FACTOR * unit:
            raise BrokenLawError(
                f"{claim.what}: off by {deviation / unit:.3g} floor units {_where(claim)}",
                expected=f"at most {FACTOR:g} (one unit is {unit:.2g})", found=f"{deviation:.3g}",
            )  # fmt: skip

    def _moves(self, claim: Moves, legal: list[float]) -> None:
        middle = float(np.median(legal))
        noise = max(self.precision.unit_roundoff, *(abs(value - middle) for value in legal))
        deviation = deviation_of(claim)
        if middle >= RESOLVED * noise and deviation <= FACTOR * noise:
            raise BrokenLawError(
                f"{claim.what}: moves by {deviation:.3g}, within the noise of {noise:.2g}",
                expected=f"about {middle:.3g}",
            )


def deviation_of(claim: Claim, shown: Array | None = None) -> float:
    """Greatest relative distance of any token: |found - expected| / |expected|, in l2.

    Of logits the mean difference of a token is taken out first, and only values known to both
    count, and those of ``shown`` [T, V]. Raises NothingToSayError where there are none,
    BrokenLawError for what is no number.
    """
    return float(_by_token(claim, shown).max(initial=0.0))


def _by_token(claim: Claim, shown: Array | None = None) -> Array:
    found = np.asarray(claim.found, np.float64)
    expected = np.asarray(claim.expected, np.float64)
    if found.shape != expected.shape:
        raise BrokenLawError(f"{claim.what}: shape", expected=expected.shape, found=found.shape)
    if not found.size:
        raise NothingToSayError("nothing to compare")
    found, expected = found.reshape(len(found), -1), expected.reshape(len(expected), -1)
    if not claim.logits:
        _require_finite(claim.what, found, expected)
        return _relative(found - expected, expected)
    if np.isinf(found).any() or np.isnan(found).all():
        raise BrokenLawError(f"{claim.what}: logits that are no numbers")
    known = np.isfinite(found) & np.isfinite(expected)
    if shown is not None and shown.shape == known.shape:
        known &= shown
    if (known.sum(axis=1) < 2).all():
        raise NothingToSayError("no two logits known to both")
    return _relative(centred(found - expected, known), centred(expected, known))


def _known(claim: Claim) -> Array:
    """Of which logits both values are known, [T, V]."""
    both = np.asarray(claim.found, np.float64), np.asarray(claim.expected, np.float64)
    if both[0].shape != both[1].shape:
        return np.zeros(0, bool)
    known: Array = np.isfinite(both[0]) & np.isfinite(both[1])
    return known.reshape(len(known), -1)


def _relative(difference: Array, expected: Array) -> Array:
    lengths = np.linalg.norm(expected, axis=1)
    # A row of zeros is measured by the others: an error in it is no infinite one.
    scale = np.maximum(lengths, max(TINY, 1e-3 * float(lengths.max(initial=0.0))))
    result: Array = np.linalg.norm(difference, axis=1) / scale
    return result


def _require_finite(what: str, *arrays: Array) -> None:
    if not all(np.isfinite(np.asarray(array, np.float64)).all() for array in arrays):
        raise BrokenLawError(f"{what}: not a number")


def _same_bits(claim: Same) -> None:
    if claim.found.shape != claim.expected.shape or not np.array_equal(claim.found, claim.expected):
        raise BrokenLawError(
            f"{claim.what}: other bits {_where(claim)}", expected="equal bits",
            found=f"a deviation of {deviation_of(claim):.3g}",
        )  # fmt: skip


def _where(claim: Claim) -> str:
    return f"(most at row {int(np.argmax(_by_token(claim)))})"
