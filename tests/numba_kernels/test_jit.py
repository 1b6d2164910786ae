"""The cache of machine code: where it lies, what it depends on, and doing without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from numba_kernels import jit

ROOT = Path(__file__).parents[2]
RUN = """
import numpy as np
from numba_kernels import jit, rows
x = np.linspace(-3, 3, 64)
out = np.empty_like(x)
rows.tanh(x, out)
print(jit.cache_folder(), out.tobytes().hex())
"""


def start(**environment: str) -> subprocess.Popen[str]:
    """A process that compiles one kernel, or finds it compiled."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN], cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The folder it used and the bits it computed."""
    out, problem = process.communicate(timeout=500)
    assert process.returncode == 0, problem
    folder, bits = out.split()
    return folder, bits


@pytest.fixture(scope="module")
def bits() -> str:
    return finished(start())[1]


def test_a_folder_that_cannot_be_made_costs_time_only(tmp_path: Path, bits: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder, found = finished(start(NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache")))
    assert folder == "None"
    assert found == bits


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path, bits: str) -> None:
    tmp_path.chmod(0o500)
    try:
        folder, found = finished(start(NUMBA_CACHE_DIR=str(tmp_path)))
    finally:
        tmp_path.chmod(0o700)
    assert folder == "None"
    assert found == bits


def test_a_folder_that_is_missing_is_made(tmp_path: Path, bits: str) -> None:
    wanted = tmp_path / "not" / "there"
    folder, found = finished(start(NUMBA_CACHE_DIR=str(wanted)))
    assert Path(folder).parent == wanted
    assert [*Path(folder).rglob("*.nbc")]
    assert found == bits


def test_two_processes_that_compile_at_once(tmp_path: Path, bits: str) -> None:
    both = [start(NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert {finished(process)[1] for process in both} == {bits}
    assert finished(start(NUMBA_CACHE_DIR=str(tmp_path)))[1] == bits


@pytest.mark.parametrize("damage", ["cut off", "empty", "gone"])
def test_a_damaged_cache_costs_time_only(tmp_path: Path, bits: str, damage: str) -> None:
    folder, _ = finished(start(NUMBA_CACHE_DIR=str(tmp_path)))
    for suffix in ("*.nbi", "*.nbc"):
        for path in Path(folder).rglob(suffix):
            if damage == "gone":
                if suffix == "*.nbc":
                    path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 60])
    assert finished(start(NUMBA_CACHE_DIR=str(tmp_path)))[1] == bits


def test_the_folders_name_depends_on_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in jit.HERE.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(jit, "HERE", tmp_path)
    digests = {jit.source_digest()}
    for path in sorted(tmp_path.glob("*.py")):
        with path.open("a") as file:
            file.write("#\n")
        digests.add(jit.source_digest())
    (tmp_path / "rows.py").rename(tmp_path / "lines.py")
    digests.add(jit.source_digest())
    assert len(digests) == 2 + len([*tmp_path.glob("*.py")])


def nobodys(*_: Any) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobodys)
    assert jit.cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert jit.cache_folder() == tmp_path / "xdg" / "laguna_ref" / f"kernels-{jit.source_digest()}"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    assert jit.cache_folder() == tmp_path / "named" / f"kernels-{jit.source_digest()}"


CALLS_BOTH_BODIES = """
import numpy as np
from numba_kernels import rows
x = np.ones(64, np.float32)
rows.exp(x, np.empty_like(x), work=0)
rows.exp(x, np.empty_like(x))
"""


def test_the_two_bodies_of_a_kernel_are_kept_apart(tmp_path: Path) -> None:
    """They have one source; loaded for each other, all threads would be one, or one all."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", CALLS_BOTH_BODIES], env=environment, check=True)
    kept = sorted(path.name.split("-")[0] for path in tmp_path.rglob("rows.*.nbi"))
    assert kept == ["rows.exp_on_all_threads", "rows.exp_on_this_thread"]
