"""Compares the training network with Transformers' own module on random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LagunaConfig, LagunaForCausalLM

from laguna_tiny.network import Network, Parameters, initial_parameters


def random_parameters(config: dict[str, Any], seed: int) -> Parameters:
    """Everything non-zero, so that a forgotten term shows."""
    generator = torch.Generator().manual_seed(seed)
    parameters = initial_parameters(config, seed)
    for name, value in parameters.items():
        noise = torch.randn(value.shape, generator=generator)
        value.add_(noise * (0.1 if value.dim() == 1 else 0.5 / value.shape[-1] ** 0.5))
        if name == "model.embed_tokens.weight":
            value.add_(noise)
    return parameters


def to_transformers(parameters: Parameters) -> Parameters:
    """The training names to those of Transformers' module."""
    names = {
        "mlp.shared_expert.": "mlp.shared_experts.",
        "mlp.experts.e_score_correction_bias": "mlp.gate.e_score_correction_bias",
    }
    renamed = {}
    for name, value in parameters.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def greatest_difference(config: dict[str, Any], seed: int = 0, length: int = 1024) -> float:
    """Of float32 logits, relative to their standard deviation."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    plain["rope_parameters"] = {
        key: value for key, value in plain["rope_parameters"].items() if isinstance(value, dict)
    }
    theirs = LagunaForCausalLM(LagunaConfig(**plain, attn_implementation="eager"))
    theirs = theirs.to(torch.float32).eval()
    parameters = random_parameters(config, seed)
    theirs.load_state_dict(to_transformers(parameters), strict=True)
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randint(0, config["vocab_size"], (2, length), generator=generator)
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = Network(config, length, torch.float32, False).logits(parameters, tokens)
    return float((expected - found).abs().max() / expected.std())
