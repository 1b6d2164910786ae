"""The forward pass of Laguna, in order of execution. Read this file first.

Axis letters: T tokens, D hidden, H query heads, G key/value heads, C head dim, E experts,
K experts chosen, F expert width, V vocabulary, S cached positions.

The model calls an engine for every operation (formulas in ``laguna_ref/ops``) and passes the
numerics along; it knows neither NumPy nor kernels. ``keep`` hands a value to the recorder, if
any, under its trace-point name and returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numpy.typing import ArrayLike

from laguna_ref import checks
from laguna_ref.checkpoint import Checkpoint
from laguna_ref.config import LagunaConfig, LayerSpec
from laguna_ref.engines import Engine
from laguna_ref.kv_cache import KVCache, KVFormat, LayerCache, decode
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

Keep = Callable[[str, Array], Array]


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
        which keys a token sees always follows from its place. Raises InputError, CacheError
        and NonFiniteError; after an error the cache is as before.
        """
        empty = self.new_cache()
        if cache is None:
            cache = empty
        empty.require_same_layout(cache)
        if trace is not None:
            trace.require_known(self.config)
        tokens = checks.tokens(tokens, self.config, cache.length)
        positions = checks.positions(positions, self.config, cache.length, len(tokens))
        with self.engine.computing(self.threads):
            logits = self._forward(tokens, positions, cache, last_only, _keep(trace))
        cache.commit()
        return logits

    def _forward(
        self, tokens: Array, positions: Array, cache: KVCache, last_only: bool, keep: Keep
    ) -> Array:
        ops, n, w = self.engine, self.numerics, self.weights
        rope = {
            layer.attention: ops.rope_tables(layer.rope, positions, n)
            for layer in self.config.layers
        }
        x = keep("model.embed_tokens", ops.embed(tokens, w.embed_tokens, n))  # [T, D]
        for spec, weights, kv in zip(self.config.layers, w.layers, cache.layers, strict=True):
            x = self._decoder_layer(x, spec, weights, kv, rope[spec.attention], keep)  # [T, D]
        if last_only:
            x = x[-1:]
        x = keep("model.norm", ops.rms_norm(x, w.norm, self.config.rms_norm_eps, n))
        return keep("lm_head", ops.linear(x, w.lm_head, n))  # [T, V]

    def _decoder_layer(
        self,
        x: Array,
        spec: LayerSpec,
        w: LayerWeights,
        kv: LayerCache,
        rope: tuple[Array, Array],
        keep: Keep,
    ) -> Array:
        ops, n, eps = self.engine, self.numerics, self.config.rms_norm_eps
        at = f"model.layers.{spec.index}"
        h = keep(f"{at}.input_layernorm", ops.rms_norm(x, w.input_layernorm, eps, n))
        h = self._attention(h, spec, w.self_attn, kv, rope, f"{at}.self_attn", keep)
        x = ops.add(x, h, n)
        h = ops.rms_norm(x, w.post_attention_layernorm, eps, n)
        keep(f"{at}.post_attention_layernorm", h)
        if isinstance(w.mlp, SparseMLPWeights):
            h = self._sparse_mlp(h, w.mlp, f"{at}.mlp", keep)
        else:
            h = self._dense_mlp(h, w.mlp, f"{at}.mlp", keep)
        x = ops.add(x, h, n)
        checks.finite(x, at)
        return keep(at, x)  # [T, D]

    def _attention(
        self,
        h: Array,
        spec: LayerSpec,
        w: AttentionWeights,
        kv: LayerCache,
        rope: tuple[Array, Array],
        at: str,
        keep: Keep,
    ) -> Array:
        ops, n, eps = self.engine, self.numerics, self.config.rms_norm_eps
        heads = (len(h), -1, spec.head_dim)
        # h is the normed hidden state [T, D]; it feeds the gate as well as q, k and v.
        q = keep(f"{at}.q_proj", ops.linear(h, w.q_proj, n)).reshape(heads)  # [T, H, C]
        k = keep(f"{at}.k_proj", ops.linear(h, w.k_proj, n)).reshape(heads)  # [T, G, C]
        v = keep(f"{at}.v_proj", ops.linear(h, w.v_proj, n)).reshape(heads)  # [T, G, C]
        q = keep(f"{at}.q_norm", ops.rms_norm(q, w.q_norm, eps, n))
        k = keep(f"{at}.k_norm", ops.rms_norm(k, w.k_norm, eps, n))
        q = keep(f"{at}.q_rope", ops.apply_rope(q, *rope, n))
        k = keep(f"{at}.k_rope", ops.apply_rope(k, *rope, n))

        seen = kv.append(k, v)  # S keys and values, the tokens' own included
        own = slice(len(seen.keys) - len(h), None)
        k, v = decode(seen.keys[own], seen.values[own], seen.format, n)
        keep(f"{at}.k_cached", k)
        keep(f"{at}.v_cached", v)
        attended = keep(f"{at}.attention", ops.attention(q, seen, spec.window, n))  # [T, H, C]

        gate_logits = keep(f"{at}.g_proj", ops.linear(h, w.g_proj, n))  # [T, H] or [T, H*C]
        gate = keep(f"{at}.gate", ops.gate_values(gate_logits, spec.gate_activation, n))
        gated = ops.apply_gate(attended, gate, n)  # [T, H*C]
        return keep(at, keep(f"{at}.o_proj", ops.linear(gated, w.o_proj, n)))  # [T, D]

    def _dense_mlp(self, h: Array, w: MLPWeights, at: str, keep: Keep) -> Array:
        return keep(at, self.engine.mlp(h, w, self.numerics))  # [T, D]

    def _sparse_mlp(self, h: Array, w: SparseMLPWeights, at: str, keep: Keep) -> Array:
        ops, n = self.engine, self.numerics
        bias = w.e_score_correction_bias
        logits, ids, weights = ops.route(h, w.gate, bias, self.router, n)  # [T, E], 2 x [T, K]
        keep(f"{at}.gate", logits)
        keep(f"{at}.topk_ids", ids)
        keep(f"{at}.topk_weights", weights)
        routed = keep(f"{at}.experts", ops.experts(h, ids, weights, w.experts, n))
        shared = keep(f"{at}.shared_experts", ops.mlp(h, w.shared_experts, n))
        factor = self.config.moe_routed_scaling_factor
        return keep(at, ops.combine(routed, shared, factor, n))  # [T, D]


def _keep(trace: Recorder | None) -> Keep:
    def keep(name: str, value: Array) -> Array:
        if trace is not None:
            trace.record(name, value)
        return value

    return keep
