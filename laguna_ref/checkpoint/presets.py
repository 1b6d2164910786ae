"""The published configs, whole or cut down to some of their layers."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from laguna_ref.errors import ConfigError

PRESETS = ("xs2", "xs2-int4", "xs2-fp8", "xs2-nvfp4", "xs21-int4")
"""Names of the configs in ``laguna_ref/data/configs``, verbatim as published."""

_PER_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "num_attention_heads_per_layer",
    "gating_types",
)


def preset(
    name: str, layers: int | None = None, layer_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """The config.json of a published checkpoint, or of a slice of it.

    ``layers=4`` keeps the first four layers; ``layer_ids=[0, 1, 31]`` keeps those, renumbered
    0, 1, 2. Each kept layer keeps its source's attention, heads, MLP and weight format: the
    regular expressions of ``quantization_config`` are rewritten for the new numbers.

    Raises ConfigError for an unknown name or layers that the config does not have.

    >>> preset("xs2-int4", layer_ids=[0, 4])["num_attention_heads_per_layer"]
    [48, 48]
    """
    if name not in PRESETS:
        raise ConfigError("no such preset", expected=", ".join(PRESETS), found=name)
    text = (resources.files("laguna_ref") / "data" / "configs" / f"{name}.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    if layers is not None and layer_ids is not None:
        raise ConfigError("give layers or layer_ids, not both", key=name)
    count = config["num_hidden_layers"]
    kept = list(range(layers)) if layers is not None else list(layer_ids or range(count))
    if not kept or not all(0 <= layer < count for layer in kept):
        raise ConfigError(
            "no such layers in this preset", key=name, expected=f"0 to {count - 1}", found=kept
        )
    return config if kept == list(range(count)) else slice_layers(config, kept)


def slice_layers(config: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A copy of a config with the layers ``kept`` of the source, renumbered from 0."""
    config = copy.deepcopy(config)
    config["num_hidden_layers"] = len(kept)
    for key in _PER_LAYER:
        if config.get(key) is not None:
            config[key] = [config[key][source] for source in kept]
    if config.get("mlp_only_layers") is not None:
        dense = config["mlp_only_layers"]
        config["mlp_only_layers"] = [new for new, source in enumerate(kept) if source in dense]
    quantization = config.get("quantization_config")
    if quantization:
        quantization["ignore"] = _renumber(quantization.get("ignore") or [], kept)
        groups = quantization.get("config_groups") or {}
        for group in groups.values():
            group["targets"] = _renumber(group["targets"], kept)
        # A group of layers that were all cut off has no target left.
        quantization["config_groups"] = {
            name: group for name, group in groups.items() if group["targets"]
        }
    return config


def _renumber(patterns: list[str], kept: Sequence[int]) -> list[str]:
    """The patterns that pick the same modules once layer ``kept[i]`` is called ``i``.

    Understood are module names (``model.layers.0.mlp.gate_proj``) and regular expressions
    with the layer number between ``layers\\.`` and ``\\.``; patterns without ``layers`` hold
    for every layer and stay as they are.
    """
    result: list[str] = []
    for pattern in patterns:
        expression = re.fullmatch(r"(re:.*?layers\\\.)(.+?)(\\\..*)", pattern)
        module = re.fullmatch(r"(model\.layers\.)(\d+)(\..*)", pattern)
        if "layers" not in pattern:
            result.append(pattern)
        elif expression:
            before, number, after = expression.groups()
            new = [str(i) for i, source in enumerate(kept) if re.fullmatch(number, str(source))]
            if new:
                result.append(f"{before}({'|'.join(new)}){after}")
        elif module:
            before, number, after = module.groups()
            result += [
                f"{before}{i}{after}" for i, source in enumerate(kept) if source == int(number)
            ]
        else:
            raise ConfigError(
                "cannot tell which layers this pattern names",
                key="quantization_config",
                found=pattern,
            )
    return result
