"""Synthetic weights: reproducible, of the right statistics, for every preset and slice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref import LagunaConfig, checkpoint
from laguna_ref.checkpoint.formats.packed_int import BFLOAT16, padding_is_zero
from laguna_ref.checkpoint.presets import PRESETS
from laguna_ref.errors import ConfigError, UnsupportedFormatError
from tests.checkpoint.small import INT4_EXPERT, dense_config, small_config
from tests.tolerances import ROUTER_ROW_LENGTH, SYNTHETIC_CORRELATION, SYNTHETIC_MOMENT

TRUE_WIDTH = checkpoint.preset("xs2-int4", layer_ids=[0, 1, 31])
EXPERT = "model.layers.{}.mlp.experts.7.gate_proj"


def digest(tensors: Any) -> str:
    total = hashlib.sha256()
    for name in tensors:
        total.update(name.encode())
        total.update(tensors[name].tobytes())
    return total.hexdigest()


def test_the_numbers_are_the_same_on_every_machine() -> None:
    """Pinned: goldens of synthetic checkpoints depend on every bit of them."""
    assert digest(checkpoint.synth(small_config(), seed=0)) == (
        "fb1d2ea0ca7f7952e7966f16a20f7d32991613b208ce8aeded729e22eb060e51"
    )


def test_a_tensor_depends_on_seed_and_name_only() -> None:
    config = small_config()
    first, again = checkpoint.synth(config, seed=3), checkpoint.synth(config, seed=3)
    names = list(first)
    backwards = {name: again[name].tobytes() for name in reversed(names)}
    assert all(first[name].tobytes() == backwards[name] for name in names)
    other = checkpoint.synth(config, seed=4)
    assert all(
        first[name].tobytes() != other[name].tobytes() for name in names if first[name].size > 8
    )
    wider = checkpoint.synth(small_config(vocab_size=60), seed=3)
    norm = "model.norm.weight"
    assert wider[norm].tobytes() == first[norm].tobytes()


def test_it_is_a_lazy_mapping() -> None:
    tensors = checkpoint.synth(checkpoint.preset("xs2-int4"))
    assert len(tensors) > 60_000
    assert "model.embed_tokens.weight" in tensors
    assert "model.nothing" not in tensors
    assert tensors["model.norm.weight"].shape == (2048,)
    with pytest.raises(KeyError):
        tensors["model.nothing"]


def test_dtypes_are_the_published_ones() -> None:
    for name, array in checkpoint.synth(small_config()).items():
        expected = {
            "weight_packed": np.int32,
            "e_score_correction_bias": np.float32,
        }.get(name.rpartition(".")[2], BFLOAT16)
        assert array.dtype == expected, name
    assert not any("k_scale" in name for name in checkpoint.synth(dense_config()))


@pytest.mark.parametrize("layer", [1, 2])
def test_packed_weights_have_the_variance_of_dense_ones(layer: int) -> None:
    """Standard deviation 1/sqrt(columns)."""
    module = EXPERT.format(layer)
    tensors = checkpoint.synth(TRUE_WIDTH)
    weight = checkpoint.PackedIntWeight(
        module,
        tensors[f"{module}.weight_packed"],
        tensors[f"{module}.weight_scale"],
        4 * layer,
        128,
        (512, 2048),
    )
    rows = weight.rows(dtype=np.float64)
    assert abs(rows.std() * np.sqrt(2048) - 1) < SYNTHETIC_MOMENT
    assert abs(rows.mean() * np.sqrt(2048)) < SYNTHETIC_MOMENT
    codes = np.unique(checkpoint.formats.packed_int.unpack(weight.packed, 4 * layer, 2048))
    assert codes[0] == -codes[-1] or codes[0] == -codes[-1] - 1
    assert len(codes) >= 15


def test_padding_bits_are_zero() -> None:
    packed = checkpoint.synth(small_config())[f"{INT4_EXPERT}.weight_packed"]
    assert padding_is_zero(packed, 4, 12)


def test_the_router_is_fair_and_its_bias_alive() -> None:
    tensors = checkpoint.synth(TRUE_WIDTH)
    rows = tensors["model.layers.1.mlp.gate.weight"].astype(np.float64)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < ROUTER_ROW_LENGTH
    bias = tensors["model.layers.1.mlp.experts.e_score_correction_bias"]
    assert np.count_nonzero(bias) == bias.size
    assert len(np.unique(bias)) > bias.size / 2


def test_every_random_tensor_is_independent_of_the_others() -> None:
    tensors = checkpoint.synth(TRUE_WIDTH)
    names = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "kv"]
    sample = [tensors[name][:128].astype(np.float64).ravel() for name in names]
    off_diagonal = np.corrcoef(sample) - np.eye(len(names))
    assert np.abs(off_diagonal).max() < SYNTHETIC_CORRELATION


def test_written_and_opened_at_true_width(tmp_path: Path) -> None:
    """One layer with 8 of the 256 experts, so that the test stays light; all else as published."""
    config = checkpoint.preset("xs2-int4", layer_ids=[1]) | {"num_experts": 8, "vocab_size": 1000}
    checkpoint.write(tmp_path / "a", config, checkpoint.synth(config))
    opened = checkpoint.open(tmp_path / "a")
    weight = opened.weight("model.layers.0.mlp.experts.7.down_proj")
    assert weight.shape == (2048, 512)
    assert not checkpoint.verify(tmp_path / "a")


# Presets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_published_configs(name: str) -> None:
    config = LagunaConfig.from_dict(checkpoint.preset(name))
    assert config.num_hidden_layers == 40


def test_presets_of_other_formats_cannot_be_synthesised() -> None:
    for name in ("xs2-fp8", "xs2-nvfp4"):
        with pytest.raises(UnsupportedFormatError, match="quantized"):
            checkpoint.synth(checkpoint.preset(name, layers=1))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0], [4, 31], [39, 0, 30, 31, 8], [5, 5]])
def test_slices_keep_each_layers_facts(name: str, kept: list[int]) -> None:
    whole = LagunaConfig.from_dict(checkpoint.preset(name))
    part = LagunaConfig.from_dict(checkpoint.preset(name, layer_ids=kept))
    assert len(part.layers) == len(kept)
    for new, source in zip(part.layers, kept, strict=True):
        old = whole.layers[source]
        for fact in (
            "attention",
            "num_heads",
            "window",
            "rope",
            "gate",
            "mlp",
            "intermediate_size",
        ):
            assert getattr(new, fact) == getattr(old, fact)
        assert new.formats == old.formats
    assert part.kv_cache_fp8 == whole.kv_cache_fp8
    assert part.weight_format("lm_head") == whole.weight_format("lm_head")


def test_the_first_layers() -> None:
    assert checkpoint.preset("xs2", layers=4) == checkpoint.preset("xs2", layer_ids=range(4))
    assert checkpoint.preset("xs2", layers=40) == checkpoint.preset("xs2")


def test_presets_are_copies() -> None:
    checkpoint.preset("xs2")["vocab_size"] = 1
    assert checkpoint.preset("xs2")["vocab_size"] == 100352


def test_impossible_slices_are_refused() -> None:
    with pytest.raises(ConfigError, match="xs2-int4"):
        checkpoint.preset("xs3")
    for options in ({"layers": 41}, {"layers": 0}, {"layer_ids": [40]}, {"layer_ids": [-1]}):
        with pytest.raises(ConfigError, match="no such layers"):
            checkpoint.preset("xs2", **options)
    with pytest.raises(ConfigError, match="not both"):
        checkpoint.preset("xs2", layers=1, layer_ids=[0])


def test_patterns_that_cannot_be_renumbered_are_refused() -> None:
    config = checkpoint.preset("xs2-int4")
    config["quantization_config"]["ignore"].append("re:.*layers[.]3[.]")
    with pytest.raises(ConfigError, match="cannot tell which layers"):
        checkpoint.presets.slice_layers(config, [0, 3])
