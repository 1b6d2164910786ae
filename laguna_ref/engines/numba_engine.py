"""The fast engine: the same operations, in kernels whose sums have one fixed order.

Results are the same bits for any number of threads, any chunking of the prompt and any CPU.
Every function checks and shapes what it is given before a kernel sees it; kernels themselves
check nothing. A correctly rounded operation on each number has no order, so adding is NumPy's own
and so are rotating, gating and adding up experts where a shape is not one of whole vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numba
import numpy as np
from numpy.lib.stride_tricks import as_strided

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.engines.compile_notice import NOTICE
from laguna_ref.engines.kernel_weights import expert_table, kernel_weight
from laguna_ref.kv_cache import KVSlice
from laguna_ref.numerics import BF16, Array, Numerics
from laguna_ref.ops import gate, rope
from laguna_ref.ops.experts import blocks_of_tokens, sum_of_slots
from laguna_ref.ops.linear import embed
from laguna_ref.ops.residual import add, combine
from laguna_ref.ops.rope import rope_angles, scaled_table
from laguna_ref.ops.router import RouterSpec, biased, weights_of
from laguna_ref.rope_spec import RopeSpec
from laguna_ref.weights import MLPWeights
from numba_kernels import angles, elementwise, float_mode, matrix, rows
from numba_kernels.attention import attention as attention_kernel
from numba_kernels.experts import routed_experts
from numba_kernels.jit import Kernel
from numba_kernels.simd import LANES

__all__ = [
    "add",
    "apply_gate",
    "apply_rope",
    "attention",
    "combine",
    "computing",
    "embed",
    "experts",
    "gate_values",
    "linear",
    "mlp",
    "rms_norm",
    "rope_tables",
    "route",
    "scores_of",
]


@contextmanager
def computing(threads: int | None) -> Iterator[None]:
    """While it computes, a model has its own number of threads, and denormals are kept."""
    before = numba.get_num_threads()
    if threads is not None:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    mode = float_mode.enter()
    try:
        yield
    finally:
        float_mode.leave(mode)
        numba.set_num_threads(before)
        NOTICE.close()


def linear(x: Array, weight: Weight, numerics: Numerics) -> Array:
    """``x W^T``: see ``laguna_ref/ops/linear.py``."""
    w = kernel_weight(weight, numerics)
    outputs = weight.shape[0]
    x = _padded(x)
    tokens = len(x)
    if tokens == 1:
        out = np.empty((1, outputs), dtype=numerics.dtype)
        matrix.matrix_vector(w, outputs, x.reshape(-1), out.reshape(-1), work=weight.nbytes)
    else:
        out = np.empty((tokens + tokens % 2, outputs), dtype=numerics.dtype)
        work = weight.nbytes * tokens
        matrix.matrix_matrix(w, outputs, x.reshape(-1), tokens, out.reshape(-1), work=work)
    return numerics.round_at("linear", out[:tokens])


def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
    """``x / sqrt(mean(x^2) + eps) * weight``: see ``laguna_ref/ops/norm.py``."""
    width = x.shape[-1]
    stored = _padded(numerics.round_at("weight", numerics.cast(weight))[None])[0]
    flat = _padded(x.reshape(-1, width))
    out = np.empty_like(flat)
    rows.rms_norm(
        flat.reshape(-1), len(flat), flat.shape[1], width, stored, eps,
        _on(numerics, "norm.normalised"), _on(numerics, "norm.weighted"), out.reshape(-1),
        work=flat.nbytes,
    )  # fmt: skip
    return out[:, :width].reshape(x.shape)


def rope_tables(spec: RopeSpec, positions: Array, numerics: Numerics) -> tuple[Array, Array]:
    """Cosine and sine of every position's angles: see ``laguna_ref/ops/rope.py``."""
    table = rope_angles(spec, positions, numerics)
    flat = _padded(table.reshape(1, -1))[0]
    cosines, sines = np.empty_like(flat), np.empty_like(flat)
    angles.cosines_and_sines(flat, cosines, sines, work=8 * flat.nbytes)
    cos, sin = (part[: table.size].reshape(table.shape) for part in (cosines, sines))
    return scaled_table(cos, spec, numerics), scaled_table(sin, spec, numerics)


