"""Transformers on the same weights: a script that ``peers`` starts in a process of its own.

The weights are dequantised by this package's reader straight into the parameters, in float32,
so that nothing is written to disk. See ``speed`` for what goes in and out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import DynamicCache, LagunaConfig, LagunaForCausalLM

import laguna_ref
from laguna_ref.checkpoint import Checkpoint
from laguna_ref.conformance.adapters.speed import Agreement, seconds
from laguna_ref.numerics import FLOAT32, Array
from laguna_ref.ops.linear import weight_rows


def main() -> None:
    """Loads, compares and times both ways to compute experts."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    model = load(laguna_ref.checkpoint.open(request["path"]))
    ours = Agreement(request["path"])
    timings, agreement = {}, {}
    with torch.inference_mode():
        for experts in request["variants"]:
            model.set_experts_implementation(experts)
            theirs = model(torch.tensor([ours.tokens])).logits[0].numpy()
            agreement[experts] = ours.with_logits(theirs)
            timings[experts] = seconds(lambda tokens: run(model, tokens), request)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    json.dump({"seconds": timings, "agreement": agreement, "versions": versions}, sys.stdout)


def load(opened: Checkpoint) -> LagunaForCausalLM:
    """The checkpoint in Transformers' classes, every weight float32."""
    raw = {k: v for k, v in opened.config.to_dict().items() if k != "quantization_config"}
    config = LagunaConfig.from_dict(raw)
    config.dtype = torch.float32
    with torch.device("meta"):
        model = LagunaForCausalLM._from_config(config)
    model = model.to(torch.float32).to_empty(device="cpu").eval()
    # Its tables are no parameters: they are computed when the module is made.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill(parameter, name, opened)
    return model


def fill(parameter: torch.Tensor, name: str, opened: Checkpoint) -> None:
    """Copies one parameter, or all experts' of one layer, from the checkpoint."""
    target = parameter.numpy()
    module, _, last = name.rpartition(".")
    if last in ("gate_up_proj", "down_proj"):
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[last]
        for expert in range(len(target)):
            names = [f"{module}.{expert}.{part}" for part in parts]
            np.concatenate([dense(opened, each) for each in names], out=target[expert])
    elif last == "e_score_correction_bias":
        bias = opened.tensor(f"{module.removesuffix('.gate')}.experts.{last}")
        np.copyto(target, bias.astype(np.float32))
    elif target.ndim == 2:
        np.copyto(target, dense(opened, module.replace("shared_experts", "shared_expert")))
    else:
        np.copyto(target, opened.tensor(name).astype(np.float32))


def dense(opened: Checkpoint, module: str) -> Array:
    """A weight in float32, an integer times its scale without rounding."""
    weight = opened.weight(module)
    return weight_rows(weight, 0, weight.shape[0], FLOAT32)


def run(model: LagunaForCausalLM, tokens: Sequence[int]) -> Any:
    """One forward pass that fills a cache."""
    cache = DynamicCache(config=model.config)
    return model(
        torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits


if __name__ == "__main__":
    main()
