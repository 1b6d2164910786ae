"""A conversation: what it remembers, and that its cache shows in nothing but the time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import laguna_ref
from laguna_ref import checkpoint
from laguna_ref.chat import Template, Tokenizer
from laguna_ref.chat.answer import Call
from laguna_ref.chat.session import Session, Turn
from laguna_ref.errors import InputError
from laguna_ref.generation_config import GenerationConfig
from tests.chat.small_tokenizer import VOCAB_SIZE, tokenizer_json
from tests.small import small_config

CONFIG = small_config(vocab_size=VOCAB_SIZE, max_position_embeddings=900, sliding_window=8)
SHELL = {
    "type": "function",
    "function": {"name": "shell", "parameters": {"properties": {"cmd": {"type": "string"}}}},
}
CALL = "<tool_call>shell\n<arg_key>cmd</arg_key>\n<arg_value>ls</arg_value>\n</tool_call>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "model"
    files = {"tokenizer.json": tokenizer_json().encode()}
    checkpoint.write(path, CONFIG, checkpoint.synth(CONFIG, seed=3), extra_files=files)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> laguna_ref.Laguna:
    # In float64 even the numpy engine's rounding, which depends on the cuts, decides no token.
    return laguna_ref.load(folder, numerics="float64", engine="numpy")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture
def new(model: laguna_ref.Laguna, tokenizer: Tokenizer) -> Callable[..., Session]:
    def session(**options: Any) -> Session:
        options = {"max_tokens": 12, "temperature": 0.9, "system": "S"} | options
        return Session(model, tokenizer, Template.builtin("xs2"), **options)

    return session


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Callable[..., None]:
    """The model computes as ever, but these are the tokens chosen, each answer up to id 24."""

    def script(*answers: str) -> None:
        tokens = iter([token for text in answers for token in (*tokenizer.encode(text), 24)])
        module = sys.modules["laguna_ref.generate"]
        monkeypatch.setattr(module, "sample", lambda *_: next(tokens))

    return script


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answered(session: Session, *messages: dict[str, Any]) -> Turn:
    turn = session.begin(*messages)
    for _ in turn.deltas():
        pass
    return turn


def alone(session: Session, turn: Turn, answer: int) -> list[int]:
    """What the same prompt gives without any cache."""
    tokens = laguna_ref.generate(
        session.model, turn.prompt, seed=session.seed + answer, **session.options
    )
    return list(tokens)


def test_the_cache_shows_in_no_token(new: Callable[..., Session]) -> None:
    session = new(seed=5, stop_ids=(999,))
    for number, text in enumerate(("Hello", "And you?", "Read lines.")):
        session.thinking = number == 1
        turn = answered(session, user(text))
        assert turn.tokens == alone(session, turn, number)
        assert len(session.messages) == 2 * number + 2


def test_what_the_cache_holds_is_not_computed_again(
    new: Callable[..., Session], says: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the answer is in the template's layout, only what comes after it is new."""
    session = new()
    says("\nFine.\n", "\nYes.\n")
    first = answered(session, user("Hello"))
    assert first.reused == 0
    assert session.cached == (*first.prompt, *first.tokens)
    computed = []
    forward = laguna_ref.Laguna.__call__

    def counted(self: Any, tokens: Any, **options: Any) -> Any:
        computed.extend(tokens)
        return forward(self, tokens, **options)

    monkeypatch.setattr(laguna_ref.Laguna, "__call__", counted)
    second = answered(session, user("And you?"))
    assert second.reused == len(first.prompt) + len(first.tokens)
    assert second.prompt[: second.reused] == (*first.prompt, *first.tokens)
    assert computed == [*second.prompt[second.reused :], *second.tokens]


def test_overwritten_keys_are_computed_again(
    new: Callable[..., Session], says: Callable[..., None]
) -> None:
    """Another system message cuts the cache far before what sliding layers still hold."""
    session = new()
    says("\nFine.\n", "\nYes.\n")
    first = answered(session, user("Hello"))
    session.system = "Be brief."
    second = answered(session, user("And you?"))
    assert second.reused == 0
    assert second.prompt[:5] == first.prompt[:5]
    assert session.cached == (*second.prompt, *second.tokens)
    assert session.cache.length == len(session.cached)


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_an_answer_may_be_cut_off(new: Callable[..., Session], tokens: int) -> None:
    session = new(stop_ids=(999,), seed=1)
    turn = session.begin(user("Hello"))
    deltas = turn.deltas()
    while len(turn.tokens) < tokens:
        next(deltas)
    if tokens:
        deltas.close()
    else:
        interrupt = pytest.raises(KeyboardInterrupt)
        with interrupt:
            list(turn.deltas(on_prefill=_interrupt))
    assert turn.finish_reason == "interrupted"
    said = [message.get("content") for message in session.messages[1:]]
    assert said == ([turn.answer.content] if turn.answer.content else [])
    assert session.cached == (*turn.prompt, *turn.tokens)[: session.cache.length]
    after = answered(session, user("And you?"))
    assert after.tokens == alone(session, after, 1)


