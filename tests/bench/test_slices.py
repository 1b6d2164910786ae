"""The checkpoint that is measured: written once, then found again."""

from __future__ import annotations

from pathlib import Path

import pytest

import laguna_ref
from laguna_ref.bench.slices import make, slice_config, words_of
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import CheckpointError, ConfigError
from tests.small import small_config


def config_of(**changes: object) -> LagunaConfig:
    return LagunaConfig.from_dict(small_config(**changes))


def test_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "slice"
    calls: list[tuple[int, int]] = []
    assert make(config_of(), folder, lambda *done: calls.append(done))
    assert calls
    assert not make(config_of(), folder, lambda *_: pytest.fail("written again"))
    with pytest.raises(CheckpointError, match="another model"):
        make(config_of(vocab_size=48), folder, lambda *_: None)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        make(config_of(), tmp_path, lambda *_: None)


def test_slices_of_published_configs() -> None:
    assert slice_config("xs2-int4", 4, None).num_hidden_layers == 4
    last = slice_config("xs2-int4", None, [0, 1, 2, 31]).layers[3]
    assert last.weight_format.bits == 8
    with pytest.raises(ConfigError, match="no such preset"):
        slice_config("xs9", 4, None)


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 4000])
def test_words_are_the_files(tmp_path: Path, max_shard_bytes: int) -> None:
    folder = tmp_path / "model"
    config = config_of()
    laguna_ref.checkpoint.write(
        folder, config, laguna_ref.checkpoint.synth(config), max_shard_bytes=max_shard_bytes
    )
    words = words_of(laguna_ref.load(folder, engine="numpy"))
    files = sorted(folder.glob("*.safetensors"))
    expected = [file.read_bytes() for file in files]
    assert sorted(part.tobytes() for part in words) == sorted(
        content[: len(content) // 8 * 8] for content in expected
    )
