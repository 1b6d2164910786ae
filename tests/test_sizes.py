"""Sizes against the published figures, against the layout's own table, and by hand."""

from __future__ import annotations

import math

import pytest

from laguna_ref.checkpoint import preset
from laguna_ref.checkpoint.names import tensor_rules
from laguna_ref.checkpoint.safetensors_file import DTYPES
from laguna_ref.config import LagunaConfig
from laguna_ref.kv_cache import cache_bytes
from laguna_ref.load import fp8_cache_layers
from laguna_ref.sizes import Sizes, attention_flops, linears, sizes, weight_bytes
from tests.small import quantised, small_config


def published(name: str, layers: int | None = None) -> LagunaConfig:
    return LagunaConfig.from_dict(preset(name, layers))


def giga(number: float, digits: int) -> float:
    return round(number / 1e9, digits)


def test_the_whole_model() -> None:
    total = sizes(published("xs2-int4"))
    assert giga(total.disk_bytes, 1) == 23.9
    assert giga(total.touched_bytes, 2) == 4.28
    assert giga(total.parameters, 1) == 33.4
    assert giga(total.active_parameters, 1) == 2.8


def test_the_first_four_layers() -> None:
    total = sizes(published("xs2-int4", 4))
    assert giga(total.touched_bytes, 2) == 0.86
    assert giga(total.flops - total.head_flops, 2) == 0.56
    assert giga(total.flops, 2) == 0.97


def test_the_cache_at_full_context() -> None:
    config = published("xs2-int4")
    fp8 = cache_bytes(config, 131072, fp8_cache_layers(config, "checkpoint"))
    assert fp8 == {
        "full_attention": 10 * 131072 * 2 * 8 * 128,
        "sliding_attention": 30 * 512 * 2 * 8 * 128,
    }
    assert giga(fp8["full_attention"], 1) == 2.7
    assert giga(fp8["sliding_attention"], 3) == 0.031
    floats = cache_bytes(config, 131072, fp8_cache_layers(config, "float"))
    assert floats == {kind: 2 * nbytes for kind, nbytes in fp8.items()}


@pytest.mark.parametrize(
    ("name", "disk", "touched"),
    [
        ("xs2", 66.89, 5.62),
        ("xs2-int4", 23.89, 4.28),
        ("xs21-int4", 23.89, 4.28),
        ("xs2-fp8", 35.31, 4.47),
        ("xs2-nvfp4", 21.49, 3.96),
    ],
)
def test_every_published_config(name: str, disk: float, touched: float) -> None:
    total = sizes(published(name))
    assert (giga(total.disk_bytes, 2), giga(total.touched_bytes, 2)) == (disk, touched)
    assert total.parameters == sizes(published("xs2")).parameters
    assert total.flops == sizes(published("xs2")).flops


def test_formats_add_up() -> None:
    total = sizes(published("xs2-int4"))
    assert set(total.by_format) == {"dense", "INT4 g128", "INT8 g128"}
    experts = 256 * 3 * 512 * 2048
    assert total.by_format["INT4 g128"].parameters == 30 * experts
    assert total.by_format["INT8 g128"].parameters == 9 * experts
    assert sum(form.nbytes for form in total.by_format.values()) == total.disk_bytes


CONFIGS = {
    "dense": small_config(),
    "tied": small_config(tie_word_embeddings=True),
    "int4": quantised(small_config()),
    "int8": quantised(small_config(), bits=8),
    "float32": small_config(torch_dtype="float32"),
    "per-element": small_config(gating="per-element"),
}


