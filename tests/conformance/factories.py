"""What a port would write for ``python:MODULE:FACTORY``; imported by name, so not a test itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import laguna_ref
from laguna_ref.conformance.adapters.oracle_backend import OracleBackend
from laguna_ref.load import load

not_callable = 3


def good(folder: Path) -> OracleBackend:
    """The plain engine: a legal backend, though not the engine that judges."""
    return OracleBackend(load(folder, engine="numpy"), name="good")


def of_no_argument() -> OracleBackend:
    return OracleBackend(laguna_ref.load(engine="numpy"), name="of_no_argument")


def without_logits(folder: Path) -> Any:
    return SimpleNamespace(name="lame", capabilities=())


def without_its_trace(folder: Path) -> Any:
    return SimpleNamespace(name="lame", capabilities=("trace",), logits=len)


def that_raises(folder: Path) -> Any:
    raise RuntimeError("no\nlicence")


def that_exits(folder: Path) -> Any:
    raise SystemExit(0)


def exits_when_asked(folder: Path) -> Any:
    """In every member."""

    def logits(tokens: Sequence[int]) -> Any:
        raise SystemExit(0)

    return SimpleNamespace(
        name="exits_when_asked", capabilities=("batch",), logits=logits, batch=logits
    )


def with_an_unknown_option(folder: Path) -> Any:
    backend = of_logits(folder)
    backend.oracle = {"wat": 1}
    return backend


def tracing(value: Any) -> Any:
    """A trace with something in it that is no array."""

    def trace(tokens: Sequence[int], points: Sequence[str]) -> Any:
        return {"model.norm": value}

    return SimpleNamespace(name="tracing", capabilities=("trace",), logits=None, trace=trace)


def tracing_none(folder: Path) -> Any:
    return tracing(None)


def tracing_a_number(folder: Path) -> Any:
    return tracing(np.float32(3))


def transposed(folder: Path) -> Any:
    inner = good(folder)
    return SimpleNamespace(
        name="transposed", capabilities=(), logits=lambda tokens: inner.logits(tokens).T
    )


def of_text(folder: Path) -> Any:
    def logits(tokens: Sequence[int]) -> Any:
        return np.full((len(tokens), inner.model.config.vocab_size), "x")

    inner = good(folder)
    return SimpleNamespace(name="of_text", capabilities=(), logits=logits)


def scaled(folder: Path) -> Any:
    """Logits that are off by a thousandth."""
    inner = good(folder)
    return SimpleNamespace(
        name="scaled", capabilities=(), logits=lambda tokens: inner.logits(tokens) * 1.001
    )


def scaled_after_seven(folder: Path) -> Any:
    """Logits that are half too large, for prompts that start with token 7."""
    inner = good(folder)

    def logits(tokens: Sequence[int]) -> Any:
        return inner.logits(tokens) * (1.5 if tokens[0] == 7 else 1.0)

    return SimpleNamespace(name="scaled_after_seven", capabilities=(), logits=logits)


def failing(folder: Path) -> Any:
    """Fails for prompts of more than one token."""
    inner = good(folder)

    def logits(tokens: Sequence[int]) -> Any:
        if len(tokens) > 1:
            raise RuntimeError("out of\nmemory")
        return inner.logits(tokens)

    return SimpleNamespace(name="failing", capabilities=(), logits=logits)


def crashing(folder: Path) -> Any:
    """Declares chunks and batches, and can do neither."""

    def crash(*arguments: Any) -> Any:
        raise RuntimeError("segmentation fault")

    return SimpleNamespace(
        name="crashing", capabilities=("chunks", "batch"), logits=good(folder).logits,
        prefill=crash, decode=crash, batch=crash,
    )  # fmt: skip


def broken(folder: Path) -> Any:
    """Cannot be opened at all."""
    raise RuntimeError("no GPU")


def of_another_precision(folder: Path) -> Any:
    """Declares a precision that nobody knows."""
    return SimpleNamespace(
        name="other", capabilities=(), precision="fp4", logits=good(folder).logits
    )


def of_tiny_alone(folder: Path) -> Any:
    """Opens no other checkpoint, and says so in a way of its own."""
    if folder.name != "laguna-tiny":
        raise RuntimeError("heads of 8")
    return of_logits(folder)


class WithoutVersion:
    """Fails outside of what is asked of it, and writes down how often it was asked."""

    name, capabilities = "without_version", ()

    def __init__(self, folder: Path) -> None:
        self._inner = good(folder)

    @property
    def version(self) -> str:
        raise RuntimeError("no version")

    def logits(self, tokens: Sequence[int]) -> Any:
        with Path("asked").open("a") as file:
            file.write("once\n")
        return self._inner.logits(tokens)


def of_logits(folder: Path) -> Any:
    """Logits alone."""
    inner = good(folder)
    return SimpleNamespace(name="of_logits", capabilities=(), logits=inner.logits)


def top_twenty(folder: Path) -> Any:
    """Log-probabilities of the twenty likeliest tokens, as an endpoint shows them."""
    inner = good(folder)
    return SimpleNamespace(
        name="top_twenty", capabilities=(), logits_kind="logprobs",
        logits=lambda tokens: likeliest(inner.logits(tokens), 20),
    )  # fmt: skip


def likeliest(logits: Any, k: int) -> Any:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    wide = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    shown = np.full(wide.shape, np.nan)
    order = np.argsort(-wide, axis=1, kind="stable")[:, :k]
    np.put_along_axis(shown, order, np.take_along_axis(wide, order, axis=1), axis=1)
    return shown
