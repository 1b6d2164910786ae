"""The Numba engine's promise: the logits' SHA-256 is the same however they are computed.

Threads, chunks of the prompt, its place in a batch, ``last_only``, the caller's floating-point
mode, what lies in the cache's dead slots, and the processor that the code is compiled for. Each
hash is of logits that are also near the plain engine's, so that a wrong kernel cannot bless
itself.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref import Recorder
from numba_kernels import float_mode
from tests import tolerances
from tests.numba_kernels.same_bits import (
    CASES,
    CHUNKS,
    FLUSHING,
    FORMATS,
    TOKENS,
    checkpoint,
    digest,
    hashes,
    in_chunks,
    prompt,
)

CASE = pytest.mark.parametrize("case", CASES)
X86 = platform.machine().lower() in ("x86_64", "amd64")
ROOT = Path(__file__).parents[1]


@cache
def loaded(case: str, engine: str = "numba", **options: Any) -> Any:
    stored, numerics = case.split("/")
    return checkpoint(stored).load(numerics=numerics, engine=engine, **options)


@cache
def whole(case: str) -> Any:
    return loaded(case)(prompt())


@CASE
def test_threads_chunks_batches_and_dead_slots(case: str) -> None:
    found = hashes(case)
    assert len(found) == 4 + 1 + len(CHUNKS) + 1 + 4
    assert set(found.values()) == {digest(whole(case))}, found


@CASE
def test_last_only(case: str) -> None:
    model, logits = loaded(case), whole(case)
    cache = model.new_cache()
    assert digest(model(prompt(), cache=cache, last_only=True)) == digest(logits[-1:])
    for count in (1, 2, 63, 64, 65):
        last = model(prompt()[:count], last_only=True)
        assert digest(last) == digest(logits[count - 1 : count]), f"{count} tokens"


@CASE
def test_truncating_and_going_on(case: str) -> None:
    model, logits = loaded(case), whole(case)
    cache = model.new_cache()
    model(prompt()[:70], cache=cache)
    branch = cache.copy()
    model(prompt()[:5], cache=cache)  # a wrong turn
    rest = model(prompt()[70:], cache=branch)
    assert digest(rest) == digest(logits[70:])


@pytest.mark.skipif(not X86, reason="sets an x86 control register")
@CASE
def test_flush_to_zero_set_by_the_caller(case: str) -> None:
    tail = np.abs(whole(case)[:, 50:])
    smallest = np.finfo(np.float32).tiny
    assert "64" in case.split("/")[1] or ((tail > 0) & (tail < smallest)).any(), "cannot tell"
    before = float_mode.enter()
    float_mode.leave(np.int32(FLUSHING))
    try:
        found = digest(loaded(case)(prompt())), digest(in_chunks(loaded(case), 9))
    finally:
        float_mode.leave(np.int32(before))
    assert set(found) == {digest(whole(case))}


# The hashed logits are right.


def recorded(model: Any) -> Recorder:
    recorder = Recorder()
    model(prompt(), trace=recorder)
    return recorder


def discrete(recorder: Recorder) -> list[str]:
    """What float32 noise may tip: choices of experts, and values cached as FP8."""
    ends = ("topk_ids", "k_cached", "v_cached")
    return [name for name in recorder if name.endswith(ends)]


@pytest.mark.parametrize("numerics", ["float64", "float32"])
@pytest.mark.parametrize("stored", FORMATS)
def test_near_the_plain_engines_float64(stored: str, numerics: str) -> None:
    """At every trace point; nothing discrete has tipped in these models."""
    truth = recorded(loaded(f"{stored}/float64", "numpy"))
    found = recorded(loaded(f"{stored}/{numerics}"))
    for name in discrete(truth):
        assert np.array_equal(found[name].astype(np.float32), truth[name].astype(np.float32)), name
    config = loaded(f"{stored}/float64").config
    last = TOKENS if numerics == "float32" else 0
    error = tolerances.model_error(config, TOKENS, numerics, last)
    assert set(found) == set(truth)
    for name in truth:
        tolerances.assert_within(found[name], truth[name], error, name, unit=tolerances.UNIT)


@pytest.mark.parametrize("stored", FORMATS)
def test_bfloat16_is_as_near_as_the_plain_engines(stored: str) -> None:
    """Two bfloat16 runs are no further apart than each is from float64."""
    truth = loaded(f"{stored}/float64", "numpy")(prompt())
    plain = loaded(f"{stored}/bfloat16", "numpy")(prompt()).astype(np.float64)
    found = whole(f"{stored}/bfloat16").astype(np.float64)

    def distance(a: Any, b: Any) -> float:
        return float(np.sqrt(np.mean(np.square(a - b))))

    assert distance(found, plain) <= tolerances.BFLOAT16_TWO_RUNS * distance(plain, truth)
    assert distance(found, truth) <= tolerances.BFLOAT16_TWO_RUNS * distance(plain, truth)


# Other processors


def on_a(processor: str | None, folder: Path, cases: tuple[str, ...], *options: str) -> Any:
    """Hashes from code compiled for a processor, in a process of its own."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "NUMBA_NUM_THREADS": "4"}
    if processor is not None:
        environment |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "tests.numba_kernels.same_bits", *options, *cases]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same(found: dict[str, dict[str, str]], cases: tuple[str, ...]) -> None:
    assert set(found) == set(cases)
    for case, ways in found.items():
        assert set(ways.values()) == {digest(whole(case))}, (case, ways)


NEEDED = {"x86-64": "sse2", "haswell": "avx2", "x86-64-v4": "avx512vl"}


def runs_here(processor: str) -> bool:
    import llvmlite.binding as llvm

    return X86 and bool(llvm.get_host_cpu_features().get(NEEDED[processor]))


@pytest.mark.skipif(not X86, reason="names x86 processors")
def test_code_for_any_x86_processor(tmp_path: Path) -> None:
    """Without AVX, and without a fused multiply-add: each is then a call of the C library's."""
    cases = ("int4/float32",)
    assert_same(on_a("x86-64", tmp_path, cases), cases)


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "x86-64-v4", None])
def test_code_for_other_processors(tmp_path: Path, processor: str | None) -> None:
    """Everything, and with flush-to-zero set before the threads start."""
    if processor is not None and not runs_here(processor):
        pytest.skip(f"this machine cannot run code for {processor}")
    assert_same(on_a(processor, tmp_path, CASES), CASES)
    assert_same(on_a(processor, tmp_path, CASES, "--flush"), CASES)
