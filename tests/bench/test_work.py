"""Bytes and FLOPs of a run, against ``laguna_ref.sizes`` and against counting one by one."""

from __future__ import annotations

import math

import pytest

from laguna_ref.bench.work import Rates, Storage, Work, attention_work, weights_work
from laguna_ref.checkpoint import preset
from laguna_ref.checkpoint.names import tensor_rules
from laguna_ref.config import LagunaConfig
from laguna_ref.kv_cache import cache_bytes
from laguna_ref.sizes import attention_flops, sizes
from tests.small import quantised, small_config

CONFIGS = {
    "small": small_config(),
    "quantised": quantised(small_config()),
    "tied": small_config(tie_word_embeddings=True),
    "slice": preset("xs2-int4", 4),
    "with INT8": preset("xs2-int4", layer_ids=[0, 1, 2, 31]),
}
SMALL_PARTS = {"norm": 2, "correction_bias": 4, "kv_scale": 2}
"""Bytes an element of what ``weights_work`` leaves out."""


@pytest.fixture(params=CONFIGS, ids=str)
def config(request: pytest.FixtureRequest) -> LagunaConfig:
    return LagunaConfig.from_dict(CONFIGS[request.param])


def as_stored(config: LagunaConfig, kv_bytes: int = 1) -> Storage:
    return Storage(None, (kv_bytes,) * len(config.layers))


def chosen(config: LagunaConfig) -> list[int]:
    return [config.num_experts_per_tok] * len(config.layers)


def test_one_token_needs_what_sizes_says(config: LagunaConfig) -> None:
    work = weights_work(config, as_stored(config), 1, chosen(config))
    total = sizes(config)
    left_out = sum(
        math.prod(rule.shapes[0]) * SMALL_PARTS[rule.part]
        for rule in tensor_rules(config)
        if rule.part in SMALL_PARTS and (rule.part != "kv_scale" or config.kv_cache_fp8)
    )
    assert work.nbytes == total.touched_bytes - left_out
    assert work.flops == total.flops


def test_a_prompt_reads_experts_once_and_needs_the_head_once(config: LagunaConfig) -> None:
    total = sizes(config)
    hits = [config.num_experts] * len(config.layers)
    storage = as_stored(config)
    work = weights_work(config, storage, 7, hits)
    assert work.flops == 7 * (total.flops - total.head_flops) + total.head_flops
    fewer = weights_work(config, storage, 7, [hit - 1 for hit in hits])
    assert fewer.nbytes < work.nbytes
    assert fewer.flops == work.flops
    one_more = weights_work(config, storage, 8, hits)
    assert one_more.nbytes - work.nbytes == config.hidden_size * 2


def test_a_batch_needs_the_head_for_each_sequence(config: LagunaConfig) -> None:
    hits = chosen(config)
    storage = as_stored(config)
    alone = weights_work(config, storage, 3, hits)
    together = weights_work(config, storage, 3, hits, sequences=3)
    assert together.flops - alone.flops == 2 * sizes(config).head_flops
    assert together.nbytes == alone.nbytes


def test_dequantised_weights_take_four_bytes_each() -> None:
    config = LagunaConfig.from_dict(CONFIGS["slice"])
    work = weights_work(config, Storage(4, (4,) * 4), 1, chosen(config))
    stored = weights_work(config, as_stored(config), 1, chosen(config))
    assert work.nbytes == work.flops // 2 * 4 + config.hidden_size * 4
    assert work.flops == stored.flops
    assert round(work.nbytes / stored.nbytes, 1) == 2.3


@pytest.mark.parametrize("context", [1, 3, 4, 5, 300])
def test_attention_of_one_token(config: LagunaConfig, context: int) -> None:
    work = attention_work(config, as_stored(config), context)
    fp8 = (True,) * len(config.layers)
    assert work.flops == attention_flops(config, context)
    assert work.nbytes == sum(cache_bytes(config, context, fp8).values())


@pytest.mark.parametrize(("context", "tokens"), [(1, 1), (9, 9), (9, 4), (600, 600), (600, 599)])
def test_attention_of_a_prompt(config: LagunaConfig, context: int, tokens: int) -> None:
    work = attention_work(config, as_stored(config, 4), context, tokens)
    ends = range(context - tokens + 1, context + 1)
    assert work.flops == sum(attention_flops(config, end) for end in ends)
    looked_at = 0
    for layer in config.layers:
        seen = {key for end in ends for key in range(max(0, end - (layer.window or end)), end)}
        looked_at += len(seen) * 2 * layer.num_kv_heads * layer.head_dim * 4
    assert work.nbytes == looked_at


def test_the_slower_of_reading_and_computing_is_the_limit() -> None:
    rates = Rates(read_gb_s=10.0, sgemm_gflop_s=100.0)
    reading, computing = Work(20e9, 100e9), Work(10e9, 300e9)
    assert (reading.seconds(rates), reading.bound_by(rates)) == (2.0, "memory")
    assert (computing.seconds(rates), computing.bound_by(rates)) == (3.0, "arithmetic")
    assert reading + computing == Work(30e9, 400e9)


def test_a_program_with_types_of_its_own_reads_its_own_bytes(config: LagunaConfig) -> None:
    kv_bytes = (2,) * len(config.layers)
    even = weights_work(config, Storage(0.5, kv_bytes), 1, chosen(config))
    wide = weights_work(config, Storage(0.5, kv_bytes, head_bytes=0.75), 1, chosen(config))
    assert even.nbytes == 0.5 * (sizes(config).flops / 2 + config.hidden_size)
    assert wide.nbytes - even.nbytes == 0.25 * config.vocab_size * config.hidden_size
    assert wide.flops == even.flops
