"""Many clients at once, a third of them hanging up early, and SIGTERM in the middle.

8 clients for a few rounds on every run; 32 for a minute with ``-m slow``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.serving import Running

PROMPTS = ["def add(a, b):", "import os\n", "class Stack:\n    ", "# Sort a list\n" * 12]
ROOM_FOR_NOISE = 48 * 2**20
"""Bytes: arenas of the allocator and of threads, measured at 4 to 20 MB after a minute."""


@pytest.fixture
def served() -> Iterator[Running]:
    running = Running("--max-num-seqs", "8", "--max-waiting", "64", "--prefix-cache-mb", "4",
                      "--grace", "1")  # fmt: skip
    yield running
    running.close()


def body_of(kind: int) -> dict[str, Any]:
    """A request that is the same for the same number."""
    return {
        "prompt": PROMPTS[kind % len(PROMPTS)], "max_tokens": 8 + 7 * (kind % 4), "seed": kind,
        "temperature": 1.0, "stream": True, "return_token_ids": True, "ignore_eos": True,
    }  # fmt: skip


def stream(url: str, body: dict[str, Any], most: int | None = None) -> list[dict[str, Any]]:
    """The choices of all chunks, or of the first ``most``: then the client hangs up."""
    found: list[dict[str, Any]] = []
    with (
        httpx.Client(timeout=120) as client,
        client.stream("POST", f"{url}/completions", json=body) as response,
    ):
        assert response.status_code == 200
        for line in response.iter_lines():
            if not line:
                continue
            if line == "data: [DONE]":
                return found
            found += json.loads(line.removeprefix("data: "))["choices"]
            if most is not None and len(found) >= most:
                return found
    raise AssertionError("the stream ended without [DONE]")


def answer(chunks: list[dict[str, Any]]) -> tuple[list[int], str, str]:
    """Ids, text and reason."""
    ids = [token for chunk in chunks for token in chunk["token_ids"]]
    return ids, "".join(chunk["text"] for chunk in chunks), chunks[-1]["finish_reason"]


def client(url: str, number: int, until: float, alone: dict[int, Any]) -> tuple[int, int]:
    """Asks until the time is up; how many answers were whole, and how many it left early."""
    draw = random.Random(number)
    whole = left = 0
    while time.monotonic() < until or not whole + left:
        kind = draw.randrange(len(alone))
        if number % 3 == 0:
            chunks = stream(url, body_of(kind), most=draw.randrange(1, 6))
            ids, _, _ = answer(chunks)
            assert ids == alone[kind][0][: len(ids)]
            left += 1
        else:
            assert answer(stream(url, body_of(kind))) == alone[kind]
            whole += 1
    return whole, left


def wait_for_quiet(url: str) -> None:
    """Until no place is taken."""
    end = time.monotonic() + 60
    root = url.removesuffix("/v1")
    while True:
        text = httpx.get(f"{root}/metrics").text
        if "laguna_requests_running 0.0" in text and "laguna_requests_waiting 0.0" in text:
            return
        assert time.monotonic() < end, "a place is stuck"
        time.sleep(0.05)


def loaded(served: Running, clients: int, seconds: float, kinds: int) -> None:
    alone = {kind: answer(stream(served.url, body_of(kind))) for kind in range(kinds)}
    assert {reason for _, _, reason in alone.values()} == {"length"}
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        # Once to warm up: threads, connections, the prefix cache.
        now = time.monotonic()
        list(pool.map(lambda i: client(served.url, i, now, alone), range(clients)))
        wait_for_quiet(served.url)
        before = served.resident_bytes()
        until = time.monotonic() + seconds
        counts = list(pool.map(lambda i: client(served.url, i, until, alone), range(clients)))
    wait_for_quiet(served.url)
    after = served.resident_bytes()
    assert sum(whole for whole, _ in counts) >= clients // 2
    assert sum(left for _, left in counts) >= clients // 3
    assert after - before < ROOM_FOR_NOISE, f"{before} bytes before, {after} after"
    print(f"{counts=} {before=} {after=}")  # noqa: T201
    for kind in range(kinds):
        assert answer(stream(served.url, body_of(kind))) == alone[kind]


def ends_cleanly(served: Running, clients: int) -> None:
    """SIGTERM while all of them stream: each stream ends with a last chunk and ``[DONE]``."""
    long = body_of(1) | {"max_tokens": 4000}
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(stream, served.url, long) for _ in range(clients)]
        end = time.monotonic() + 60
        root = served.url.removesuffix("/v1")
        while (
            f"laguna_requests_running {min(clients, 8)}.0" not in httpx.get(f"{root}/metrics").text
        ):
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.3)
        served.process.terminate()
        time.sleep(0.3)
        refused = httpx.post(f"{served.url}/completions", json=long, timeout=30)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        for future in running:
            chunks = future.result(60)
            assert chunks[-1]["finish_reason"] == "abort"
            assert all(chunk["finish_reason"] is None for chunk in chunks[:-1])
    assert served.terminate() == 0
    assert served.log[-1]["event"] == "ended"


def test_eight_clients(served: Running) -> None:
    loaded(served, 8, 2, kinds=6)
    ends_cleanly(served, 6)


@pytest.mark.slow
def test_thirty_two_clients_for_a_minute(served: Running) -> None:
    loaded(served, 32, 60, kinds=24)
    ends_cleanly(served, 32)


def test_whoever_leaves_frees_its_place_at_once(served: Running) -> None:
    forever = body_of(0) | {"max_tokens": 8000}
    for _ in range(3):
        stream(served.url, forever, most=2)
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(f"{served.url}/completions", json=forever | {"stream": False}, timeout=0.5)
    wait_for_quiet(served.url)
    text = httpx.get(f"{served.url.removesuffix('/v1')}/metrics").text
    assert 'laguna_requests_finished_total{reason="cancelled"} 4.0' in text
