"""Transformers renders and encodes the same conversations to the same text and the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings

from laguna_ref.chat import Template, Tokenizer
from laguna_ref.chat.prompt import encode
from laguna_ref.load import EMBEDDED
from tests.chat.conversations import DATA, HOSTILE, conversations

pytestmark = pytest.mark.peer
TEMPLATES = {
    "xs2": EMBEDDED / "chat_template.jinja",
    "xs2.1": DATA / "chat_template_xs21.jinja",
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(EMBEDDED)


@pytest.mark.parametrize("layout", TEMPLATES)
@settings(max_examples=200)
@given(conversation=conversations(HOSTILE))
def test_same_text_and_same_ids(
    theirs: Any, tokenizer: Tokenizer, layout: str, conversation: dict[str, Any]
) -> None:
    assume(conversation["messages"])  # Transformers refuses to render none
    ours = encode(tokenizer, Template.builtin(layout), mode="released", **conversation)
    given = {"chat_template": Path(TEMPLATES[layout]).read_text("utf-8"), **conversation}
    turns = given.pop("messages")
    assert theirs.apply_chat_template(turns, tokenize=False, **given) == ours.text
    ids = theirs.apply_chat_template(turns, tokenize=True, return_dict=False, **given)
    assert list(ids) == list(ours.ids)
