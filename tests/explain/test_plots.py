"""Plots are drawn, the same each time; that they read well has been looked at by people."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import laguna_ref
from laguna_ref import explain
from laguna_ref.errors import InputError
from tests.small import quantised, small, small_config, tokens_for

plots = pytest.importorskip("laguna_ref.explain.plots")
pytest.importorskip("matplotlib")
CONFIG = quantised(small_config())
TOKENS = tokens_for(CONFIG, 12)


@pytest.fixture(scope="module")
def model() -> laguna_ref.Laguna:
    return small(CONFIG).load()


def quoted(token: int) -> str:
    """Text that mathtext, or a font without the character, would stumble over."""
    return repr("$x^{" if token % 2 else "〈\U0001f600〉")


DRAWN: dict[str, Callable[[laguna_ref.Laguna], Any]] = {
    "token": lambda m: plots.token(explain.token(m, TOKENS), quoted),
    "attention": lambda m: plots.attention(explain.attention(m, TOKENS), quoted),
    "map": lambda m: plots.attention(explain.attention(m, TOKENS, maps=[1]), quoted, 1),
    "head": lambda m: plots.attention(explain.attention(m, TOKENS, maps=[1]), quoted, 1, 2),
    "routing": lambda m: plots.routing(explain.routing(m, TOKENS)),
    "rope": lambda m: plots.rope(explain.rope(m.config)),
    "packed": lambda m: plots.weight(
        explain.weight(m.checkpoint, "model.layers.1.mlp.experts.0.up_proj")
    ),
    "dense": lambda m: plots.weight(explain.weight(m.checkpoint, "model.norm.weight")),
    "kv": lambda m: plots.kv(explain.kv(m, TOKENS)),
    "diff": lambda m: plots.diff(explain.diff(m, m, TOKENS), "base", "fault:$"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_view_is_drawn(model: laguna_ref.Laguna, tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = DRAWN[name](model)
        plots.save(figure, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text("utf-8").count("<path") > 10


def test_the_same_figure_gives_the_same_file(model: laguna_ref.Laguna, tmp_path: Path) -> None:
    for ending, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        files = [tmp_path / f"{i}.{ending}" for i in range(2)]
        for file in files:
            plots.save(plots.rope(explain.rope(model.config)), file)
        first, second = (file.read_bytes() for file in files)
        assert first.startswith(start)
        assert first == second


def test_a_map_that_was_not_kept(model: laguna_ref.Laguna) -> None:
    with pytest.raises(InputError, match="no map was kept of this layer"):
        plots.attention(explain.attention(model, TOKENS), quoted, 1)
