"""Mistakes of the dump itself: the backend may be right, what was written down is not.

A mistake is named only if undoing it puts the array inside the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from laguna_ref.conformance.operations import layer_input
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.ops.activations import sigmoid, softmax

Inside = Callable[[str, Array, Array], bool]
"""Whether an array found is within the budget of a point, given what is expected there."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong with one array, and the array put right (None if it cannot be)."""

    point: str
    text: str
    mended: Array | None

    def __str__(self) -> str:
        return f"{self.point} {self.text}"


def find(
    model: Laguna, point: str, found: Array, expected: Mapping[str, Array], inside: Inside
) -> Mistake | None:
    """The mistake that explains an array which is not what is expected, or None."""
    wanted = expected[point]
    for text, mended in _rearranged(found, wanted):
        if inside(point, mended, wanted):
            return Mistake(point, text, mended)
    if found.shape != wanted.shape and found.size != wanted.size:
        return None
    found = found.reshape(wanted.shape)
    if point == "lm_head":
        for text, rows, of in _shifted(found, wanted):
            if len(rows) and inside(point, rows, of):
                return Mistake(point, text, None)
    for text, other in _other_values(model, point, expected):
        if other.shape == wanted.shape and inside(point, found, other):
            return Mistake(point, text, None)
    return None


def _rearranged(found: Array, wanted: Array) -> Iterator[tuple[str, Array]]:
    """The same numbers in other places: [H, T, C] for [T, H, C], [T, C, H], [D, T]."""
    if found.size != wanted.size:
        return
    tokens = len(wanted)
    if wanted.ndim == 3:
        heads, width = wanted.shape[1:]
        shapes = {
            "holds [H, T, C] instead of [T, H, C]": ((heads, tokens, width), (1, 0, 2)),
            "holds [T, C, H] instead of [T, H, C]: heads are transposed": (
                (tokens, width, heads), (0, 2, 1),
            ),
            "holds [H, C, T] instead of [T, H, C]": ((heads, width, tokens), (2, 0, 1)),
        }  # fmt: skip
        for text, (shape, order) in shapes.items():
            # A dump may have joined the last two axes; with a shape of its own it must fit.
            if found.shape == shape or found.shape in (wanted.shape, (tokens, heads * width)):
                yield text, found.reshape(shape).transpose(order)
    elif wanted.ndim == 2:
        turned = (wanted.shape[1], wanted.shape[0])
        if found.shape == turned or wanted.shape[0] == wanted.shape[1]:
            yield "has its axes swapped: tokens come first", found.reshape(turned).T


def _shifted(found: Array, wanted: Array) -> Iterator[tuple[str, Array, Array]]:
    yield "is shifted by one: row t holds the logits of token t - 1", found[1:], wanted[:-1]
    yield "is shifted by one: row t holds the logits of token t + 1", found[:-1], wanted[1:]


def _other_values(
    model: Laguna, point: str, expected: Mapping[str, Array]
) -> Iterator[tuple[str, Array]]:
    """What people write under a name by mistake."""
    layer, _, part = point.removeprefix("model.layers.").partition(".")
    at = f"model.layers.{layer}"
    if point == "lm_head":
        logits = expected[point]
        total = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
        norm = logits.max(axis=1) + total
        yield "holds log-softmax instead of logits", logits - norm[:, None]
        yield "holds probabilities instead of logits", softmax(logits)
    if layer.isdigit() and not part:
        following = int(layer) + 1
        if following == len(model.config.layers):
            yield "holds the hidden state after the norm instead of before", expected["model.norm"]
        else:
            name = f"model.layers.{following}.input_layernorm"
            yield "holds the hidden state after the next layer's norm", expected[name]
        yield "holds the layer's input", expected[layer_input(int(layer))]
        if f"{at}.post_attention_layernorm" in expected:
            yield "holds what the MLP reads", expected[f"{at}.post_attention_layernorm"]
    if part.endswith("_layernorm"):
        yield "holds the norm's input", expected[layer_input(int(layer))]
    if part == "mlp.gate":
        yield "holds scores after the sigmoid instead of logits", sigmoid(expected[point])
        yield "holds scores after a softmax instead of logits", softmax(expected[point])
    if part == "mlp.experts":
        factor = model.config.moe_routed_scaling_factor
        yield f"holds the routed sum after the scaling factor {factor:g}", expected[point] * factor
        yield "holds the sum with the shared experts", expected[f"{at}.mlp"]
    if part == "self_attn.attention":
        gate = expected[f"{at}.self_attn.gate"]
        gate = gate.reshape(len(gate), expected[point].shape[1], -1)
        yield "holds the attention output after the gate", expected[point] * gate
    pairs = {
        "self_attn.gate": ("self_attn.g_proj", "holds the gate's logits, before softplus"),
        "self_attn.g_proj": ("self_attn.gate", "holds the gate after softplus"),
        "self_attn.q_rope": ("self_attn.q_norm", "holds queries before RoPE"),
        "self_attn.k_rope": ("self_attn.k_norm", "holds keys before RoPE"),
        "self_attn.q_norm": ("self_attn.q_proj", "holds queries before their norm"),
        "self_attn.k_norm": ("self_attn.k_proj", "holds keys before their norm"),
    }
    if part in pairs:
        other, text = pairs[part]
        yield text, expected[f"{at}.{other}"].reshape(expected[point].shape)
