"""Bodies that mean harm: 4xx in OpenAI's shape, and the server goes on as before.

300 on every run, 5,000 with ``-m slow``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.server.serving import JSON, Local, ended, service_of, wait_until

PATHS = ("/v1/completions", "/v1/chat/completions")
GOOD = {
    "/v1/completions": {"prompt": [2, 70, 71], "max_tokens": 2, "temperature": 0},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0,
    },
}  # fmt: skip
NAMES = [
    "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stop",
    "stream", "stream_options", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "tools",
    "tool_choice", "chat_template_kwargs", "laguna", "model", "stop_token_ids", "logit_bias",
    "max_completion_tokens", "response_format", "__proto__", "", "ignore_eos", "return_token_ids",
]  # fmt: skip

numbers = st.one_of(
    st.integers(),
    st.integers(10**30, 10**40),
    st.floats(),
    st.sampled_from([1e308, -1e308, 5e-324]),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\ud800", "\x00", "〈|EOS|〉", "</assistant>", "{{ 7*7 }}", "a" * 5000, "⁧"]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
deep = st.integers(100, 20000).map(lambda depth: b'{"prompt": ' + b"[" * depth)
closed = st.integers(100, 5000).map(
    lambda depth: b'{"messages": [], "tools": ' + b'[{"a":' * depth + b"1" + b"}]" * depth + b"}"
)
huge = st.sampled_from([
    b'{"prompt": [' + b"70," * 9000 + b"70]}",
    b'{"prompt": "' + b"ab " * 30000 + b'"}',
    b'{"messages": [{"role": "user", "content": "' + b"x y" * 30000 + b'"}]}',
    b'{"prompt": [70], "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"prompt": [70], "temperature": 1' + b"0" * 400 + b"}",
    b'{"messages": [' + b"{}," * 5000 + b"{}]}",
])  # fmt: skip
raw = st.one_of(st.binary(max_size=60), deep, closed, huge,
                st.sampled_from([b"", b"null", b"[]", b"NaN", b'{"prompt": NaN}', b'"\\ud800"',
                                 b'{"prompt": "\xff\xfe"}', b'{"prompt": "\\ud800"}']))  # fmt: skip


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good body with some of its fields replaced, or no body at all."""
    path = draw(st.sampled_from(PATHS))
    if draw(st.integers(0, 3)) == 0:
        return path, draw(raw)
    body: dict[str, Any] = dict(GOOD[path])
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)):
        body[name] = draw(values)
    if draw(st.booleans()):
        names = st.sampled_from(["enable_thinking", "self", "text", "messages", "a b", "", "tools"])
        body["chat_template_kwargs"] = draw(st.dictionaries(names, values, max_size=2))
    return path, json.dumps(body).encode()


def check(local: Local, path: str, body: bytes) -> None:
    """Only 4xx, in OpenAI's shape; a body that happens to be a good one is answered."""
    response = local.post(path, content=body, headers=JSON)
    if response.status_code == 200:
        assert "error" not in response.text or '"stream"' in body.decode()
        return
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "Traceback" not in response.text
    assert "/laguna_ref/" not in response.text


def good_answers(local: Local) -> list[Any]:
    responses = [local.post(path, GOOD[path]) for path in PATHS]
    assert [response.status_code for response in responses] == [200, 200]
    return [response.json()["choices"] for response in responses]


def attacked(local: Local, count: int) -> None:
    before = good_answers(local)

    @settings(max_examples=count)
    @given(spoilt())
    def run(one: tuple[str, bytes]) -> None:
        check(local, *one)

    run()
    assert good_answers(local) == before
    wait_until(lambda: local.service.engine.running + local.service.engine.waiting == 0)


@pytest.fixture(scope="module")
def small() -> Iterator[Local]:
    """With a short context: a body that turns out to be a good one is answered soon."""
    limits = {"max_model_len": 96, "max_num_seqs": 8, "max_waiting": 8}
    with ended(service_of(limits=limits)) as service:
        yield Local(service)


def test_three_hundred(small: Local) -> None:
    attacked(small, 300)


@pytest.mark.slow
def test_five_thousand(small: Local) -> None:
    attacked(small, 5000)
