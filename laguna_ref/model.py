"""The forward pass of Laguna, in order of execution. Read this file first.

Axis letters: T tokens, D hidden, H query heads, G key/value heads, C head dim, E experts,
K experts chosen, F expert width, V vocabulary, S cached positions.

The model calls an engine for every operation (formulas in ``laguna_ref/ops``) and passes the
numerics along; of arrays it knows only how to cut and join them. ``keep`` hands a value to the
recorder, if any, under its trace-point name and returns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from laguna_ref import checks
from laguna_ref.checkpoint import Checkpoint
from laguna_ref.config import LagunaConfig, LayerSpec
from laguna_ref.engines import Engine
from laguna_ref.errors import CacheError, InputError
from laguna_ref.kv_cache import KVCache, KVFormat, LayerCache
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.router import RouterSpec
from laguna_ref.trace import Recorder
from laguna_ref.weights import (
    AttentionWeights,
    LayerWeights,
    MLPWeights,
    SparseMLPWeights,
    read_weights,
)


class Laguna:
    """A loaded model: ``model(tokens)`` gives the logits of every position.

    Made by ``laguna_ref.load``. Attributes: ``config``, ``checkpoint``, ``weights``,
    ``engine``, ``numerics``, ``kv_formats`` (one per layer).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        numerics: Numerics,
        fp8_layers: Sequence[bool],
        threads: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.config: LagunaConfig = checkpoint.config
        self.engine = engine
        self.numerics = numerics
        self.threads = checks.threads(threads)
        self.weights = read_weights(checkpoint)
        self.kv_formats = tuple(
            KVFormat(fp8, layer.self_attn.k_scale, layer.self_attn.v_scale)
            for fp8, layer in zip(fp8_layers, self.weights.layers, strict=True)
        )
        self.router = RouterSpec(
            self.config.num_experts_per_tok,
            self.config.moe_router_score_func,
            self.config.moe_router_logit_softcapping,
            self.config.norm_topk_prob,
        )

    def __repr__(self) -> str:
        return f"<Laguna {self.checkpoint.path} {self.numerics.name}>"

    def new_cache(self) -> KVCache:
        """An empty key/value cache for one sequence."""
        return KVCache(self.config, self.kv_formats, self.numerics)

    def __call__(
        self,
        tokens: ArrayLike,
        *,
        cache: KVCache | None = None,
        positions: ArrayLike | None = None,
        last_only: bool = False,
        trace: Recorder | None = None,
    ) -> Array:
        """Logits of the token after each of ``tokens``.

        Shapes: tokens int [T] -> [T, V]; [1, V] with ``last_only``.
        Dtypes: float64 under float64 numerics, else float32.

        With a ``cache`` the tokens continue what it holds and are appended to it. ``positions``
        int [T] overrides the angles of RoPE (default: the tokens' places in the sequence);
        which keys a token sees always follows from its place. However the tokens are cut into
        calls, the numba engine gives the same bits; the numpy engine the same numbers to rounding,
        which an FP8 cache can magnify (docs/numerics.md). Raises InputError, CacheError
        and NonFiniteError; after an error the cache is as before, while a recorder may hold
        the points reached.
        """
        one = self._checked(tokens, 0, cache, positions, trace)
        return self._run([one], last_only)[0]

    def batch(
        self,
        sequences: Sequence[ArrayLike],
        *,
        caches: Sequence[KVCache] | None = None,
        last_only: bool = False,
        traces: Sequence[Recorder] | None = None,
    ) -> list[Array]:
        """Logits of several sequences of any lengths, each with a cache of its own.

        The same as one call a sequence, but every weight is read once for all of them.

        Shapes: sequences int [T] each -> [T, V] each; [1, V] with ``last_only``.
        Raises InputError and CacheError (a cache that two sequences share).
        """
        if len(sequences) == 0:
            raise InputError("a batch must not be empty")
        for what, given in (("caches", caches), ("traces", traces)):
            if given is not None and len(given) != len(sequences):
                raise InputError(
                    f"{what} must be one a sequence", expected=len(sequences), found=len(given)
                )
        each: list[_Sequence] = []
        for index, tokens in enumerate(sequences):
            first = each[-1].rows.stop if each else 0
            cache = None if caches is None else caches[index]
            trace = None if traces is None else traces[index]
            each.append(self._checked(tokens, first, cache, None, trace))
        if len({id(one.cache) for one in each}) < len(each):
            raise CacheError("two sequences of a batch share a cache")
        return self._run(each, last_only)

    def _checked(
        self,
        tokens: ArrayLike,
        first: int,
        cache: KVCache | None,
        positions: ArrayLike | None,
        trace: Recorder | None,
    ) -> _Sequence:
        if cache is None:
            cache = self.new_cache()
        given: object = cache
        if not isinstance(given, KVCache):
            raise CacheError("not a cache", expected="KVCache", found=type(given).__name__)
        cache.require_layout(self.config, self.kv_formats, self.numerics)
        recorder: object = trace
        if not isinstance(recorder, Recorder | None):
            raise InputError("wrong trace", expected="Recorder", found=type(recorder).__name__)
        if trace is not None:
            trace.require_known(self.config)
        ids = checks.tokens(tokens, self.config, cache.length)
        places = checks.positions(positions, self.config, cache.length, len(ids))
        return _Sequence(ids, places, slice(first, first + len(ids)), cache, trace)

    def _run(self, sequences: list[_Sequence], last_only: bool) -> list[Array]:
        with self.engine.computing(self.threads):
            logits = self._forward(sequences, last_only)
        for one in sequences:
            one.cache.commit()
        rows = [slice(i, i + 1) if last_only else one.rows for i, one in enumerate(sequences)]
        return [logits[part] for part in rows]

    def _forward(self, sequences: list[_Sequence], last_only: bool) -> Array:
        engine, n, w = self.engine, self.numerics, self.weights
        keep = _Keep([(one.rows, one.trace) for one in sequences])
        tokens = np.concatenate([one.tokens for one in sequences])  # T of all sequences together
        positions = np.concatenate([one.positions for one in sequences])
        kinds = {layer.attention: layer.rope for layer in self.config.layers}
        rope = {kind: engine.rope_tables(spec, positions, n) for kind, spec in kinds.items()}

        x = keep("model.embed_tokens", engine.embed(tokens, w.embed_tokens, n))  # [T, D]
        for spec, weights in zip(self.config.layers, w.layers, strict=True):
            kv = [(one.rows, one.cache.layers[spec.index]) for one in sequences]
            x = self._decoder_layer(x, spec, weights, kv, rope[spec.attention], keep)  # [T, D]
        if last_only:
            x = x[[one.rows.stop - 1 for one in sequences]]
            keep = _Keep([(slice(i, i + 1), one.trace) for i, one in enumerate(sequences)])
        x = keep("model.norm", engine.rms_norm(x, w.norm, self.config.rms_norm_eps, n))
        logits = engine.linear(x, w.lm_head, n)  # [T, V]
        checks.finite(logits, "lm_head")
        return keep("lm_head", logits)

    def _decoder_layer(
        self,
        x: Array,
        spec: LayerSpec,
        w: LayerWeights,
        kv: list[tuple[slice, LayerCache]],
        rope: tuple[Array, Array],
        keep: _Keep,
    ) -> Array:
        engine, n, eps = self.engine, self.numerics, self.config.rms_norm_eps
        at = f"model.layers.{spec.index}"
        h = keep(f"{at}.input_layernorm", engine.rms_norm(x, w.input_layernorm, eps, n))
        h = self._attention(h, spec, w.self_attn, kv, rope, f"{at}.self_attn", keep)
        x = engine.add(x, h, n)
        h = engine.rms_norm(x, w.post_attention_layernorm, eps, n)
        keep(f"{at}.post_attention_layernorm", h)
        if isinstance(w.mlp, SparseMLPWeights):
            h = self._sparse_mlp(h, w.mlp, f"{at}.mlp", keep)
        else:
            h = self._dense_mlp(h, w.mlp, f"{at}.mlp", keep)
        x = engine.add(x, h, n)
        checks.finite(x, at)
        return keep(at, x)  # [T, D]

    def _attention(
        self,
        h: Array,
        spec: LayerSpec,
        w: AttentionWeights,
        kv: list[tuple[slice, LayerCache]],
        rope: tuple[Array, Array],
        at: str,
        keep: _Keep,
    ) -> Array:
        engine, n, eps = self.engine, self.numerics, self.config.rms_norm_eps
        heads = (len(h), -1, spec.head_dim)
        # h is the normed hidden state [T, D]; it feeds the gate as well as q, k and v.
        q = keep(f"{at}.q_proj", engine.linear(h, w.q_proj, n)).reshape(heads)  # [T, H, C]
        k = keep(f"{at}.k_proj", engine.linear(h, w.k_proj, n)).reshape(heads)  # [T, G, C]
        v = keep(f"{at}.v_proj", engine.linear(h, w.v_proj, n)).reshape(heads)  # [T, G, C]
        q = keep(f"{at}.q_norm", engine.rms_norm(q, w.q_norm, eps, n))
        k = keep(f"{at}.k_norm", engine.rms_norm(k, w.k_norm, eps, n))
        q = keep(f"{at}.q_rope", engine.apply_rope(q, *rope, n))
        k = keep(f"{at}.k_rope", engine.apply_rope(k, *rope, n))

        # Each sequence of a batch looks at its own S keys and values, its new ones included.
        seen = [(rows, layer.append(k[rows], v[rows])) for rows, layer in kv]
        if keep.wanted:
            cached = [slice_.newest(rows.stop - rows.start, n) for rows, slice_ in seen]
            keep(f"{at}.k_cached", _joined([keys for keys, _ in cached]))
            keep(f"{at}.v_cached", _joined([values for _, values in cached]))
        parts = [engine.attention(q[rows], slice_, spec.window, n) for rows, slice_ in seen]
        attended = keep(f"{at}.attention", _joined(parts))  # [T, H, C]

        gate_logits = keep(f"{at}.g_proj", engine.linear(h, w.g_proj, n))  # [T, H] or [T, H*C]
        gate = keep(f"{at}.gate", engine.gate_values(gate_logits, spec.gate_activation, n))
        gated = engine.apply_gate(attended, gate, n)  # [T, H*C]
        return keep(at, keep(f"{at}.o_proj", engine.linear(gated, w.o_proj, n)))  # [T, D]

    def _dense_mlp(self, h: Array, w: MLPWeights, at: str, keep: _Keep) -> Array:
        return keep(at, self.engine.mlp(h, w, self.numerics))  # [T, D]

    def _sparse_mlp(self, h: Array, w: SparseMLPWeights, at: str, keep: _Keep) -> Array:
        engine, n = self.engine, self.numerics
        bias = w.e_score_correction_bias
        logits, ids, weights = engine.route(h, w.gate, bias, self.router, n)  # [T, E], 2 x [T, K]
        checks.finite(logits, f"{at}.gate")
        keep(f"{at}.gate", logits)
        keep(f"{at}.topk_ids", ids)
        keep(f"{at}.topk_weights", weights)
        routed = keep(f"{at}.experts", engine.experts(h, ids, weights, w.experts, n))
        shared = keep(f"{at}.shared_experts", engine.mlp(h, w.shared_experts, n))
        factor = self.config.moe_routed_scaling_factor
        return keep(at, engine.combine(routed, shared, factor, n))  # [T, D]


@dataclass(frozen=True)
class _Sequence:
    """One sequence of a batch, checked."""

    tokens: Array
    positions: Array
    rows: slice
    """Its tokens among those of the batch."""
    cache: KVCache
    trace: Recorder | None


class _Keep:
    """Hands each recorder the rows of its own sequence, and returns what it is given."""

    def __init__(self, parts: list[tuple[slice, Recorder | None]]) -> None:
        self._recorders = [(rows, trace) for rows, trace in parts if trace is not None]
        self.wanted = bool(self._recorders)

    def __call__(self, name: str, value: Array) -> Array:
        for rows, trace in self._recorders:
            trace.record(name, value[rows])
        return value


def _joined(parts: list[Array]) -> Array:
    """What was computed for each sequence, as one array of all their tokens."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
