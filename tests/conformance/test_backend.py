"""The protocol of a backend, and the oracle behind it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from laguna_ref.conformance.adapters import MODULES, opener
from laguna_ref.conformance.adapters.oracle_backend import OracleBackend
from laguna_ref.conformance.backend import BackendError, can, describe, precision_of
from tests.small import small

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def backend() -> OracleBackend:
    return OracleBackend(small().load(engine="numba"), exact=True)


def test_chunks_give_the_logits_of_the_whole(backend: OracleBackend) -> None:
    state, first = backend.prefill(TOKENS[:3])
    _, second = backend.decode(state, TOKENS[3:])
    assert np.array_equal(np.concatenate([first, second]), backend.logits(TOKENS))


def test_decoding_leaves_the_state_as_it_was(backend: OracleBackend) -> None:
    state, _ = backend.prefill(TOKENS[:3])
    one = backend.decode(state, [7])[1]
    assert np.array_equal(backend.decode(state, [7])[1], one)


def test_a_batch_gives_the_logits_of_each(backend: OracleBackend) -> None:
    both = backend.batch([TOKENS, TOKENS[:2]])
    assert np.array_equal(both[0], backend.logits(TOKENS))
    assert np.array_equal(both[1], backend.logits(TOKENS[:2]))


def test_forced_routing_reaches_the_trace(backend: OracleBackend) -> None:
    layer = next(s.index for s in backend.model.config.layers if s.mlp == "sparse")
    point = f"model.layers.{layer}.mlp.topk_ids"
    ids = backend.trace(TOKENS, [point])[point]
    other = (ids + 1) % backend.model.config.num_experts
    assert np.array_equal(backend.trace(TOKENS, [point], routing={layer: (other, None)})[point],
                          other)  # fmt: skip


def test_a_report_can_describe_it(backend: OracleBackend) -> None:
    described = describe(backend)
    assert described["name"] == "oracle"
    assert described["config"]["hidden_size"] == backend.model.config.hidden_size
    assert precision_of(backend) == "float32"


def test_an_unknown_capability_is_refused() -> None:
    strange = SimpleNamespace(name="strange", capabilities={"telepathy"}, logits=None)
    with pytest.raises(BackendError, match="telepathy"):
        can(strange, "trace")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendError, match="nobody"):
        opener("nobody:cuda")
    assert "nobody" not in MODULES
