"""What must be refused by name, because accepting it would compute something else in silence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import laguna_ref
from laguna_ref import LagunaConfig, Recorder, checkpoint
from laguna_ref.checkpoint import preset
from laguna_ref.cli import main
from laguna_ref.errors import CacheError, CheckpointError, ConfigError, InputError, NonFiniteError

PUBLISHED = preset("xs2-int4")


def changed(path: str, value: Any) -> dict[str, Any]:
    """The published INT4 config with one entry replaced or added."""
    raw = copy.deepcopy(PUBLISHED)
    *parents, last = path.split("/")
    place = raw
    for name in parents:
        place = place[name]
    place[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (
            "quantization_config/transform_config",
            {"config_groups": {"R2": {"apply": [{"location": "input", "targets": ["Linear"]}]}}},
        ),
        ("quantization_config/config_groups/group_0/weights/rounding", "up"),
        ("quantization_config/config_groups/group_0/extra", 1),
        ("quantization_config/kv_cache_scheme/extra", 1),
        ("quantization_config/config_groups/group_0/targets", ["re:(.|.)*!"]),
        ("quantization_config/config_groups/group_0/targets", ["re:.*a.*b.*c.*d"]),
        ("rope_parameters/full_attention/type", "default"),
        ("rope_parameters/full_attention/original_max_position_embeddings", 4096.5),
        ("dtype", "float32"),
    ],
)
def test_a_config_that_asks_for_something_else(path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        LagunaConfig.from_dict(changed(path, value))
    assert path.split("/")[-2 if "transform" in path else -1] in str(refused.value) or (
        "transform_config" in str(refused.value) or "torch_dtype" in str(refused.value)
    )


@pytest.mark.parametrize("name", ["xs2-fp8", "xs2-nvfp4"])
def test_sizes_of_formats_known_by_name_only(name: str) -> None:
    raw = preset(name)
    raw["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = "x"
    with pytest.raises(ConfigError, match="group_size"):
        LagunaConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("path", "value", "listed"),
    [
        (
            "rope_parameters/sliding_attention/attention_factor",
            1.5,
            "rope_parameters.sliding_attention.attention_factor",
        ),
        ("rope_parameters/full_attention/mscale", 2.0, "rope_parameters.full_attention.mscale"),
    ],
)
def test_a_rope_key_without_effect_is_listed(path: str, value: float, listed: str) -> None:
    config = LagunaConfig.from_dict(changed(path, value))
    assert listed in dict(config.unused)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    tiny = checkpoint.open(laguna_ref.load().checkpoint.path)
    return {name: np.array(tiny.tensor(name)) for name in tiny.tensors}


def written(tmp_path: Path, tensors: dict[str, Any], name: str, value: float) -> Path:
    """laguna-tiny with the first value of one tensor replaced."""
    array = tensors[name].copy()
    array.reshape(-1)[0] = value
    config = laguna_ref.load().config
    words = {key: kept for key, kept in tensors.items() if not key.endswith("weight_shape")}
    checkpoint.write(tmp_path / "model", config, words | {name: array})
    return tmp_path / "model"


@pytest.mark.parametrize("engine", ["numpy", "numba"])
@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_nothing_infinite_leaves_the_head(
    engine: str, name: str, tensors: dict[str, Any], tmp_path: Path
) -> None:
    folder = written(tmp_path, tensors, name, np.inf)
    with pytest.raises(NonFiniteError), np.errstate(all="ignore"):
        laguna_ref.load(folder, engine=engine)([2, 100, 101])


def test_an_expert_is_not_switched_off_by_a_nan(tensors: dict[str, Any], tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.e_score_correction_bias"
    with pytest.raises(CheckpointError, match="e_score_correction_bias"):
        laguna_ref.load(written(tmp_path, tensors, name, np.nan))


@pytest.mark.parametrize("length", [1.5, "1", None, True, -1, 9])
def test_a_cache_is_cut_at_whole_tokens(length: Any) -> None:
    model = laguna_ref.load()
    cache = model.new_cache()
    model([2, 100], cache=cache)
    with pytest.raises(CacheError):
        cache.truncate(length)
    assert cache.length == 2


def test_a_batch_has_one_of_each() -> None:
    model = laguna_ref.load()
    with pytest.raises(InputError, match="caches"):
        model.batch([[2], [3]], caches=[model.new_cache()])
    with pytest.raises(InputError, match="traces"):
        model.batch([[2]], traces=[Recorder(), Recorder()])
    shared = model.new_cache()
    with pytest.raises(CacheError, match="share"):
        model.batch([[2], [3]], caches=[shared, shared])


def test_wrong_types_are_named() -> None:
    model = laguna_ref.load()
    with pytest.raises(InputError, match="Recorder"):
        model([2], trace="lm_head")  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="not a cache"):
        model([2], cache=[])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="stop_ids"):
        laguna_ref.generate(model, [2], stop_ids=["a"])  # type: ignore[list-item]


def test_one_ignored_key_may_be_given_as_a_word(tensors: dict[str, Any], tmp_path: Path) -> None:
    folder = written(tmp_path, tensors, "model.norm.weight", 1.0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"frobnicate": 1}))
    assert dict(laguna_ref.load(folder, ignore_config_keys="frobnicate").config.ignored)


def test_errors_are_json_proper() -> None:
    result = CliRunner().invoke(main, ["generate", "x", "--top-p", "nan", "--json"])
    assert result.exit_code == 2

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(result.stdout, parse_constant=refuse)
