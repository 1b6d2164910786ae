"""Looking into the model: each function computes one view of it, as numbers.

>>> from laguna_ref import explain, load
>>> model = load()
>>> view = explain.token(model, [2, 70, 71], position=-1)
>>> view.layers[3].experts, view.layers[3].lens

``token`` follows one token from embedding to logits; ``attention`` and ``routing`` look at a whole
prompt; ``rope`` at a config alone; ``weight`` at one tensor of a checkpoint; ``kv`` at what FP8
costs; ``diff`` runs two models side by side. A view is a frozen dataclass of NumPy arrays and plain
numbers; nothing is printed. ``laguna_ref.explain.plots`` draws them (the extra ``report``).
"""

from laguna_ref.explain.attention_view import AttentionView, attention
from laguna_ref.explain.diff_view import DiffView, diff
from laguna_ref.explain.kv_view import KVView, kv
from laguna_ref.explain.rope_view import RopeView, rope
from laguna_ref.explain.routing_view import RoutingView, routing
from laguna_ref.explain.sides import side
from laguna_ref.explain.token_view import TokenView, token
from laguna_ref.explain.weight_view import WeightView, weight

__all__ = [
    "AttentionView",
    "DiffView",
    "KVView",
    "RopeView",
    "RoutingView",
    "TokenView",
    "WeightView",
    "attention",
    "diff",
    "kv",
    "rope",
    "routing",
    "side",
    "token",
    "weight",
]
