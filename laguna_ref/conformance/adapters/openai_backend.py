"""``openai:URL``: a server with an OpenAI-compatible completions endpoint, judged by log-probs.

For instance ``openai:http://localhost:8000/v1`` or, with options, ``openai:http://localhost:8000/v1?
model=laguna&precision=bfloat16``. Options (``#NAME`` is short for ``?model=NAME``):

===============  ===================================================================================
``model``        which model, where the server has several
``precision``    what it computes in, a name of ``precision.PRESETS``; default ``float32``
``kv_cache``     ``checkpoint`` (default) or ``float``: its key/value cache
``dequant``      ``exact`` (default) or ``bf16``: its weights
``mode``         one of ``MODES``; default: the first that the server turns out to answer
``k``            how many of the likeliest tokens to ask for; default 20, or 5 where that is refused
``concurrency``  requests at a time; default 4
``timeout``      seconds that one request may take; default 60
===============  ===================================================================================

The key is taken from ``LAGUNA_API_KEY`` or ``OPENAI_API_KEY``. Prompts are token ids, never text.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.adapters.openai_modes import MODES, Mode, Row, Words, words_of
from laguna_ref.conformance.backend import Backend, BackendDiedError, BackendError, Opener
from laguna_ref.conformance.precision import precision_by_name
from laguna_ref.numerics import Array

if TYPE_CHECKING:
    from laguna_ref.conformance.adapters.openai_client import Client

WINDOWS = (20, 5)
"""How many likeliest tokens to ask for: vLLM's limit, then OpenAI's."""
OPTIONS = {
    "model": str, "precision": str, "kv_cache": str, "dequant": str, "mode": str, "k": int,
    "concurrency": int, "timeout": float,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What ``openai:...`` asks for; see the module."""

    url: str
    model: str | None = None
    precision: str = "float32"
    kv_cache: str = "checkpoint"
    dequant: str = "exact"
    mode: str | None = None
    k: int | None = None
    concurrency: int = 4
    timeout: float = 60.0


class OpenAIBackend:
    """A server, asked for one prompt at a time, several requests at once."""

    capabilities: Collection[str] = ()
    serves_one_model = True
    logits_kind = "logprobs"

    def __init__(
        self, client: Client, mode: Mode, k: int, words: Words, settings: Settings
    ) -> None:
        weakref.finalize(self, client.close)
        self._client, self._mode, self._words, self._settings = client, mode, words, settings
        self.logprobs_k = k
        self.name = f"openai:{settings.url}"
        self.version = f"{client.server}, model {client.model}, mode {mode.name}"
        self.precision = settings.precision
        self.oracle = {"dequant": settings.dequant, "kv_cache": settings.kv_cache}

    def logits(self, tokens: Sequence[int]) -> Array:
        """Log-probabilities [T, V] in nats, NaN where the server shows none.

        Raises BackendDiedError, with what is known, when the server goes away, and BackendError
        when it refuses a request or answers something else.
        """
        found = np.full((len(tokens), self._words.count), np.nan)
        asked = self._mode.requests(list(tokens), self.logprobs_k)
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            running = {pool.submit(self._client.post, one.path, one.body): one for one in asked}
            _, rest = wait(running, return_when=FIRST_EXCEPTION)
            for future in rest:
                future.cancel()
            wait(running)
            problem = self._take_in(
                found, {f: running[f].first for f in running if not f.cancelled()}, list(tokens)
            )
        if isinstance(problem, BackendDiedError):
            known = int((~np.isnan(found)).any(axis=1).sum())
            raise BackendDiedError(
                f"{problem.message}, {known} of {len(tokens)} tokens were known",
                found=problem.found, known=found if known else None,
            ) from problem  # fmt: skip
        if problem is not None:
            raise problem
        return found

    def _take_in(
        self, found: Array, answers: dict[Future[dict[str, object]], int], tokens: list[int]
    ) -> BaseException | None:
        """Fills in what was answered; the first problem, one that ends everything before others."""
        problems: list[BaseException] = []
        for future, first in answers.items():
            problem = future.exception()
            if problem is None:
                try:
                    rows = self._mode.rows(future.result(), tokens, first, self._words)
                    for place, row in rows.items():
                        put(found[place], row)
                except BackendError as refused:
                    problem = refused
            if problem is not None:
                problems.append(problem)
        died = [problem for problem in problems if isinstance(problem, BackendDiedError)]
        return next(iter(died + problems), None)