@pytest.mark.parametrize("name", [*CONFIGS, "xs2", "xs2-int4", "xs21-int4"])
def test_bytes_and_parameters_agree_with_the_table_of_tensors(name: str) -> None:
    config = LagunaConfig.from_dict(CONFIGS[name]) if name in CONFIGS else published(name)
    of_floats = {"bfloat16": "BF16", "float32": "F32"}[config.torch_dtype]
    nbytes = parameters = 0
    for rule in tensor_rules(config):
        if rule.part == "kv_scale" and not config.kv_cache_fp8:
            continue
        dtype = of_floats if rule.part in ("embedding", "norm", "linear") else rule.dtypes[0]
        nbytes += math.prod(rule.shapes[0]) * DTYPES[dtype].itemsize
        if rule.part == "packed":
            parameters += math.prod(rule.matrix)
        elif rule.part not in ("scale", "shape", "kv_scale"):
            parameters += math.prod(rule.shapes[0])
    total = sizes(config)
    assert (total.disk_bytes, total.parameters) == (nbytes, parameters)


def test_a_tied_head_is_read_but_not_stored_twice() -> None:
    tied = sizes(LagunaConfig.from_dict(CONFIGS["tied"]))
    untied = sizes(LagunaConfig.from_dict(CONFIGS["dense"]))
    assert untied.disk_bytes - tied.disk_bytes == 40 * 24 * 2
    assert untied.parameters - tied.parameters == 40 * 24
    for name in ("touched_bytes", "flops", "head_flops", "head_bytes"):
        assert getattr(tied, name) == getattr(untied, name)


def test_a_small_model_by_hand() -> None:
    """Hidden 24, heads 4 / 6 / 2 of 8, 2 for keys; dense MLP of 16, then 2 of 6 experts of 8."""
    total = sizes(LagunaConfig.from_dict(small_config()))
    attention = sum(24 * (2 * heads * 8 + 2 * 2 * 8 + heads) for heads in (4, 6, 2))
    dense_mlp = 3 * 24 * 16
    sparse = 2 * (24 * 6 + (2 + 1) * 3 * 24 * 8)
    head = 24 * 40
    assert total.flops == 2 * (attention + dense_mlp + sparse + head)
    norms = 24 + 3 * (2 * 24 + 2 * 8)
    biases = 2 * 6
    assert total.active_parameters == total.flops // 2 + norms + biases + 24
    assert total.touched_bytes == total.flops + 2 * norms + 4 * biases + 2 * 24


@pytest.mark.parametrize(
    ("preset_name", "module", "expected"),
    [
        ("xs2", "mlp.experts.*.down_proj", 2048 * 512 * 2),
        ("xs2-int4", "mlp.experts.*.down_proj", 2048 * (512 // 2 + 4 * 2)),
        ("xs2-fp8", "mlp.experts.*.down_proj", 2048 * 512 + 16 * 4 * 2),
        ("xs2-nvfp4", "mlp.experts.*.down_proj", 2048 * 512 // 2 + 2048 * 32 + 4),
        ("xs2-fp8", "mlp.gate", 256 * 2048 * 2),
    ],
)
def test_one_weight(preset_name: str, module: str, expected: int) -> None:
    found = [w for w in linears(published(preset_name)) if (w.layer, w.name) == (1, module)]
    assert [weight_bytes(w.rows, w.columns, w.format) for w in found] == [expected]


def test_int8_words() -> None:
    weight = next(w for w in linears(published("xs2-int4")) if w.layer == 31 and "*.up" in w.name)
    assert weight_bytes(weight.rows, weight.columns, weight.format) == 512 * (2048 + 16 * 2)
    assert (weight.stored, weight.used) == (256, 8)


def test_attention_grows_on_full_layers_only() -> None:
    config = published("xs2-int4")
    per_token = {"full": 4 * 10 * 48 * 128, "sliding": 4 * 30 * 64 * 128}
    assert attention_flops(config, 1) == per_token["full"] + per_token["sliding"]
    at_window = attention_flops(config, 512)
    assert at_window == 512 * attention_flops(config, 1)
    assert attention_flops(config, 513) - at_window == per_token["full"]


def test_sizes_are_plain_numbers() -> None:
    assert all(type(value) in (int, dict) for value in vars(sizes(published("xs2-int4"))).values())
    assert isinstance(sizes(published("xs2")), Sizes)
