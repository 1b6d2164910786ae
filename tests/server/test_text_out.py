"""Text of an answer: half characters and possible stop texts are held back, nothing is lost."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from laguna_ref.chat import Tokenizer
from laguna_ref.load import EMBEDDED
from laguna_ref.server.text_out import TextOut

TOKENIZER = Tokenizer.from_folder(EMBEDDED)
tokens = st.lists(st.integers(0, 3071), max_size=30)
stops = st.lists(st.text("abn \n(:é", min_size=1, max_size=4), max_size=3)


def spoken(ids: list[int], **options: object) -> tuple[list[str], TextOut]:
    out = TextOut(TOKENIZER, **options)  # type: ignore[arg-type]
    pieces = []
    for token in ids:
        pieces.append(out.push(token)[1])
        if out.stopped is not None:
            return pieces, out
    return [*pieces, out.finish()], out


@given(tokens)
def test_without_stops_all_text_comes_out(ids: list[int]) -> None:
    pieces, out = spoken(ids, skip_special=False)
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert out.stopped is None


@given(tokens)
def test_special_tokens_are_left_out_and_thinking_is_not_special(ids: list[int]) -> None:
    pieces, _ = spoken([18, *ids, 2, 25], skip_special=True)
    kept = [token for token in [18, *ids, 2, 25] if token not in TOKENIZER.special_ids]
    assert "".join(pieces) == TOKENIZER.decode(kept)
    assert {2, 0, 9} <= TOKENIZER.special_ids
    assert not {18, 19, 23, 24, 25, 26} & TOKENIZER.special_ids


@given(tokens, stops, st.booleans())
def test_it_ends_before_the_first_stop_and_never_shows_part_of_one(
    ids: list[int], stops: list[str], include: bool
) -> None:
    pieces, out = spoken(ids, stops=stops, include_stop=include, skip_special=False)
    text, whole = "".join(pieces), TOKENIZER.decode(ids)
    assert whole.startswith(text) or out.stopped is not None
    if out.stopped is None:
        assert text == whole
        assert not any(stop in whole for stop in stops)
    else:
        body = text.removesuffix(out.stopped) if include else text
        assert not any(stop in body for stop in stops)
        assert include == text.endswith(out.stopped) or body.endswith(out.stopped)


@pytest.mark.parametrize(
    ("stops", "include", "expected"),
    [
        (["bc"], False, "a"),
        (["bc"], True, "abc"),
        (["cd", "bcd"], False, "a"),
        (["x"], False, "abcd"),
    ],
)
def test_by_example(stops: list[str], include: bool, expected: str) -> None:
    ids = [token for letter in "abcd" for token in TOKENIZER.encode(letter)]
    pieces, _ = spoken(ids, stops=stops, include_stop=include)
    assert "".join(pieces) == expected


def test_what_may_become_a_stop_is_held_back_until_it_cannot() -> None:
    out = TextOut(TOKENIZER, ["abc"])
    certain = [out.push(TOKENIZER.encode(letter)[0])[1] for letter in "xabab"]
    assert certain == ["x", "", "", "ab", ""]
    assert out.finish() == "ab"
