"""The published model whole: 90,497 tensors in files of the true size, but with holes for weights.

Headers are real, and so are the few tensors whose values are looked at when a model is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import laguna_ref
from laguna_ref import checkpoint
from laguna_ref.checkpoint.safetensors_writer import aligned, header_bytes
from laguna_ref.checkpoint.storage import plan, shards
from laguna_ref.memory_use import memory_use

TENSORS, NBYTES = 90_497, 23_889_923_232
MAX_SHARD_BYTES = 5_000_000_000
OWN_BYTES = 500_000_000
"""A third of what a running model may hold beside its file; opening it holds entries only."""


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forty")
    raw = checkpoint.preset("xs2-int4")
    config = laguna_ref.LagunaConfig.from_dict(raw)
    planned = plan(config, checkpoint.synth(config), weight_shape=True)
    weight_map: dict[str, str] = {}
    for number, run in enumerate(shards(planned, MAX_SHARD_BYTES)):
        items = {item.spec.name: item for item in run}
        name = f"model-{number}.safetensors"
        weight_map |= dict.fromkeys(items, name)
        specs = aligned([item.spec for item in run])
        header = header_bytes(specs)
        with (folder / name).open("wb") as file:
            file.write(header)
            position = len(header)
            for spec in specs:
                if spec.name.endswith(("k_scale", "v_scale")):
                    file.seek(position)
                    file.write(items[spec.name].make().tobytes())
                position += spec.nbytes
            file.truncate(position)
    (folder / "config.json").write_text(json.dumps(raw))
    index: dict[str, Any] = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_opening_holds_little_and_touches_less(forty: Path) -> None:
    before = memory_use()
    model = laguna_ref.load(forty)
    opened = model.checkpoint
    assert len(opened.tensors) == TENSORS
    assert opened.nbytes == NBYTES
    assert memory_use().since(before).anonymous_bytes - before.anonymous_bytes < OWN_BYTES
    # No view of an expert is made before it is chosen; dense weights are 17 modules a layer.
    assert len(opened._weights) < 20 * model.config.num_hidden_layers
    assert not any(".experts." in name for name in opened._weights)
    share = opened.share_in_memory()
    assert share is None or share < 0.01
