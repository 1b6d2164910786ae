"""What importing the package pulls in."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch", "transformers", "compressed_tensors", "mlx", "huggingface_hub", "numba", "llvmlite",
}  # fmt: skip

MODULES = (
    "laguna_ref",
    "laguna_ref.config",
    "laguna_ref.checkpoint",
    "laguna_ref.engines.numpy_engine",
)


@pytest.mark.parametrize("module", MODULES)
def test_importing_loads_neither_a_peer_nor_a_compiler(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_running_a_model_on_the_numpy_engine_does_not_either() -> None:
    script = (
        "import sys; from tests.small import small;"
        "small().load(engine='numpy')([1, 2]);"
        "print(*sorted(m.partition('.')[0] for m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())
