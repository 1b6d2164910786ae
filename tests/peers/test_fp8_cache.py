"""The FP8 key/value cache against torch's float8, inside Transformers' own forward pass."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from laguna_ref import checkpoint
from laguna_ref.numerics import NUMERICS
from laguna_ref.ops.fp8 import fp8_decode, fp8_encode
from tests import tolerances
from tests.peers import compare
from tests.peers.settings import PEER_CONFIGS, draw
from tests.peers.transformers_model import Fp8Cache, load_transformers, through_fp8, trace
from tests.strategies import Example, examples, random_kv_scales, random_tensors, small_xs2

pytestmark = pytest.mark.peer

Scales = Sequence[tuple[float, float] | None]


@pytest.mark.parametrize("numerics", ["float32", "bfloat16"])
def test_what_is_read_back_has_equal_bits(numerics: str) -> None:
    """All bfloat16 numbers (and float32 ones between them) at scales of every size."""
    grid = np.arange(1 << 16, dtype=np.uint32) << 16
    if numerics == "float32":
        grid += np.random.default_rng(0).integers(0, 1 << 16, len(grid), dtype=np.uint32)
    x = grid.astype(np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    n = NUMERICS[numerics]
    theirs_in = torch.tensor(x).to(torch.bfloat16 if numerics == "bfloat16" else torch.float32)
    for scale in np.float32([1.0, 2.0**-5, 0.00731, 0.0123, 3.3, 448.0]):
        ours = fp8_decode(fp8_encode(x, scale, "x"), scale, n)
        theirs = through_fp8(theirs_in, float(scale)).float().numpy()
        np.testing.assert_array_equal(ours, theirs)


def test_float32_and_float64_runs_agree(figures: dict[str, str]) -> None:
    """Whole runs; those where float32 noise moved a value to the next code are set aside."""
    tally, moved = compare.Tally(), [0, 0]

    @draw(max(20, PEER_CONFIGS // 2))
    @given(examples(max_tokens=12))
    def agree(example: Example) -> None:
        scales = random_kv_scales(example.config, example.seed)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            checkpoint.write(folder, example.config, example.tensors() | scales)
            model, truth = run(folder, example, numerics="float64")
            _, ours = run(folder, example, numerics="float32")
            pairs = scales_of(scales, model.config.num_hidden_layers)
            theirs = their_run(folder, example, pairs)
        moved[1] += 1
        if same_codes(range(len(pairs)), truth, ours, theirs):
            compare.float32_runs(model, truth, ours, theirs, tally)
        else:
            moved[0] += 1

    agree()
    tally.report("FP8 cache, float32", figures)
    figures["FP8 cache, float32: runs in which noise moved a code"] = f"{moved[0]} of {moved[1]}"
    assert moved[0] <= tolerances.FP8_RUNS_WITH_A_MOVED_CODE * moved[1]


def test_bfloat16_runs_agree(figures: dict[str, str]) -> None:
    """What each layer reads back from equal keys and values is equal, bit for bit."""
    compared = 0

    @draw(max(10, PEER_CONFIGS // 4))
    @given(examples(max_tokens=12))
    def agree(example: Example) -> None:
        nonlocal compared
        example = example._replace(config=example.config | {"torch_dtype": "bfloat16"})
        scales = random_kv_scales(example.config, example.seed)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            checkpoint.write(folder, example.config, example.tensors() | scales)
            model, ours = run(folder, example, numerics="bfloat16")
            pairs = scales_of(scales, model.config.num_hidden_layers)
            theirs = their_run(folder, example, pairs, torch.bfloat16)
        for stored in model.config.layers:
            at = f"model.layers.{stored.index}.self_attn"
            for point, source in (("k_cached", "k_rope"), ("v_cached", "v_proj")):
                if np.array_equal(ours[f"{at}.{source}"], theirs[f"{at}.{source}"]):
                    found, expected = ours[f"{at}.{point}"], theirs[f"{at}.{point}"]
                    np.testing.assert_array_equal(found, expected)
                    compared += found.size

    agree()
    figures["FP8 cache, bfloat16: values read back with equal bits"] = str(compared)
    assert compared


@pytest.mark.parametrize(
    ("stored", "skip", "expected"),
    [
        pytest.param(False, (), [(1.0, 1.0)] * 4, id="absent scales are 1"),
        pytest.param(True, (0, "2"), [None, "stored", None, "stored"], id="skipped layers"),
        pytest.param(
            True, ("sliding_window",), ["stored", None, "stored", None], id="skip sliding"
        ),
    ],
)
def test_absent_scales_and_skipped_layers(
    stored: bool, skip: tuple[int | str, ...], expected: list[Any], tmp_path: Path
) -> None:
    config = small_xs2("xs2")
    scales = random_kv_scales(config, seed=5) if stored else {}
    example = Example(config, 5, False, tuple(range(3, 15)))
    checkpoint.write(tmp_path / "model", config, random_tensors(config, seed=5) | scales)
    loaded = scales_of(scales, 4) if stored else expected
    pairs = [loaded[i] if pair == "stored" else pair for i, pair in enumerate(expected)]
    options = {"kv_cache_skip_layers": skip}
    model, truth = run(tmp_path / "model", example, numerics="float64", **options)
    _, ours = run(tmp_path / "model", example, numerics="float32", **options)
    theirs = their_run(tmp_path / "model", example, pairs)
    in_fp8 = [layer for layer, pair in enumerate(pairs) if pair]
    assert same_codes(in_fp8, truth, ours, theirs)
    compare.float32_runs(model, truth, ours, theirs, compare.Tally())


def run(folder: Path, example: Example, **options: Any) -> tuple[compare.Laguna, compare.Trace]:
    return compare.run(folder, example.tokens, kv_cache="fp8", **options)


def their_run(
    folder: Path, example: Example, scales: Scales, dtype: torch.dtype = torch.float32
) -> compare.Trace:
    model = load_transformers(folder, dtype)
    return trace(model, example.tokens, Fp8Cache(model, scales))


def scales_of(tensors: dict[str, Any], layers: int) -> list[tuple[float, float] | None]:
    at = "model.layers.{}.self_attn.{}_scale"
    return [
        (float(tensors[at.format(i, "k")][0]), float(tensors[at.format(i, "v")][0]))
        for i in range(layers)
    ]


def same_codes(layers: Iterable[int], *traces: compare.Trace) -> bool:
    """Whether all runs read the same numbers back from the caches of these layers."""
    first = traces[0]
    return all(
        np.array_equal(first[point].astype(np.float32), other[point].astype(np.float32))
        for other in traces[1:]
        for layer in layers
        for point in (f"model.layers.{layer}.self_attn.{x}_cached" for x in "kv")
    )
