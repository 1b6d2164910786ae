"""What a result says of a run; how long it took is not asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from laguna_ref.bench.report import (
    COLUMNS,
    machine_rows,
    operation_rows,
    result_rows,
    to_json,
)
from laguna_ref.bench.runs import Result, Runs, count_hits, storage_of
from laguna_ref.bench.timing import Effort, Timing
from laguna_ref.bench.work import Rates, Storage, Work, attention_work, weights_work
from laguna_ref.memory_use import MemoryUse
from laguna_ref.trace import Recorder
from tests.bench.test_machine import a_machine
from tests.small import quantised, small, small_config, tokens_for

STABLE_KEYS = {
    "what", "tokens", "context", "batch", "tokens_per_s", "bytes_per_token", "flops_per_token",
    "share_of_limit", "peer",
}  # fmt: skip
ONCE = Effort(1, 0.0)
DENSE = small_config(mlp_layer_types=["dense"] * 3, num_experts=None, num_experts_per_tok=None)


def runs(**options: Any) -> Runs:
    return Runs(small(quantised(small_config())).load(**options), ONCE)


@pytest.mark.parametrize("context", [1, 2, 4, 5, 100])
def test_decode(context: int) -> None:
    bench = runs()
    found = bench.decode(context, 1)
    config = bench.model.config
    attention = attention_work(config, bench.storage, context)
    assert (found.what, found.tokens, found.context, found.batch) == ("decode", 1, context, 1)
    assert found.attention == attention
    assert found.work == weights_work(config, bench.storage, 1, [2, 2, 2]) + attention
    assert found.operations
    assert bench.model.threads == 1


def test_a_batch_counts_the_experts_it_shares_once() -> None:
    bench = runs()
    found = bench.decode(5, 1, batch=4, profile=False)
    assert found.batch == 4
    assert found.hits[0] == 0
    assert all(2 <= hits <= 6 for hits in found.hits[1:])
    one = bench.decode(5, 1, profile=False)
    assert found.attention.flops == 4 * one.attention.flops
    assert found.work.nbytes < 4 * one.work.nbytes
    assert not found.operations


def test_prefill() -> None:
    bench = runs()
    found = bench.prefill(9, 1)
    assert (found.what, found.tokens, found.context, found.batch) == ("prefill", 9, 9, 1)
    assert found.attention == attention_work(bench.model.config, bench.storage, 9, 9)
    assert len(found.timing.seconds) == 2


def test_a_model_without_experts() -> None:
    bench = Runs(small(DENSE).load(), ONCE)
    assert bench.prefill(3, 1).hits == (0, 0, 0)
    assert bench.decode(2, 1, batch=2).hits == (0, 0, 0)


def test_hits_are_those_of_all_sequences_together() -> None:
    model = small().load()
    prompts = [tokens_for(small_config(), 4, seed) for seed in (1, 2)]
    traces = [Recorder("*.topk_ids") for _ in prompts]
    model.batch(prompts, traces=traces)
    hits = count_hits(model.config, traces)
    assert hits[0] == 0
    for layer in (1, 2):
        each = [set(trace[f"model.layers.{layer}.mlp.topk_ids"].ravel()) for trace in traces]
        assert hits[layer] == len(set.union(*each))
    assert count_hits(model.config, traces[:1]) == Runs(model, ONCE).hits_of(prompts[0])


@pytest.mark.parametrize(
    ("options", "kv_bytes"),
    [({}, 1), ({"kv_cache": "float"}, 4), ({"kv_cache_skip_layers": ["0-2"]}, 4),
     ({"kv_cache": "float", "numerics": "bfloat16"}, 2),
     ({"kv_cache": "float", "numerics": "float64"}, 8)],
)  # fmt: skip
def test_storage_is_what_the_cache_takes(options: dict[str, Any], kv_bytes: int) -> None:
    model = small(quantised(small_config())).load(**options)
    assert storage_of(model) == Storage(None, (kv_bytes,) * 3)
    cache = model.new_cache()
    model(np.arange(4), cache=cache)
    held = attention_work(model.config, storage_of(model), 4).nbytes
    assert held == sum(layer._keys[:4].nbytes + layer._values[:4].nbytes for layer in cache.layers)


def a_result(**changes: Any) -> Result:
    values = {
        "what": "prefill", "tokens": 10, "context": 10, "batch": 1, "threads": 2,
        "timing": Timing((4.0, 2.0, 3.0)), "work": Work(10e9, 500e9), "hits": (1,),
        "attention": Work(1e9, 100e9),
        "operations": {"experts": 1.5, "attention": 0.3, "attention (sliding)": 0.1, "add": 0.01},
    }  # fmt: skip
    return Result(**(values | changes))


def test_shares_are_of_the_machines_own_limit() -> None:
    found = a_result().to_json(Rates(10, 500))
    assert set(found) > STABLE_KEYS
    assert found["tokens_per_s"] == 5.0
    assert found["limit_tokens_per_s"] == 10.0
    assert found["share_of_limit"] == 0.5
    assert found["attention_share_of_limit"] == 0.5
    assert (found["bytes_per_token"], found["flops_per_token"]) == (1e9, 50e9)
    assert found["bound_by"] == "memory"
    assert found["seconds"] == {"min": 2.0, "median": 3.0, "repeats": 3}
    assert a_result(operations={}).attention_share(Rates(10, 500)) is None


def test_a_run_that_waited_for_a_disk_says_so() -> None:
    timing = Timing((4.0, 2.0), MemoryUse(3, 5_000_000, 7))
    waited = a_result(timing=timing)
    assert waited.to_json(Rates(10, 500))["memory"] == {
        "major_faults": 3, "read_bytes": 5_000_000, "anonymous_bytes": 7
    }  # fmt: skip
    rows = result_rows(a_machine((5, 300), (10, 500)), [waited, a_result()])
    assert [row[COLUMNS.index(">from disk")] for row in rows] == ["2.5", ""]


def test_a_batch_makes_more_tokens() -> None:
    found = a_result(what="decode", tokens=1, context=7, batch=4).to_json(Rates(10, 500))
    assert (found["tokens_per_s"], found["bytes_per_token"]) == (2.0, 2.5e9)


def test_the_report() -> None:
    machine = a_machine((5, 300), (10, 500))
    results = [a_result(), a_result(threads=1), a_result(peer="another", operations={})]
    found = to_json(machine, results, {"numerics": "float32"}, ["a note"])
    assert [one["share_of_limit"] for one in found["results"]] == [0.5, 1.0, 0.5]
    assert (found["schema"], found["notes"]) == (1, ["a note"])
    assert machine_rows(machine)[1] == ("2", "10.0 GB/s", "500 GFLOP/s")
    rows = result_rows(machine, results)
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert rows[2][0] == "prefill 10, another"
    assert rows[2][-1] == ""
    assert [row[0] for row in operation_rows(results[0])] == [
        "experts", "attention", "attention (sliding)", "everything below 1 %",
    ]  # fmt: skip
