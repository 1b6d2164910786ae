"""Backends with one bug each, for the laws to find: the oracle with one thing wrong.

``MUTANTS`` names the law that must kill each; which others do is in docs/laws.md. All but one are
judged as backends that are not exact, so that it is the bug that is found and no last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import laguna_ref
from laguna_ref.checkpoint.formats import DenseWeight
from laguna_ref.conformance.adapters.oracle_backend import OracleBackend
from laguna_ref.conformance.backend import Backend
from laguna_ref.engines import numpy_engine, with_replaced
from laguna_ref.kv_cache import KVCache, KVFormat
from laguna_ref.model import Laguna
from laguna_ref.ops.activations import sigmoid, softmax
from laguna_ref.ops.mlp import mlp
from laguna_ref.ops.rope import apply_rope

Plant = Callable[[Laguna], Backend]


@dataclass(frozen=True)
class Mutant:
    """A bug, and the law that must find it."""

    name: str
    law: str
    plant: Plant

    def open(self, folder: Path) -> Backend:
        return self.plant(laguna_ref.load(folder))


def wrong_engine(**functions: Callable[[Laguna], Any]) -> Plant:
    """Some of the engine's functions replaced; each is made for the model."""

    def plant(model: Laguna) -> Backend:
        made = {name: make(model) for name, make in functions.items()}
        return OracleBackend(rebuilt(model, made), "a mutant")

    return plant


def rebuilt(model: Laguna, functions: dict[str, Any]) -> Laguna:
    engine = with_replaced(model.engine, **functions) if functions else model.engine
    return Laguna(model.checkpoint, engine, model.numerics, [s.fp8 for s in model.kv_formats])


def wrong_cache(change: Callable[[KVFormat], KVFormat]) -> Plant:
    """Another format of every layer's cache."""

    def plant(model: Laguna) -> Backend:
        result = rebuilt(model, {})
        result.kv_formats = tuple(change(stored) for stored in result.kv_formats)
        return OracleBackend(result, "a mutant")

    return plant


def wrong_reading(change: Callable[[KVFormat], KVFormat]) -> Plant:
    """The cache is written as it should be and read in another format."""

    def make(model: Laguna) -> Any:
        def attention(q: Any, kv: Any, window: Any, numerics: Any) -> Any:
            return model.engine.attention(q, replace(kv, format=change(kv.format)), window,
                                          numerics)  # fmt: skip

        return attention

    return wrong_engine(attention=make)


def windowed(more: int) -> Plant:
    def make(model: Laguna) -> Any:
        def attention(q: Any, kv: Any, window: Any, numerics: Any) -> Any:
            size = None if window is None else max(1, window + more)
            return model.engine.attention(q, kv, size, numerics)

        return attention

    return wrong_engine(attention=make)


def plain_attention(
    model: Laguna, *, sees: Callable[[Any, Any], Any], sink: bool = False, interleaved: bool = False
) -> Any:
    """Attention written out, with one thing wrong; ``sees(distance, window)``."""

    def attention(q: Any, kv: Any, window: Any, numerics: Any) -> Any:
        count, heads, width = q.shape
        keys = np.arange(len(kv.keys))
        distance = (len(keys) - count + np.arange(count))[:, None] - keys
        out = np.empty_like(q)
        kv_heads = kv.keys.shape[1]
        for head in range(heads):
            of_key = head % kv_heads if interleaved else head // (heads // kv_heads)
            k, v = kv.decode(0, len(keys), of_key, numerics)
            scores = (q[:, head] @ k.T) * q.dtype.type(width**-0.5)
            scores = np.where(sees(distance, window), scores, -np.inf)
            if sink:
                scores = np.concatenate([scores, np.zeros_like(scores[:, :1])], axis=1)
            out[:, head] = softmax(scores)[:, : len(keys)] @ v
        return out

    return attention


def as_released(distance: Any, window: Any) -> Any:
    return (distance >= 0) & (distance < (window or 10**9))


def sees_the_next(distance: Any, window: Any) -> Any:
    return (distance >= -1) & (distance < (window or 10**9))


