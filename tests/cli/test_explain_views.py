"""laguna-ref explain token, attention, routing, rope, weight, kv, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

import laguna_ref
from laguna_ref import explain
from laguna_ref.cli.explain import SUBCOMMANDS
from laguna_ref.cli.explain.drawing import number, shown_layers, spark
from laguna_ref.errors import InputError
from tests.cli.conftest import Run
from tests.tolerances import assert_within, roundings

IDS = ("--token-ids", "2,70,71,72,73,74")
TOKENS = [2, 70, 71, 72, 73, 74]
EXPERT = "model.layers.1.mlp.experts.2.gate_proj"
VIEWS: dict[str, tuple[str, ...]] = {
    "token": IDS,
    "attention": IDS,
    "routing": IDS,
    "rope": (),
    "weight": (EXPERT,),
    "kv": IDS,
    "diff": ("base", "fault:gate.sigmoid", *IDS),
}
KEYS = {
    "token": {"schema", "prompt", "prompt_tokens", "position", "token", "text", "embedding_norm",
              "embedding_lens", "embedding_logprob_of_answer", "layers", "next", "settings"},
    "attention": {"schema", "prompt", "prompt_tokens", "layers", "settings"},
    "routing": {"schema", "prompt", "prompt_tokens", "experts", "experts_per_token", "layers",
                "nearest", "settings"},
    "rope": {"schema", "source", "max_position_embeddings", "kinds"},
    "weight": {"schema", "name", "shape", "stored_type", "format", "row", "columns", "patterns",
               "values", "bf16_values", "packed"},
    "kv": {"schema", "prompt", "prompt_tokens", "layers", "bytes", "bytes_at_full_context",
           "settings"},
    "diff": {"schema", "prompt", "prompt_tokens", "first_layer", "embedding", "layers",
             "kl_nats", "same_top_token", "settings"},
}  # fmt: skip


def engine(name: str) -> tuple[str, ...]:
    """The plain engine, which needs no compiling; some views compute nothing."""
    return () if name in ("rope", "weight") else ("--engine", "numpy")


def test_every_view_is_a_subcommand(run: Run) -> None:
    text = run("explain", "--help").stdout
    assert {"prompt", *VIEWS} == set(SUBCOMMANDS)
    assert all(f"  {name} " in text for name in SUBCOMMANDS)


@pytest.mark.parametrize("name", VIEWS)
def test_views_fit_80_columns(run: Run, model: Path, name: str) -> None:
    text = run("explain", name, *VIEWS[name], *engine(name), "--model", model).stdout
    assert len(text.splitlines()) > 8
    assert [line for line in text.splitlines() if cell_len(line.rstrip()) > 80] == []


@pytest.mark.parametrize("name", VIEWS)
def test_keys_of_the_json_stay(run_json: Any, model: Path, name: str) -> None:
    found = run_json("explain", name, *VIEWS[name], *engine(name), "--model", model)
    assert found["schema"] == 1
    assert set(found) == KEYS[name]


def test_the_numbers_of_a_token(run_json: Any, model: Path) -> None:
    found = run_json("explain", "token", *IDS, "--position", 3, "--top", 2, *engine("token"),
                     "--model", model)  # fmt: skip
    loaded = laguna_ref.load(model, engine="numpy")
    view = explain.token(loaded, TOKENS, 3, top=2)
    assert [g["token"] for g in found["next"]] == [g.token for g in view.guesses]
    layer, step = found["layers"][1], view.layers[1]
    assert layer["norms"] == step.norms
    assert layer["routing"]["experts"] == list(step.choice.experts) if step.choice else None
    assert [h["gate"] for h in layer["heads"]] == step.gate.tolist()
    assert [(x["position"], x["probability"]) for x in layer["looked_at"]] == step.most_looked_at(5)
    assert found["layers"][0]["routing"] is None
    assert len(layer["lens"]) == 2


def test_the_map_of_a_layer(run: Run, run_json: Any, model: Path) -> None:
    arguments = ("explain", "attention", *IDS, "--layer", 1, *engine("attention"), "--model", model)
    found = np.array(run_json(*arguments)["map"]["probabilities"])
    assert found.shape == (6, 6, 6)
    sums = found[:, :4].sum(axis=2)
    assert_within(sums, np.ones_like(sums), roundings(8, np.float32))
    assert "mean of all heads" in run(*arguments).stdout
    assert "head 2; darkest" in run(*arguments, "--head", 2).stdout


def test_rope_of_a_preset(run: Run, run_json: Any) -> None:
    found = run_json("explain", "rope", "--model", "xs2-int4")
    assert [one["rotary_dim"] for one in found["kinds"]] == [64, 128]
    text = run("explain", "rope", "--model", "xs2-int4").stdout
    assert "1.3466" in text
    assert "16 pairs are not shown" in text
    assert "not shown" not in run("explain", "rope", "--model", "xs2-int4", "--all-pairs").stdout


def test_words_of_a_row(run: Run, run_json: Any, model: Path) -> None:
    arguments = ("explain", "weight", EXPERT, "--row", 1, "--columns", "8-9", "--model", model)
    found = run_json(*arguments)
    assert found["columns"] == [8, 15]
    (word,) = found["packed"]["words"]
    text = run(*arguments).stdout
    assert f"word 1  0x{word:08x}  columns 8-15" in text
    assert "half step" in text


def test_a_diff_that_is_none(run: Run, run_json: Any, model: Path) -> None:
    arguments = ("explain", "diff", "base", "float32", *IDS, *engine("diff"), "--model", model)
    assert "no difference" in run(*arguments).stdout
    found = run_json(*arguments)
    assert found["first_layer"] is None
    assert found["settings"]["b"]["spelled"] == "float32"


@pytest.mark.parametrize("name", VIEWS)
def test_plots(run: Run, model: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "plot.png"
    result = run("explain", name, *VIEWS[name], *engine(name), "--model", model, "--plot", out)
    assert f"{out}: written" in result.stderr
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("token", *IDS, "--position", "6"), "no such position; expected -6 to 5; found 6"),
        (("token", *IDS, "--layers", "7"), "no such layers here; expected some of 0 to 2"),
        (("token", *IDS, "--layers", "a"), "not a list of layers"),
        (("routing", *IDS, "--layers", "0"), "no such layers here; expected some of 1 to 2"),
        (("attention", *IDS, "--layer", "3"), "no such layer; expected 0 to 2"),
        (("attention", *IDS, "--layer", "1", "--head", "9"), "no such head; expected 0 to 5"),
        (("attention", *IDS, "--head", "1"), "--head needs --layer"),
        (("weight", "model.layers.1.mlp.expert.2.gate_proj"), f"expected {EXPERT}"),
        (("weight", EXPERT, "--row", "99"), "no such row; expected 0 to 7"),
        (("weight", EXPERT, "--columns", "x"), "not columns; expected A-B"),
        (("weight", EXPERT, "--columns", "9-8"), "no such columns"),
        (("diff", "base", "fault:gate.sigmod", *IDS), "no such fault; expected gate.sigmoid"),
        (("diff", "base", "int8", *IDS), "no such side"),
        (("kv", *IDS, "--plot", "plot.jpg"), "expected .png or .svg; found .jpg"),
    ],
)
def test_bad_input(run: Run, model: Path, arguments: tuple[str, ...], message: str) -> None:
    more = engine(arguments[0])
    assert message in run("explain", *arguments, *more, "--model", model, code=2).stderr


def test_layers_shown() -> None:
    assert shown_layers(range(3), None) == [0, 1, 2]
    assert shown_layers(range(40), None)[:2] == [0, 3]
    assert len(shown_layers(range(40), None)) == 16
    assert shown_layers(range(40), None)[-1] == 39
    assert shown_layers(range(40), "3,38-39") == [3, 38, 39]
    with pytest.raises(InputError):
        shown_layers(range(40), "38-40")


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0, 1.23456, 12.3456, 123.456, 123456.0, 0.00123456)] == [
        "0", "1.23", "12.3", "123", "1.23e+05", "0.00123",
    ]  # fmt: skip
    assert number(1.5e-7) == "1.50e-07"
    assert number(float("inf")) == "inf"


def test_sparklines_have_a_fixed_width() -> None:
    assert len(spark(range(256), 16)) == 16
    assert spark([0, 0], 8) in ("▁▁", "0 0")
    assert spark([1, 8], 8) in ("▂█", "1 9")
