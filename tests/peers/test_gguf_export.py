"""GGUF files: what is in them, read back by the gguf package's own reader."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from laguna_ref import checkpoint
from laguna_ref.conformance.adapters import gguf_export
from laguna_ref.conformance.adapters.gguf_export import ExportError, export
from tests.strategies import random_tensors, small_xs2

pytestmark = pytest.mark.peer

PACKED_PARTS = ("scale", "shape", "kv_scale")
"""Parts of a checkpoint that have no tensor of their own in a GGUF file."""


def opened(folder: Path, **changes: Any) -> checkpoint.Checkpoint:
    config = small_xs2() | changes
    checkpoint.write(folder / "model", config, random_tensors(config, seed=3))
    return checkpoint.open(folder / "model")


def exported(
    model: checkpoint.Checkpoint, folder: Path, dtype: gguf_export.FloatName = "F32"
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Metadata and tensors of the file."""
    export(model, folder / "model.gguf", dtype)
    reader = gguf.GGUFReader(folder / "model.gguf")
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return metadata, {tensor.name: tensor.data for tensor in reader.tensors}


def test_metadata_says_what_the_config_says(tmp_path: Path) -> None:
    metadata, _ = exported(opened(tmp_path), tmp_path)
    expected = {
        "general.architecture": "laguna",
        "tokenizer.ggml.model": "none",
        "laguna.vocab_size": 96,
        "laguna.context_length": 256,
        "laguna.embedding_length": 128,
        "laguna.block_count": 4,
        "laguna.attention.head_count": [6, 8, 6, 8],
        "laguna.attention.head_count_kv": 2,
        "laguna.attention.key_length": 16,
        "laguna.attention.value_length": 16,
        "laguna.attention.sliding_window": 8,
        "laguna.attention.sliding_window_pattern": [False, True, False, True],
        "laguna.feed_forward_length": 160,
        "laguna.leading_dense_block_count": 1,
        "laguna.expert_count": 8,
        "laguna.expert_used_count": 2,
        "laguna.expert_feed_forward_length": 128,
        "laguna.expert_shared_feed_forward_length": 48,
        "laguna.expert_weights_norm": True,
        "laguna.expert_weights_scale": 2.5,
        "laguna.expert_gating_func": 2,
        "laguna.rope.dimension_count": 8,
        "laguna.rope.dimension_count_swa": 16,
        "laguna.rope.freq_base": 500000.0,
        "laguna.rope.freq_base_swa": 10000.0,
        "laguna.rope.scaling.type": "yarn",
        "laguna.rope.scaling.factor": 32.0,
        "laguna.rope.scaling.original_context_length": 4096,
        "laguna.rope.scaling.yarn_beta_fast": 64.0,
        "laguna.rope.scaling.yarn_beta_slow": 1.0,
    }
    assert {name: metadata[name] for name in expected} == expected
    assert metadata["laguna.attention.layer_norm_rms_epsilon"] == np.float32(1e-6)


@pytest.mark.parametrize("stated", [1.0, 1.3465735902799727, None])
def test_the_attention_factor_is_what_llamacpp_multiplies_by_its_own(
    tmp_path: Path, stated: float | None
) -> None:
    rope = small_xs2()["rope_parameters"]
    full = rope["full_attention"] | {"attention_factor": stated}
    model = opened(tmp_path, rope_parameters=rope | {"full_attention": full})
    found = exported(model, tmp_path)[0]["laguna.rope.scaling.attn_factor"]
    default = 0.1 * math.log(32) + 1
    assert found == np.float32((stated or default) / default)


def test_plain_rope_on_full_layers_is_no_yarn(tmp_path: Path) -> None:
    plain = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    rope = small_xs2()["rope_parameters"] | {"full_attention": plain}
    metadata, _ = exported(opened(tmp_path, rope_parameters=rope), tmp_path)
    assert metadata["laguna.rope.scaling.type"] == "none"
    assert "laguna.rope.scaling.factor" not in metadata


def test_every_tensor_of_the_checkpoint_is_used_exactly_once(tmp_path: Path) -> None:
    model = opened(tmp_path)
    used = [
        source.removesuffix(".weight")
        for tensor in gguf_export.tensors(model, "BF16")
        for source in tensor.sources
    ]
    rules = model.rules.values()
    norms = {"norm", "embedding", "linear", "packed"}
    expected = [
        rule.module if rule.part in norms else rule.name
        for rule in rules
        if rule.part not in PACKED_PARTS
    ]
    assert sorted(used) == sorted(expected)


def test_float32_files_hold_the_exact_weights(tmp_path: Path) -> None:
    model = opened(tmp_path)
    _, found = exported(model, tmp_path)
    stacks = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
    for part, name in stacks.items():
        stack = found[f"blk.3.{name}.weight"]
        for expert in range(8):
            weight = model.weight(f"model.layers.3.mlp.experts.{expert}.{part}")
            np.testing.assert_array_equal(stack[expert], weight.rows(dtype=np.float32))
    gate = model.weight("model.layers.1.self_attn.g_proj").rows(dtype=np.float32)
    np.testing.assert_array_equal(found["blk.1.attn_gate.weight"], gate)
    bias = model.tensor("model.layers.1.mlp.experts.e_score_correction_bias")
    np.testing.assert_array_equal(found["blk.1.exp_probs_b.bias"], bias)


def test_bfloat16_files_round_what_is_not_kept_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(tmp_path)
    monkeypatch.setattr(gguf_export, "BLOCK_BYTES", 3 * 4 * 128)  # blocks of three rows
    _, found = exported(model, tmp_path, "BF16")
    weight = model.weight("model.layers.3.mlp.experts.5.up_proj")
    expected = weight.rows(dtype=np.float32, dequant="bf16")
    bits = found["blk.3.ffn_up_exps.weight"][5].view(np.uint16).astype(np.uint32) << 16
    np.testing.assert_array_equal(bits.view(np.float32), expected)
    for name in ("blk.1.ffn_gate_inp.weight", "blk.0.attn_norm.weight", "blk.1.exp_probs_b.bias"):
        assert found[name].dtype == np.float32


def test_a_tied_head_is_left_to_llamacpp(tmp_path: Path) -> None:
    _, found = exported(opened(tmp_path, tie_word_embeddings=True), tmp_path)
    assert "output.weight" not in found
    assert "token_embd.weight" in found


ROPE = small_xs2()["rope_parameters"]
YARN_ON_SLIDING_LAYERS = ROPE | {"sliding_attention": ROPE["full_attention"]}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("moe_router_logit_softcapping", {"moe_router_logit_softcapping": 30.0}),
        ("gating_activation", {"gating_activation": "sigmoid"}),
        ("mlp_layer_types", {"mlp_layer_types": ["sparse", "dense", "sparse", "sparse"]}),
        ("rope_parameters", {"rope_parameters": YARN_ON_SLIDING_LAYERS}),
        ("rope_parameters", {"rope_parameters": ROPE | {"truncate": False}}),
    ],
)
def test_what_llamacpp_would_compute_differently_is_refused(
    tmp_path: Path, key: str, changes: dict[str, Any]
) -> None:
    changes.setdefault("quantization_config", None)
    with pytest.raises(ExportError, match=f"{key}: llama.cpp has no such Laguna"):
        export(opened(tmp_path, **changes), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(tmp_path)
    monkeypatch.setattr(gguf_export.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ExportError, match=r"not enough room .* bytes free; found 1,000"):
        export(model, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