def routed(change: Callable[..., tuple[Any, Any]]) -> Plant:
    """``change(logits, ids, weights, bias) -> ids, weights``."""

    def make(model: Laguna) -> Any:
        def route(x: Any, weight: Any, bias: Any, spec: Any, numerics: Any) -> Any:
            logits, ids, weights = model.engine.route(x, weight, bias, spec, numerics)
            return logits, *change(logits, ids, weights, bias)

        return route

    return wrong_engine(route=make)


def bias_in_weights(logits: Any, ids: Any, weights: Any, bias: Any) -> Any:
    scores = np.take_along_axis(sigmoid(logits) + bias, ids, axis=1)
    return ids, (scores / scores.sum(axis=1, keepdims=True)).astype(weights.dtype)


def bias_ignored(logits: Any, ids: Any, weights: Any, bias: Any) -> Any:
    ids = np.argsort(-logits, axis=1, kind="stable")[:, : ids.shape[1]]
    scores = np.take_along_axis(sigmoid(logits), ids, axis=1)
    return ids, (scores / scores.sum(axis=1, keepdims=True)).astype(weights.dtype)


def last_expert_is_the_first(model: Laguna) -> Any:
    def experts(x: Any, ids: Any, weights: Any, of: Any, numerics: Any) -> Any:
        return model.engine.experts(x, ids % (len(of) - 1), weights, of, numerics)

    return experts


def every_expert_evaluated(model: Laguna) -> Any:
    def experts(x: Any, ids: Any, weights: Any, of: Any, numerics: Any) -> Any:
        total = np.zeros_like(x)
        with np.errstate(all="ignore"):
            for expert in range(len(of)):
                share = np.where(ids == expert, weights, 0).sum(axis=1, dtype=x.dtype)
                total += mlp(x, of[expert], numerics) * share[:, None]
        return total

    return experts


def whole_head_rotated(model: Laguna) -> Any:
    """partial_rotary_factor ignored: the angles repeat over the rest of the head."""

    def rotate(x: Any, cos: Any, sin: Any, numerics: Any) -> Any:
        times = x.shape[2] // (2 * cos.shape[1])
        return apply_rope(x, np.tile(cos, times), np.tile(sin, times), numerics)

    return rotate


