"""Comparisons with implementations that we did not write: torch, Transformers, compressed-tensors.

Modules of tests whose peer is not installed are skipped, saying so; ``LAGUNA_REQUIRE_PEERS`` (set
by CI) lists the extras without which that is an error: ``peers``, for short ``1``, ``mlx``,
``llamacpp``, which takes minutes to build, or ``vllm``, which has an environment of its own and no
extra (docs/backends.md). Figures measured on the way are printed after the run.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import pytest

from laguna_ref.conformance.adapters.vllm_backend import ENVIRONMENT

HERE = Path(__file__).parent
PEERS = ("torch", "transformers", "compressed_tensors")
OWN_EXTRA = {
    "test_gguf_export.py": ("llamacpp", ("gguf",)),
    "test_llamacpp.py": ("llamacpp", ("gguf", "llama_cpp")),
    "test_llamacpp_backend.py": ("llamacpp", ("gguf", "llama_cpp")),
    "test_mlx_backend.py": ("mlx", ("mlx", "mlx_lm")),
    "test_vllm_backend.py": ("vllm", ("torch", "vllm")),
}
"""Extra and imports of the test modules that have nothing to do with the other peers."""
REQUIRED = os.environ.get("LAGUNA_REQUIRE_PEERS", "").replace("1", "peers").split(",")


def needed_by(module: Path) -> tuple[str, tuple[str, ...]]:
    """The extra that a test module needs, and what it imports of it."""
    return OWN_EXTRA.get(module.name, ("peers", PEERS))


def missing(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


MISSING = missing(PEERS)
FIGURES = pytest.StashKey[dict[str, str]]()

if not MISSING:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the peers are not ours to mend
        import compressed_tensors  # noqa: F401
        import torch
        import transformers
    torch.set_num_threads(1)  # sums in one order, and tiny models gain nothing from more
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
if not missing(("torch", "vllm")):
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm  # noqa: F401


class _NeedsPeers(pytest.Module):
    """Takes the place of a test module whose imports would fail."""

    def collect(self) -> list[pytest.Item]:
        extra, needed = needed_by(self.path)
        reason = f"the {extra} extra is not installed (missing: {', '.join(missing(needed))})"
        if extra in REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    if HERE in module_path.parents and missing(needed_by(module_path)[1]):
        module: pytest.Module = _NeedsPeers.from_parent(parent, path=module_path)
        return module
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = {}


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> dict[str, str]:
    """Measured figures by what they measure; printed at the end of the run."""
    return pytestconfig.stash[FIGURES]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    measured = config.stash.get(FIGURES, {})
    if measured:
        terminalreporter.section("figures measured against the peers")
        for name, figure in measured.items():
            terminalreporter.write_line(f"{name}: {figure}")
