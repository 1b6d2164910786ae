"""The routes, and what stands before all of them: keys, limits, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar
from urllib.parse import urlsplit

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laguna_ref.errors import LagunaError
from laguna_ref.server import errors, page
from laguna_ref.server.answers import Answers
from laguna_ref.server.chat import Chat
from laguna_ref.server.completions import DONE, Completion, event
from laguna_ref.server.requests import ChatRequest, CompletionRequest, Sampled, parse
from laguna_ref.server.service import Service

log = structlog.get_logger("laguna_ref.http")
T = TypeVar("T")
Body = TypeVar("Body", bound=Sampled)
OPEN_PATHS = frozenset({"/health", *page.FILES})
"""What anyone may see where a key is asked for: no data comes from there."""
REQUEST_ID = re.compile(r"[\w.-]{1,100}")


def create_app(
    service: Service,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> ASGIApp:
    """The ASGI application; the engine of ``service`` must have been started."""
    endpoints = Endpoints(service)
    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/models", endpoints.models, methods=["GET"]),
            Route("/v1/models/{name:path}", endpoints.model, methods=["GET"]),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/health", endpoints.health, methods=["GET"]),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
            *page.routes(),
        ],
        exception_handlers={
            errors.ApiError: _api_error,
            LagunaError: _input_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _unforeseen,
        },
    )
    return Front(app, service)


class Front:
    """Before any route: a request's id, its key, and one line in the log when it has ended."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        structlog.contextvars.bind_contextvars(request=request_id)
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self._refusal(request)
            await (_error(refusal) if refusal else self._app)(scope, receive, sending)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._service.metrics.responses.labels(path, str(status)).inc()
            log.info("request", method=request.method, path=path, status=status,
                     seconds=round(time.perf_counter() - started, 4))  # fmt: skip

    def _refusal(self, request: Request) -> errors.ApiError | None:
        """Why the request may not go on."""
        settings = self._service.settings
        if settings.local_only and not is_local(_host(request)):
            return errors.ApiError(403, "the host named is not this machine", code="wrong_host")
        if not settings.api_keys or request.scope["path"] in OPEN_PATHS:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # All are compared, whole digests each: time tells neither which nor how much was right.
        sent = _digest(_as_sent(given.strip()))
        same = [hmac.compare_digest(sent, _digest(key)) for key in settings.api_keys]
        if scheme.lower() == "bearer" and any(same):
            return None
        return errors.ApiError(401, "wrong or missing API key", kind="authentication_error",
                               code="invalid_api_key")  # fmt: skip


class Endpoints:
    """One method a route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse(
            {"object": "list", "data": [self._card(name) for name in self._service.settings.names]}
        )

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/NAME``."""
        return JSONResponse(self._card(self._service.require_model(request.path_params["name"])))

    async def health(self, request: Request) -> Response:
        """``GET /health``: 200 while requests are taken, else 503."""
        if not self._service.engine.accepting:
            raise errors.shutting_down()
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``."""
        media = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self._service.metrics.text(), media_type=media)

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        body = await self._body(request, CompletionRequest)
        return await self._answer(request, body, lambda: Completion(self._service, body))

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = await self._body(request, ChatRequest)
        return await self._answer(request, body, lambda: Chat(self._service, body))

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise errors.ApiError(415, "Content-Type must be application/json")
        self._service.engine.require_room(1)
        raw = await read_body(request, self._service)
        return await run_in_threadpool(parse, kind, raw)

    async def _answer(
        self, request: Request, body: Sampled, prepare: Callable[[], Completion | Chat]
    ) -> Response:
        # Templates and tokenizers take their time with a long prompt: not on the event loop.
        asked = await run_in_threadpool(prepare)
        answers = Answers(self._service.engine, asked.jobs)
        if body.stream:
            return EventStream(_events(asked.chunks(answers)), answers.close)
        try:
            return JSONResponse(await unless_gone(request, asked.whole(answers)))
        finally:
            answers.close()

    def _card(self, name: str) -> dict[str, object]:
        config = self._service.model.config
        return {
            "id": name, "object": "model", "created": self._service.started,
            "owned_by": "laguna_ref", "root": self._service.settings.names[0], "parent": None,
            "max_model_len": self._service.engine.limits.max_model_len,
            "laguna": {
                "num_hidden_layers": config.num_hidden_layers,
                "num_experts": config.num_experts,
                "num_experts_per_tok": config.num_experts_per_tok,
            },
        }  # fmt: skip


class EventStream(StreamingResponse):
    """Server-sent events; ``close`` is called however it ends, a client gone included."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(
            events, media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )  # fmt: skip
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _events(chunks: AsyncIterator[dict[str, object]]) -> AsyncIterator[bytes]:
    """As bytes, with ``[DONE]`` behind; an error in the middle is an event of its own."""
    try:
        async for chunk in chunks:
            yield event(chunk)
    except errors.ApiError as problem:
        yield event(problem.to_json())
    except Exception:
        log.exception("stream failed")
        yield event(errors.internal().to_json())
    yield DONE


async def read_body(request: Request, service: Service) -> bytes:
    """The body, if it is not too large and arrives in time; raises ApiError."""
    most = service.settings.max_body_bytes
    too_large = errors.ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > most:
        raise too_large
    raw = bytearray()
    try:
        async with asyncio.timeout(service.settings.body_timeout):
            async for part in request.stream():
                raw += part
                if len(raw) > most:
                    raise too_large
    except TimeoutError:
        raise errors.ApiError(408, "the body did not arrive in time", code="timeout") from None
    return bytes(raw)


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """The answer; cancelled, with ClientDisconnect, as soon as nobody waits for it any more."""
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(problem: errors.ApiError) -> Response:
    return JSONResponse(problem.to_json(), problem.status, headers=problem.headers)


async def _api_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, errors.ApiError)
    return _error(problem)


async def _input_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, LagunaError)
    return _error(errors.of_input(problem))


async def _http_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    found = errors.ApiError(problem.status_code, problem.detail)
    return JSONResponse(found.to_json(), found.status, headers=problem.headers)


async def _gone(request: Request, problem: Exception) -> Response:
    return Response(status_code=499)  # nginx's word for it; nobody reads it


async def _unforeseen(request: Request, problem: Exception) -> Response:
    log.error("unforeseen", exc_info=problem)
    return _error(errors.internal())


def _host(request: Request) -> str:
    """As the header has it: starlette puts the own address in the place of a malformed one."""
    given = request.headers.get("host")
    if given is None:
        return str((request.scope.get("server") or ("",))[0])
    try:
        return urlsplit(f"//{given}").hostname or ""
    except ValueError:
        return ""


def is_local(host: str) -> bool:
    """Whether a host, by name or address, is this machine and no other can reach it."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _as_sent(header: str) -> str:
    """A header's bytes, which are handed on as Latin-1, as the UTF-8 that a key is."""
    return header.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
