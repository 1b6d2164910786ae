"""A GGUF file in llama.cpp: token ids in, logits out, through the functions of its C library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from laguna_ref.errors import LagunaError
from laguna_ref.numerics import Array

ERROR_LEVEL = 4
"""``GGML_LOG_LEVEL_ERROR``, which the bindings do not name."""
YARN = ("yarn_beta_fast", "yarn_beta_slow")
"""Settings that llama.cpp reads from the files of other architectures, but not of ``laguna``."""
_errors: list[str] = []


class LlamaCppError(LagunaError):
    """llama.cpp gave up; the message is its own."""


def _listen(level: int, text: bytes, _: Any) -> None:
    """Keeps errors to be raised; llama.cpp would print these and much else on stderr."""
    if level == ERROR_LEVEL:
        _errors.append(text.decode("utf-8", "replace").strip())


_LISTENER = llama_cpp.llama_log_callback(_listen)
"""Held here for as long as the library may call it."""


class LlamaCppModel:
    """A model and one sequence; ``context`` tokens at most.

    All else is as llama.cpp has it by default: the file memory-mapped, weights repacked where
    it has a kernel for that, float16 keys and values, flash attention. ``exact`` asks for
    float32 keys and values and plain attention: flash attention sums in float16 even so.
    ``pass_on`` gives it the file's settings of YaRN that it does not read by itself.
    """

    def __init__(
        self, path: Path, context: int, threads: int, *, exact: bool = False, pass_on: bool = True
    ) -> None:
        llama_cpp.llama_log_set(_LISTENER, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        if not self._model:
            raise _error(f"cannot load {path.name}")
        self._name, self._threads, self._exact, self._pass_on = path.name, threads, exact, pass_on
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._open(context)

    def _open(self, context: int) -> None:
        """A context for so many tokens, empty."""
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = context
        for name in YARN if self._pass_on else ():
            setattr(settings, name, self._number(f"laguna.rope.scaling.{name}", default=-1.0))
        settings.n_threads = settings.n_threads_batch = self._threads
        if self._exact:
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
            settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise _error(f"cannot use {self._name}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(context, 0, 1)
        self.context, self._length = context, 0

    def resize(self, context: int) -> None:
        """Room for so many tokens; empties the cache."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        self._open(context)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    def saved(self) -> bytes:
        """The cache, in llama.cpp's own form."""
        size = llama_cpp.llama_state_seq_get_size(self._context, 0)
        data = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self._context, data, size, 0)
        return bytes(data)

    def restore(self, data: bytes, length: int) -> None:
        """Takes up a sequence of ``length`` tokens as it was when it was saved."""
        self.forget()
        copied = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        if not llama_cpp.llama_state_seq_set_data(self._context, copied, len(data), 0):
            raise _error("cannot take up a saved sequence")
        self._length = length

    def run(self, tokens: Sequence[int], *, last_only: bool = True) -> Array:
        """Appends tokens to the sequence; logits float32 [T, V], or [1, V]."""
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = self._length + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index == count - 1 or not last_only
        if llama_cpp.llama_decode(self._context, batch):
            raise _error("decoding failed")
        self._length += count
        logits = llama_cpp.llama_get_logits(self._context)
        shape = (1 if last_only else count, self._vocab_size)
        return np.ctypeslib.as_array(logits, shape).copy()

    def _number(self, key: str, default: float) -> float:
        """A number of the file's metadata."""
        text = ctypes.create_string_buffer(64)
        size = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), text, len(text))
        return default if size < 0 else float(text.value)

    def forget(self) -> None:
        """Empties the cache."""
        llama_cpp.llama_memory_clear(self._memory, False)
        self._length = 0

    def close(self) -> None:
        """Gives the memory back."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def quantise(source: Path, target: Path, file_type: int, threads: int) -> None:
    """Writes ``target`` with llama.cpp's own quantiser and its own choice for each tensor."""
    llama_cpp.llama_log_set(_LISTENER, None)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = file_type
    settings.nthread = threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
        raise _error(f"cannot quantise {source.name}")


def _error(what: str) -> LlamaCppError:
    return LlamaCppError(f"llama.cpp: {what}", found=_errors[-1] if _errors else None)
