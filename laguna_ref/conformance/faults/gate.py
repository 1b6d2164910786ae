"""Faults of attention's output gate."""

from __future__ import annotations

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.conformance.faults.fault import Fault, NormInput, changed
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics


def gate_sigmoid(model: Laguna) -> Laguna:
    """The gate is a sigmoid, as the model card says, instead of a softplus."""

    def gate_values(gate_logits: Array, activation: str, numerics: Numerics) -> Array:
        return model.engine.gate_values(gate_logits, "sigmoid", numerics)

    return changed(model, gate_values=gate_values)


def gate_missing(model: Laguna) -> Laguna:
    """Attention's output is not gated."""

    def gate_values(gate_logits: Array, activation: str, numerics: Numerics) -> Array:
        return np.ones_like(gate_logits)

    return changed(model, gate_values=gate_values)


def after_o_proj(model: Laguna) -> Laguna:
    """The gate multiplies o_proj's output, each value a run of channels, not the heads before."""

    def apply_gate(attention: Array, gate: Array, numerics: Numerics) -> Array:
        # The gate travels behind the heads, to be taken off where they have been projected.
        return np.concatenate([attention.reshape(len(attention), -1), gate], axis=1)

    def linear(x: Array, weight: Weight, numerics: Numerics) -> Array:
        if ".self_attn.o_proj" not in weight.name:
            return model.engine.linear(x, weight, numerics)
        outputs, inputs = weight.shape
        heads, gate = np.ascontiguousarray(x[:, :inputs]), x[:, inputs:]
        runs = np.arange(outputs) * gate.shape[1] // outputs
        projected = model.engine.linear(heads, weight, numerics)
        return numerics.round_at("gate.product", projected * gate[:, runs])

    return changed(model, apply_gate=apply_gate, linear=linear)


def of_unnormed_input(model: Laguna) -> Laguna:
    """g_proj reads the residual stream instead of the normed hidden state."""
    before = NormInput(model)

    def linear(x: Array, weight: Weight, numerics: Numerics) -> Array:
        read = before.value() if ".self_attn.g_proj" in weight.name else x
        return model.engine.linear(read, weight, numerics)

    return changed(model, rms_norm=before.rms_norm, linear=linear)


def per_element(model: Laguna) -> Laguna:
    """Head gates are repeated over the flat output: element e has gate e mod H, not its head's."""

    def apply_gate(attention: Array, gate: Array, numerics: Numerics) -> Array:
        _, heads, head_dim = attention.shape
        tiled = np.tile(gate, head_dim) if gate.shape[1] == heads else gate
        return model.engine.apply_gate(attention, tiled, numerics)

    return changed(model, apply_gate=apply_gate)


_GATE, _GATED = "self_attn.gate", "self_attn.o_proj"
FAULTS = (
    Fault("gate.sigmoid", _GATE, "all", "fatal", gate_sigmoid),
    Fault("gate.missing", _GATE, "all", "fatal", gate_missing,
          ("https://github.com/vllm-project/vllm-metal/pull/562",)),
    Fault("gate.after_o_proj", _GATED, "all", "fatal", after_o_proj),
    Fault("gate.of_unnormed_input", "self_attn.g_proj", "all", "fatal", of_unnormed_input),
    Fault("gate.per_element", _GATED, "all", "fatal", per_element),
)  # fmt: skip
