"""The group: help, version, exit codes, errors, pipes and interrupts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import laguna_ref
from laguna_ref import checkpoint
from laguna_ref.cli import COMMANDS, main
from laguna_ref.cli.errors import BROKEN_PIPE, INTERRUPTED, UNFORESEEN
from laguna_ref.engines import ENGINES
from laguna_ref.load import KV_CACHE_MODES
from laguna_ref.numerics import DEQUANT, NUMERICS
from tests.cli.conftest import CONFIG, Run

PROGRAM = [sys.executable, "-m", "laguna_ref.cli"]
ERROR_KEYS = {"type", "message", "file", "tensor", "key", "expected", "found"}
IDS = ("--token-ids", "2 70 71")


def test_help_lists_every_command(run: Run) -> None:
    text = run("--help").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run: Run, name: str) -> None:
    assert run(name, "--help").stdout.startswith(f"Usage: laguna-ref {name} ")


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"laguna-ref {laguna_ref.__version__}\n"


def test_choices_are_those_of_the_library() -> None:
    context = main.make_context("laguna-ref", ["generate"], resilient_parsing=True)
    command = main.get_command(context, "generate")
    assert command is not None
    choices = {p.name: getattr(p.type, "choices", None) for p in command.params}
    assert set(choices["numerics"] or ()) == set(NUMERICS)
    assert set(choices["engine"] or ()) == set(ENGINES)
    assert set(choices["dequant"] or ()) == set(DEQUANT)
    assert set(choices["kv_cache"] or ()) == set(KV_CACHE_MODES)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom laguna_ref.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {"numba", "llvmlite", "torch", "transformers", "tokenizers", "rich", "huggingface_hub"}
    assert not loaded & heavy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["generate", "--nonsense"], "--nonsense"),
        (["generate", "--numerics", "float8"], "float8"),
        (["generate", "--threads", "0"], "0"),
        (["generate", "--max-tokens", "many"], "many"),
        (["synth"], "--out"),
        (["inspect", "--model", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_usage_is_one_line_on_stderr(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["nonsense"], "UsageError"),
        (["generate", "--nonsense"], "UsageError"),
        (["inspect", "--model", "/nowhere"], "CheckpointError"),
        (["generate", "--prompt-file", "/nowhere"], "FileNotFoundError"),
    ],
)
def test_errors_as_json(run: Run, model: Path, arguments: list[str], kind: str) -> None:
    if "--prompt-file" in arguments:
        arguments = [*arguments, "--model", str(model)]
    result = run(*arguments, "--json", code=2)
    assert result.stderr == ""
    error = json.loads(result.stdout)["error"]
    assert set(error) == ERROR_KEYS
    assert error["message"]
    assert error["type"] == kind


def test_an_error_of_the_model_names_its_parts(run: Run, model: Path) -> None:
    result = run("logits", "--token-ids", "2,330", "--model", model, "--json", code=2)
    assert json.loads(result.stdout)["error"] == {
        "type": "InputError",
        "message": "token 1 is not in the vocabulary",
        "file": None,
        "tensor": None,
        "key": None,
        "expected": "ids 0 to 329",
        "found": 330,
    }


def test_a_prompt_that_says_json_is_a_prompt(run: Run, model: Path) -> None:
    result = run("logits", "--model", model, "--position", "99", "--", "--json", code=2)
    assert result.stdout == ""
    assert "no such position" in result.stderr


def test_no_command_shows_help(run: Run) -> None:
    result = run(code=2)
    assert "Commands:" in result.stderr


def test_unknown_config_key_and_the_way_out(run: Run, run_json: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG | {"surprise": 7}), encoding="utf-8")
    looked = ("inspect", "--config-only", "--model", file)
    refused = run(*looked, code=2).stderr
    assert "surprise" in refused
    assert "pass --ignore-config-key surprise" in refused
    assert "found 7" in refused
    error = json.loads(run(*looked, "--json", code=2).stdout)["error"]
    assert (error["type"], error["key"], error["found"]) == ("UnknownConfigKeyError", "surprise", 7)
    assert run_json(*looked, "--ignore-config-key", "surprise")["ignored"] == {"surprise": 7}
    assert "surprise" in run(*looked, "--ignore-config-key", "surprise").stdout


@pytest.mark.parametrize(
    ("arguments", "float_layers"),
    [
        ([], []),
        (["--kv-cache", "float"], [0, 1, 2]),
        (["--kv-cache-dtype-skip-layers", "0"], [0]),
        (["--kv-cache-dtype-skip-layers", "0", "2"], [0, 2]),
        (["--kv-cache-dtype-skip-layers", "0-1", "--top", "1"], [0, 1]),
        (["--kv-cache-dtype-skip-layers", "sliding_window"], [1, 2]),
        (["--kv-cache-dtype-skip-layers", "0", "sliding_window"], [0, 1, 2]),
        (["--kv-cache-dtype-skip-layers", "0,2"], [0, 2]),
        (["--kv-cache-dtype-skip-layers=1", "--kv-cache-dtype-skip-layers", "2"], [1, 2]),
    ],
)
def test_skip_layers(
    run_json: Any, model: Path, arguments: list[str], float_layers: list[int]
) -> None:
    found = run_json("logits", *IDS, "--model", model, *arguments)
    fp8 = found["settings"]["kv_cache_fp8_layers"]
    assert sorted({0, 1, 2} - set(fp8)) == float_layers


def test_skip_layers_leave_the_prompt_alone(run_json: Any, model: Path) -> None:
    flag = ("--model", model, "--kv-cache-dtype-skip-layers", "0", "1")
    assert run_json("logits", *flag, "a prompt")["prompt"] == "a prompt"
    assert json.loads(
        CliRunner().invoke(main, ["logits", "--json", *map(str, flag), "--", "2"]).stdout
    )["prompt"] == "2"  # fmt: skip


@pytest.mark.parametrize("value", ["3", "0-3", "global", "-1"])
def test_skip_layers_that_are_not_there(run: Run, model: Path, value: str) -> None:
    flag = f"--kv-cache-dtype-skip-layers={value}"
    error = run("logits", *IDS, "--model", model, flag, code=2).stderr
    assert "indices 0 to 2, ranges or sliding_window" in error


@pytest.mark.parametrize("problem", [RuntimeError("a defect"), SystemExit("a defect")])
def test_what_nobody_foresaw_is_no_verdict(
    model: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    """Code 1 says that something was judged and is wrong."""

    def failing(*_: Any, **__: Any) -> Any:
        raise problem

    monkeypatch.setattr(laguna_ref.Laguna, "__call__", failing)
    arguments = ["generate", *IDS, "--model", str(model)]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (UNFORESEEN, "")
    assert "Traceback" in done.stderr
    assert "a defect" in done.stderr
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == UNFORESEEN
    error = json.loads(done.stdout)["error"]
    assert set(error) == ERROR_KEYS
    assert (error["type"], error["message"]) == (type(problem).__name__, "a defect")


def test_an_interrupt_is_quiet(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(laguna_ref.Laguna, "__call__", interrupted)
    result = run("generate", *IDS, "--model", model, code=INTERRUPTED)
    assert result.stdout == ""
    assert result.stderr.strip() == ""


def test_an_interrupt_while_text_is_streamed(tmp_path: Path) -> None:
    """In the middle of more text than a busy machine could finish meanwhile."""
    config = CONFIG | {"max_position_embeddings": 10**6}
    checkpoint.write(tmp_path / "model", config, checkpoint.synth(config, seed=0))
    endless = ["generate", *IDS, "--max-tokens", "900000", "--stop-id", "0"]
    endless += ["--model", str(tmp_path / "model")]
    with subprocess.Popen(
        [*PROGRAM, *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate()
        assert process.returncode == INTERRUPTED
    # A kernel may have been compiled between the first token and the signal, and says so.
    lines = [line for line in complaint.splitlines() if not line.startswith(b"compiled ")]
    assert not b"".join(lines).strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "--config-only", "--model", "xs2-int4"],
        ["generate", *IDS, "--max-tokens", "500", "--stop-id", "0", "--model", "{bare}"],
    ],
)
def test_a_closed_pipe_is_quiet(bare: Path, arguments: list[str]) -> None:
    command = [*PROGRAM, *(word.format(bare=bare) for word in arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
        assert process.wait() == BROKEN_PIPE
    assert complaint == b""


def test_as_a_program(model: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "generate", "def f", "--max-tokens", "5", "--model", str(model)],
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode("utf-8")
    assert b"tokens/s" in done.stderr


def test_a_terminal_without_unicode_gets_escapes(model: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "logits", "--token-ids", "2", "--model", str(model), "--top", "330"],
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )
    assert rb"\u3008|EOS|\u3009" in done.stdout
