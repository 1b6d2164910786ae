"""``/v1/completions``: prompts in every form, echo, log-probabilities, streams, limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from laguna_ref.chat import Tokenizer
from laguna_ref.conformance.partial import log_softmax
from laguna_ref.generate import generate
from laguna_ref.load import EMBEDDED
from tests.server.serving import Local, ended, events, service_of

PATH = "/v1/completions"
TEXT = "def add(a, b):"
TOKENIZER = Tokenizer.from_folder(EMBEDDED)
GREEDY = {"max_tokens": 8, "temperature": 0}


def answer(local: Local, **body: Any) -> dict[str, Any]:
    response = local.post(PATH, body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def test_the_answer_is_what_generate_gives(local: Local) -> None:
    ids = TOKENIZER.encode(TEXT)
    body = {"prompt": TEXT, "max_tokens": 20, "seed": 5, "temperature": 0.9, "top_k": 40,
            "top_p": 0.8, "return_token_ids": True}  # fmt: skip
    found = answer(local, **body)
    (choice,) = found["choices"]
    expected = list(
        generate(local.service.model, ids, max_tokens=20, seed=5, temperature=0.9, top_k=40,
                 top_p=0.8)
    )  # fmt: skip
    assert choice["token_ids"][: len(expected)] == expected
    assert choice["text"] == TOKENIZER.decode(expected)
    assert choice["prompt_token_ids"] == ids
    assert found["usage"]["prompt_tokens"] == len(ids)
    assert found["usage"]["completion_tokens"] == len(choice["token_ids"])
    assert found["object"] == "text_completion"
    assert found["model"] == "laguna-tiny"


def test_without_a_seed_the_one_drawn_is_told(local: Local) -> None:
    body = {"prompt": TEXT, "max_tokens": 12, "temperature": 1.5}
    first = answer(local, **body)
    again = answer(local, **body, seed=first["laguna"]["seed"])
    assert again["choices"] == first["choices"]
    assert answer(local, **body)["laguna"]["seed"] != first["laguna"]["seed"]


def test_prompts_in_every_form(local: Local) -> None:
    ids = TOKENIZER.encode(TEXT)
    single = [answer(local, prompt=one, **GREEDY)["choices"][0] for one in (TEXT, ids)]
    assert single[0] == single[1]
    other = answer(local, prompt="import os", **GREEDY)["choices"][0]
    for prompts in ([TEXT, "import os"], [ids, TOKENIZER.encode("import os")]):
        found = answer(local, prompt=prompts, n=2, **GREEDY)
        assert [one["index"] for one in found["choices"]] == [0, 1, 2, 3]
        texts = [one["text"] for one in found["choices"]]
        assert texts == [single[0]["text"]] * 2 + [other["text"]] * 2
        assert found["usage"]["prompt_tokens"] == len(ids) + len(TOKENIZER.encode("import os"))


def test_answer_i_of_n_is_that_of_seed_plus_i(local: Local) -> None:
    body = {"prompt": TEXT, "max_tokens": 10, "temperature": 1.2}
    several = answer(local, **body, n=3, seed=7)["choices"]
    single = [answer(local, **body, seed=7 + i)["choices"][0] for i in range(3)]
    assert [one["text"] for one in several] == [one["text"] for one in single]
    assert len({one["text"] for one in several}) > 1


def test_echo_with_logprobs_covers_prompt_and_answer(local: Local) -> None:
    ids = TOKENIZER.encode(TEXT)
    body = {"prompt": ids, "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 4}
    (choice,) = answer(local, **body, return_tokens_as_token_ids=True)["choices"]
    found = choice["logprobs"]
    said = [int(name.removeprefix("token_id:")) for name in found["tokens"]]
    assert said[: len(ids)] == ids
    expected = log_softmax(local.service.model(said))
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    for place, token in enumerate(said[1:]):
        assert found["token_logprobs"][place + 1] == expected[place, token]
        best = np.argsort(-expected[place], kind="stable")[:4]
        names = {f"token_id:{i}": expected[place, i] for i in [*best, token]}
        assert found["top_logprobs"][place + 1] == names
    assert choice["text"] == TOKENIZER.decode(said)
    for offset, token in zip(found["text_offset"], said, strict=True):
        assert choice["text"][offset:].startswith(TOKENIZER.decode([token]))


def test_echo_alone_generates_nothing(local: Local) -> None:
    (choice,) = answer(local, prompt=TEXT, max_tokens=0, echo=True, logprobs=0)["choices"]
    assert choice["text"] == TEXT
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == len(TOKENIZER.encode(TEXT))


def test_prompt_logprobs_as_vllm_spells_them(local: Local) -> None:
    ids = TOKENIZER.encode(TEXT)
    (choice,) = answer(local, prompt=ids, max_tokens=1, prompt_logprobs=2)["choices"]
    rows = choice["prompt_logprobs"]
    assert rows[0] is None
    expected = log_softmax(local.service.model(ids))
    for place, row in enumerate(rows[1:]):
        own = row[str(ids[place + 1])]
        assert own["logprob"] == expected[place, ids[place + 1]]
        assert own["rank"] == (expected[place] >= own["logprob"]).sum()
        assert own["decoded_token"] == TOKENIZER.decode([ids[place + 1]])
        assert {"1", "2"} <= {str(entry["rank"]) for entry in row.values()}
        assert len(row) <= 3


def test_a_stream_joins_to_the_whole(local: Local) -> None:
    body = {"prompt": [TEXT, "import "], "max_tokens": 9, "seed": 3, "logprobs": 1, "echo": True}
    whole = answer(local, **body)
    response = local.post(PATH, body | {"stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    assert len({chunk["id"] for chunk in chunks}) == 1
    *chunks, last = chunks
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 18)
    for choice in whole["choices"]:
        parts = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        assert all(part["finish_reason"] is None for part in parts[:-1])
        for key, values in choice["logprobs"].items():
            joined = [v for part in parts if part["logprobs"] for v in part["logprobs"][key]]
            assert joined == values


def test_stops(local: Local) -> None:
    whole = answer(local, prompt=TEXT, max_tokens=30, temperature=0)["choices"][0]["text"]
    assert "return" in whole
    for include in (False, True):
        found = answer(
            local, prompt=TEXT, max_tokens=30, temperature=0, stop=["turn", "zzz"],
            include_stop_str_in_output=include,
        )["choices"][0]  # fmt: skip
        end = whole.index("turn") + (4 if include else 0)
        assert found["text"] == whole[:end]
        assert (found["finish_reason"], found["stop_reason"]) == ("stop", "turn")
    ids = TOKENIZER.encode(whole)
    found = answer(local, prompt=TEXT, max_tokens=30, temperature=0, stop_token_ids=[ids[2]])
    assert found["choices"][0]["stop_reason"] == ids[2]
    assert found["usage"]["completion_tokens"] == 3


def test_a_prefix_met_before_is_not_computed_again(local: Local) -> None:
    prompt = [int(i) for i in np.random.default_rng(8).integers(70, 3000, 150)]
    first = answer(local, prompt=prompt, **GREEDY)
    second = answer(local, prompt=[*prompt, 80], **GREEDY)
    again = answer(local, prompt=prompt, **GREEDY)
    cached = [
        one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in (first, second, again)
    ]
    assert cached == [0, 150, 149]
    assert again["choices"] == first["choices"]


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({}, 400, "prompt", "required"),
        ({"prompt": ""}, 400, "prompt", "empty"),
        ({"prompt": []}, 400, "prompt", "empty"),
        ({"prompt": [[]]}, 400, "prompt", "empty"),
        ({"prompt": [1, "a"]}, 400, "prompt", "list"),
        ({"prompt": [True]}, 400, "prompt", "list"),
        ({"prompt": [3072]}, 400, "prompt", "vocabulary of 3072"),
        ({"prompt": [-1]}, 400, "prompt", "vocabulary"),
        ({"prompt": [70] * 8193}, 400, "prompt", "context 8192"),
        ({"prompt": [70], "max_tokens": 8193}, 400, "max_tokens", "context"),
        ({"prompt": [70], "max_tokens": -1}, 400, "max_tokens", "greater"),
        ({"prompt": [70], "max_tokens": "7"}, 400, "max_tokens", "integer"),
        ({"prompt": [70], "temperature": -0.1}, 400, "temperature", "greater"),
        ({"prompt": [70], "top_p": 0}, 400, "top_p", "greater"),
        ({"prompt": [70], "top_p": 1.01}, 400, "top_p", "less"),
        ({"prompt": [70], "n": 0}, 400, "n", "greater"),
        ({"prompt": [70], "n": 100}, 400, "n", "at most 44"),
        ({"prompt": [70], "logprobs": 21}, 400, "logprobs", "0 to 20"),
        ({"prompt": [70], "logprobs": True}, 400, "logprobs", "integer"),
        ({"prompt": [70], "prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs", "stream"),
        ({"prompt": [70], "stop": ""}, 400, "stop", "at least 1"),
        ({"prompt": [70], "stop": ["a"] * 17}, 400, "stop", "at most 16"),
        ({"prompt": [70], "seed": 2**63}, 400, "seed", "less"),
        ({"prompt": [70], "model": "gpt"}, 404, "model", "does not exist"),
        ({"prompt": [70], "logit_bias": {"70": 1}}, 400, "logit_bias", "not implemented"),
        ({"prompt": [70], "best_of": 2}, 400, "best_of", "not implemented"),
        ({"prompt": [70], "suffix": "x"}, 400, "suffix", "not implemented"),
        ({"prompt": [70], "presence_penalty": 0.5}, 400, "presence_penalty", "not implemented"),
        ({"prompt": [70], "response_format": {"type": "x"}}, 400, "response_format", "not"),
    ],
)  # fmt: skip
def test_what_is_refused(
    local: Local, body: dict[str, Any], status: int, param: str, said: str
) -> None:
    response = local.post(PATH, body)
    error = response.json()["error"]
    assert response.status_code == status
    assert error["param"] == param
    assert said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_what_changes_nothing_is_accepted(local: Local) -> None:
    body = {"prompt": TEXT, **GREEDY}
    more = {
        "user": "me", "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0,
        "best_of": 1, "suffix": None, "min_p": 0.0, "repetition_penalty": 1.0, "colour": "red",
        "response_format": {"type": "text"}, "top_k": -1, "priority": 0,
    }  # fmt: skip
    assert answer(local, **body, **more)["choices"] == answer(local, **body)["choices"]


def test_the_context_may_be_filled_to_the_last_place() -> None:
    with ended(service_of(limits={"max_model_len": 40})) as service:
        small = Local(service)
        body = {"temperature": 0, "ignore_eos": True}
        found = answer(small, prompt=[70] * 38, max_tokens=3, **body)
        assert found["usage"]["total_tokens"] == 41  # the last token needs no place
        for more in ({"prompt": [70] * 38, "max_tokens": 4}, {"prompt": [70] * 41}):
            error = small.post(PATH, body | more).json()["error"]
            assert error["code"] == "context_length_exceeded"


def test_without_a_tokenizer_ids_are_served_and_texts_refused() -> None:
    with ended(service_of(tokenizer=False)) as service:
        plain = Local(service)
        (choice,) = answer(plain, prompt=[2, 70], max_tokens=2, logprobs=1)["choices"]
        assert choice["text"] == ""
        assert all(name.startswith("token_id:") for name in choice["logprobs"]["tokens"])
        for path, body in ((PATH, {"prompt": "a"}), ("/v1/chat/completions", {"messages": []})):
            response = plain.post(path, body)
            assert response.status_code == 400
            assert "no tokenizer" in response.json()["error"]["message"]
