"""Writing folders: the published layout, streaming, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from laguna_ref import LagunaConfig, checkpoint
from laguna_ref.checkpoint.formats.packed_int import BFLOAT16, pack, quantise
from laguna_ref.errors import CheckpointError, ConfigError
from tests.checkpoint.small import (
    INT4_EXPERT,
    INT8_EXPERT,
    dense_config,
    small_config,
    write_small,
)

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
K_SCALE = "model.layers.0.self_attn.k_scale"


def small_tensors(**changes: Any) -> dict[str, Any]:
    return dict(checkpoint.synth(small_config())) | changes


def test_the_published_layout(tmp_path: Path) -> None:
    path = write_small(tmp_path / "a")
    assert {file.name for file in path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((path / "config.json").read_text()) == small_config()
    with safe_open(path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        layout = {
            name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118 - not a dictionary
        }
    assert layout[f"{INT4_EXPERT}.weight_packed"] == ("I32", [32, 2])
    assert layout[f"{INT4_EXPERT}.weight_scale"] == ("BF16", [32, 3])
    assert layout[f"{INT4_EXPERT}.weight_shape"] == ("I64", [2])
    assert layout[f"{INT8_EXPERT}.weight_packed"] == ("I32", [12, 8])
    assert layout["model.layers.1.mlp.experts.e_score_correction_bias"] == ("F32", [4])
    assert layout["model.layers.1.mlp.shared_expert.up_proj.weight"] == ("BF16", [20, 32])
    assert layout[K_SCALE] == ("BF16", [1])
    assert layout["lm_head.weight"] == ("BF16", [50, 32])


def test_weight_shape_can_be_left_out(tmp_path: Path) -> None:
    opened = checkpoint.open(write_small(tmp_path / "a", weight_shape=False))
    assert not any(name.endswith("weight_shape") for name in opened.tensors)


def test_shards_and_their_index(tmp_path: Path) -> None:
    path = write_small(tmp_path / "a", max_shard_bytes=10_000)
    shards = sorted(path.glob("*.safetensors"))
    count = len(shards)
    expected = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert [shard.name for shard in shards] == expected
    index = json.loads((path / "model.safetensors.index.json").read_text())
    total = 0
    for shard in shards:
        tensors = dict(safetensors.deserialize(shard.read_bytes()))
        assert all(index["weight_map"].pop(name) == shard.name for name in tensors)
        size = sum(len(tensor["data"]) for tensor in tensors.values())
        assert size <= 10_000
        total += size
    assert index == {"metadata": {"total_size": total}, "weight_map": {}}


@pytest.mark.parametrize(
    ("torch_dtype", "stored"),
    [("bfloat16", BFLOAT16), ("float16", np.float16), ("float32", np.float32)],
)
def test_floats_are_stored_in_the_configs_dtype(
    tmp_path: Path, torch_dtype: str, stored: Any
) -> None:
    config = dense_config(torch_dtype=torch_dtype)
    values = np.linspace(-1, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    tensors = dict(checkpoint.synth(config)) | {Q_PROJ: values}
    checkpoint.write(tmp_path / "a", config, tensors)
    array = checkpoint.open(tmp_path / "a").tensor(Q_PROJ)
    assert array.dtype == stored
    assert np.array_equal(array, values.astype(stored))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.array([0.3], np.float32), "F32"),
        (np.array(0.3, np.float64), "F32"),
        (np.array([0.3], BFLOAT16), "BF16"),
    ],
)
def test_kv_scales_are_stored_as_given(tmp_path: Path, given: Any, dtype: str) -> None:
    checkpoint.write(tmp_path / "a", small_config(), small_tensors(**{K_SCALE: given}))
    opened = checkpoint.open(tmp_path / "a")
    assert opened.tensors[K_SCALE].dtype == dtype
    assert opened.tensors[K_SCALE].shape == (1,)


def test_kv_scales_may_be_absent(tmp_path: Path) -> None:
    tensors = {name: a for name, a in small_tensors().items() if "k_scale" not in name}
    checkpoint.write(tmp_path / "a", small_config(), tensors)
    assert not checkpoint.open(tmp_path / "a").has(K_SCALE)


@pytest.mark.parametrize(("module", "bits"), [(INT4_EXPERT, 4), (INT8_EXPERT, 8)])
def test_float_weights_are_quantised(tmp_path: Path, module: str, bits: int) -> None:
    tensors = small_tensors()
    shape = (32, 12) if module == INT4_EXPERT else (12, 32)
    weight = np.random.default_rng(1).standard_normal(shape)
    del tensors[f"{module}.weight_packed"], tensors[f"{module}.weight_scale"]
    tensors[f"{module}.weight"] = weight
    checkpoint.write(tmp_path / "a", small_config(), tensors)
    opened = checkpoint.open(tmp_path / "a")
    codes, scale = quantise(weight, bits, 4)
    assert np.array_equal(opened.tensor(f"{module}.weight_packed"), pack(codes, bits))
    assert np.array_equal(opened.tensor(f"{module}.weight_scale"), scale)
    assert not checkpoint.verify(tmp_path / "a")


def test_a_written_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    first = checkpoint.open(write_small(tmp_path / "a"))
    tensors = {name: first.tensor(name) for name in first.tensors}
    checkpoint.write(tmp_path / "b", first.config, tensors)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_transformers_names_are_taken_too(tmp_path: Path) -> None:
    tensors = {
        name.replace(".shared_expert.", ".shared_experts.").replace(
            "experts.e_score", "gate.e_score"
        ): array
        for name, array in small_tensors().items()
    }
    checkpoint.write(tmp_path / "a", small_config(), tensors)
    assert list(checkpoint.open(tmp_path / "a").tensors) == list(
        checkpoint.open(write_small(tmp_path / "b")).tensors
    )


def test_extra_files(tmp_path: Path) -> None:
    (tmp_path / "vocab").write_bytes(b"words")
    path = write_small(
        tmp_path / "a",
        extra_files={"generation_config.json": b"{}", "tokenizer.json": tmp_path / "vocab"},
    )
    assert (path / "generation_config.json").read_bytes() == b"{}"
    assert (path / "tokenizer.json").read_bytes() == b"words"


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "config.json", "x.safetensors"])
def test_extra_files_have_plain_free_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="bad name"):
        write_small(tmp_path / "a", extra_files={name: b""})
    assert not list(tmp_path.iterdir())


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = write_small(tmp_path / "a", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (checkpoint.open(path).nbytes,) * 2


# Refusals ---------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "extra": ({"model.x": np.zeros(2)}, "leaves no place"),
    "misshaped": ({Q_PROJ: np.zeros((32, 31))}, "wrong shape"),
    "twice": ({f"{INT4_EXPERT}.weight": np.zeros((32, 12))}, "given twice"),
    "words of another type": (
        {f"{INT4_EXPERT}.weight_packed": np.full((32, 2), 0.5)},
        "does not survive",
    ),
    "scales that do not fit": (
        {f"{INT4_EXPERT}.weight_scale": np.full((32, 3), 1.001, np.float32)},
        "does not survive",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_bad_tensors_are_refused_and_leave_nothing(tmp_path: Path, refusal: str) -> None:
    changes, says = REFUSALS[refusal]
    with pytest.raises(CheckpointError, match=says):
        checkpoint.write(tmp_path / "a", small_config(), small_tensors(**changes))
    assert not list(tmp_path.iterdir())


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    tensors = small_tensors()
    del tensors[Q_PROJ]
    with pytest.raises(CheckpointError, match=rf"{Q_PROJ}.*no array"):
        checkpoint.write(tmp_path / "a", small_config(), tensors)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_to_quantise_must_be_finite(tmp_path: Path, bad: float) -> None:
    tensors = small_tensors()
    for part in ("weight_packed", "weight_scale"):
        del tensors[f"{INT4_EXPERT}.{part}"]
    tensors[f"{INT4_EXPERT}.weight"] = np.full((32, 12), bad)
    with pytest.raises(CheckpointError, match="not finite"):
        checkpoint.write(tmp_path / "a", small_config(), tensors)
    assert not list(tmp_path.iterdir())


def test_bad_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        checkpoint.write(tmp_path / "a", small_config(novelty=1), small_tensors())


# Atomicity --------------------------------------------------------------------------------


class Interrupted(Mapping[str, Any]):
    """Synthetic tensors, until after a number of them somebody presses Ctrl-C."""

    def __init__(self, after: int) -> None:
        self.tensors = checkpoint.synth(small_config())
        self.left = after

    def __getitem__(self, name: str) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize("after", [0, 20, 60])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "a", small_config(), Interrupted(after), max_shard_bytes=9000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 20, 60])
def test_an_interrupted_overwrite_keeps_the_old(tmp_path: Path, after: int) -> None:
    path = write_small(tmp_path / "a")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(path, small_config(), Interrupted(after), overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_existing_folders_are_replaced_only_when_asked(tmp_path: Path) -> None:
    path = write_small(tmp_path / "a")
    (path / "stale").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        write_small(path)
    write_small(path, overwrite=True)
    assert not (path / "stale").exists()
    assert list(tmp_path.iterdir()) == [path]


def test_empty_folders_are_filled_and_parents_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_small(tmp_path / "empty")
    checkpoint.open(tmp_path / "empty")
    checkpoint.open(write_small(tmp_path / "not" / "there" / "yet"))


def test_files_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="not a folder"):
        write_small(tmp_path / "file", overwrite=True)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_small(tmp_path / "file" / "below")


def test_a_full_disk_is_noticed_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(CheckpointError, match="not enough room"):
        write_small(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# Streaming --------------------------------------------------------------------------------


class Counting(Mapping[str, Any]):
    """Counts how often each tensor is asked for."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.tensors = tensors
        self.asked: dict[str, int] = {}

    def __getitem__(self, name: str) -> Any:
        self.asked[name] = self.asked.get(name, 0) + 1
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_tensors_are_asked_for_when_written(tmp_path: Path) -> None:
    """Once each; the tiny key/value scales and gates are looked at beforehand too."""
    counting = Counting(checkpoint.synth(LagunaConfig.from_dict(small_config())))
    checkpoint.write(tmp_path / "a", small_config(), counting)
    often = {name for name, count in counting.asked.items() if count > 1}
    assert all(name.endswith(("k_scale", "v_scale", "g_proj.weight")) for name in often)
    assert set(counting.asked) == set(counting.tensors)
