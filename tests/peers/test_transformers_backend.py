"""Transformers as a backend of the kit: all that it declares it can do, and its verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LagunaForCausalLM

from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.adapters.transformers_backend import parse
from laguna_ref.conformance.backend import CAPABILITIES, BackendError, can
from laguna_ref.conformance.replay import with_forced
from laguna_ref.load import EMBEDDED
from laguna_ref.trace import trace_points
from tests import tolerances
from tests.peers.judged import oracle_of, published_rope, summary, verdict
from tests.peers.transformers_model import through_fp8
from tests.small import KV_CACHE_SCHEME, small, small_config

pytestmark = pytest.mark.peer

TOKENS = list(range(80, 110))
KV_CACHE_ONLY = {
    "quant_method": "compressed-tensors",
    "format": "dense",
    "config_groups": {},
    "kv_cache_scheme": KV_CACHE_SCHEME,
    "quantization_status": "frozen",
}


@pytest.fixture(scope="module")
def with_published_rope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_rope(tmp_path_factory.mktemp("transformers") / "model")


@pytest.fixture(scope="module")
def backend() -> Any:
    """With a float cache: in FP8, noise that moves a code is as large as a step of it."""
    return opener("transformers:float-cache")(EMBEDDED)


@pytest.fixture(scope="module")
def oracle(backend: Any) -> Any:
    return oracle_of(backend, EMBEDDED)


def assert_logits(found: Any, expected: Any) -> None:
    tolerances.assert_within(found, expected, tolerances.FLOAT32_ERROR, "lm_head")


def test_packed_experts_give_the_oracles_logits(backend: Any, oracle: Any) -> None:
    assert backend.oracle == {"dequant": "exact", "kv_cache": "float"}
    assert_logits(backend.logits(TOKENS), oracle(TOKENS))


def test_every_trace_point_is_there(backend: Any, oracle: Any) -> None:
    points = trace_points(oracle.config)
    found = backend.trace(TOKENS, ["*"])
    assert list(found) == list(points)
    assert list(backend.trace(TOKENS, ["*.mlp.gate"])) == [p for p in points if p.endswith("gate")
                                                           and ".mlp." in p]  # fmt: skip
    assert_logits(found["lm_head"], oracle(TOKENS))


def test_positions_turn_and_do_not_mask(backend: Any, oracle: Any) -> None:
    positions = [0, 1, 2, 50, 51, 60, *range(100, 124)]
    expected = oracle(TOKENS, positions=np.array(positions))
    assert_logits(backend.logits(TOKENS, positions=positions), expected)


def test_chunks_and_batches_give_the_logits_of_the_whole(backend: Any, oracle: Any) -> None:
    expected = oracle(TOKENS)
    state, first = backend.prefill(TOKENS[:7])
    _, second = backend.decode(state, TOKENS[7:])
    _, again = backend.decode(state, TOKENS[7:])
    assert np.array_equal(second, again)  # the state was left as it was
    assert_logits(np.concatenate([first, second]), expected)
    long, short = backend.batch([TOKENS, TOKENS[:5]])
    assert_logits(long, expected)
    assert_logits(short, expected[:5])


@pytest.mark.parametrize("with_weights", [False, True])
def test_forced_routing(backend: Any, oracle: Any, with_weights: bool) -> None:
    layer = 3
    ids = backend.trace(TOKENS, [f"model.layers.{layer}.mlp.topk_ids"])
    other = (next(iter(ids.values())) + 1) % oracle.config.num_experts
    weights = np.full(other.shape, 0.25, np.float32) if with_weights else None
    routing = {layer: (other, weights)}
    expected = with_forced(oracle, routing)(TOKENS)
    assert_logits(backend.logits(TOKENS, routing=routing), expected)


def test_it_tells_what_it_made_of_the_config(backend: Any) -> None:
    assert backend.config["rope_parameters"]["full_attention"]["factor"] == 8.0
    assert backend.config["as computed"]["attention_factor"]["full_attention"] == 1.0
    assert "quantization_config" in backend.config["not read"]
    assert "transformers" in backend.version


@pytest.mark.parametrize(
    "argument",
    [
        pytest.param(None, id="fp8-cache"),
        pytest.param("float-cache", marks=pytest.mark.slow),
        pytest.param("bfloat16,float-cache", marks=pytest.mark.slow),
    ],
)
def test_laguna_tiny_conforms(argument: str | None, figures: dict[str, str]) -> None:
    name = "transformers" if argument is None else f"transformers:{argument}"
    report = verdict(opener(name)(EMBEDDED), EMBEDDED)
    figures[f"{name} on laguna-tiny"] = summary(report)
    assert report.verdict == "conforming", report.reason
    assert report.routing.violations == 0


def test_an_fp8_cache_in_bfloat16_diverges_where_it_divides(figures: dict[str, str]) -> None:
    """compressed-tensors divides by the scale in the model's type, where vLLM has float32.

    ``test_conformance`` has the same run with that division in float32: it conforms.
    """
    backend = opener("transformers:bfloat16")(EMBEDDED)
    report = verdict(backend, EMBEDDED)
    figures["transformers:bfloat16 on laguna-tiny"] = summary(report)
    assert report.verdict == "diverges"
    at = "model.layers.0.self_attn"
    assert report.first_divergence.point == f"{at}.k_cached"

    found = backend.trace(TOKENS, [f"{at}.k_*"])
    keys = torch.tensor(found[f"{at}.k_rope"])
    scale = float(backend.model.model.layers[0].self_attn.k_scale)
    in_bfloat16 = keys.bfloat16() / torch.tensor(scale).bfloat16()
    codes = in_bfloat16.clamp(-448, 448).to(torch.float8_e4m3fn)
    as_found = (codes.bfloat16() * torch.tensor(scale).bfloat16()).float().numpy()
    np.testing.assert_array_equal(found[f"{at}.k_cached"], as_found)
    right = through_fp8(keys.bfloat16(), scale).float().numpy()
    moved = float((as_found != right).mean())
    figures["FP8 codes that a division in bfloat16 moves"] = f"{moved:.2%} of layer 0's keys"
    assert 0 < moved < tolerances.CODES_MOVED_BY_BFLOAT16_DIVISION


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_published_rope_conforms(
    dtype: str, with_published_rope: Path, figures: dict[str, str]
) -> None:
    folder = with_published_rope
    report = verdict(opener(f"transformers:{dtype}")(folder), folder)
    figures[f"transformers:{dtype} with the published RoPE"] = summary(report)
    assert report.verdict == "conforming", report.reason


def test_another_attention_factor_diverges_in_the_first_layer(
    with_published_rope: Path, tmp_path: Path
) -> None:
    """The judge must not be kind to everyone: the model is loaded with another factor."""
    wrong = opener("transformers")(published_rope(tmp_path / "wrong", attention_factor=1.3466))
    wrong.config = {}  # or the judge would say that this is another model
    report = verdict(wrong, with_published_rope)
    assert report.verdict == "diverges"
    assert report.first_divergence.point.startswith("model.layers.0.self_attn.")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (None, ("cpu", "float32", False)),
        ("cuda", ("cuda", "float32", False)),
        ("cuda:1,bfloat16", ("cuda:1", "bfloat16", False)),
        ("float-cache,mps", ("mps", "float32", True)),
    ],
)
def test_arguments(argument: str | None, expected: Sequence[Any]) -> None:
    settings = parse(argument)
    assert (settings.device, settings.dtype, settings.float_cache) == tuple(expected)


def test_what_cannot_be_had_is_said_in_one_line() -> None:
    with pytest.raises(BackendError, match="gpu"):
        opener("transformers:gpu")
    with pytest.raises(BackendError, match="CUDA"):
        opener("transformers:cuda")(EMBEDDED)


def test_transformers_cannot_load_a_checkpoint_whose_cache_alone_is_quantised(
    tmp_path: Path,
) -> None:
    """Its conversion of experts takes the first group of weights, and there is none.

    Drop this test, and what docs/backends.md says, when it can.
    """
    config = small_config() | {"quantization_config": KV_CACHE_ONLY}
    small(config).write(tmp_path / "model")
    with pytest.raises(RuntimeError, match="conversion"):
        LagunaForCausalLM.from_pretrained(tmp_path / "model")
    assert opener("transformers")(tmp_path / "model").logits([1, 2]).shape == (2, 40)


def test_it_declares_no_more_than_the_protocol_knows(backend: Any) -> None:
    assert [c for c in CAPABILITIES if can(backend, c)] == [
        "trace", "forced_routing", "positions", "chunks", "batch", "padding",
    ]  # fmt: skip
