"""Prefill a prompt, then one token after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from laguna_ref import checks
from laguna_ref.errors import InputError
from laguna_ref.generation_config import GenerationConfig
from laguna_ref.kv_cache import KVCache
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.sampling import Sampling, sample

PREFILL_CHUNK = 512
"""Tokens of a prompt computed at a time; bounds memory, and lets progress be shown."""


def generate(
    model: Laguna,
    prompt_tokens: ArrayLike,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_ids: Iterable[int] | int | None = None,
    cache: KVCache | None = None,
    on_prefill: Callable[[int, int], None] | None = None,
) -> Iterator[int]:
    """Yields the tokens that follow ``prompt_tokens``, int [T], the stop token not included.

    What is None comes from the checkpoint's generation_config.json, else: 2,048 tokens,
    greedy, the config's ``eos_token_id`` as stop ids. It ends at a stop token, after
    ``max_tokens``, or where ``max_position_embeddings`` is reached. ``on_prefill(done, total)``
    is called as the prompt is computed. With a ``cache`` the prompt continues what it holds; all
    tokens but the last that was yielded are appended to it. Raises InputError for options out of
    range.
    """
    defaults = GenerationConfig.of(model.checkpoint)
    sampling = Sampling(
        defaults.sampling.temperature if temperature is None else temperature,
        defaults.sampling.top_k if top_k is None else top_k,
        defaults.sampling.top_p if top_p is None else top_p,
    )
    limit = defaults.max_tokens if max_tokens is None else max_tokens
    if not checks.is_count(limit):
        raise InputError("max_tokens must be an integer, 0 or more", found=limit)
    if seed is not None and not checks.is_count(seed):
        raise InputError("seed must be an integer, 0 or more", found=seed)
    if isinstance(stop_ids, int):
        stop_ids = (stop_ids,)
    stops = frozenset(defaults.stop_ids if stop_ids is None else stop_ids)
    if any(not checks.is_count(stop) for stop in stops):
        raise InputError("stop_ids must be token ids", found=sorted(map(str, stops)))
    if cache is None:
        cache = model.new_cache()
    prompt = checks.tokens(prompt_tokens, model.config, cache.length)
    # A generator's body runs at the first `next`; the checks above must not wait for it.
    return _generate(
        model, prompt, int(limit), sampling, stops, np.random.default_rng(seed), cache, on_prefill
    )


def _generate(
    model: Laguna,
    prompt: Array,
    limit: int,
    sampling: Sampling,
    stops: frozenset[int],
    generator: np.random.Generator,
    cache: KVCache,
    on_prefill: Callable[[int, int], None] | None,
) -> Iterator[int]:
    for start in range(0, len(prompt), PREFILL_CHUNK):
        chunk = prompt[start : start + PREFILL_CHUNK]
        logits = model(chunk, cache=cache, last_only=True)
        if on_prefill is not None:
            on_prefill(start + len(chunk), len(prompt))
    for count in range(limit):
        token = sample(logits[-1], sampling, generator)
        if token in stops:
            return
        yield token
        if count + 1 == limit or cache.length == model.config.max_position_embeddings:
            return
        logits = model([token], cache=cache, last_only=True)
