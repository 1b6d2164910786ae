"""laguna-ref logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import laguna_ref
from laguna_ref.generate import PREFILL_CHUNK
from laguna_ref.numerics import Array
from tests.cli.conftest import CONFIG, Run
from tests.tolerances import assert_within, dot_difference, model_error

TOKENS = [2, 70, 71, 300, 5]
IDS = ("--token-ids", " ".join(map(str, TOKENS)))


@pytest.fixture(scope="module")
def expected(model: Path) -> Array:
    return laguna_ref.load(model)(TOKENS)


def test_the_likeliest_tokens(run_json: Any, model: Path, expected: Array) -> None:
    found = run_json("logits", *IDS, "--top", 5, "--model", model)
    assert found["prompt_tokens"] == TOKENS
    (table,) = found["positions"]
    assert (table["position"], table["token"]) == (4, 5)
    order = np.argsort(-expected[-1], kind="stable")[:5]
    assert [entry["token"] for entry in table["top"]] == order.tolist()
    logits = [entry["logit"] for entry in table["top"]]
    config = laguna_ref.LagunaConfig.from_dict(CONFIG)
    assert_within(logits, expected[-1][order], model_error(config, len(TOKENS), "float32"))


def test_logprobs_are_a_distribution(run_json: Any, model: Path) -> None:
    (table,) = run_json("logits", *IDS, "--top", 330, "--model", model)["positions"]
    total = sum(np.exp(entry["logprob"]) for entry in table["top"])
    assert_within(total, 1.0, dot_difference(330, "float64"))
    differences = [entry["logit"] - entry["logprob"] for entry in table["top"]]
    assert_within(differences, [differences[0]] * 330, dot_difference(2, "float64"))


@pytest.mark.parametrize(
    ("arguments", "positions"),
    [
        ([], [4]),
        (["--position", "0"], [0]),
        (["--position", "-2"], [3]),
        (["--all"], [0, 1, 2, 3, 4]),
    ],
)
def test_positions(run_json: Any, model: Path, arguments: list[str], positions: list[int]) -> None:
    found = run_json("logits", *IDS, *arguments, "--model", model)["positions"]
    assert [(t["position"], t["token"]) for t in found] == [(p, TOKENS[p]) for p in positions]


def test_the_table(run: Run, model: Path, bare: Path) -> None:
    text = run("logits", "[red]x[/red]", "--top", 3, "--model", model).stdout
    assert "after token" in text
    assert "']'" in text
    assert all(word in text for word in ("token", "text", "logit", "logprob"))
    assert "logprob" in run("logits", *IDS, "--model", bare).stdout


def test_part_of_a_character_is_shown_as_bytes(run: Run, model: Path) -> None:
    text = run("logits", "🦊", "--top", 330, "--model", model).stdout
    assert r"b'\xff'" in text
    assert "\ufffd" not in text


def test_arrays(run: Run, model: Path, tmp_path: Path, expected: Array) -> None:
    plain, full = tmp_path / "logits.npy", tmp_path / "logits.safetensors"
    to_model = ("logits", *IDS, "--model", model)
    assert "[5, 330] float32" in run(*to_model, "--out", plain).stderr
    run(*to_model, "--out", full)
    np.testing.assert_array_equal(np.load(plain), expected)
    with safe_open(full, framework="np") as file:
        assert set(file.keys()) == {"lm_head", "tokens", "positions"}
        np.testing.assert_array_equal(file.get_tensor("lm_head"), expected)
        assert file.get_tensor("tokens").tolist() == TOKENS
        assert file.get_tensor("positions").tolist() == list(range(5))
        metadata = file.metadata()
    assert len(metadata["config_sha256"]) == 64
    assert (metadata["numerics"], metadata["dequant"]) == ("float32", "exact")
    assert json.loads(metadata["kv_cache_fp8_layers"]) == [0, 1, 2]
    assert metadata["lm_head_rows"] == "0-4"
    assert sorted(path.name for path in tmp_path.iterdir()) == [plain.name, full.name]


def test_one_row_of_an_array(run_json: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "row.npy"
    found = run_json(
        "logits", *IDS, "--position", 1, "--numerics", "float64", "--out", out, "--model", model
    )
    assert (found["shape"], found["dtype"], found["rows"]) == ([1, 330], "float64", [1, 1])
    assert np.load(out).shape == (1, 330)


def test_a_long_prompt_goes_through_in_chunks(run: Run, model: Path, tmp_path: Path) -> None:
    tokens = [index % 330 for index in range(PREFILL_CHUNK + 5)]
    out = tmp_path / "long.npy"
    ids = ",".join(map(str, tokens))
    run("logits", "--token-ids", ids, "--numerics", "float64", "--out", out, "--model", model)
    loaded = laguna_ref.load(model, numerics="float64")
    error = model_error(loaded.config, len(tokens), "float64")
    assert_within(np.load(out), loaded(tokens), error)


def test_the_hash_does_not_depend_on_spelling() -> None:
    from laguna_ref.golden.identity import config_sha256

    backwards = dict(reversed(CONFIG.items()))
    assert config_sha256(backwards) == config_sha256(CONFIG)
    assert config_sha256(CONFIG | {"vocab_size": 331}) != config_sha256(CONFIG)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--position", "5"], "expected -5 to 4; found 5"),
        (["--position", "1", "--all"], "give --position or --all, not both"),
        (["--out", "logits.txt"], "expected .npy or .safetensors; found .txt"),
        (["--out", "/nowhere/logits.npy"], "/nowhere: no such folder"),
    ],
)
def test_bad_input(run: Run, model: Path, arguments: list[str], message: str) -> None:
    result = run("logits", *IDS, *arguments, "--model", model, code=2)
    assert message in result.stderr
    assert result.stdout == ""
