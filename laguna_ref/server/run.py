"""Serves until told to stop: SIGTERM or Ctrl-C ends streams cleanly, a second one ends at once."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from types import FrameType

import structlog
import uvicorn

from laguna_ref.errors import InputError
from laguna_ref.server import logs
from laguna_ref.server.app import create_app, is_local
from laguna_ref.server.service import Service

log = structlog.get_logger("laguna_ref.server")
BACKLOG = 2048
"""Connections that wait until the engine is warm; uvicorn's own default."""
LAST_BYTES = 3
"""Seconds that clients have to read what was sent when everything has ended."""


@dataclass(frozen=True)
class Address:
    """Where to listen, and how long an end may take."""

    host: str = "127.0.0.1"
    port: int = 8000
    grace: float = 10.0


def require_key_unless_local(host: str, keys: tuple[str, ...]) -> None:
    """Raises InputError for an address others can reach, without a key."""
    if not keys and not is_local(host):
        raise InputError(
            "an address that others can reach needs a key", key="--host", found=host,
            expected="--api-key or LAGUNA_API_KEY",
        )  # fmt: skip


class Server(uvicorn.Server):
    """uvicorn, which on a signal first lets the engine drain: until then it answers, with 503."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace = service, grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Runs until drained."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain; second: leave."""
        if self._draining or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        log.info("draining", seconds=self._grace, running=self._service.engine.running)
        self._service.engine.drain(self._grace, self._drained)

    def _drained(self) -> None:
        self.should_exit = True


def serve(service: Service, address: Address, log_format: str, log_level: str) -> None:
    """Starts the engine, then listens; returns when it has ended."""
    require_key_unless_local(address.host, service.settings.api_keys)
    bound = _bound(address)
    logs.configure(log_format, log_level)
    service.engine.start()
    config = uvicorn.Config(
        create_app(service), log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=LAST_BYTES, h11_max_incomplete_event_size=64 * 1024,
        headers=[("server", "laguna-ref")], lifespan="off",
    )  # fmt: skip
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("listening", url=f"http://{shown}:{port}/v1", pid=os.getpid(),
             models=list(service.settings.names))  # fmt: skip
    with bound:
        Server(config, service, address.grace).run(sockets=[bound])
    log.info("ended")


def _bound(address: Address) -> socket.socket:
    """A listening socket, before the weights are touched: a port in use is told at once."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as problem:
        raise _cannot_listen(address, problem) from problem
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(BACKLOG)
    except OSError as problem:
        bound.close()
        raise _cannot_listen(address, problem) from problem
    return bound


def _cannot_listen(address: Address, problem: OSError) -> InputError:
    return InputError(
        f"cannot listen ({problem.strerror or problem})", key="--host, --port",
        found=f"{address.host}:{address.port}",
    )  # fmt: skip
