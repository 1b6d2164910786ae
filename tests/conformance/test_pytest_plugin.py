"""The plugin as a port's own CI sees it: pytest in a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import laguna_ref_pytest
from laguna_ref.conformance.budget import DEFAULT_RUNS
from numba_kernels.jit import cache_folder
from tests.conformance.golden_pairs import two_of_one_name

ROOT = Path(__file__).parents[2]
HERE = "tests.conformance.factories"
FEW = ("--laguna-case=one-token", "--laguna-runs=60", "--laguna-examples=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def ran(folder: Path, cache: Path, *arguments: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    compiled = cache_folder()  # kernels need not be compiled anew
    if compiled is not None:
        environment["NUMBA_CACHE_DIR"] = str(compiled.parent)
    environment.pop("PYTEST_ADDOPTS", None)
    environment.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_case_that_conforms_passes_beside_tests_of_its_own(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")
    code, text = ran(tmp_path, cache, f"--laguna-backend=python:{HERE}:of_logits", *FEW)
    assert code == 0, text
    assert "2 passed" in text
    assert "case[one-token]" in text


def test_it_needs_no_test_file(tmp_path: Path, cache: Path) -> None:
    code, text = ran(tmp_path, cache, f"--laguna-backend=python:{HERE}:of_logits", *FEW)
    assert code == 0, text
    assert "1 passed" in text


def test_a_case_that_diverges_fails_with_the_report(tmp_path: Path, cache: Path) -> None:
    code, text = ran(tmp_path, cache, f"--laguna-backend=python:{HERE}:scaled", *FEW)
    assert code == 1
    assert "first divergence" in text
    assert "laguna-ref trace" in text
    assert "Traceback" not in text


def test_a_case_that_is_inconclusive_fails_and_one_not_applicable_is_skipped(
    tmp_path: Path, cache: Path
) -> None:
    code, text = ran(
        tmp_path, cache, f"--laguna-backend=python:{HERE}:failing", "--laguna-examples=0",
        "--laguna-runs=4", "--laguna-case=short-fp8", "--laguna-case=far-positions",
    )  # fmt: skip
    assert code == 1
    assert "the backend failed: RuntimeError: out of memory" in text
    assert "takes no positions" in text
    assert "1 failed, 1 skipped" in text


def test_two_goldens_of_one_name_are_two_items(tmp_path: Path, cache: Path) -> None:
    two_of_one_name(tmp_path)
    code, text = ran(
        tmp_path, cache, f"--laguna-backend=python:{HERE}:scaled_after_seven",
        "--laguna-examples=0", "--laguna-runs=60", f"--laguna-golden={tmp_path}",
    )  # fmt: skip
    assert code == 1, text
    assert "1 failed, 1 passed" in text
    assert "case[short (2)]" in text


def test_laws_are_items_too(tmp_path: Path, cache: Path) -> None:
    code, text = ran(
        tmp_path, cache, "--laguna-backend=oracle", "--laguna-case=one-token",
        "--laguna-runs=60", "--laguna-examples=2", "-k", "law and causality",
    )  # fmt: skip
    assert code == 0, text
    assert "PASSED" in text
    assert "law[causality]" in text
    assert "case[" not in text


def test_a_law_at_which_the_backend_fails_fails(tmp_path: Path, cache: Path) -> None:
    code, text = ran(
        tmp_path, cache, f"--laguna-backend=python:{HERE}:crashing", "--laguna-case=one-token",
        "--laguna-examples=1", "-k", "law and chunks",
    )  # fmt: skip
    assert code == 1, text
    assert "law chunks could not be judged: the backend failed: RuntimeError" in text
    assert "Traceback" not in text


def test_it_measures_as_many_runs_as_committed_budgets_have(pytestconfig: pytest.Config) -> None:
    assert laguna_ref_pytest.DEFAULT_RUNS == DEFAULT_RUNS
    assert pytestconfig.getoption("--laguna-runs") == DEFAULT_RUNS


def test_what_fails_for_all_cases_is_not_tried_again(tmp_path: Path, cache: Path) -> None:
    code, text = ran(
        tmp_path, cache, f"--laguna-backend=python:{HERE}:WithoutVersion", "--laguna-examples=0",
        "--laguna-case=one-token", "--laguna-case=short-fp8",
    )  # fmt: skip
    assert code == 1, text
    assert "2 failed" in text
    assert "RuntimeError: no version" in text
    assert (tmp_path / "asked").read_text() == "once\n"


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("nobody", "unknown backend"),
        (f"python:{HERE}:broken", "the factory failed: RuntimeError: no GPU"),
        (f"python:{HERE}:of_another_precision", "unknown precision"),
    ],
)
def test_a_backend_that_cannot_be_had_is_a_usage_error(
    tmp_path: Path, cache: Path, backend: str, said: str
) -> None:
    code, text = ran(tmp_path, cache, f"--laguna-backend={backend}", *FEW)
    assert code == pytest.ExitCode.USAGE_ERROR, text
    assert said in text
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text


def test_laws_are_skipped_where_no_drawn_model_is_opened(tmp_path: Path, cache: Path) -> None:
    code, text = ran(
        tmp_path, cache, f"--laguna-backend=python:{HERE}:of_tiny_alone", "--laguna-examples=1",
        "--laguna-case=one-token", "-k", "law and causality",
    )  # fmt: skip
    assert code == 0, text
    assert "1 skipped" in text
    assert "it opens no drawn model: " in text
    assert "RuntimeError: heads of 8" in text


def test_without_the_option_nothing_is_added_and_nothing_imported(
    tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "test_own.py").write_text(
        "import sys\n\n\ndef test_own():\n"
        "    assert 'laguna_ref_pytest' in sys.modules\n"
        "    assert not {'laguna_ref', 'numpy', 'httpx'} & set(sys.modules)\n"
    )
    code, text = ran(tmp_path, cache, "-p", "no:hypothesispytest")
    assert code == 0, text
    assert "1 passed" in text
