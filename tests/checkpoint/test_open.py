"""Opening folders: what a config demands of the tensors, and every way to get it wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref import checkpoint
from laguna_ref.checkpoint.formats.packed_int import BFLOAT16, quantise
from laguna_ref.errors import (
    CheckpointError,
    ConfigError,
    LagunaError,
    UnknownConfigKeyError,
    UnsupportedFormatError,
)
from laguna_ref.numerics import FLOAT32
from laguna_ref.ops.fp8 import fp8_decode
from tests.checkpoint.small import (
    INT4_EXPERT,
    INT8_EXPERT,
    dense_config,
    edit_config,
    read_all,
    rewrite,
    small_config,
    write_small,
)

Tensors = dict[str, np.ndarray]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
SHARED = "model.layers.1.mlp.shared_expert"
BIAS = "model.layers.1.mlp.experts.e_score_correction_bias"
K_SCALE, V_SCALE = "model.layers.1.self_attn.k_scale", "model.layers.1.self_attn.v_scale"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small(tmp_path / "small")


def refusal(path: Path, kind: type[LagunaError] = CheckpointError) -> str:
    """The line with which opening ``path`` is refused."""
    with pytest.raises(kind) as caught:
        checkpoint.open(path)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


# What an opened checkpoint offers ---------------------------------------------------------


def test_weights_come_in_their_formats(folder: Path) -> None:
    opened = checkpoint.open(folder)
    dense = opened.weight("model.layers.0.self_attn.q_proj")
    int4, int8 = opened.weight(INT4_EXPERT), opened.weight(INT8_EXPERT)
    assert isinstance(dense, checkpoint.DenseWeight)
    assert isinstance(int4, checkpoint.PackedIntWeight)
    assert isinstance(int8, checkpoint.PackedIntWeight)
    assert (int4.bits, int8.bits, int4.group_size) == (4, 8, 4)
    assert (int4.shape, int8.shape) == ((32, 12), (12, 32))
    assert dense.array.dtype == BFLOAT16
    assert opened.weight(INT4_EXPERT) is int4
    assert int4.rows().shape == int4.shape
    assert opened.notes == []
    assert opened.nbytes == sum(array.nbytes for array in read_all(folder).values())


def test_values_are_those_written(folder: Path) -> None:
    given = checkpoint.synth(small_config())
    opened = checkpoint.open(folder)
    for name, array in given.items():
        assert opened.has(name)
        assert opened.tensor(name).dtype == array.dtype
        assert opened.tensor(name).tobytes() == array.tobytes()


def test_nothing_is_copied(folder: Path) -> None:
    opened = checkpoint.open(folder)
    for name in opened.tensors:
        assert not opened.tensor(name).flags.owndata
        assert not opened.tensor(name).flags.writeable
    weight = opened.weight(INT4_EXPERT)
    assert isinstance(weight, checkpoint.PackedIntWeight)
    assert np.shares_memory(weight.packed, opened.tensor(f"{INT4_EXPERT}.weight_packed"))
    assert weight.checked_scale is weight.scale


def test_absent_names_are_named(folder: Path) -> None:
    opened = checkpoint.open(folder)
    assert not opened.has("model.nothing")
    with pytest.raises(CheckpointError, match=r"model\.nothing"):
        opened.tensor("model.nothing")
    with pytest.raises(CheckpointError, match=r"model\.nothing"):
        opened.weight("model.nothing")
    with pytest.raises(CheckpointError, match="not a matrix"):
        opened.weight("model.norm")


def test_generation_config_is_read(tmp_path: Path) -> None:
    path = write_small(tmp_path / "a", extra_files={"generation_config.json": b'{"top_k": 7}'})
    assert checkpoint.open(path).generation_config == {"top_k": 7}
    (path / "generation_config.json").unlink()
    assert checkpoint.open(path).generation_config is None
    (path / "generation_config.json").write_text("[]")
    assert "generation_config.json" in refusal(path)


# What varies between published checkpoints ------------------------------------------------


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): array for name, array in tensors.items()}


def without(tensors: Tensors, text: str) -> Tensors:
    return {name: array for name, array in tensors.items() if text not in name}


def k_scale_as(array: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, K_SCALE: array}


VARIANTS: dict[str, Callable[[Tensors], Tensors]] = {
    "plural shared experts": lambda t: renamed(t, ".shared_expert.", ".shared_experts."),
    "bias at the gate": lambda t: renamed(t, ".experts.e_score", ".gate.e_score"),
    "no weight_shape": lambda t: without(t, "weight_shape"),
    "weight_shape int32": lambda t: {
        name: array.astype(np.int32) if "weight_shape" in name else array
        for name, array in t.items()
    },
    "k_scale scalar float32": k_scale_as(np.array(0.5, np.float32)),
    "k_scale [1] float32": k_scale_as(np.array([0.5], np.float32)),
    "k_scale [1] float16": k_scale_as(np.array([0.5], np.float16)),
    "k_scale [1] float64": k_scale_as(np.array([0.5], np.float64)),
    "k_scale scalar bfloat16": k_scale_as(np.array(0.5, BFLOAT16)),
    "float32 norm": lambda t: {**t, "model.norm.weight": t["model.norm.weight"].astype("f4")},
    "float16 router": lambda t: {
        **t,
        "model.layers.1.mlp.gate.weight": t["model.layers.1.mlp.gate.weight"].astype("f2"),
    },
    "bfloat16 bias": lambda t: {**t, BIAS: t[BIAS].astype(BFLOAT16)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_variants_are_accepted(folder: Path, variant: str) -> None:
    tensors = read_all(folder)
    rewrite(folder, VARIANTS[variant](tensors))
    opened = checkpoint.open(folder)
    assert opened.notes == []
    assert opened.weight(f"{SHARED}.up_proj").shape == (20, 32)
    assert opened.tensor(BIAS).tolist() == tensors[BIAS].astype(opened.tensor(BIAS).dtype).tolist()
    scales = opened.kv_scales(1)
    assert scales is not None
    expected = 0.5 if "k_scale" in variant else float(tensors[K_SCALE][0])
    assert scales == (expected, float(tensors[V_SCALE][0]))
    assert not checkpoint.verify(folder)


def test_absent_kv_scales_are_noted(folder: Path) -> None:
    tensors = read_all(folder)
    rewrite(folder, without(without(tensors, "k_scale"), "v_scale"))
    opened = checkpoint.open(folder)
    assert opened.kv_scales(1) is None
    assert len(opened.notes) == 1
    assert "layers 0-2" in opened.notes[0]


@pytest.mark.parametrize("present", [K_SCALE, V_SCALE])
def test_one_kv_scale_serves_for_both(folder: Path, present: str) -> None:
    tensors = read_all(folder)
    absent = V_SCALE if present == K_SCALE else K_SCALE
    rewrite(folder, without(tensors, absent))
    opened = checkpoint.open(folder)
    assert opened.kv_scales(1) == (float(tensors[present][0]),) * 2
    assert len(opened.notes) == 1
    assert "layers 1:" in opened.notes[0]


def test_kv_scales_without_a_scheme_are_noted(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["kv_cache_scheme"]
    (folder / "config.json").write_text(json.dumps(config))
    opened = checkpoint.open(folder)
    assert "kv_cache_scheme" in opened.notes[0]
    assert opened.kv_scales(0) is not None


def test_a_scheme_with_no_weight_groups(tmp_path: Path) -> None:
    config = small_config()
    config["quantization_config"].update(config_groups={}, ignore=[])
    opened = checkpoint.open(write_small(tmp_path / "kv", config))
    assert isinstance(opened.weight(INT4_EXPERT), checkpoint.DenseWeight)
    assert opened.kv_scales(2) is not None


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_bad_kv_scales_are_refused_when_read(folder: Path, bad: float) -> None:
    rewrite(folder, {**read_all(folder), V_SCALE: np.array([bad], np.float32)})
    opened = checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.v_scale.*not a scale"):
        opened.kv_scales(1)


LARGEST = np.finfo(np.float32).max
GREATEST_KV_SCALE = np.float32(float(LARGEST) / 448)  # rounded down
TOO_GREAT = np.nextafter(GREATEST_KV_SCALE, LARGEST)


@pytest.mark.parametrize("bad", [TOO_GREAT, LARGEST])
def test_kv_scales_that_could_overflow_are_refused_when_loaded(folder: Path, bad: Any) -> None:
    rewrite(folder, {**read_all(folder), V_SCALE: np.array([bad], np.float32)})
    with pytest.raises(CheckpointError, match="too great a scale") as refused:
        laguna_ref.load(folder, engine="numpy")
    assert (refused.value.tensor, refused.value.found) == (V_SCALE, float(bad))
    assert f"at most {float(LARGEST) / 448:.9g}" in str(refused.value)


def test_the_greatest_kv_scale_reads_every_code_back(folder: Path) -> None:
    rewrite(folder, {**read_all(folder), V_SCALE: np.array([GREATEST_KV_SCALE])})
    scales = checkpoint.open(folder).kv_scales(1)
    assert scales is not None
    assert scales[1] == GREATEST_KV_SCALE
    codes = np.setdiff1d(np.arange(256), [0x7F, 0xFF]).astype(np.uint8)
    assert np.isfinite(fp8_decode(codes, np.float32(scales[1]), FLOAT32)).all()
    with np.errstate(over="ignore"):
        assert np.isinf(fp8_decode(codes, TOO_GREAT, FLOAT32)).any()


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    path = write_small(tmp_path / "tied", small_config(tie_word_embeddings=True))
    assert not checkpoint.open(path).has("lm_head.weight")
    edit_config(path, tie_word_embeddings=False)
    assert "lm_head.weight" in refusal(path)


@pytest.mark.parametrize("gating", [True, "per-element"])
def test_gating_true_is_settled_by_the_tensors(tmp_path: Path, gating: Any) -> None:
    path = write_small(tmp_path / "gate", small_config(gating="per-element"))
    edit_config(path, gating=gating)
    opened = checkpoint.open(path)
    assert [layer.gate for layer in opened.config.layers] == ["per-element"] * 3
    assert opened.weight("model.layers.0.self_attn.g_proj").shape == (32, 32)


@pytest.mark.parametrize(
    ("written", "said"), [("per-head", "per-element"), ("per-element", "per-head")]
)
def test_an_explicit_gate_must_agree(tmp_path: Path, written: str, said: str) -> None:
    path = write_small(tmp_path / "gate", small_config(gating=written))
    edit_config(path, gating=said)
    assert "g_proj.weight: wrong shape" in refusal(path)


# Tensors that contradict the config -------------------------------------------------------


def reshaped(tensors: Tensors, name: str, *shape: int) -> Tensors:
    return {**tensors, name: np.zeros(shape, tensors[name].dtype)}


def retyped(tensors: Tensors, name: str, dtype: Any) -> Tensors:
    return {**tensors, name: tensors[name].astype(dtype)}


PACKED, SCALE = f"{INT4_EXPERT}.weight_packed", f"{INT4_EXPERT}.weight_scale"
CONTRADICTIONS: dict[str, tuple[Callable[[Tensors], Tensors], tuple[str, ...]]] = {
    "missing": (lambda t: without(t, Q_PROJ), ("missing", Q_PROJ, "[32, 32]", "small")),
    "missing layer": (lambda t: without(t, "layers.2."), ("missing", "layers.2", "more)")),
    "missing words": (lambda t: without(t, PACKED), ("missing", PACKED, "[32, 2]", "INT4")),
    "missing scale": (lambda t: without(t, SCALE), ("missing", SCALE)),
    "missing bias": (lambda t: without(t, BIAS), ("missing", BIAS)),
    "extra": (lambda t: {**t, "model.x": t[Q_PROJ]}, ("no place", "model.x", "BF16 [32, 32]")),
    "extra layer": (
        lambda t: {**t, "model.layers.3.input_layernorm.weight": t["model.norm.weight"]},
        ("no place", "model.layers.3.input_layernorm.weight"),
    ),
    "extra expert": (
        lambda t: {**t, PACKED.replace("experts.2", "experts.4"): t[PACKED]},
        ("no place", "experts.4"),
    ),
    "misshaped": (
        lambda t: reshaped(t, Q_PROJ, 32, 31),
        ("wrong shape", Q_PROJ, "[32, 32]", "[32, 31]", "model.safetensors"),
    ),
    "transposed words": (lambda t: reshaped(t, PACKED, 2, 32), ("wrong shape", "[32, 2]")),
    "flat": (lambda t: reshaped(t, Q_PROJ, 1024), ("wrong shape", "[1024]")),
    "wrong groups": (lambda t: reshaped(t, SCALE, 32, 2), ("wrong shape", SCALE, "[32, 3]")),
    "zero-length": (lambda t: reshaped(t, Q_PROJ, 0, 32), ("zero-length", Q_PROJ, "[0, 32]")),
    "zero-length scale": (lambda t: reshaped(t, K_SCALE, 0), ("zero-length", K_SCALE)),
    "integer weight": (lambda t: retyped(t, Q_PROJ, np.int16), ("wrong dtype", Q_PROJ, "I16")),
    "float words": (lambda t: retyped(t, PACKED, np.float32), ("wrong dtype", "I32", "F32")),
    "uint8 words": (
        lambda t: {**t, PACKED: t[PACKED].view(np.uint8)},
        ("wrong shape", PACKED, "U8 [32, 8]"),
    ),
    "integer scale": (lambda t: retyped(t, SCALE, np.int8), ("wrong dtype", SCALE, "I8")),
    "integer bias": (lambda t: retyped(t, BIAS, np.int32), ("wrong dtype", BIAS)),
    "two kv scales": (
        lambda t: {**t, K_SCALE: np.ones(2, np.float32)},
        ("wrong shape", K_SCALE, "[1] or []"),
    ),
    "two shared experts": (
        lambda t: {**t, f"{SHARED}s.up_proj.weight": t[f"{SHARED}.up_proj.weight"]},
        ("two names", f"{SHARED}.up_proj", f"{SHARED}s.up_proj"),
    ),
    "two biases": (
        lambda t: {**t, BIAS.replace("experts", "gate"): t[BIAS]},
        ("two names", BIAS),
    ),
    "dense where packed": (
        lambda t: {
            **without(t, INT4_EXPERT),
            f"{INT4_EXPERT}.weight": np.zeros((32, 12), BFLOAT16),
        },
        ("missing", PACKED, "INT4", "found weight BF16 [32, 12]"),
    ),
    "packed where dense": (
        lambda t: {**without(t, Q_PROJ), f"{Q_PROJ}_packed": t[PACKED]},
        ("missing", Q_PROJ, "found weight_packed I32"),
    ),
    "INT4 words where INT8": (
        lambda t: reshaped(t, f"{INT8_EXPERT}.weight_packed", 12, 4),
        ("wrong shape", INT8_EXPERT, "[12, 8]", "[12, 4]"),
    ),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_contradictions_are_refused(folder: Path, contradiction: str) -> None:
    change, says = CONTRADICTIONS[contradiction]
    rewrite(folder, change(read_all(folder)))
    line = refusal(folder)
    for words in says:
        assert words in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 51),
        ("hidden_size", 64),
        ("num_experts", 5),
        ("num_experts", 3),
        ("intermediate_size", 41),
        ("moe_intermediate_size", 16),
        ("shared_expert_intermediate_size", 12),
        ("head_dim", 16),
        ("num_key_value_heads", 4),
        ("num_attention_heads_per_layer", [8, 8, 8]),
        ("mlp_layer_types", ["sparse"] * 3),
        ("tie_word_embeddings", True),
        ("quantization_config", None),
    ],
)
def test_configs_that_contradict_the_tensors(folder: Path, key: str, value: Any) -> None:
    edit_config(folder, **{key: value})
    refusal(folder, LagunaError)


def test_weight_shape_must_agree_at_first_touch(folder: Path) -> None:
    name = f"{INT4_EXPERT}.weight_shape"
    rewrite(folder, {**read_all(folder), name: np.array([32, 16])})
    weight = checkpoint.open(folder).weight(INT4_EXPERT)
    with pytest.raises(CheckpointError, match=r"weight_shape.*\[32, 12\].*\[32, 16\]"):
        weight.rows(0, 1)


@pytest.mark.parametrize("group", [5, 24, 128])
def test_group_sizes_must_divide(folder: Path, group: int) -> None:
    config = small_config()
    for part in config["quantization_config"]["config_groups"].values():
        part["weights"]["group_size"] = group
    (folder / "config.json").write_text(json.dumps(config))
    line = refusal(folder)
    assert "group size does not divide" in line
    assert str(group) in line


@pytest.mark.parametrize("name", ["xs2-fp8", "xs2-nvfp4"])
def test_other_formats_are_refused_by_name(folder: Path, name: str) -> None:
    config = checkpoint.preset(name, layers=2)
    (folder / "config.json").write_text(json.dumps(config))
    line = refusal(folder, UnsupportedFormatError)
    form = "float-quantized" if name == "xs2-fp8" else "nvfp4-pack-quantized"
    assert form in line
    assert "model.layers.0.mlp.gate_proj" in line
    assert "pack-quantized" in line


# Folders, shards and indices --------------------------------------------------------------


def test_folders_that_are_none(tmp_path: Path, folder: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "absent")
    assert "no such folder" in refusal(folder / "config.json")
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder, ConfigError)


def test_folders_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)


def test_unknown_config_keys_are_the_callers_choice(folder: Path) -> None:
    edit_config(folder, novelty=1)
    assert "novelty" in refusal(folder, UnknownConfigKeyError)
    assert checkpoint.open(folder, ignore_keys=["novelty"]).config.ignored == (("novelty", 1),)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_small(tmp_path / "sharded", max_shard_bytes=20_000)


def edit_index(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def test_shards_open_like_one_file(sharded: Path, folder: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = checkpoint.open(folder), checkpoint.open(sharded)
    assert list(one.tensors) == list(many.tensors)
    assert one.nbytes == many.nbytes
    for name in one.tensors:
        assert np.array_equal(one.tensor(name), many.tensor(name))


def test_both_a_file_and_an_index(sharded: Path, folder: Path) -> None:
    (sharded / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert "both a single file and an index" in refusal(sharded)


def test_index_names_a_tensor_of_no_shard(sharded: Path) -> None:
    edit_index(sharded, lambda m: m.update(ghost=m[Q_PROJ]))
    line = refusal(sharded)
    assert "ghost" in line
    assert "index names" in line


def test_index_lacks_a_tensor(sharded: Path) -> None:
    edit_index(sharded, lambda m: m.pop(Q_PROJ))
    line = refusal(sharded)
    assert Q_PROJ in line
    assert "disagree" in line


def test_index_names_the_wrong_shard(sharded: Path) -> None:
    other = sorted(path.name for path in sharded.glob("*.safetensors"))[-1]
    edit_index(sharded, lambda m: m.update({Q_PROJ: other}))
    line = refusal(sharded)
    assert Q_PROJ in line
    assert other in line


def test_missing_shards_are_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "..", "", 7, None])
def test_the_index_cannot_lead_out_of_the_folder(sharded: Path, name: Any) -> None:
    edit_index(sharded, lambda m: m.update({Q_PROJ: name}))
    assert "bad file name" in refusal(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{"])
def test_indices_that_are_none(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "index.json" in refusal(sharded)


def test_other_safetensors_files_are_noted(sharded: Path) -> None:
    (sharded / "consolidated.safetensors").write_bytes(b"")
    assert "consolidated.safetensors" in checkpoint.open(sharded).notes[0]


def test_dense_checkpoints(tmp_path: Path) -> None:
    opened = checkpoint.open(write_small(tmp_path / "dense", dense_config()))
    assert all(rule.format.kind == "dense" for rule in opened.rules.values())
    assert opened.kv_scales(0) is None
    assert opened.notes == []


# Values: only looked at when asked --------------------------------------------------------


def test_bad_values_do_not_stop_opening_but_are_all_found(folder: Path) -> None:
    tensors = read_all(folder)
    tensors[Q_PROJ][3, 4] = np.nan
    tensors[SCALE][1, 2] = np.inf
    tensors[BIAS][0] = -np.inf
    tensors[V_SCALE][0] = 0
    tensors[PACKED][5, -1] |= np.int32(1 << 16)  # of 12 columns, the last word holds 4
    tensors[f"{INT8_EXPERT}.weight_shape"][0] = 99
    rewrite(folder, tensors)
    checkpoint.open(folder)
    findings = checkpoint.verify(folder)
    assert {finding.tensor for finding in findings} == {
        Q_PROJ,
        SCALE,
        PACKED,
        BIAS,
        V_SCALE,
        f"{INT8_EXPERT}.weight_shape",
    }
    for finding in findings:
        assert "model.safetensors" in str(finding)
        assert len(str(finding).splitlines()) == 1


def test_verify_reports_progress_and_raises_for_structure(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert checkpoint.verify(folder, progress=lambda done, total: seen.append((done, total))) == []
    assert seen[-1][0] == seen[-1][1] == checkpoint.open(folder).nbytes
    rewrite(folder, without(read_all(folder), Q_PROJ))
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.verify(folder)


def test_quantised_by_hand_equals_written(tmp_path: Path) -> None:
    """A weight given in floating point is stored as the codes and scales of ``quantise``."""
    config = small_config()
    tensors: dict[str, Any] = dict(checkpoint.synth(config))
    weight = np.random.default_rng(0).standard_normal((32, 12)).astype(np.float32)
    del tensors[PACKED], tensors[SCALE]
    tensors[f"{INT4_EXPERT}.weight"] = weight
    checkpoint.write(tmp_path / "q", config, tensors)
    codes, scale = quantise(weight, 4, 4)
    rows = checkpoint.open(tmp_path / "q").weight(INT4_EXPERT).rows(dtype=np.float64)
    assert np.array_equal(rows, codes * np.repeat(scale.astype(np.float64), 4, axis=1))
