"""Opening a checkpoint folder: headers and shapes are read and checked, weights stay on disk."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from laguna_ref.checkpoint.formats import DenseWeight, PackedIntWeight, Weight
from laguna_ref.checkpoint.matching import Match, StoredTensor, match
from laguna_ref.checkpoint.safetensors_file import SafetensorsFile
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import CheckpointError
from laguna_ref.json_file import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SAMPLED_EVERY = 4 * 1024 * 1024
"""Bytes from one sample to the next of what is in memory: 6,000 samples of the largest model."""
TINIEST_FLOAT32, LARGEST_FLOAT32 = 2.0**-149, 2.0**128 * (1 - 2.0**-24)
GREATEST_KV_SCALE = LARGEST_FLOAT32 / 448
"""448, the greatest e4m3fn number, times this is still a float32 when it is read back."""


class Checkpoint:
    """An opened checkpoint; tensors are views of memory-mapped files, made when asked for."""

    def __init__(
        self,
        path: Path,
        matched: Match,
        generation_config: dict[str, Any] | None,
        notes: list[str],
    ) -> None:
        self.path = path
        self.config: LagunaConfig = matched.config
        """Its config, every layer's gate kind settled by its tensors."""
        self.generation_config = generation_config
        """The content of generation_config.json, or None without one."""
        self.notes = notes
        """What was accepted but is worth knowing, one line each."""
        self.tensors: Mapping[str, StoredTensor] = matched.tensors
        """File, dtype and shape of each tensor by its canonical (published) name."""
        self.rules = matched.rules
        """What each of them is: see ``names.TensorRule``."""
        self._weights: dict[str, Weight] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this canonical name."""
        return name in self.tensors

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of a tensor, shape and type as stored, by canonical name; no copy.

        Raises CheckpointError when there is none.
        """
        stored = self.tensors.get(name)
        if stored is None:
            raise CheckpointError("no such tensor", file=self.path, tensor=name)
        return stored.file.tensor(stored.stored_name)

    def weight(self, module: str) -> Weight:
        """The weight matrix of a module, for instance ``model.layers.0.self_attn.q_proj``.

        Raises CheckpointError when the module has none.
        """
        if module not in self._weights:
            self._weights[module] = self._make_weight(module)
        return self._weights[module]

    def will_need(self, module: str) -> None:
        """Starts reading a module's weight from disk, unless it is in memory; does not wait."""
        for part in ("weight", "weight_packed", "weight_scale"):
            stored = self.tensors.get(f"{module}.{part}")
            if stored is not None:
                stored.file.will_need(stored.stored_name)

    def share_in_memory(self) -> float | None:
        """How much of the files is in memory, judged by samples; None where nobody can say."""
        found: list[bool] = []
        for file in {stored.file.path: stored.file for stored in self.tensors.values()}.values():
            found += file.in_memory(SAMPLED_EVERY)
        return sum(found) / len(found) if found else None

    def kv_scales(self, layer: int) -> tuple[float, float] | None:
        """``k_scale`` and ``v_scale`` of a layer; one alone serves for both; None without any.

        Raises CheckpointError unless a scale is positive, and finite times the greatest code.
        """
        prefix = f"model.layers.{layer}.self_attn"
        names = [f"{prefix}.{name}" for name in ("k_scale", "v_scale")]
        values = [self._positive(name) for name in names if self.has(name)]
        return (values[0], values[-1]) if values else None

    def _positive(self, name: str) -> float:
        value = float(self.tensor(name).reshape(-1)[0])
        # Computed with in float32, whatever it is stored in.
        if not TINIEST_FLOAT32 <= value <= LARGEST_FLOAT32:
            problem, expected = "not a scale", "a positive finite float32"
        elif value > GREATEST_KV_SCALE:
            problem = "too great a scale: what is cached in units of it may read back as infinity"
            expected = f"at most {GREATEST_KV_SCALE:.9g}, the greatest float32 over 448"
        else:
            return value
        raise CheckpointError(
            problem, file=self.tensors[name].file.path, tensor=name, expected=expected, found=value
        )

    def _make_weight(self, module: str) -> Weight:
        rule = self.rules.get(f"{module}.weight_packed")
        if rule is None:
            array = self.tensor(f"{module}.weight")
            if array.ndim != 2:
                raise CheckpointError("not a matrix", file=self.path, tensor=f"{module}.weight")
            return DenseWeight(module, array)
        shape_name = f"{module}.weight_shape"
        return PackedIntWeight(
            name=module,
            packed=self.tensor(f"{module}.weight_packed"),
            scale=self.tensor(f"{module}.weight_scale"),
            bits=rule.format.bits or 0,
            group_size=rule.format.group_size or rule.matrix[1],
            shape=rule.matrix,
            file=self.tensors[f"{module}.weight_scale"].file.path,
            stored_shape=self.tensor(shape_name) if self.has(shape_name) else None,
        )


