"""A small checkpoint on disk, and a way to call the command line as a user does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from laguna_ref import checkpoint
from laguna_ref.cli import main
from tests.chat.small_tokenizer import VOCAB_SIZE, tokenizer_json
from tests.small import quantised, small_config

CONFIG = quantised(small_config(vocab_size=VOCAB_SIZE, max_position_embeddings=640))
GENERATION_CONFIG = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 12}

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer and a generation_config."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    checkpoint.write(
        folder,
        CONFIG,
        checkpoint.synth(CONFIG, seed=0),
        extra_files={
            "tokenizer.json": tokenizer_json().encode(),
            "generation_config.json": json.dumps(GENERATION_CONFIG).encode(),
        },
    )
    return folder


@pytest.fixture(scope="session")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller checkpoint with a tokenizer and room for any conversation."""
    folder = tmp_path_factory.mktemp("cli") / "roomy"
    config = small_config(vocab_size=VOCAB_SIZE, max_position_embeddings=100_000)
    files = {"tokenizer.json": tokenizer_json().encode()}
    checkpoint.write(folder, config, checkpoint.synth(config, seed=0), extra_files=files)
    return folder


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights and nothing beside them."""
    folder = tmp_path_factory.mktemp("cli") / "bare"
    checkpoint.write(folder, CONFIG, checkpoint.synth(CONFIG, seed=0))
    return folder


@pytest.fixture
def run() -> Run:
    """``run("logits", "--top", 3)``; an unexpected exception fails the test."""

    def call(*arguments: object, stdin: str | bytes | None = None, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """The same with ``--json``; returns the object."""

    def call(*arguments: object, **options: Any) -> Any:
        return json.loads(run(*arguments, "--json", **options).stdout)

    return call
