"""vLLM as a backend of the kit: what it declares it can do, its verdicts, and its defects.

Heavy, so all of it is slow: an environment of 3.6 GB of its own, as the pins of vLLM and of this
package exclude each other (docs/backends.md says what to install). Nightly, in that environment::

    LAGUNA_REQUIRE_PEERS=vllm python -m pytest -m slow tests/peers/test_vllm_backend.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

from laguna_ref import checkpoint
from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.adapters.vllm_backend import Settings, parse
from laguna_ref.conformance.adapters.vllm_folder import source
from laguna_ref.conformance.backend import CAPABILITIES, BackendDiedError, BackendError, can
from laguna_ref.conformance.diagnosis.diagnose import diagnose
from laguna_ref.conformance.diagnosis.prompts import ask
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.load import EMBEDDED
from laguna_ref.trace import trace_points
from tests import tolerances
from tests.peers.judged import oracle_of, published_rope, summary, verdict
from tests.peers.vllm_mended import mended_loader, mended_router

pytestmark = [pytest.mark.peer, pytest.mark.slow]

TOKENS = list(range(80, 110))
UNSEEN = (".k_cached", ".v_cached", ".self_attn.gate")
"""Ends of the names of what the trace does not have."""
needs_cpu_build = pytest.mark.skipif(not current_platform.is_cpu(), reason="of the CPU build")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_rope(tmp_path_factory.mktemp("vllm") / "model")


@pytest.fixture
def routed() -> Iterator[None]:
    """A router that runs, where the CPU build's stops."""
    with mended_router():
        yield


@pytest.fixture
def mended(routed: None) -> Iterator[None]:
    """And a loader that loads the correction bias."""
    with mended_loader():
        yield


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    with mended_loader():
        return opener("vllm")(folder)


@pytest.fixture
def backend(loaded: Any, routed: None) -> Any:
    return loaded


@pytest.fixture(scope="module")
def oracle(loaded: Any, folder: Path) -> Any:
    return oracle_of(loaded, folder)


def assert_logits(found: Any, expected: Any) -> None:
    tolerances.assert_within(found, expected, tolerances.FLOAT32_ERROR, "lm_head")


def test_logits_are_the_oracles(backend: Any, oracle: Any) -> None:
    assert_logits(backend.logits(TOKENS), oracle(TOKENS))
    assert_logits(backend.logits(TOKENS[:1]), oracle(TOKENS[:1]))


def test_the_trace_has_what_can_be_seen(backend: Any, oracle: Any) -> None:
    found = backend.trace(TOKENS, ["*"])
    assert list(found) == [p for p in trace_points(oracle.config) if not p.endswith(UNSEEN)]
    assert_logits(found["lm_head"], oracle(TOKENS))
    assert list(backend.trace(TOKENS, ["*.mlp.gate"])) == [
        f"model.layers.{layer}.mlp.gate" for layer in (1, 2, 3)
    ]


def test_watching_leaves_the_model_as_it_was(backend: Any) -> None:
    before = backend.logits(TOKENS)
    backend.trace(TOKENS, ["*"])
    assert np.array_equal(backend.logits(TOKENS), before)


def test_decoding_and_batches_give_the_logits_of_the_whole(backend: Any, oracle: Any) -> None:
    expected = oracle(TOKENS)
    state, first = backend.prefill(TOKENS[:7])
    middle, second = backend.decode(state, TOKENS[7:20])
    _, again = backend.decode(state, TOKENS[7:20])
    assert np.array_equal(second, again)  # the state was left as it was
    _, third = backend.decode(middle, TOKENS[20:])
    assert_logits(np.concatenate([first, second, third]), expected)
    long, short = backend.batch([TOKENS, TOKENS[:5]])
    assert_logits(long, expected)
    assert_logits(short, expected[:5])


def test_a_prompt_beyond_the_context_is_refused_and_the_next_is_answered(backend: Any) -> None:
    with pytest.raises(BackendError, match=r"context.*4096.*4097"):
        backend.logits([1] * 4096)
    assert backend.logits(TOKENS[:3]).shape == (3, 256)


def test_it_tells_what_it_made_of_the_config(backend: Any) -> None:
    full = backend.config["rope_parameters"]["full_attention"]
    assert (full["beta_fast"], full["attention_factor"]) == (64.0, 1.0)
    computed = backend.config["as computed"]
    assert computed["attention_factor"] == {"full_attention": 1.0, "sliding_attention": 1.0}
    assert computed["dtype"] == "float32"
    assert "vllm" in backend.version


def test_it_declares_no_more_than_the_protocol_knows(backend: Any) -> None:
    assert [c for c in CAPABILITIES if can(backend, c)] == ["trace", "chunks", "batch"]


@needs_cpu_build
def test_the_stock_cpu_build_stops_and_says_where(folder: Path) -> None:
    """Drop this test, and what docs/backends.md says, when it does not."""
    stock = opener("vllm")(folder)
    for _ in range(2):
        with pytest.raises(BackendDiedError, match=r'cpu_router\.py.*scoring_func == "softmax"'):
            stock.logits(TOKENS)


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "logits"])
def test_the_correction_bias_is_not_loaded(
    routed: None, folder: Path, traced: bool, figures: dict[str, str]
) -> None:
    """Drop this test, and what docs/backends.md says, when it is."""
    backend = opener("vllm")(folder)
    report = verdict(backend, folder, traced=traced)
    figures[f"vllm, published RoPE, {'traced' if traced else 'logits only'}"] = summary(report)
    assert report.verdict == "diverges"
    if traced:
        assert report.first_divergence.point == "model.layers.1.mlp.topk_ids"
        observations = ask(backend, oracle_of(backend, folder).config).observations
        result = diagnose(oracle_of(backend, folder), observations, PRESETS["float32"])
        assert (result.verdict, result.causes[0].fault) == ("named", "router.bias_ignored")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("traced", [True, False], ids=["traced", "logits"])
