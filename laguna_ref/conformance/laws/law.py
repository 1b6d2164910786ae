"""What a law is: a claim about a backend that needs no reference, and when it may be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from laguna_ref.conformance.backend import Backend
from laguna_ref.conformance.laws.case import Built, Case
from laguna_ref.conformance.laws.example import Example
from laguna_ref.errors import LagunaError
from laguna_ref.numerics import Array

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Status = Literal["holds", "broken", "failed", "not applicable"]
Open = Callable[[Built], Backend]
"""Gives the backend under test, or a legal one, with a model loaded."""


class BrokenLawError(LagunaError):
    """A law does not hold on an example: which claim, and by how much."""


class NothingToSayError(LagunaError):
    """An example on which the law claims nothing: near a tie, a model that the
    backend refuses, nothing known of the result."""


@dataclass(frozen=True)
class Same:
    """Two arrays [T, ...] that must be equal: in all bits, or to what legal backends are off by.

    ``logits``: one constant a token does not count, and NaN is left out where the backend says
    that it is a value not known (``logits_kind``).
    """

    what: str
    found: Array
    expected: Array
    logits: bool = True


@dataclass(frozen=True)
class Moves:
    """Two arrays [T, ...] that must differ, where the oracle's differ well beyond all noise."""

    what: str
    found: Array
    expected: Array
    logits: bool = True


Claim = Same | Moves
Check = Callable[[Case, Open], Iterator[Claim]]


@dataclass(frozen=True)
class Setting:
    """What the drawing of examples has to respect."""

    every_expert: bool = False
    """No choice of experts: in bfloat16 nearly every prompt meets a near tie."""
    vocabulary: int | None = None
    """Of the model given; None where models are drawn."""


@dataclass(frozen=True)
class Law:
    """A law. The docstring of ``check`` says what it claims and which class of bug it catches."""

    name: str
    check: Check
    examples: Callable[[Setting], SearchStrategy[Example]]
    exact: bool
    """Of a backend that is exact it may demand equal bits, not only equality within budget."""
    needs: tuple[str, ...] = ()
    """Capabilities without which it is not applicable."""
    given: bool = False
    """It can be put to a model that is given, by its prompts alone."""
    fp8: bool = False
    """It is about an FP8 cache: not applicable to a backend that declares another type."""
    routed: bool = False
    """Near ties between experts must be kept out even where bits are demanded."""

    @property
    def says(self) -> str:
        """The law in one paragraph."""
        return " ".join((self.check.__doc__ or "").split())

    @property
    def demands(self) -> str:
        """What equality means."""
        return "exact bits, else within budget" if self.exact else "within budget"


@dataclass(frozen=True)
class LawResult:
    """What became of one law."""

    law: str
    status: Status
    examples: int
    """How many were judged; those near a tie do not count."""
    detail: str
    reproduce: str
    """``--reproduce`` of ``laguna-ref conform``: a folder or a blob; empty unless broken."""

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)


def traced(backend: Any, tokens: Sequence[int], points: Sequence[str]) -> Mapping[str, Array]:
    """Trace points of a backend, [T, ...] each.

    Raises NothingToSayError for one that it does not have.
    """
    found: Mapping[str, Array] = backend.trace(tokens, points)
    for point in points:
        if point not in found:
            raise NothingToSayError("the backend has no such trace point", tensor=point)
    return found
