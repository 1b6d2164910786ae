"""Servers for tests: within the process, in a thread with a socket, as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import httpx
import numpy as np
import uvicorn

from laguna_ref.chat import Template, Tokenizer
from laguna_ref.generation_config import GenerationConfig
from laguna_ref.kv_cache import KVCache
from laguna_ref.load import EMBEDDED, load
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.server.app import create_app
from laguna_ref.server.engine import Engine, Limits
from laguna_ref.server.metrics import Metrics
from laguna_ref.server.service import Service, Settings

SECONDS_TO_START = 120
JSON = {"content-type": "application/json"}


def service_of(
    model: Laguna | None = None, *, tokenizer: bool = True, limits: dict[str, Any] | None = None,
    **settings: Any,
) -> Service:  # fmt: skip
    """A started service; end its engine with ``ended``."""
    model = model or load(threads=1)
    texts = Tokenizer.from_folder(EMBEDDED) if tokenizer else None
    metrics = Metrics()
    bounds = Limits(**{"max_model_len": model.config.max_position_embeddings, **(limits or {})})
    service = Service(
        model=model,
        tokenizer=texts,
        template=Template.from_folder(EMBEDDED),
        engine=Engine(model, texts, bounds, metrics),
        metrics=metrics,
        settings=Settings(**{"names": ("laguna-tiny",), **settings}),
        defaults=GenerationConfig.of(model.checkpoint),
    )
    service.engine.start()
    return service


@contextlib.contextmanager
def ended(service: Service) -> Iterator[Service]:
    """Ends the engine afterwards."""
    try:
        yield service
    finally:
        service.engine.drain(0)
        service.engine.join(30)


class Local:
    """Requests to an application in the same process; streams come whole."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._app = create_app(service)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        if body is not None:
            more["json"] = body
        return self.request("POST", path, **more)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._request(method, path, more))

    def together(self, bodies: Sequence[tuple[str, Any]]) -> list[httpx.Response]:
        """All at the same time."""

        async def run() -> list[httpx.Response]:
            return await asyncio.gather(
                *(self._request("POST", path, {"json": body}) for path, body in bodies)
            )

        return asyncio.run(run())

    async def _request(self, method: str, path: str, more: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **more)


def wait_until(done: Callable[[], bool], seconds: float = 30) -> None:
    """Polls; a place in the batch is free a moment after its last word has been said."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end with ``[DONE]``."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Scripted:
    """The model, but it says what it is told to: ``next_token(tokens so far)``.

    Everything else (caches, lengths, checks) is the real thing. Needs a service without a prefix
    cache, because it knows a sequence by its cache.
    """

    def __init__(self, next_token: Callable[[list[int]], int]) -> None:
        self._model = load(threads=1)
        self._next_token = next_token
        self._tokens: dict[int, list[int]] = {}
        self._alive: list[KVCache] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def new_cache(self) -> KVCache:
        cache = self._model.new_cache()
        self._alive.append(cache)  # so that no other cache gets its id
        return cache

    def batch(
        self, sequences: Sequence[Sequence[int]], *, caches: Sequence[KVCache] | None = None,
        **more: Any,
    ) -> list[Array]:  # fmt: skip
        logits = self._model.batch(sequences, caches=caches, **more)
        for rows, tokens, cache in zip(logits, sequences, caches or (), strict=False):
            known = self._tokens.setdefault(id(cache), [])
            known += [int(token) for token in tokens]
            rows[-1] = np.full(rows.shape[1], -50.0, rows.dtype)
            rows[-1][self._next_token(known)] = 50.0
        return logits


def scripted(answer: Callable[[str], str]) -> Laguna:
    """A model that answers a conversation with a text and ``</assistant>``.

    ``answer`` gets the prompt's text. Text behind the last ``<assistant>\\n<think>`` (or
    ``</think>``) of the prompt is what has been said.
    """
    tokenizer = Tokenizer.from_folder(EMBEDDED)

    def next_token(tokens: list[int]) -> int:
        if 23 not in tokens:
            return 0
        turn = len(tokens) - tokens[::-1].index(23)
        said = tokens[turn + 2 :]
        script = [*tokenizer.encode(answer(tokenizer.decode(tokens[: turn + 2]))), 24]
        return script[len(said)] if len(said) < len(script) else 24

    return cast(Laguna, Scripted(next_token))


@contextlib.contextmanager
def listening(service: Service) -> Iterator[str]:
    """The service behind a real socket; gives its URL."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(service), log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()


class Running:
    """``laguna-ref serve`` as a process of its own; ``url`` is known once it listens."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "laguna_ref.cli", "serve", "--port", "0", "--threads", "1",
             *arguments],
            stderr=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self.lines: list[str] = []
        self._urls: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            url = self._urls.get(timeout=SECONDS_TO_START)
        except queue.Empty:
            self.close()
            raise AssertionError("it does not listen: " + "".join(self.lines)) from None
        assert url, "it ended before it listened: " + "".join(self.lines)
        self.url = url

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"listening"' in line:
                self._urls.put(json.loads(line)["url"])
        self._urls.put("")

    @property
    def log(self) -> list[dict[str, Any]]:
        """What was logged, apart from notes about compiling."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def resident_bytes(self) -> int:
        """Memory of its own."""
        with open(f"/proc/{self.process.pid}/status") as file:
            anonymous = next(line for line in file if line.startswith("RssAnon"))
        return int(anonymous.split()[1]) * 1024

    def terminate(self, timeout: float = 60) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self._wait(timeout)

    def close(self) -> None:
        """Ends it, by force if need be; it may have ended already."""
        if self.process.poll() is None:
            self.process.kill()
        self._wait(30)

    def _wait(self, timeout: float) -> int:
        code = self.process.wait(timeout)
        self._reader.join(30)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code
