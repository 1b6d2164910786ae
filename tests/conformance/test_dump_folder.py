"""``dump:FOLDER``: found by tokens and positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.adapters.dump_folder import DumpBackend
from laguna_ref.conformance.backend import BackendError, describe
from laguna_ref.load import EMBEDDED

TOKENS = np.array([2, 381, 694], np.int64)


def dumped(folder: Path, name: str, tokens: np.ndarray, first: int = 0, **meta: str) -> None:
    arrays = {
        "tokens": tokens,
        "positions": np.arange(first, first + len(tokens)),
        "lm_head": np.full((len(tokens), 5), first, np.float32),
        "model.layers.1.mlp.topk_ids": np.zeros((len(tokens), 2), np.int64),
    }
    save_file(arrays, folder / f"{name}.safetensors", metadata=meta)


def of(folder: Path) -> DumpBackend:
    backend = opener(f"dump:{folder}")(EMBEDDED)
    assert isinstance(backend, DumpBackend)
    return backend


def test_a_dump_is_found_by_its_prompt_whatever_its_name(tmp_path: Path) -> None:
    dumped(tmp_path, "b", TOKENS, precision="bfloat16", version="1.2")
    dumped(tmp_path, "a", TOKENS, first=7)
    backend = of(tmp_path)
    assert backend.logits(TOKENS.tolist())[0, 0] == 0
    assert backend.logits(TOKENS.tolist(), positions=[7, 8, 9])[0, 0] == 7
    assert (backend.precision, backend.version) == ("bfloat16", "1.2")
    assert set(backend.trace(TOKENS.tolist(), ["lm_head", "model.norm"])) == {"lm_head"}
    assert list(backend.trace(TOKENS.tolist(), ["model.layers.1.mlp.topk_ids"]))


def test_a_prompt_that_was_not_dumped_is_refused(tmp_path: Path) -> None:
    dumped(tmp_path, "a", TOKENS)
    with pytest.raises(BackendError, match="no dump of these 2 tokens"):
        of(tmp_path).logits([2, 381])


def test_folders_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="needs a folder"):
        opener(f"dump:{tmp_path}/nowhere")
    with pytest.raises(BackendError, match="no dump in the folder"):
        opener(f"dump:{tmp_path}")
    dumped(tmp_path, "a", TOKENS)
    dumped(tmp_path, "b", TOKENS)
    with pytest.raises(BackendError, match="two dumps of one prompt"):
        opener(f"dump:{tmp_path}")


@pytest.mark.parametrize("text", ['{"activations": ', '{"options": 5}', "float31"])
def test_a_precision_that_makes_no_sense_names_the_file(tmp_path: Path, text: str) -> None:
    dumped(tmp_path, "a", TOKENS, precision=text)
    with pytest.raises(BackendError, match=r"a.safetensors: precision: "):
        opener(f"dump:{tmp_path}")


@pytest.mark.parametrize(
    ("key", "text"),
    [("logprobs_k", "five"), ("logprobs_k", "0"), ("config", "{"), ("config", "[3]")],
)
def test_metadata_that_make_no_sense_name_file_and_key(tmp_path: Path, key: str, text: str) -> None:
    dumped(tmp_path, "a", TOKENS, **{key: text})
    with pytest.raises(BackendError, match=rf"a.safetensors: {key}: "):
        opener(f"dump:{tmp_path}")


def test_what_a_dump_states_is_told(tmp_path: Path) -> None:
    dumped(tmp_path, "a", TOKENS, logits="logprobs", logprobs_k="5", config='{"vocab_size": 5}')
    backend = of(tmp_path)
    assert (backend.logits_kind, backend.logprobs_k) == ("logprobs", 5)
    assert backend.config == {"vocab_size": 5}
    assert describe(backend)["config"] == {"vocab_size": 5}


def test_dumps_must_agree_on_the_precision(tmp_path: Path) -> None:
    dumped(tmp_path, "a", TOKENS, precision="bfloat16")
    dumped(tmp_path, "b", TOKENS[:2], precision="float32")
    with pytest.raises(BackendError, match="must agree"):
        opener(f"dump:{tmp_path}")