def _interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_a_key_pressed_inside_the_forward_pass_leaves_the_cache_whole(
    new: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new(stop_ids=(999,))
    turn = session.begin(user("Hello"))
    deltas = turn.deltas()
    next(deltas)
    from laguna_ref.kv_cache import LayerCache

    commit, calls = LayerCache.commit, iter(range(100))

    def interrupted(self: LayerCache) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(LayerCache, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(deltas)
    assert len({layer.length for layer in session.cache.layers}) == 1
    after = answered(session, user("And you?"))
    assert after.tokens == alone(session, after, 1)


def test_calls_and_their_answers(new: Callable[..., Session], says: Callable[..., None]) -> None:
    session = new(tools=[SHELL], thinking=True, max_tokens=200)
    says(f"\nneed it\n</think>\nI look.\n{CALL}", "\nso\n</think>\nOne file.\n")
    turn = answered(session, user("Which files?"))
    assert turn.answer.calls == (Call("shell", '{"cmd": "ls"}'),)
    assert turn.answer.problems == ()
    called = session.messages[-1]
    assert called["content"] == "\nI look.\n"
    assert called["reasoning_content"] == "\nneed it\n"
    (call,) = called["tool_calls"]
    assert call["function"] == {"name": "shell", "arguments": '{"cmd": "ls"}'}
    second = answered(
        session, {"role": "tool", "tool_call_id": call["id"], "content": '{"stdout": "a"}'}
    )
    text = session.tokenizer.decode(second.prompt)
    assert text.endswith(
        f"<think>\nneed it\n</think>\nI look.\n{CALL}</assistant>\n"
        '<tool_response>\n{"stdout": "a"}\n</tool_response>\n<assistant>\n<think>'
    )
    assert second.reused == len(turn.prompt) + len(turn.tokens)
    assert session.messages[-1] == {
        "role": "assistant", "content": "\nOne file.\n", "reasoning_content": "\nso\n",
    }  # fmt: skip


def test_without_thinking_or_tools_their_tags_are_text(
    new: Callable[..., Session], says: Callable[..., None]
) -> None:
    session = new(max_tokens=200)
    says(f"a</think>{CALL}")
    assert answered(session, user("Hello")).answer.content == f"a</think>{CALL}"


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("a", {}, "stop"),
        ("abcdefg", {"max_tokens": 3}, "length"),
        ("", {"max_tokens": 0}, "length"),
    ],
)
def test_why_it_ended(
    new: Callable[..., Session],
    says: Callable[..., None],
    text: str,
    options: dict[str, Any],
    reason: str,
) -> None:
    says(text)
    assert answered(new(**options), user("Hello")).finish_reason == reason


def test_the_checkpoints_own_limit_is_a_limit(
    new: Callable[..., Session], says: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = len(new().tokenizer.encode("abc"))
    defaults = replace(GenerationConfig.of(new().model.checkpoint), max_tokens=limit)
    monkeypatch.setattr(GenerationConfig, "of", lambda *_: defaults)
    says("abcdefg")
    turn = answered(new(max_tokens=None), user("Hello"))
    assert (len(turn.tokens), turn.finish_reason) == (limit, "length")


def test_an_interrupted_answer_has_no_half_call(
    new: Callable[..., Session], says: Callable[..., None]
) -> None:
    session = new(tools=[SHELL], max_tokens=200)
    says(f"I look.{CALL}")
    turn = session.begin(user("Which files?"))
    deltas = turn.deltas()
    while next(deltas).call is None:
        pass
    deltas.close()
    assert (turn.finish_reason, turn.answer.calls) == ("interrupted", ())
    assert turn.answer.content == "I look."


def test_the_context_ends(new: Callable[..., Session]) -> None:
    session = new(max_tokens=10_000, stop_ids=(999,))
    turn = answered(session, user("x" * 700))
    assert turn.finish_reason == "context"
    assert session.cache.length == 900
    before = list(session.messages)
    with pytest.raises(InputError, match="max_position_embeddings"):
        session.begin(user("more"))
    assert session.messages == before
    session.reset()
    assert answered(session, user("x")).tokens


@pytest.mark.parametrize("message", [{"role": "nobody", "content": ""}, user("\udc80")])
def test_what_cannot_be_rendered_is_not_remembered(
    new: Callable[..., Session], message: dict[str, Any]
) -> None:
    session = new()
    with pytest.raises(InputError):
        session.begin(message)
    assert session.messages == []


def test_a_conversation_can_be_had_again(new: Callable[..., Session]) -> None:
    def answers(session: Session) -> Iterator[list[int]]:
        for text in ("a", "a"):
            yield answered(session, user(text)).tokens

    session = new(seed=4, temperature=2.0)
    first = list(answers(session))
    session.reset()
    assert list(answers(session)) == first == list(answers(new(seed=4, temperature=2.0)))
    assert list(answers(new(seed=5, temperature=2.0))) != first