def put(target: Array, row: Row) -> None:
    """Writes what is known of one token into its row [V]."""
    target[list(row)] = list(row.values())


def opener(argument: str | None) -> Opener:
    """Raises BackendError where the URL or an option makes no sense, or httpx is missing."""
    settings = parse(argument)
    for module in ("httpx", "tenacity"):
        if find_spec(module) is None:
            raise BackendError(
                f"{module} is not installed", expected="pip install 'laguna-ref[conformance]'"
            )

    def opened(folder: Path) -> Backend:
        from laguna_ref.conformance.adapters.openai_client import Client

        key = os.environ.get("LAGUNA_API_KEY") or os.environ.get("OPENAI_API_KEY")
        client = Client(settings.url, settings.timeout, settings.concurrency, key)
        try:
            client.choose_model(settings.model)
            words = words_of(folder)
            bos = LagunaConfig.from_file(folder).bos_token_id
            mode, k = probed(client, settings, words, [bos or 0] * 2)
        except BaseException:
            client.close()
            raise
        return OpenAIBackend(client, mode, k, words, settings)

    return opened


def parse(argument: str | None) -> Settings:
    """The settings that an argument spells; raises BackendError."""
    parts = urlsplit(argument or "")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BackendError("openai: needs a URL", expected="openai:http://HOST:PORT/v1",
                           found=f"openai:{argument or ''}")  # fmt: skip
    given: dict[str, str] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.fragment:
        given["model"] = parts.fragment
    values: dict[str, object] = {}
    for key, text in given.items():
        if key not in OPTIONS:
            raise BackendError("unknown option of openai:", expected=", ".join(OPTIONS), found=key)
        try:
            values[key] = OPTIONS[key](text)
        except ValueError:
            raise BackendError("not a number", key=f"openai: {key}", found=text) from None
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    settings = Settings(url, **values)  # type: ignore[arg-type]
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    precision_by_name(settings.precision)
    for key, allowed in (
        ("kv_cache", ("checkpoint", "float")),
        ("dequant", ("exact", "bf16")),
        ("mode", (None, *MODES)),
    ):
        found = getattr(settings, key)
        if found not in allowed:
            names = " or ".join(str(name) for name in allowed if name)
            raise BackendError("unknown value", key=f"openai: {key}", expected=names, found=found)
    for key in ("k", "concurrency", "timeout"):
        found = getattr(settings, key)
        if found is not None and found <= 0:
            raise BackendError("must be positive", key=f"openai: {key}", found=found)


def probed(client: Client, settings: Settings, words: Words, prompt: list[int]) -> tuple[Mode, int]:
    """The first mode, and the widest window, in which the server answers a prompt of two tokens.

    Raises BackendError with what it said to each, BackendDiedError if it does not answer at all.
    """
    modes = [MODES[settings.mode]] if settings.mode else list(MODES.values())
    windows = WINDOWS if settings.k is None else (settings.k,)
    refused: dict[str, str] = {}
    for mode in modes:
        for k in windows:
            try:
                known: set[int] = set()
                for one in mode.requests(prompt, k):
                    answer = client.post(one.path, one.body)
                    known |= set(mode.rows(answer, prompt, one.first, words))
            except BackendDiedError:
                raise
            except BackendError as problem:
                refused[f"{mode.name}, k {k}"] = str(problem)
                continue
            if known == set(range(len(prompt))):
                return mode, k
            refused[f"{mode.name}, k {k}"] = "no log-probabilities of the prompt came back"
    said = "; ".join(f"{what}: {text}" for what, text in refused.items())
    raise BackendError("the server shows log-probabilities of token ids in no known way",
                       key=settings.url, found=said)  # fmt: skip
