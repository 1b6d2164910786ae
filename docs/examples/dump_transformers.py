"""Runs Transformers' Laguna on the tokens of a golden and writes what its modules returned.

python docs/examples/dump_transformers.py MODEL_FOLDER GOLDEN.safetensors DUMP.safetensors
"""

import re
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import LagunaForCausalLM

POINTS = re.compile(  # the modules that are trace points; docs/golden-format.md has the others
    r"model\.(embed_tokens|norm|layers\.\d+(\.(input_layernorm|post_attention_layernorm"
    r"|self_attn(\.([qkvgo]_proj|[qk]_norm))?|mlp(\.(gate|experts|shared_experts))?))?)|lm_head"
)
folder, golden, target = sys.argv[1:]
case = load_file(golden)
dump = {name: case[name] for name in ("tokens", "positions")}
model = LagunaForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()


def hook(name: str, module: torch.nn.Module, output: object) -> None:
    """Keeps [T, ...] of what a module returned: [1, T, ...], [T, ...], or a tuple of more."""
    if name.endswith("mlp.gate"):  # the router: logits, weights, ids
        output, dump[name.replace("gate", "topk_weights")], ids = output
        dump[name.replace("gate", "topk_ids")] = ids
    output = output[0] if isinstance(output, tuple) else output
    dump[name] = (output[0] if output.ndim > 2 else output).clone()


for name, module in model.named_modules():
    if POINTS.fullmatch(name):
        module.register_forward_hook(lambda m, _, out, name=name: hook(name, m, out))
with torch.inference_mode():
    model(case["tokens"][None], position_ids=case["positions"][None], use_cache=False)
said = {"backend": "transformers", "precision": "float32"}
save_file({name: value.contiguous() for name, value in dump.items()}, target, said)