def open_checkpoint(path: str | Path, *, ignore_keys: Iterable[str] = ()) -> Checkpoint:
    """Open the checkpoint in folder ``path``: config.json and one or more safetensors files.

    Reads headers only; a checkpoint of 90,000 tensors takes seconds. ``ignore_keys`` are
    unknown keys of config.json to pass over.

    Raises ConfigError for config.json, CheckpointError for the rest, naming the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError("no such folder", file=folder)
    config = LagunaConfig.from_file(folder / "config.json", ignore_keys=ignore_keys)
    with _collector_paused():
        found, notes = _find_tensors(folder)
        matched = match(config, found, folder)
    generation = folder / "generation_config.json"
    return Checkpoint(
        folder,
        matched,
        read_json(generation, CheckpointError) if generation.exists() else None,
        notes + matched.notes,
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """All that is made for 90,000 tensors stays: to search it for garbage takes a third longer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _find_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Every tensor by the name it is stored under, from the one file or from all shards."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise CheckpointError(
            "both a single file and an index of shards",
            file=folder,
            expected="one of them",
            found=f"{SINGLE_FILE} and {INDEX_FILE}",
        )
    if index.exists():
        return _read_shards(folder, index)
    if not single.exists():
        raise CheckpointError(
            "no weights", file=folder, expected=f"{SINGLE_FILE} or {INDEX_FILE}", found="neither"
        )
    file = SafetensorsFile(single)
    found = {name: StoredTensor(file, name, entry) for name, entry in file.entries.items()}
    return found, _unread(folder, {SINGLE_FILE})


def _read_shards(folder: Path, index: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of all shards, once index and shards agree on which holds which."""
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("no weight_map", file=index, expected="tensor name -> file name")
    for name, shard in weight_map.items():
        if not name.isprintable():
            raise CheckpointError("bad tensor name", file=index, found=ascii(name))
        # A bare file name: the index must not lead out of the folder.
        if type(shard) is not str or shard in ("", ".", "..") or set(shard) & {"/", "\\", "\0"}:
            raise CheckpointError(
                "bad file name",
                file=index,
                tensor=name,
                expected="a plain name",
                found=ascii(shard),
            )
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        file = SafetensorsFile(folder / shard)
        for name, entry in file.entries.items():
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    "shard and index disagree",
                    file=file.path,
                    tensor=name,
                    expected=f"{weight_map.get(name, 'in no file')} (index)",
                    found=shard,
                )
            found[name] = StoredTensor(file, name, entry)
    for name, shard in weight_map.items():
        if name not in found:
            raise CheckpointError(
                "the index names a tensor that its shard does not hold",
                file=folder / shard,
                tensor=name,
            )
    return found, _unread(folder, set(weight_map.values()))


def _unread(folder: Path, read: set[str]) -> list[str]:
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in read)
    return [f"not read, because no index names it: {name}" for name in others]
