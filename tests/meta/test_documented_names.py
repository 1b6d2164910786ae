"""Rounding points and trace points: those in the code are those in the tables."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from laguna_ref.numerics import ROUNDING_POINTS
from laguna_ref.trace import ATTENTION_POINTS, LAYER_POINTS, SPARSE_POINTS
from tests.meta.sources import ROOT, calls_of, package_files, tree

OPS = sorted(path for path in (ROOT / "laguna_ref" / "ops").glob("*.py"))


def literal(call: ast.Call) -> str:
    first = call.args[0]
    assert isinstance(first, ast.Constant), ast.unparse(call)
    assert isinstance(first.value, str), ast.unparse(call)
    return first.value


def test_every_rounding_point_is_used_and_every_use_is_one() -> None:
    used = {literal(call) for path in package_files() for call in calls_of(path, "round_at")}
    assert used == set(ROUNDING_POINTS)


def test_every_rounding_point_says_what_it_rounds() -> None:
    assert all(text.strip() for text in ROUNDING_POINTS.values())


@pytest.mark.parametrize("path", OPS, ids=lambda path: path.stem)
def test_an_operations_docstrings_name_where_it_rounds(path: Path) -> None:
    functions = [node for node in tree(path).body if isinstance(node, ast.FunctionDef)]
    said = " ".join(ast.get_docstring(function) or "" for function in functions)
    for call in calls_of(path, "round_at"):
        point = literal(call)
        assert point in said or f".{point.rpartition('.')[2]}" in said, f"{path.name}: {point}"


@pytest.mark.parametrize("path", OPS, ids=lambda path: path.stem)
def test_every_public_operation_has_a_docstring(path: Path) -> None:
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_every_trace_point_of_the_model_is_in_the_tables() -> None:
    """``keep`` names are f-strings that end in the point's own name."""
    model = ROOT / "laguna_ref" / "model.py"
    whole, ends = set(), set()
    for call in calls_of(model, "keep"):
        name = call.args[0]
        if isinstance(name, ast.Constant):
            whole.add(name.value)
        elif isinstance(name, ast.JoinedStr) and isinstance(name.values[-1], ast.Constant):
            ends.add(str(name.values[-1].value).lstrip("."))
    assert whole == {"model.embed_tokens", "model.norm", "lm_head"}
    tables = ATTENTION_POINTS | SPARSE_POINTS | LAYER_POINTS
    documented = {name.rpartition(".")[2] for name in tables if name}
    containers = {"self_attn", "mlp"}  # named by a variable that holds the prefix
    assert ends == documented - containers


def test_every_trace_point_states_its_shape() -> None:
    for name, text in (ATTENTION_POINTS | SPARSE_POINTS | LAYER_POINTS).items():
        assert text.startswith("[T, "), name
