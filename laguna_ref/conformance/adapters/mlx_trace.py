"""What passes through mlx-lm's Laguna while it runs, by the names of our trace points.

Modules of mlx have no hooks: a module that is watched gets, for the length of the run, a class
of its own whose call also keeps what it returns. Nothing of the model is changed, except the
choice of experts where that is asked for.

Not seen, because no module returns it: the gate's values after softplus, the routed sum before
its scaling factor, and keys and values as they lie in a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx_lm.models import laguna

from laguna_ref.numerics import Array

Keep = Callable[[str, mx.array], None]
"""Called with a trace point and its value; arrays of mlx never change."""
RENAMED = {"mlp.gate.proj": "mlp.gate", "mlp.shared_expert": "mlp.shared_experts"}


def array(x: mx.array) -> Array:
    """A copy as NumPy: bfloat16 widened to float32, ids of experts to int64."""
    if x.dtype == mx.uint32:
        return np.array(x).astype(np.int64)
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)


@contextmanager
def recording(model: Any, keep: Keep) -> Iterator[None]:
    """Calls ``keep`` with every trace point of the one run, without a cache, inside the block."""
    attend = laguna.scaled_dot_product_attention
    layer = iter(range(model.args.num_hidden_layers))

    def keep_attention(*args: Any, **kwargs: Any) -> mx.array:
        output: mx.array = attend(*args, **kwargs)
        keep(f"model.layers.{next(layer)}.self_attn.attention", output[0].swapaxes(0, 1))
        return output

    modules = [(name, module) for name, module in model.named_modules() if name]
    if model.args.moe_router_logit_softcapping > 0.0:  # the point is what comes after it
        modules = [(name, module) for name, module in modules if not name.endswith("gate.proj")]
    with (
        patch.object(laguna, "scaled_dot_product_attention", keep_attention),
        _calling({id(module): _keeper(keep, name) for name, module in modules}, modules),
    ):
        yield


@contextmanager
def forced_routing(model: Any, routing: Mapping[int, tuple[Array, Array | None]]) -> Iterator[None]:
    """Sends the tokens of the run inside the block to the experts named, layer by layer.

    routing: ids [T, K] and their weights [T, K]; None for what the router gives those experts.
    """
    gates = [(f"{layer}", model.layers[layer].mlp.gate) for layer in routing]
    choosers = {id(gate): _chooser(*routing[int(layer)]) for layer, gate in gates}
    with _calling(choosers, gates):
        yield


After = Callable[[Any, Any, Any], Any]
"""(module, what went in, what came out) -> what shall come out."""


@contextmanager
def _calling(after: Mapping[int, After], modules: list[tuple[str, Any]]) -> Iterator[None]:
    """Lets ``after[id(module)]`` see, and replace, what each call of the modules returns."""
    own = [(module, type(module)) for _, module in modules]
    for module, kind in own:
        module.__class__ = _watched(kind, after[id(module)])
    try:
        yield
    finally:
        for module, kind in own:
            module.__class__ = kind


def _watched(kind: Any, after: After) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return after(self, args, kind.__call__(self, *args, **kwargs))

    return type(kind.__name__, (kind,), {"__call__": call})


def _keeper(keep: Keep, name: str) -> After:
    for theirs, ours in RENAMED.items():
        if name.endswith(theirs):
            name = name.removesuffix(theirs) + ours
    calls = iter(("q_rope", "k_rope"))

    def after(module: Any, args: Any, output: Any) -> Any:
        if name.endswith(".rope"):  # called for the queries, then for the keys: [1, heads, T, C]
            keep(name.replace(".rope", f".{next(calls)}"), output[0].swapaxes(0, 1))
        elif isinstance(module, laguna.MoEGate):
            ids, weights = output
            keep(name.replace(".gate", ".topk_ids"), ids[0])
            keep(name.replace(".gate", ".topk_weights"), weights[0])
        elif isinstance(output, mx.array):
            keep(name, output[0])
        return output

    return after


def _chooser(ids: Array, weights: Array | None) -> After:
    def after(module: Any, args: Any, output: Any) -> Any:
        own_ids, own_weights = output
        chosen = mx.array(ids)[None].astype(own_ids.dtype)
        if weights is not None:
            return chosen, mx.array(weights)[None].astype(own_weights.dtype)
        logits = module.proj(args[0]).astype(mx.float32)
        if module.softcap > 0.0:
            logits = mx.tanh(logits / module.softcap) * module.softcap
        scores = mx.take_along_axis(module._routing_scores(logits), chosen, axis=-1)
        return chosen, scores / scores.sum(axis=-1, keepdims=True)

    return after
