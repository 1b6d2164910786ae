"""The committed goldens: small, complete, and the same bits here and on other processors."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from laguna_ref.golden import COMMITTED_CASES, Case, make, read_cases, read_golden
from laguna_ref.golden.golden_file import SUFFIX, results_of
from laguna_ref.golden.jobs import ModelSpec, absolute
from laguna_ref.golden.verify import COMMITTED_GOLDENS, golden_files
from tests import tolerances
from tests.meta.sources import ROOT

CASES = read_cases()
MOST_BYTES = 3_000_000
X86 = platform.machine().lower() in ("x86_64", "amd64")


def path(case: Case) -> Path:
    return COMMITTED_GOLDENS / f"{case.name}{SUFFIX}"


def test_one_file_a_case() -> None:
    assert golden_files(COMMITTED_GOLDENS) == sorted(map(path, CASES))


def test_they_are_small() -> None:
    assert sum(file.stat().st_size for file in golden_files(COMMITTED_GOLDENS)) < MOST_BYTES


def test_the_repository_shows_them_at_its_top() -> None:
    assert (ROOT / "golden" / "cases.toml").resolve() == COMMITTED_CASES.resolve()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_made_again_they_are_the_same_bits(case: Case) -> None:
    model = ModelSpec(absolute(None)).load(case.kv_cache)
    committed = read_golden(path(case), model)
    assert committed.case == case, "run tools/make_goldens.py"
    assert results_of(make(model, case)) == results_of(committed)


def test_cut_into_calls_or_not() -> None:
    """Two cases that differ in their calls only have the same results where both keep them."""
    whole, cut = (
        results_of(read_golden(COMMITTED_GOLDENS / f"{name}{SUFFIX}"))
        for name in ("window-plus-1", "chunks-of-7")
    )
    assert cut.items() <= whole.items()


def test_near_ties_are_near() -> None:
    golden = read_golden(COMMITTED_GOLDENS / f"near-ties{SUFFIX}")
    nearest = [min(layer.margin[t] for layer in golden.routing.values()) for t in range(1, 16)]
    assert max(nearest) < tolerances.NEAR_TIE
    assert min(nearest) < tolerances.FLOAT32_NEAR_TIE


@pytest.mark.skipif(not X86, reason="names an x86 processor")
def test_code_for_any_x86_processor(tmp_path: Path) -> None:
    """Without AVX, and without a fused multiply-add: each is then a call of the C library's."""
    names = ("short-fp8", "decode-over-the-edge", "near-ties-float")
    files = [str(COMMITTED_GOLDENS / f"{name}{SUFFIX}") for name in names]
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "laguna_ref.cli", "golden", "verify", "--json", *files]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "equal"
    assert [case["name"] for case in found["cases"]] == list(names)
