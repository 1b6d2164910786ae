"""Log-probabilities against a plain sort."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from laguna_ref.conformance.partial import log_softmax
from laguna_ref.numerics import Array
from laguna_ref.server.scores import likeliest, log_probabilities, scored

rows = hnp.arrays(np.float32, st.integers(1, 40), elements=st.integers(-5, 5).map(float))


@given(rows, st.data())
def test_the_likeliest_are_those_of_a_stable_sort(row: Array, data: st.DataObject) -> None:
    count = data.draw(st.integers(-1, len(row) + 2))
    order = np.argsort(-row, kind="stable")[: len(row) if count < 0 else count]
    assert likeliest(row, count) == tuple((int(i), float(row[i])) for i in order)


@given(rows, st.data())
def test_scores_are_log_softmax_as_the_conformance_kit_has_it(
    row: Array, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, len(row) - 1))
    expected = log_softmax(row[None])[0]
    assert np.array_equal(log_probabilities(row), expected)
    score = scored(row, token, 3)
    assert score.logprob == expected[token]
    assert score.rank == sum(other >= expected[token] for other in expected)
    assert dict(score.top) == {token: expected[token] for token, _ in score.top}
