"""Requests to a server: tried again while that makes sense, and errors as one line."""

from __future__ import annotations

from typing import Any

import httpx
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from laguna_ref.conformance.backend import BackendDiedError, BackendError

ATTEMPTS = 4
LONGEST_WAIT = 4.0
"""Seconds between two attempts."""
TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_TEXT = 200


class BusyError(Exception):
    """An answer that another attempt may better."""


class Client:
    """One server and one of its models. ``post`` may be called from several threads."""

    def __init__(self, url: str, timeout: float, connections: int, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=connections)
        self._http = httpx.Client(timeout=timeout, headers=headers, limits=limits)
        self.url = url
        self.model: str | None = None
        self.server = "server"

    def close(self) -> None:
        """Gives the connections back."""
        self._http.close()

    def choose_model(self, name: str | None) -> None:
        """The model named, or the only one there is; raises BackendError where there are several.

        A server that does not list its models is taken to need no name.
        """
        try:
            listed = self._send("GET", f"{self.url}/models", None).get("data", [])
        except BackendDiedError:
            raise
        except BackendError:
            listed = []
        names = [str(one.get("id")) for one in listed if isinstance(one, dict)]
        if name is None and len(names) > 1:
            raise BackendError("the server has several models: name one as #NAME", key=self.url,
                               expected=", ".join(names))  # fmt: skip
        self.model = name or (names[0] if names else None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that comes back for ``body``.

        path: below the URL; one that starts with ``/`` stands beside ``/v1`` instead. Raises
        BackendError for a refusal, BackendDiedError where nothing answers any more.
        """
        whole = dict(body) if self.model is None else {"model": self.model, **body}
        root = self.url.removesuffix("/v1")
        address = root + path if path.startswith("/") else f"{self.url}/{path}"
        return self._send("POST", address, whole)

    def _send(self, method: str, address: str, body: dict[str, Any] | None) -> dict[str, Any]:
        tries = Retrying(
            retry=retry_if_exception_type((httpx.TransportError, BusyError)),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT),
            reraise=True,
        )
        try:
            response = tries(self._once, method, address, body)
        except httpx.TransportError as problem:
            raise BackendDiedError(
                f"{self.url} does not answer", found=f"{type(problem).__name__}: {problem}"
            ) from problem
        except BusyError as problem:
            raise BackendError(f"{self.url} fails each of {ATTEMPTS} times",
                               found=str(problem)) from problem  # fmt: skip
        self.server = response.headers.get("server", self.server)
        return _object(response, self.url)

    def _once(self, method: str, address: str, body: dict[str, Any] | None) -> httpx.Response:
        response = self._http.request(method, address, json=body)
        if response.status_code in TRY_AGAIN:
            raise BusyError(f"HTTP {response.status_code}: {_short(response.text)}")
        return response


def _object(response: httpx.Response, url: str) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        raise BackendError(f"{url} refuses", found=f"HTTP {response.status_code}: "
                           f"{_short(response.text)}")  # fmt: skip
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BackendError(f"{url} answers something else", expected="a JSON object",
                           found=_short(response.text))  # fmt: skip
    return found


def _short(text: str) -> str:
    return " ".join(text.split())[:LONGEST_TEXT]
