"""Generation: greedy against the forward pass, where it stops, what it refuses and when."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref import Laguna, generate
from laguna_ref.errors import ConfigError, InputError
from tests.small import Small, replaced, small, small_config, tokens_for, uniform_config

PROMPT = [5, 1, 7, 3]


@pytest.fixture(scope="module")
def model() -> Laguna:
    return small().load(numerics="float64")


def with_generation_config(raw: dict[str, Any] | None) -> Laguna:
    loaded = small().load(numerics="float64")
    loaded.checkpoint.generation_config = raw
    return loaded


def greedy(model: Laguna, prompt: list[int], count: int) -> list[int]:
    """One whole forward pass a token, no cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(model(tokens)[-1])))
    return tokens[len(prompt) :]


def test_greedy_is_the_greatest_logit_of_the_whole_forward_pass(model: Laguna) -> None:
    found = list(generate(model, PROMPT, max_tokens=12, temperature=0, stop_ids=[]))
    assert found == greedy(model, PROMPT, 12)


def test_a_prompt_may_continue_a_cache(model: Laguna) -> None:
    cache = model.new_cache()
    model(PROMPT[:3], cache=cache)
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "stop_ids": []}
    found = list(generate(model, PROMPT[3:], cache=cache, **options))
    assert found == list(generate(model, PROMPT, **options))
    assert cache.length == len(PROMPT) + 5  # the last token was never computed
    room = model.config.max_position_embeddings - cache.length
    with pytest.raises(InputError, match="9 cached"):
        generate(model, [5] * (room + 1), cache=cache)


def test_a_long_prompt_is_computed_in_chunks(
    model: Laguna, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tokens_for(model.config.raw, 23).tolist()
    # By its module: ``laguna_ref.generate`` is the function.
    monkeypatch.setattr(sys.modules["laguna_ref.generate"], "PREFILL_CHUNK", 7)
    progress: list[tuple[int, int]] = []
    tokens = generate(
        model,
        prompt,
        max_tokens=3,
        temperature=0,
        stop_ids=[],
        on_prefill=lambda done, total: progress.append((done, total)),
    )
    assert list(tokens) == greedy(model, prompt, 3)
    assert progress == [(7, 23), (14, 23), (21, 23), (23, 23)]


def test_it_ends_at_a_stop_token_which_it_does_not_yield(model: Laguna) -> None:
    free = greedy(model, PROMPT, 6)
    stop = free[3]
    found = list(generate(model, PROMPT, max_tokens=6, temperature=0, stop_ids=[stop]))
    assert found == free[: free.index(stop)]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_max_tokens(model: Laguna, count: int) -> None:
    options: dict[str, Any] = {"max_tokens": count, "temperature": 0, "stop_ids": []}
    assert len(list(generate(model, PROMPT, **options))) == count


def test_the_last_token_is_not_computed_for_nothing(model: Laguna) -> None:
    calls = 0

    def embed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return model.engine.embed(*arguments)

    list(generate(replaced(model, embed=embed), PROMPT, max_tokens=3, stop_ids=[]))
    assert calls == 3, "one for the prompt, one for each token but the last"


def test_it_ends_where_positions_do() -> None:
    model = small(uniform_config(1, mlp="dense", max_position_embeddings=8)).load()
    found = list(generate(model, PROMPT, max_tokens=50, stop_ids=[]))
    assert len(found) == 8 - len(PROMPT) + 1, "the last logits give one token more"


def test_the_same_seed_gives_the_same_text(model: Laguna) -> None:
    def text(seed: int) -> list[int]:
        options: dict[str, Any] = {"max_tokens": 20, "temperature": 2.0, "stop_ids": []}
        return list(generate(model, PROMPT, seed=seed, **options))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_top_k_one_is_greedy(model: Laguna) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 5.0, "top_k": 1, "stop_ids": []}
    assert list(generate(model, PROMPT, **options)) == greedy(model, PROMPT, 6)


# Options are looked at before the first token is asked for


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
    ],
)
def test_bad_options_are_refused_at_once(model: Laguna, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        generate(model, PROMPT, **options)


@pytest.mark.parametrize("prompt", [[], 3, [40], [[1]], [1.0], [1] * 600, "text"])
def test_bad_prompts_are_refused_at_once(model: Laguna, prompt: Any) -> None:
    with pytest.raises(InputError, match="token"):
        generate(model, prompt)


# generation_config.json


def test_without_a_file_it_is_greedy_and_stops_at_the_configs_ids() -> None:
    model = with_generation_config(None)
    free = greedy(model, PROMPT, 8)
    ended = [i for i, token in enumerate(free) if token in model.config.eos_token_id]
    expected = free[: ended[0]] if ended else free
    assert list(generate(model, PROMPT, max_tokens=8)) == expected


def test_the_file_decides_what_the_caller_leaves_open() -> None:
    free = greedy(small().float64, PROMPT, 8)
    model = with_generation_config({"eos_token_id": free[2], "max_new_tokens": 8})
    assert list(generate(model, PROMPT)) == free[: free.index(free[2])]
    model = with_generation_config({"eos_token_id": [], "max_new_tokens": 4})
    assert list(generate(model, PROMPT)) == free[:4]
    assert list(generate(model, PROMPT, max_tokens=2)) == free[:2]


def test_do_sample_false_means_greedy_whatever_stands_beside_it() -> None:
    raw = {"do_sample": False, "temperature": 9.0, "eos_token_id": [], "max_new_tokens": 6}
    model = with_generation_config(raw)
    assert list(generate(model, PROMPT)) == greedy(model, PROMPT, 6)


@pytest.mark.parametrize(
    "raw",
    [
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "temperature": "hot"},
        {"do_sample": True, "top_k": -5},
        {"do_sample": True, "top_k": float("inf")},
        {"do_sample": True, "top_p": 0},
        {"max_new_tokens": "many"},
        {"max_new_tokens": float("inf")},
        {"max_new_tokens": -1},
        {"eos_token_id": "2"},
        {"eos_token_id": [2, None]},
    ],
)
def test_a_file_with_wrong_values_is_refused_by_name(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        generate(with_generation_config(raw), PROMPT)


def test_the_published_file() -> None:
    raw = {
        "bos_token_id": 2,
        "do_sample": True,
        "eos_token_id": [2, 24],
        "max_new_tokens": 2048,
        "pad_token_id": 9,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    found = laguna_ref.generate(with_generation_config(raw), PROMPT, seed=0, max_tokens=9)
    assert not {2, 24} & set(found)


def test_a_model_written_with_a_generation_config_uses_it(tmp_path: Any) -> None:
    drawn: Small = small(small_config())
    text = b'{"max_new_tokens": 2, "eos_token_id": []}'
    drawn.write(tmp_path / "m", extra_files={"generation_config.json": text})
    model = laguna_ref.load(tmp_path / "m")
    assert len(list(generate(model, PROMPT))) == 2