def test_with_the_bias_it_conforms(
    mended: None, folder: Path, dtype: str, traced: bool, figures: dict[str, str]
) -> None:
    report = verdict(opener(f"vllm:{dtype}")(folder), folder, traced=traced)
    how = "traced" if traced else "logits only"
    figures[f"vllm:{dtype} with the bias, published RoPE, {how}"] = summary(report)
    assert report.verdict == "conforming", report.reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_laguna_tiny_conforms_with_a_float_cache(
    mended: None, dtype: str, figures: dict[str, str]
) -> None:
    backend = opener(f"vllm:{dtype},float-cache")(EMBEDDED)
    report = verdict(backend, EMBEDDED)
    figures[f"vllm:{dtype},float-cache with the bias, laguna-tiny"] = summary(report)
    assert report.verdict == "conforming", report.reason


@needs_cpu_build
def test_an_fp8_cache_is_rounded_towards_zero(mended: None, figures: dict[str, str]) -> None:
    """Drop this test, and what docs/backends.md says, when it is rounded to the nearest."""
    backend = opener("vllm")(EMBEDDED)
    report = verdict(backend, EMBEDDED)
    figures["vllm with the bias, laguna-tiny, FP8 cache"] = summary(report)
    assert report.verdict == "diverges"
    observations = ask(backend, oracle_of(backend, EMBEDDED).config).observations
    result = diagnose(oracle_of(backend, EMBEDDED), observations, PRESETS["float32"])
    assert (result.verdict, result.causes[0].fault) == ("named", "kv.codes_towards_zero")

    at = "model.layers.0.self_attn"
    found = backend.trace(TOKENS, [f"{at}.*"])
    k_scale, v_scale = checkpoint.open(EMBEDDED).kv_scales(0)
    count, heads = len(TOKENS), backend.config["num_key_value_heads"]
    values = found[f"{at}.v_proj"].reshape(count, heads, -1)
    attended = {
        rounding: attention(
            found[f"{at}.q_rope"],
            through_fp8(found[f"{at}.k_rope"], k_scale, rounding),
            through_fp8(values, v_scale, rounding),
        )
        for rounding in ("nearest", "towards zero")
    }
    tolerances.assert_within(
        found[f"{at}.attention"], attended["towards zero"], tolerances.FLOAT32_ERROR, at
    )
    off = float(np.abs(found[f"{at}.attention"] - attended["nearest"]).max())
    largest = float(np.abs(attended["nearest"]).max())
    figures["attention that truncated keys and values move"] = f"{off:.3g}, largest {largest:.3g}"
    assert off > 1000 * tolerances.FLOAT32_ERROR


@needs_cpu_build
def test_the_kernel_that_writes_an_fp8_cache_truncates() -> None:
    """The smallest case: 17.9 lies between 16 and 18."""
    if not torch.cpu._is_avx512_supported():
        pytest.skip("the CPU build has an FP8 cache with AVX-512 alone")
    values = torch.full((1, 1, 32), 17.9)
    key_cache, value_cache = torch.zeros(1, 1, 64, 32, dtype=torch.uint8).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(
        values, values, key_cache, value_cache, torch.tensor([0]), "vec", kv_cache_dtype="fp8"
    )
    written = value_cache[0, 0, 0].view(torch.float8_e4m3fn).float()
    assert set(written.tolist()) == {16.0}
    assert float(torch.tensor(17.9).to(torch.float8_e4m3fn)) == 18.0


def through_fp8(x: np.ndarray, scale: float, rounding: str) -> np.ndarray:
    """Written to an FP8 cache with this rounding, and read back."""
    quotient = torch.tensor(x) / torch.tensor(scale, dtype=torch.float32)
    codes = quotient.clamp(-448, 448).to(torch.float8_e4m3fn)
    if rounding == "towards zero":
        beyond = (codes.float().abs() > quotient.abs()).to(torch.uint8)
        codes = (codes.view(torch.uint8) - beyond).view(torch.float8_e4m3fn)
    return codes.float().numpy() * np.float32(scale)


def attention(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Causal, in float64: queries [T, H, C], keys and values [T, G, C] -> [T, H, C]."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (keys, values))
    scores = np.einsum("thc,shc->hts", queries, keys) / np.sqrt(queries.shape[2])
    scores[:, ~np.tri(len(queries), dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shc->thc", weights, values)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (None, ("float32", False, False)),
        ("bfloat16", ("bfloat16", False, False)),
        ("packed,bfloat16,float-cache", ("bfloat16", True, True)),
    ],
)
def test_arguments(argument: str | None, expected: Sequence[Any]) -> None:
    settings = parse(argument)
    assert (settings.dtype, settings.float_cache, settings.packed) == tuple(expected)


@needs_cpu_build
def test_what_it_cannot_do_is_said_in_one_line() -> None:
    with pytest.raises(BackendError, match="cuda"):
        opener("vllm:cuda")
    with pytest.raises(BackendError, match="No WNA16 MoE backend"):
        opener("vllm:packed")(EMBEDDED)


def test_a_dense_copy_keeps_the_cache(tmp_path: Path) -> None:
    original = checkpoint.open(EMBEDDED)
    copy = checkpoint.open(source(original, Settings(), tmp_path))
    assert copy.config.kv_cache_fp8
    assert [copy.kv_scales(n) for n in range(8)] == [original.kv_scales(n) for n in range(8)]
    plain = source(original, Settings(float_cache=True), tmp_path / "plain")
    assert not checkpoint.open(plain).config.kv_cache_fp8
