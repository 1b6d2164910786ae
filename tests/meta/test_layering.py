"""Lower rooms never import upper ones, and the oracle never what it judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.meta.sources import ROOT, imports, module_name, package_files

PEERS = {
    "torch", "transformers", "compressed_tensors", "accelerate", "mlx", "mlx_lm", "vllm",
    "sglang", "llama_cpp", "gguf", "onnxruntime", "jax", "tensorflow", "triton",
}  # fmt: skip

LAWS = ("laguna_ref.conformance.laws", "laguna_ref.conformance.strategies")
PYTEST_PLUGIN = "laguna_ref.conformance.pytest_plugin"

UPPER = ("model", "load", "generate", "generation_config", "sampling", "trace", "threads",
         "golden", "conformance", "explain", "chat", "server", "cli")  # fmt: skip

FORBIDDEN = {
    "laguna_ref.ops": (*UPPER, "engines"),
    "laguna_ref.checkpoint": (*UPPER, "engines", "ops", "kv_cache", "weights", "numerics"),
    "laguna_ref.engines": UPPER,
    "laguna_ref.kv_cache": (*UPPER, "engines", "weights"),
    "laguna_ref.weights": (*UPPER, "engines", "ops"),
    "laguna_ref.config": (*UPPER, "engines", "ops", "checkpoint", "weights", "kv_cache"),
    "laguna_ref.model": (
        "cli",
        "golden",
        "conformance",
        "explain",
        "chat",
        "server",
        "generate",
        "load",
    ),
    "laguna_ref.errors": (*UPPER, "engines", "ops", "checkpoint", "config"),
}


def rooms() -> list[tuple[str, Path]]:
    return [
        (room, path)
        for path in package_files()
        for room in FORBIDDEN
        if module_name(path) == room or module_name(path).startswith(f"{room}.")
    ]


@pytest.mark.parametrize(("room", "path"), rooms(), ids=lambda x: str(x).rpartition("/")[2])
def test_lower_rooms_never_import_upper_ones(room: str, path: Path) -> None:
    for imported in imports(path):
        for upper in FORBIDDEN[room]:
            name = f"laguna_ref.{upper}"
            assert imported != name, f"{path.name} imports {imported}"
            assert not imported.startswith(f"{name}."), f"{path.name} imports {imported}"


def test_the_forbidden_rooms_exist() -> None:
    """A renamed room must not slip out of the test."""
    modules = {module_name(path) for path in package_files()}
    assert set(FORBIDDEN) <= modules


def test_peers_are_imported_by_adapters_only() -> None:
    adapters = ROOT / "laguna_ref" / "conformance" / "adapters"
    for path in package_files():
        if not path.is_relative_to(adapters):
            found = {name.partition(".")[0] for name in imports(path)} & PEERS
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_tests_of_the_default_command_import_no_peer() -> None:
    peers = ROOT / "tests" / "peers"
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if not path.is_relative_to(peers):
            found = {name.partition(".")[0] for name in imports(path)} & PEERS
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_kernels_import_nothing_of_the_oracle() -> None:
    for path in package_files():
        if module_name(path).startswith("numba_kernels"):
            assert not [name for name in imports(path) if name.startswith("laguna_ref")], path


def test_the_package_imports_nothing_of_its_tests() -> None:
    """Laws are drawn and shrunk by Hypothesis, wherever they are put: the extra ``conformance``.

    The plugin is imported by pytest itself, so pytest is there.
    """
    for path in package_files():
        found = {name.partition(".")[0] for name in imports(path)}
        if module_name(path).startswith(LAWS):
            found -= {"hypothesis"}
        if module_name(path) in (PYTEST_PLUGIN, "laguna_ref_pytest"):
            found -= {"pytest"}
        assert not found & {"tests", "tools", "pytest", "hypothesis"}, path


def test_laws_are_imported_by_laws_and_the_command_line_only() -> None:
    """So that nothing else needs Hypothesis."""
    for path in package_files():
        if not module_name(path).startswith((*LAWS, "laguna_ref.cli", PYTEST_PLUGIN)):
            assert not [name for name in imports(path) if name.startswith(LAWS)], path
