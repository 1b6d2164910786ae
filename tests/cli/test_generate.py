"""laguna-ref generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref.chat import Tokenizer
from laguna_ref.cli.prompts import DEFAULT_PROMPT
from laguna_ref.generate import PREFILL_CHUNK
from tests.cli.conftest import GENERATION_CONFIG, Run

GREEDY = ("--temperature", "0")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_folder(model)


def test_streams_what_the_library_generates(
    run: Run, run_json: Any, model: Path, tokenizer: Tokenizer
) -> None:
    arguments = ("generate", "def f(x):", *GREEDY, "--max-tokens", 9, "--model", model)
    prompt = [2, *tokenizer.encode("def f(x):")]
    expected = list(
        laguna_ref.generate(laguna_ref.load(model), prompt, temperature=0, max_tokens=9)
    )
    result = run(*arguments)
    assert result.stdout == tokenizer.decode(expected)
    assert f"prefill: {len(prompt)} tokens" in result.stderr
    assert f"decode: {len(expected)} tokens" in result.stderr
    found = run_json(*arguments)
    assert found["prompt_tokens"] == prompt
    assert found["tokens"] == expected
    assert found["text"] == tokenizer.decode(expected)
    assert found["finish_reason"] == "length"


def test_settings_are_reported_in_full(run_json: Any, model: Path) -> None:
    found = run_json("generate", "x", "--top-k", 5, "--seed", 3, "--model", model)
    settings = found["settings"]
    assert settings["model"] == str(model)
    assert settings["max_tokens"] == GENERATION_CONFIG["max_new_tokens"]
    assert settings["temperature"] == GENERATION_CONFIG["temperature"]
    assert (settings["top_k"], settings["seed"]) == (5, 3)
    assert settings["stop_ids"] == [2, 24]
    assert (settings["numerics"], settings["dequant"]) == ("float32", "exact")
    assert settings["engine"] in ("numpy", "numba")
    assert settings["kv_cache_fp8_layers"] == [0, 1, 2]
    assert found["timings"]["prefill_s"] > 0
    bfloat16 = run_json("generate", "x", "--numerics", "bfloat16", "--model", model)["settings"]
    assert (bfloat16["numerics"], bfloat16["dequant"]) == ("bfloat16", "bf16")


def test_the_seed_decides(run_json: Any, model: Path) -> None:
    def tokens(*arguments: object) -> list[int]:
        found: list[int] = run_json(
            "generate", "x", "--temperature", 2, "--top-p", 1, "--model", model, *arguments
        )["tokens"]
        return found

    assert tokens() == tokens("--seed", 0)
    assert tokens("--seed", 1) != tokens("--seed", 2)


def test_stop_ids(run_json: Any, model: Path) -> None:
    arguments = ("generate", "x", *GREEDY, "--model", model)
    whole = run_json(*arguments)
    last = whole["tokens"][-1]
    first = whole["tokens"].index(last)
    cut = run_json(*arguments, "--stop-id", last, "--stop-id", 329)
    assert cut["tokens"] == whole["tokens"][:first]
    assert cut["finish_reason"] == "stop"
    assert cut["settings"]["stop_ids"] == [last, 329]


def test_it_ends_with_the_context(run_json: Any, model: Path) -> None:
    ids = " ".join(["70"] * 639)
    options = (*GREEDY, "--stop-id", 329, "--model", model)
    found = run_json("generate", "--token-ids", ids, *options)
    assert (len(found["tokens"]), found["finish_reason"]) == (2, "context")


def test_where_the_prompt_comes_from(
    run_json: Any, model: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    text = "über\r\n北京\n"
    file = tmp_path / "prompt.txt"
    file.write_bytes(text.encode())
    to_model = ("--max-tokens", 0, "--model", model)
    tokens = [2, *tokenizer.encode(text)]
    for source, stdin in (
        ((text,), None),
        (("--prompt-file", file), None),
        (("--prompt-file", "-"), text.encode()),
        (("-",), text.encode()),
    ):
        found = run_json("generate", *source, *to_model, stdin=stdin)
        assert (found["prompt"], found["prompt_tokens"]) == (text, tokens)
    assert run_json("generate", *to_model)["prompt"] == DEFAULT_PROMPT
    ids = run_json("generate", "--token-ids", "[5, 6]", *to_model)
    assert (ids["prompt"], ids["prompt_tokens"]) == (None, [5, 6])


def test_the_first_token_is_never_doubled(run_json: Any, model: Path) -> None:
    to_model = ("--max-tokens", 0, "--model", model)
    assert run_json("generate", "〈|EOS|〉", *to_model)["prompt_tokens"] == [2]
    assert run_json("generate", "", *to_model)["prompt_tokens"] == [2]
    no_bos = run_json("generate", "〈|EOS|〉x", "--no-bos", *to_model)["prompt_tokens"]
    assert no_bos[0] == 2
    assert run_json("generate", "x", "--no-bos", *to_model)["prompt_tokens"] == no_bos[1:]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["x", "--token-ids", "1"], None, "give one of PROMPT, --prompt-file and --token-ids"),
        (["--token-ids", "1, two"], None, "found 'two'"),
        (["--token-ids", ""], None, "not token ids"),
        (["--token-ids", "99999"], None, "token 0 is not in the vocabulary"),
        (["-"], b"\xff", "stdin: prompt is not UTF-8 (byte 0)"),
        (["--prompt-file", "/nowhere"], None, "/nowhere: No such file or directory"),
        (["", "--no-bos"], None, "tokens must"),
        (["x", "--top-p", "0"], None, "top_p must be above 0"),
        (["x", "--temperature", "inf"], None, "temperature must be"),
        (["x", "--engine", "abacus"], None, "abacus"),
        (["\udc80"], None, "not Unicode"),
    ],
)
def test_bad_input(
    run: Run, model: Path, arguments: list[str], stdin: bytes | None, message: str
) -> None:
    result = run("generate", *arguments, "--model", model, stdin=stdin, code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_tokenizer_ids_go_in_and_come_out(run: Run, run_json: Any, bare: Path) -> None:
    arguments = ("generate", "--token-ids", "2 70", *GREEDY, "--max-tokens", 4, "--model", bare)
    found = run_json(*arguments)
    assert found["text"] is None
    assert run(*arguments).stdout == " ".join(map(str, found["tokens"])) + "\n"
    error = run("generate", "text", "--model", bare, code=2).stderr
    assert "tokenizer.json: the checkpoint has no tokenizer; give --token-ids" in error


def test_a_long_prompt_is_shown_as_it_is_prefilled(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ids = " ".join(["70"] * (PREFILL_CHUNK + 3))
    result = run("generate", "--token-ids", ids, "--max-tokens", 1, "--model", model)
    assert "prefill" in result.stderr.partition("prefill:")[0]
    short = run("generate", "x", "--max-tokens", 1, "--model", model)
    assert short.stderr.startswith("prefill: ")


def test_pieces_are_written_as_they_come(
    run: Run, model: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fox = tokenizer.encode("🦊")
    chosen = iter(fox)
    logits = np.zeros((1, 330), dtype=np.float32)

    def forward(*_: Any, **__: Any) -> Any:
        result = logits.copy()
        result[0, next(chosen, 24)] = 9.0
        return result

    monkeypatch.setattr(laguna_ref.Laguna, "__call__", forward)
    result = run("generate", "x", *GREEDY, "--max-tokens", len(fox) + 1, "--model", model)
    assert result.stdout == "🦊"
    chosen = iter(fox[:2])
    cut = run("generate", "x", *GREEDY, "--max-tokens", 2, "--model", model)
    assert cut.stdout == tokenizer.decode(fox[:2])