def coarse_positions(model: Laguna) -> Any:
    """Positions in too few bits: they come in steps of four."""

    def tables(spec: Any, positions: Any, numerics: Any) -> Any:
        coarse = np.asarray(positions // 4 * 4)
        return model.engine.rope_tables(spec, coarse, numerics)

    return tables


def offset_seven(model: Laguna) -> Any:
    """Packed integers stored with an offset of 8 read with one of 7."""

    def experts(x: Any, ids: Any, weights: Any, of: Any, numerics: Any) -> Any:
        def shifted(weight: Any) -> Any:
            if isinstance(weight, DenseWeight):
                return weight
            scales = np.repeat(np.asarray(weight.scale, np.float32), weight.group_size, axis=1)
            return DenseWeight(weight.name, weight.rows(dtype=np.float32) + scales)

        wrong = [
            replace(one, gate_proj=shifted(one.gate_proj), up_proj=shifted(one.up_proj),
                    down_proj=shifted(one.down_proj))
            for one in of
        ]  # fmt: skip
        return model.engine.experts(x, ids, weights, wrong, numerics)

    return experts


def eps_is_larger(model: Laguna) -> Any:
    def rms_norm(x: Any, weight: Any, eps: float, numerics: Any) -> Any:
        return model.engine.rms_norm(x, weight, 1e-5, numerics)

    return rms_norm


class Forgetful(OracleBackend):
    """The RoPE positions of every later chunk start at zero."""

    def decode(self, state: KVCache, tokens: Sequence[int]) -> tuple[KVCache, Any]:
        cache = state.copy()
        return cache, self.model(tokens, cache=cache, positions=np.arange(len(tokens)))


class Remembering(OracleBackend):
    """A cache that is not emptied between prompts: the last token stays."""

    last: Sequence[int] = ()

    def logits(self, tokens: Sequence[int], **options: Any) -> Any:
        before, self.last = list(self.last), list(tokens)[-1:]
        return self.model(before + list(tokens))[len(before) :]


class OneSequence(OracleBackend):
    """A batch run as one long sequence."""

    def batch(self, sequences: Sequence[Sequence[int]]) -> list[Any]:
        whole = self.model([token for sequence in sequences for token in sequence])
        ends = np.cumsum([len(sequence) for sequence in sequences])
        return np.split(whole, ends[:-1])


class LeftPadded(OracleBackend):
    """Shorter sequences padded on the left, and the padding attended to."""

    def batch(self, sequences: Sequence[Sequence[int]]) -> list[Any]:
        longest = max(len(sequence) for sequence in sequences)
        padded = [[9] * (longest - len(one)) + list(one) for one in sequences]
        both = zip(padded, sequences, strict=True)
        return [self.model(long)[longest - len(one) :] for long, one in both]


def claims_to_be_exact(model: Laguna) -> Backend:
    """BLAS sums, whose order changes with the number of rows: legal, but not exact."""
    plain = Laguna(model.checkpoint, numpy_engine, model.numerics,
                   [stored.fp8 for stored in model.kv_formats])  # fmt: skip
    return OracleBackend(plain, "a mutant", exact=True)


def wrapped(kind: type[OracleBackend]) -> Plant:
    return lambda model: kind(model, "a mutant")


MUTANTS = (
    Mutant("sees the next token", "causality",
           wrong_engine(attention=lambda m: plain_attention(m, sees=sees_the_next))),
    Mutant("cache not emptied", "repeatable", wrapped(Remembering)),
    Mutant("positions of a chunk start at zero", "chunks", wrapped(Forgetful)),
    Mutant("claims to be exact", "chunks", claims_to_be_exact),
    Mutant("batch run as one sequence", "batched", wrapped(OneSequence)),
    Mutant("padded on the left, unmasked", "padding", wrapped(LeftPadded)),
    Mutant("window one short", "sliding-reach", windowed(-1)),
    Mutant("window one long", "sliding-reach", windowed(1)),
    Mutant("last expert is the first", "expert-order",
           wrong_engine(experts=last_expert_is_the_first)),
    Mutant("every expert evaluated", "unchosen-experts",
           wrong_engine(experts=every_expert_evaluated)),
    Mutant("bias in the weights", "correction-bias", routed(bias_in_weights)),
    Mutant("bias ignored", "correction-bias", routed(bias_ignored)),
    Mutant("integers offset by seven", "two-encodings", wrong_engine(experts=offset_seven)),
    Mutant("k_scale ignored in reading", "key-scale",
           wrong_reading(lambda f: replace(f, k_scale=np.float32(1)))),
    Mutant("k_scale and v_scale exchanged in reading", "key-scale",
           wrong_reading(lambda f: replace(f, k_scale=f.v_scale, v_scale=f.k_scale))),
    Mutant("v_scale ignored in reading", "value-scale",
           wrong_reading(lambda f: replace(f, v_scale=np.float32(1)))),
    Mutant("cached in units of 1", "fp8-idempotent",
           wrong_cache(lambda f: replace(f, k_scale=np.float32(1), v_scale=np.float32(1)))),
    Mutant("cache not quantised", "fp8-idempotent",
           wrong_cache(lambda f: replace(f, fp8=False))),
    Mutant("attention sink", "first-token",
           wrong_engine(attention=lambda m: plain_attention(m, sees=as_released, sink=True))),
    Mutant("positions lose their low bits", "shifted-positions",
           wrong_engine(rope_tables=coarse_positions)),
    Mutant("whole head rotated", "unrotated", wrong_engine(apply_rope=whole_head_rotated)),
    Mutant("whole head rotated, seen without a trace", "placeless",
           wrong_engine(apply_rope=whole_head_rotated)),
    Mutant("heads interleaved over key heads", "twin-heads",
           wrong_engine(attention=lambda m: plain_attention(m, sees=as_released,
                                                            interleaved=True))),
    Mutant("eps ten times as large", "agreement", wrong_engine(rms_norm=eps_is_larger)),
)  # fmt: skip
