"""Errors as OpenAI spells them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from laguna_ref.errors import LagunaError, _short


class ApiError(Exception):
    """What a client is told; never a path, never a traceback."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After`` where trying again makes sense."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        parts = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": parts}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """HTTP 400."""
    return ApiError(400, message, param=param, code=code)


def busy(seconds: int) -> ApiError:
    """HTTP 429: the queue is full."""
    return ApiError(
        429, f"the queue is full; try again in {seconds} s", kind="rate_limit_error",
        code="queue_full", retry_after=seconds,
    )  # fmt: skip


def shutting_down() -> ApiError:
    """HTTP 503."""
    return ApiError(503, "the server is shutting down", kind="server_error", code="shutting_down")


def timed_out() -> ApiError:
    """HTTP 504."""
    return ApiError(504, "the request took too long", kind="server_error", code="timeout")


def internal() -> ApiError:
    """HTTP 500; what happened is in the log."""
    return ApiError(500, "internal error", kind="server_error", code="internal_error")


def of_input(problem: LagunaError) -> ApiError:
    """HTTP 400 for input that the model, the template or the tokenizer refuses.

    The file that an error may name stays on this side.
    """
    text = problem.message
    if problem.expected is not None:
        text += f"; expected {_short(problem.expected)}"
    if problem.found is not None:
        text += f"; found {_short(problem.found)}"
    return bad_request(printable(text), problem.key)


def printable(text: str) -> str:
    """One line that can be encoded: a lone surrogate becomes its escape."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
