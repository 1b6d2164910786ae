"""What stands before every route: keys, sizes, types, ids; and the small routes."""

from __future__ import annotations

import asyncio
import json

import pytest

from laguna_ref.errors import InputError
from laguna_ref.server.run import require_key_unless_local
from tests.server.serving import JSON, Local, ended, service_of

PATH = "/v1/completions"
GOOD = {"prompt": [2, 70, 71], "max_tokens": 2, "temperature": 0}


def test_models(local: Local) -> None:
    listed = local.request("GET", "/v1/models").json()
    (card,) = listed["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("laguna-tiny", "model", 8192)
    assert local.request("GET", "/v1/models/laguna-tiny").json() == card
    missing = local.request("GET", "/v1/models/a/b")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_health_and_metrics(local: Local) -> None:
    assert local.request("GET", "/health").json() == {"status": "ok"}
    local.post(PATH, GOOD)
    text = local.request("GET", "/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures["laguna_generation_tokens_total"]) >= 2
    assert float(figures['laguna_requests_finished_total{reason="length"}']) >= 1
    assert float(figures['laguna_http_responses_total{path="/v1/completions",status="200"}']) >= 1
    assert float(figures["laguna_requests_running"]) >= 0


def test_every_answer_has_an_id_and_a_good_one_is_kept(local: Local) -> None:
    given = local.request("GET", "/health", headers={"x-request-id": "mine-1.2"})
    assert given.headers["x-request-id"] == "mine-1.2"
    bad = local.request("GET", "/health", headers={"x-request-id": "a b\x7f"})
    assert len(bad.headers["x-request-id"]) == 16


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", PATH, 405), ("POST", "/v1/models", 405), ("PUT", "/", 405)],
)
def test_wrong_routes_in_the_same_shape(local: Local, method: str, path: str, status: int) -> None:
    response = local.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_bodies_are_bounded_and_typed() -> None:
    with ended(service_of(max_body_bytes=1000)) as service:
        local = Local(service)
        assert local.post(PATH, content=b'{"prompt": "' + b"a" * 1000 + b'"}',
                          headers=JSON).status_code == 413  # fmt: skip
        assert local.post(PATH, content=_pieces(300), headers=JSON).status_code == 413
        assert local.post(PATH, content=json.dumps(GOOD), headers={}).status_code == 415
        plain = {"content-type": "text/plain"}
        assert local.post(PATH, content=json.dumps(GOOD), headers=plain).status_code == 415
        assert local.post(PATH, GOOD).status_code == 200


async def _pieces(count: int):  # type: ignore[no-untyped-def]
    for _ in range(count):
        yield b"          "


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def slow():  # type: ignore[no-untyped-def]
        yield b"{"
        await asyncio.sleep(30)
        yield b"}"

    with ended(service_of(body_timeout=0.1)) as service:
        response = Local(service).post(PATH, content=slow(), headers=JSON)
        assert (response.status_code, response.json()["error"]["code"]) == (408, "timeout")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401), ("Bearer wrong", 401), ("Bearer ", 401), ("one", 401), ("Basic one", 401),
        ("Bearer one", 200), ("bearer two", 200), ("Bearer one two", 401),
    ],
)  # fmt: skip
def test_keys(keyed: Local, header: str | None, status: int) -> None:
    headers = {} if header is None else {"authorization": header}
    for path in ("/v1/models", "/metrics"):
        response = keyed.request("GET", path, headers=headers)
        assert response.status_code == status
        if status == 401:
            assert response.json()["error"]["type"] == "authentication_error"
            assert "one" not in response.text
    assert keyed.request("GET", "/health", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["x/health?", "x/health#", "/health", "["])
def test_no_host_opens_a_path(keyed: Local, host: str) -> None:
    assert keyed.request("GET", "/v1/models", headers={"host": host}).status_code == 401


def test_a_key_may_be_any_text() -> None:
    with ended(service_of(api_keys=("schlüssel",))) as service:
        header = {b"authorization": "Bearer schlüssel".encode()}
        assert Local(service).request("GET", "/v1/models", headers=header).status_code == 200


@pytest.fixture(scope="module")
def keyed():  # type: ignore[no-untyped-def]
    with ended(service_of(api_keys=("one", "two"))) as service:
        yield Local(service)


def test_without_a_key_only_this_machine_may_be_meant() -> None:
    with ended(service_of(local_only=True)) as service:
        local = Local(service)
        for host, status in (("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200),
                             ("evil.example", 403), ("127.0.0.1.evil.example", 403),
                             ("evil.example:70000", 403), ("", 403), ("[", 403)):  # fmt: skip
            found = local.request("GET", "/v1/models", headers={"host": host})
            assert found.status_code == status, host


def test_an_address_that_others_reach_needs_a_key() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        require_key_unless_local(host, ())
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        require_key_unless_local(host, ("key",))
        with pytest.raises(InputError, match="needs a key"):
            require_key_unless_local(host, ())


def test_a_full_queue_is_429_with_retry_after() -> None:
    with ended(service_of(limits={"max_num_seqs": 1, "max_waiting": 1})) as service:
        local = Local(service)
        long = GOOD | {"max_tokens": 60, "ignore_eos": True}
        responses = local.together([(PATH, long)] * 6)
        assert sorted({response.status_code for response in responses}) == [200, 429]
        for response in responses:
            if response.status_code == 429:
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["type"] == "rate_limit_error"
        assert local.post(PATH, GOOD).status_code == 200


def test_more_answers_than_there_is_room_for_are_refused_before_they_are_made(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def job(*_: object, **__: object) -> None:
        nonlocal made
        made += 1

    monkeypatch.setattr("laguna_ref.server.service.Job", job)
    response = local.post("/v1/completions", {"prompt": [[5]] * 20_000, "n": 128})
    assert response.status_code == 400
    assert "at once" in response.json()["error"]["message"]
    assert made == 0


def test_a_bug_is_500_without_a_word_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with ended(service_of()) as service:
        local = Local(service)

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("/secret/path")

        with monkeypatch.context() as patch:
            patch.setattr(service.model, "batch", broken)
            for body in (GOOD, GOOD | {"stream": True}):
                response = local.post(PATH, body)
                assert "secret" not in response.text
                assert "internal error" in response.text
                assert response.status_code == (200 if body.get("stream") else 500)
        with monkeypatch.context() as patch:
            patch.setattr("laguna_ref.server.app.Completion", broken)
            response = local.post(PATH, GOOD)
            assert (response.status_code, response.json()["error"]["code"]) == (
                500, "internal_error",
            )  # fmt: skip
        assert local.post(PATH, GOOD).status_code == 200
