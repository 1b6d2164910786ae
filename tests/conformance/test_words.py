"""Words after a backend's name, of every backend that takes some."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from laguna_ref.conformance.adapters import (
    llamacpp_backend,
    transformers_backend,
    vllm_backend,
)
from laguna_ref.conformance.backend import BackendError

HF, VLLM, LLAMA = transformers_backend, vllm_backend, llamacpp_backend


@pytest.mark.parametrize(
    ("module", "argument", "made"),
    [
        (HF, None, {}),
        (HF, "bfloat16", {"dtype": "bfloat16"}),
        (HF, "cuda:1,float-cache", {"device": "cuda:1", "float_cache": True}),
        (HF, "bfloat16,float32", {"dtype": "float32"}),
        (VLLM, None, {}),
        (VLLM, "packed,bfloat16", {"packed": True, "dtype": "bfloat16"}),
        (VLLM, "float-cache", {"float_cache": True}),
        (LLAMA, None, {}),
        (LLAMA, "f16,converted", {"f16": True, "converted": True}),
        (LLAMA, "betas", {"betas": True}),
    ],
)
def test_words_make_settings(
    module: ModuleType, argument: str | None, made: dict[str, Any]
) -> None:
    assert module.parse(argument) == module.Settings(**made)


@pytest.mark.parametrize(
    ("module", "argument", "found", "expected"),
    [
        (HF, "cpu,half", "half", "a device such as cuda:0, float32, bfloat16 or float-cache"),
        (HF, "cuda:", "cuda:", "a device such as cuda:0, float32, bfloat16 or float-cache"),
        (VLLM, "cpu", "cpu", "float32, bfloat16, float-cache or packed"),
        (LLAMA, "f16,", "", "f16, betas or converted"),
    ],
)
def test_other_words_are_refused(
    module: ModuleType, argument: str, found: str, expected: str
) -> None:
    kind = module.__name__.rpartition(".")[2].removesuffix("_backend")
    with pytest.raises(BackendError, match=f"unknown word after {kind}:") as refused:
        module.parse(argument)
    assert (refused.value.found, refused.value.expected) == (found, expected)