def apply_rope(x: Array, cos: Array, sin: Array, numerics: Numerics) -> Array:
    """Rotates the first dimensions of each head: see ``laguna_ref/ops/rope.py``."""
    tokens, heads, head_dim = x.shape
    half = cos.shape[1]
    if half % LANES:
        return rope.apply_rope(x, cos, sin, numerics)
    x, cos, sin = np.ascontiguousarray(x), np.ascontiguousarray(cos), np.ascontiguousarray(sin)
    out = np.empty_like(x)
    elementwise.rotate(
        x.reshape(-1), tokens, heads, head_dim, cos.reshape(-1), sin.reshape(-1), half,
        _on(numerics, "rope.product"), _on(numerics, "rope.sum"), out.reshape(-1), work=x.nbytes,
    )  # fmt: skip
    return out


def attention(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
    """Softmax of scaled dot products, times the values: see ``laguna_ref/ops/attention.py``."""
    tokens, heads, head_dim = q.shape
    cached, kv_heads, _ = kv.keys.shape
    q = _padded(q)
    out = np.empty_like(q)
    points = ("kv_cache.read", "attention.scores", "attention.scaled",
              "attention.probabilities", "attention.output")  # fmt: skip
    seen = cached if window is None else min(cached, window)
    attention_kernel(
        q.reshape(-1), tokens, heads, _in_place(kv.keys), _in_place(kv.values),
        kv.first, kv.first + cached - tokens, window or 0, kv_heads, q.shape[2],
        numerics.dtype.type(head_dim**-0.5), kv.format.k_scale, kv.format.v_scale,
        tuple(_on(numerics, point) for point in points), out.reshape(-1),
        work=tokens * seen * heads * head_dim,
    )  # fmt: skip
    return out[..., :head_dim]


def gate_values(gate_logits: Array, activation: str, numerics: Numerics) -> Array:
    """``softplus(g_proj(h))``: see ``laguna_ref/ops/gate.py``."""
    kernel = rows.softplus if activation == "softplus" else rows.sigmoid
    return numerics.round_at("gate.activation", _each(kernel, gate_logits))


def apply_gate(attention: Array, gate_values: Array, numerics: Numerics) -> Array:
    """Attention output times its gate: see ``laguna_ref/ops/gate.py``."""
    tokens, heads, head_dim = attention.shape
    if head_dim % LANES or gate_values.shape[1] != heads:
        return gate.apply_gate(attention, gate_values, numerics)
    attention = np.ascontiguousarray(attention)
    out = np.empty((tokens, heads * head_dim), dtype=attention.dtype)
    elementwise.scale_rows(
        attention.reshape(-1), tokens * heads, head_dim,
        np.ascontiguousarray(gate_values).reshape(-1), _on(numerics, "gate.product"),
        out.reshape(-1), work=attention.nbytes,
    )  # fmt: skip
    return out


def mlp(x: Array, weights: MLPWeights, numerics: Numerics) -> Array:
    """``down_proj(silu(gate_proj(x)) * up_proj(x))``: see ``laguna_ref/ops/mlp.py``."""
    gate = linear(x, weights.gate_proj, numerics)
    up = linear(x, weights.up_proj, numerics)
    shape, size = gate.shape, gate.size
    flat, other = (_padded(part.reshape(1, -1))[0] for part in (gate, up))
    rows.swiglu(
        flat,
        other,
        False,
        _on(numerics, "mlp.activation"),
        _on(numerics, "mlp.product"),
        work=8 * flat.nbytes,
    )
    return linear(flat[:size].reshape(shape), weights.down_proj, numerics)


def route(
    x: Array, weight: Weight, bias: Array, spec: RouterSpec, numerics: Numerics
) -> tuple[Array, Array, Array]:
    """Router logits, the experts chosen, and their weights: see ``laguna_ref/ops/router.py``."""
    logits = linear(x, weight, numerics)
    cap = numerics.dtype.type(spec.logit_softcapping)
    if cap != 0:
        logits = _each(rows.tanh, logits / cap) * cap
    values = scores_of(logits, spec.score_func)
    selection = biased(values, bias, numerics)
    ids = np.zeros((len(x), spec.top_k), dtype=np.int64)
    elementwise.greatest_of_row(
        selection.reshape(-1), *selection.shape, spec.top_k, ids.reshape(-1), work=selection.nbytes
    )
    return logits, ids, weights_of(ids, values, spec, numerics)


def experts(
    x: Array, ids: Array, weights: Array, expert_weights: Sequence[MLPWeights], numerics: Numerics
) -> Array:
    """Sum over a token's experts of weight times output: see ``laguna_ref/ops/experts.py``."""
    into, back, table = expert_table(expert_weights, np.unique(ids), numerics)
    hidden, width = x.shape[1], expert_weights[0].down_proj.shape[1]
    rounds = tuple(
        _on(numerics, point)
        for point in ("linear", "mlp.activation", "mlp.product", "experts.weighted")
    )
    sums = []
    x = _padded(x)
    for block in blocks_of_tokens(ids, x):
        slots = np.empty((*ids[block].shape, x.shape[1]), dtype=x.dtype)
        routed_experts(
            x[block].reshape(-1), len(x[block]), ids[block].reshape(-1),
            weights[block].reshape(-1), hidden, width, into, back, table, rounds,
            numba.get_num_threads(), slots.reshape(-1), work=ids[block].size * hidden * width,
        )  # fmt: skip
        sums.append(_sum_of_slots(slots, hidden, numerics))
    return sums[0] if len(sums) == 1 else np.concatenate(sums)


def _sum_of_slots(slots: Array, hidden: int, numerics: Numerics) -> Array:
    """Rows of ``slots`` may be longer than ``hidden``; out comes [T, hidden]."""
    tokens, top_k, width = slots.shape
    if width != hidden:
        return sum_of_slots(slots[..., :hidden], numerics)
    out = np.empty((tokens, hidden), dtype=slots.dtype)
    elementwise.add_slots(
        slots.reshape(-1), tokens, top_k, hidden, _on(numerics, "experts.sum"), out.reshape(-1),
        work=slots.nbytes,
    )  # fmt: skip
    return out


def scores_of(logits: Array, score_func: str) -> Array:
    """Of the router's logits: see ``laguna_ref/ops/router.py``."""
    if score_func == "sigmoid":
        return _each(rows.sigmoid, logits)
    if score_func == "sqrtsoftplus":
        return np.sqrt(_each(rows.softplus, logits))
    e = _padded(_each(rows.exp, logits - logits.max(axis=-1, keepdims=True)))
    sums = np.empty(len(e), dtype=e.dtype)
    rows.row_sums(e.reshape(-1), len(e), e.shape[1], sums, work=e.nbytes)
    result: Array = e[:, : logits.shape[1]] / sums[:, None]
    return result


def _each(kernel: Kernel, x: Array) -> Array:
    """An element-wise kernel over an array of any shape."""
    flat = _padded(x.reshape(1, -1))[0]
    out = np.empty_like(flat)
    kernel(flat, out, work=8 * flat.nbytes)
    result: Array = out[: x.size].reshape(x.shape)
    return result


def _padded(x: Array) -> Array:
    """Contiguous, the last axis filled up with zeros to a multiple of the lanes."""
    missing = -x.shape[-1] % LANES
    if missing:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], missing), dtype=x.dtype)], axis=-1)
    return np.ascontiguousarray(x)


def _in_place(x: Array) -> tuple[Array, int, int]:
    """Cached rows [S, G, C] as flat memory, and its numbers from row to row and head to head.

    Where they lie: a long cache is never copied, whichever of S and G comes first in memory.
    """
    if x.dtype == BF16:
        x = x.view(np.uint16)
    if x.shape[2] % LANES or x.strides[2] != x.itemsize or min(x.strides) < 0:
        x = _padded(x)
    row, head = (stride // x.itemsize for stride in x.strides[:2])
    extent = (len(x) - 1) * row + (x.shape[1] - 1) * head + x.shape[2]
    return as_strided(x, (extent,), (x.itemsize,)), row, head


def _on(numerics: Numerics, point: str) -> bool:
    return point in numerics.rounds
