"""laguna-ref golden: make, show, verify and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from laguna_ref import Recorder, load
from laguna_ref.cli import main
from laguna_ref.golden import read_golden
from laguna_ref.golden.golden_file import results_of, write_golden
from laguna_ref.golden.hashes import COMMITTED, GoldenError, read_hashes
from laguna_ref.golden.verify import COMMITTED_GOLDENS
from tests.cli.conftest import Run

CASES = """
format = 1
[prompts]
few = [2, 70, 71]
[[case]]
name = "short"
prompt = "few"
[[case]]
name = "window"
prompt = "few"
length = "W+1"
kv_cache = "float"
decode = 1
points = []
logits_at = [-1]
"""
ENGINE = ("--engine", "numpy", "--threads", 1)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.toml"
    path.write_text(CASES)
    return path


@pytest.fixture
def made(run: Run, model: Path, cases: Path, tmp_path: Path) -> Path:
    run("golden", "make", "--model", model, "--cases", cases, "--out", tmp_path / "out", *ENGINE)
    return tmp_path / "out"


def test_this_machine_comes_to_what_is_committed() -> None:
    result = CliRunner().invoke(main, ["golden", "verify", "--json"])
    found = json.loads(result.stdout)
    assert found["verdict"] == "equal"
    assert result.exit_code == 0
    files = [case for case in found["cases"] if "file" in case]
    assert len(files) == len([*COMMITTED_GOLDENS.iterdir()])
    assert len(found["cases"]) == len(read_hashes()) + len(files)


def test_a_difference_is_exit_code_1(tmp_path: Path) -> None:
    raw = json.loads(COMMITTED.read_text())
    raw["cases"] = raw["cases"][:1]
    raw["cases"][0]["tokens"][-1] += 1
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(raw))
    result = CliRunner().invoke(main, ["golden", "verify", "--hashes", str(changed)])
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout


def test_hashes_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    raw = json.loads(COMMITTED.read_text()) | {"model_sha256": "0" * 64}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(raw))
    with pytest.raises(GoldenError, match="another checkpoint"):
        read_hashes(other)
    result = CliRunner().invoke(main, ["golden", "verify", "--hashes", str(other)])
    assert result.exit_code == 2


def test_make(run: Run, run_json: Any, model: Path, cases: Path, made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == [
        "short.safetensors",
        "window.safetensors",
    ]
    golden = read_golden(made / "window.safetensors")
    assert golden.case.chunks == (4, 1)
    assert golden.settings["numerics"] == "float64"
    again = run_json("golden", "make", "--model", model, "--cases", cases, "--out", made, *ENGINE)
    assert [case["computed"] for case in again["cases"]] == [False, False]
    assert [case["name"] for case in again["cases"]] == ["short", "window"]
    assert again["cases"][0]["file"] == str(made / "short.safetensors")


def test_make_says_what_it_did_on_stderr(
    run: Run, model: Path, cases: Path, tmp_path: Path
) -> None:
    arguments = ("golden", "make", "--model", model, "--cases", cases, "--out", tmp_path / "o")
    result = run(*arguments, "--only", "short", *ENGINE)
    assert "1 computed, 0 were complete" in result.stderr
    assert "computed" in result.stdout
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["short.safetensors"]
    result = run(*arguments, *ENGINE)
    assert "1 computed, 1 were complete" in result.stderr
    result = run(*arguments, "--overwrite", *ENGINE)
    assert "2 computed, 0 were complete" in result.stderr


def test_make_on_dask(run: Run, model: Path, cases: Path, made: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    out = tmp_path / "spread"
    run("golden", "make", "--model", model, "--cases", cases, "--out", out, *ENGINE,
        "--scheduler", "dask")  # fmt: skip
    for path in made.iterdir():
        assert results_of(read_golden(out / path.name)) == results_of(read_golden(path))


test_make_on_dask = pytest.mark.filterwarnings("default")(test_make_on_dask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "shorter"], "--only: no such case; expected short, window; found shorter"),
        (["--numerics", "float32"], "holds another golden of this name"),
        (["--scheduler-address", "tcp://x:1"], "--scheduler-address needs --scheduler dask"),
        (["--cases", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["--kv-cache", "float"], "No such option"),
    ],
)
def test_bad_input_of_make(
    run: Run, model: Path, cases: Path, made: Path, arguments: list[str], message: str
) -> None:
    common = ("--model", model, "--cases", cases, "--out", made, *ENGINE)
    result = run("golden", "make", *common, *arguments, code=2)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_errors_as_json(run: Run, made: Path) -> None:
    (made / "short.safetensors").write_bytes(b"12345678")
    error = json.loads(run("golden", "show", made, "--json", code=2).stdout)["error"]
    assert error["type"] == "GoldenError"
    assert error["file"] == str(made / "short.safetensors")


def test_show(run: Run, run_json: Any, made: Path) -> None:
    text = run("golden", "show", made).stdout
    assert "2 goldens in" in text
    assert "4, 1" in text
    one = run("golden", "show", made / "short.safetensors").stdout
    assert all(word in one for word in ("model.layers.2", "config_sha256", "2, 70, 71", "numba "))
    found = run_json("golden", "show", made)["goldens"]
    assert [golden["name"] for golden in found] == ["short", "window"]
    assert found[1]["case"]["chunks"] == [4, 1]
    assert found[1]["logits"] == {"at": [4], "kept": "full"}
    assert found[0]["smallest_margin"]["layer"] in (1, 2)
    assert {t["name"]: t["shape"] for t in found[0]["tensors"]}["model.layers.2"] == [3, 24]


def test_verify_files(run: Run, run_json: Any, model: Path, made: Path) -> None:
    found = run_json("golden", "verify", made, "--model", model, "--threads", 1)
    assert found["verdict"] == "equal"
    assert [case["name"] for case in found["cases"]] == ["short", "window"]
    assert all(case["expected"] == case["found"] for case in found["cases"])
    assert "all equal" in run("golden", "verify", made, "--model", model).stdout


def test_verify_names_what_differs(run: Run, run_json: Any, model: Path, made: Path) -> None:
    path = made / "short.safetensors"
    golden = read_golden(path)
    changed = golden.points["model.norm"].copy()
    changed[0, 0] += 1
    golden.points["model.norm"] = changed  # type: ignore[index]
    write_golden(path, golden)
    result = run("golden", "verify", path, "--model", model, code=1)
    assert "short: 1 tensors differ" in result.stdout
    assert "model.norm" in result.stdout
    assert "this machine computes something else" in result.stdout
    found = run_json("golden", "verify", path, "--model", model, code=1)
    assert found["verdict"] == "different"
    assert found["cases"][0]["differences"] == [
        {"point": "model.norm", "elements": 72, "differing": 1, "greatest": 1.0}
    ]


def test_verify_refuses_another_models_goldens(run: Run, made: Path) -> None:
    assert "made from another config" in run("golden", "verify", made, code=2).stderr


def test_a_model_alone_is_nothing_to_verify(run: Run, model: Path) -> None:
    result = run("golden", "verify", "--model", model, code=2)
    assert "--model needs golden files" in result.stderr


def dump_of(folder: Path, model: Path, tokens: tuple[int, ...], **changes: float) -> Path:
    """What the plain engine computes in float32, as a porter would hand it in."""
    recorder = Recorder()
    load(model, engine="numpy")(tokens, trace=recorder)
    points = {name: np.ascontiguousarray(recorder[name]) for name in recorder}
    for name, factor in changes.items():
        point = next(p for p in points if p.endswith(name))
        points[point] = points[point] * np.float32(factor)
    places = np.arange(len(tokens), dtype=np.int64)
    path = folder / "dump.safetensors"
    save_file({"tokens": np.array(tokens, np.int64), "positions": places, **points}, path)
    return path


def test_compare(run: Run, model: Path, cases: Path, tmp_path: Path) -> None:
    """Conforming, diverging, and without a budget inconclusive: the verdict is the exit code."""
    asked = ("--model", model, "--cases", cases, "--only", "short", *ENGINE)
    run("golden", "make", *asked, "--out", tmp_path, "--budget", "float32", "--runs", 60)
    golden, html = tmp_path / "short.safetensors", tmp_path / "report.html"
    dump = dump_of(tmp_path, model, (2, 70, 71))
    result = run("golden", "compare", golden, dump, "--model", model, "--json", "--html", html)
    found = json.loads(result.stdout)
    assert found["verdict"] == "conforming", found["reason"]
    assert html.read_text("utf-8").lower().startswith("<!doctype html>")

    again = run("golden", "make", *asked, "--out", tmp_path, "--budget", "float32", "--runs", 60)
    assert "0 computed" in again.stderr
    other = run("golden", "make", *asked, "--out", tmp_path, "--budget", "bfloat16", "--runs", 8)
    assert "1 computed" in other.stderr
    run("golden", "make", *asked, "--out", tmp_path, "--budget", "float32", "--runs", 60)

    dump = dump_of(tmp_path, model, (2, 70, 71), **{"1.self_attn.q_norm": 1.01})
    result = run("golden", "compare", golden, dump, "--model", model, "--json", code=1)
    assert json.loads(result.stdout)["first_divergence"]["point"].endswith("1.self_attn.q_norm")
    assert "q_norm" in run("golden", "compare", golden, dump, "--model", model, code=1).stdout

    run("golden", "make", *asked, "--out", tmp_path / "bare")
    golden = tmp_path / "bare" / "short.safetensors"
    result = run("golden", "compare", golden, dump, "--model", model, "--json", code=3)
    assert json.loads(result.stdout)["verdict"] == "inconclusive"


def test_an_unknown_precision(run: Run, model: Path, cases: Path, tmp_path: Path) -> None:
    asked = ("--model", model, "--cases", cases, "--out", tmp_path / "out", "--budget", "float8")
    assert "float32 or bfloat16" in run("golden", "make", *asked, code=2).stderr


def test_a_page_that_has_no_place(run: Run, made: Path, model: Path, tmp_path: Path) -> None:
    golden = made / "short.safetensors"
    asked = ("golden", "compare", golden, golden, "--model", model, "--html", "/nowhere/at.html")
    assert "no such folder" in run(*asked, code=2).stderr
