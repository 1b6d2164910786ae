"""``laguna-ref conform``: exit codes, JSON and errors of the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

HERE = "tests.conformance.factories"
FEW = ("--case", "one-token", "--runs", "60")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def test_exit_codes_tell_the_verdict(run: Run) -> None:
    for factory, code, verdict in (
        ("of_logits", 0, "conforming"),
        ("scaled", 1, "diverges"),
        ("transposed", 3, "inconclusive"),
    ):
        case = "short-fp8" if factory == "transposed" else "one-token"
        done = run("conform", f"python:{HERE}:{factory}", "--no-laws", "--case", case,
                   "--runs", "60", code=code)  # fmt: skip
        assert f"{verdict}  {factory}" in done.stdout


def test_json_and_page(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    done = run("conform", f"python:{HERE}:scaled", "--no-laws", *FEW, "--json", "--html", page,
               code=1)  # fmt: skip
    raw = json.loads(done.stdout)
    assert (raw["verdict"], raw["backend"]["name"]) == ("diverges", "scaled")
    assert "<svg" in page.read_text("utf-8")


def test_a_port_that_ends_the_program_is_reported(run: Run) -> None:
    done = run("conform", f"python:{HERE}:exits_when_asked", *FEW, "--examples", "1", "--json",
               code=3)  # fmt: skip
    raw = json.loads(done.stdout)
    assert {law["status"] for law in raw["laws"]} == {"failed", "not applicable"}


def test_laws_are_put_to_it_and_stand_in_the_report(run: Run) -> None:
    done = run("conform", "oracle", *FEW, "--examples", "1", "--json")
    raw = json.loads(done.stdout)
    statuses = {law["law"]: law["status"] for law in raw["laws"]}
    assert statuses["causality"] == "holds"
    assert "broken" not in statuses.values()


def test_a_law_at_which_the_backend_fails_keeps_it_from_conforming(run: Run) -> None:
    done = run("conform", f"python:{HERE}:crashing", *FEW, "--examples", "1", code=3)
    assert "inconclusive  crashing: 2 of 19 laws could not be judged; chunks: " in done.stdout


def test_a_report_is_kept_where_no_drawn_model_is_opened(run: Run) -> None:
    done = run("conform", f"python:{HERE}:of_tiny_alone", *FEW, "--json")
    raw = json.loads(done.stdout)
    assert (raw["verdict"], raw["laws"]) == ("conforming", [])
    (reason,) = raw["left_out"]
    assert reason.startswith("laws: it opens no drawn model: ")
    assert reason.endswith("RuntimeError: heads of 8")


def test_laws_are_put_where_only_a_window_is_shown(run: Run) -> None:
    done = run("conform", f"python:{HERE}:top_twenty", *FEW, "--examples", "2", "--json")
    raw = json.loads(done.stdout)
    statuses = {law["law"]: law["status"] for law in raw["laws"]}
    assert statuses["causality"] == statuses["agreement"] == "holds"
    assert not {"broken", "failed"} & set(statuses.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody",), "unknown backend"),
        ((f"python:{HERE}:nothing",), "no such function"),
        ((f"python:{HERE}:that_raises",), "the factory failed: RuntimeError: no licence"),
        ((f"python:{HERE}:with_an_unknown_option",), "unknown option of its oracle"),
        (("oracle", "--case", "nothing"), "no such case"),
        (("oracle", "--html", "/no/such/folder/x.html"), "no such folder"),
        (("openai:nowhere",), "needs a URL"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run("conform", *arguments, code=2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
