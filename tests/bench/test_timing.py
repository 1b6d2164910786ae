"""How often a run is repeated, and what is made of the seconds; the clock is a list."""

from __future__ import annotations

import pytest

from laguna_ref.bench.timing import Effort, Timing, timed


class Clock:
    """Advances by what each run takes."""

    def __init__(self, lengths: list[float]) -> None:
        self.now = 0.0
        self.lengths = iter(lengths)
        self.events: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self) -> None:
        self.now += next(self.lengths)
        self.events.append("run")

    def after(self) -> None:
        self.now += 100.0
        self.events.append("after")


def test_the_first_run_is_not_counted_and_neither_is_what_comes_after_each() -> None:
    clock = Clock([50.0, 1.0, 3.0, 2.0])
    timing = timed(clock.run, Effort(3, 0.0), after=clock.after, clock=clock)
    assert timing.seconds == (1.0, 3.0, 2.0)
    assert clock.events == ["run", "after"] * 4


@pytest.mark.parametrize(
    ("effort", "counted"), [(Effort(2, 0.0), 2), (Effort(2, 3.5), 4), (Effort(5, 2.0), 5)]
)
def test_both_repeats_and_seconds_are_given(effort: Effort, counted: int) -> None:
    clock = Clock([1.0] * 20)
    assert len(timed(clock.run, effort, clock=clock).seconds) == counted


def test_a_run_that_takes_no_time_ends() -> None:
    assert len(timed(lambda: None, Effort(1, 1.0), clock=lambda: 0.0).seconds) == 1000


def test_best_median_and_json() -> None:
    timing = Timing((3.0, 1.0, 2.0, 10.0))
    assert (timing.best, timing.median) == (1.0, 2.5)
    assert timing.to_json() == {"min": 1.0, "median": 2.5, "repeats": 4}


def test_without_a_warm_up_the_first_run_counts() -> None:
    clock = Clock([5.0, 1.0])
    assert timed(clock.run, Effort(2, 0.0), warm_up=False, clock=clock).seconds == (5.0, 1.0)
