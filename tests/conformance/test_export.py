"""Dense copies of a checkpoint: the function of the original, dequantised as their type says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import laguna_ref
from laguna_ref.conformance.export import DEQUANT, export, is_quantised
from tests.small import quantised, small, small_config, tokens_for


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_is_the_original_with_a_float_cache(
    tmp_path: Path, bits: int, dtype: str
) -> None:
    config = quantised(small_config(), bits)
    small(config, seed=bits).write(tmp_path / "packed")
    opened = laguna_ref.checkpoint.open(tmp_path / "packed")
    dense = export(opened, tmp_path / "dense", dtype)
    tokens = tokens_for(config, 12)
    original = laguna_ref.load(
        tmp_path / "packed", engine="numpy", dequant=DEQUANT[dtype], kv_cache="float"
    )
    copy = laguna_ref.load(dense, engine="numpy")
    assert np.array_equal(copy(tokens), original(tokens))
    assert not any(kv.fp8 for kv in copy.kv_formats)
    stored = laguna_ref.checkpoint.open(dense).tensors["lm_head.weight"]
    assert stored.dtype == {"float32": "F32", "bfloat16": "BF16"}[dtype]


def test_the_config_says_the_same_otherwise(tmp_path: Path) -> None:
    small(quantised(small_config())).write(tmp_path / "packed")
    opened = laguna_ref.checkpoint.open(tmp_path / "packed")
    copied = laguna_ref.checkpoint.open(export(opened, tmp_path / "dense"))
    before, after = opened.config.to_dict(), copied.config.to_dict()
    assert after.pop("torch_dtype") == "float32"
    assert before.pop("torch_dtype") == "bfloat16"
    assert before.pop("quantization_config")
    assert after == before
    assert is_quantised(opened)
    assert not is_quantised(copied)


def test_the_correction_bias_stays_float32(tmp_path: Path) -> None:
    small(quantised(small_config())).write(tmp_path / "packed")
    opened = laguna_ref.checkpoint.open(tmp_path / "packed")
    copied = laguna_ref.checkpoint.open(export(opened, tmp_path / "dense", "bfloat16"))
    name = "model.layers.1.mlp.experts.e_score_correction_bias"
    assert copied.tensor(name).dtype == np.float32
    assert np.array_equal(copied.tensor(name), opened.tensor(name))
