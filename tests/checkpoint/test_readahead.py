"""Advice on mapped files: what is asked for, and that nothing depends on an answer."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref import checkpoint
from laguna_ref.checkpoint import opening, readahead
from tests.checkpoint.small import INT4_EXPERT, write_small

PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


class Mapped:
    """Notes what advice it is given."""

    def __init__(self, refuses: bool = False) -> None:
        self.asked: list[tuple[int, int]] = []
        self.refuses = refuses

    def madvise(self, advice: int, start: int, length: int) -> None:
        assert advice == mmap.MADV_WILLNEED
        self.asked.append((start, start + length))
        if self.refuses:
            raise OSError


@linux
@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (5, 6), (PAGE - 1, PAGE + 1), (3 * PAGE, 3 * PAGE + 2 * readahead.STEP),
     (PAGE + 7, PAGE + 7 + readahead.STEP), (9, 9)],
)  # fmt: skip
def test_every_byte_is_asked_for_in_steps_that_are_read_whole(start: int, stop: int) -> None:
    mapped: Any = Mapped()
    readahead.will_need(mapped, start, stop)
    assert all(begin % PAGE == 0 for begin, _ in mapped.asked)
    assert all(0 < end - begin <= readahead.STEP for begin, end in mapped.asked)
    asked = {byte for begin, end in mapped.asked for byte in range(begin, end)}
    assert asked >= set(range(start, stop))
    assert not asked or (min(asked) > start - PAGE and max(asked) < stop)


@linux
def test_a_file_system_that_takes_no_advice_is_left_alone() -> None:
    mapped: Any = Mapped(refuses=True)
    readahead.will_need(mapped, 0, 8 * readahead.STEP)
    assert len(mapped.asked) == 1


def test_other_systems_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_WILLNEED", raising=False)
    mapped: Any = Mapped()
    readahead.will_need(mapped, 0, 1)
    assert mapped.asked == []

    def no_library(*_: Any, **__: Any) -> Any:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert readahead.in_memory(np.zeros(PAGE, dtype=np.uint8), [0]) == []


@linux
def test_what_was_touched_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    last = len(mapped) - 1
    assert readahead.in_memory(mapped, [0, last]) == [False, False]
    assert mapped[last] == 0
    assert readahead.in_memory(mapped, [0, last]) == [False, True]


@linux
def test_a_checkpoint_says_how_much_of_it_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = checkpoint.open(write_small(tmp_path / "model", max_shard_bytes=30_000))
    assert len({stored.file.path for stored in opened.tensors.values()}) > 1
    for name in opened.tensors:
        opened.tensor(name).tobytes()
    assert opened.share_in_memory() == 1.0
    monkeypatch.setattr(opening, "SAMPLED_EVERY", PAGE)
    answers = {"model-00001": False}
    monkeypatch.setattr(
        checkpoint.safetensors_file.SafetensorsFile, "in_memory",
        lambda self, every: [answers.get(self.path.name[:11], True)],
    )  # fmt: skip
    shards = len({stored.file.path for stored in opened.tensors.values()})
    assert opened.share_in_memory() == (shards - 1) / shards
    monkeypatch.setattr(
        checkpoint.safetensors_file.SafetensorsFile, "in_memory", lambda self, every: []
    )
    assert opened.share_in_memory() is None


def test_a_weight_is_asked_for_with_its_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = checkpoint.open(write_small(tmp_path / "model"))
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(readahead, "will_need", lambda _, *extent: asked.append(extent))
    opened.will_need(INT4_EXPERT)
    opened.will_need("model.layers.0.mlp.gate_proj")
    opened.will_need("no.such.module")
    names = [f"{INT4_EXPERT}.weight_packed", f"{INT4_EXPERT}.weight_scale",
             "model.layers.0.mlp.gate_proj.weight"]  # fmt: skip
    entries = [opened.tensors[name].entry for name in names]
    assert asked == [(entry.start, entry.stop) for entry in entries]
