"""Laguna's forward pass in torch, compact and quick enough to train on two CPU cores.

Parameters are a flat dictionary named as in the published checkpoint, except that an expert's
matrices are stacked: `mlp.experts.gate_up_proj` [E, 2F, D] (gate rows first) and
`mlp.experts.down_proj` [E, D, F]. Master weights, residual stream, norms, softmaxes and router
are float32; matrix products run in `dtype`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from laguna_tiny.expert_ops import grouped_linear, permute_rows, route

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """What a layer needs to know about itself."""

    sliding: bool
    sparse: bool
    heads: int
    kv_heads: int
    head_dim: int
    top_k: int
    routed_scale: float
    eps: float
    dtype: torch.dtype


def layers_of(config: dict[str, Any], dtype: torch.dtype) -> list[Layer]:
    """The layers of a config.json, whose matrix products run in `dtype`."""
    return [
        Layer(
            sliding=kind == "sliding_attention",
            sparse=config["mlp_layer_types"][number] == "sparse",
            heads=config["num_attention_heads_per_layer"][number],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            top_k=config["num_experts_per_tok"],
            routed_scale=config["moe_routed_scaling_factor"],
            eps=config["rms_norm_eps"],
            dtype=dtype,
        )
        for number, kind in enumerate(config["layer_types"])
    ]


def initial_parameters(config: dict[str, Any], seed: int) -> Parameters:
    """Projections back into the residual stream start at zero, so every layer starts as the
    identity and the routed experts' scale of 2.5 does no harm."""
    generator = torch.Generator().manual_seed(seed)
    width, head_dim = config["hidden_size"], config["head_dim"]
    experts, expert_width = config["num_experts"], config["moe_intermediate_size"]
    keys = config["num_key_value_heads"] * head_dim
    parameters: Parameters = {}

    def normal(name: str, *shape: int, std: float | None = None) -> None:
        std = 0.5 / math.sqrt(shape[-1]) if std is None else std
        parameters[name] = torch.randn(shape, generator=generator) * std

    normal("model.embed_tokens.weight", config["vocab_size"], width, std=0.3)
    for number, heads in enumerate(config["num_attention_heads_per_layer"]):
        prefix = f"model.layers.{number}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            parameters[f"{prefix}{name}.weight"] = torch.ones(width)
        for name in ("q_norm", "k_norm"):
            parameters[f"{prefix}self_attn.{name}.weight"] = torch.ones(head_dim)
        normal(prefix + "self_attn.q_proj.weight", heads * head_dim, width)
        normal(prefix + "self_attn.k_proj.weight", keys, width)
        normal(prefix + "self_attn.v_proj.weight", keys, width)
        normal(prefix + "self_attn.g_proj.weight", heads, width, std=0.0)
        normal(prefix + "self_attn.o_proj.weight", width, heads * head_dim, std=0.0)
        sparse = config["mlp_layer_types"][number] == "sparse"
        dense = "mlp.shared_expert." if sparse else "mlp."
        inner = config["shared_expert_intermediate_size" if sparse else "intermediate_size"]
        normal(f"{prefix}{dense}gate_proj.weight", inner, width)
        normal(f"{prefix}{dense}up_proj.weight", inner, width)
        normal(f"{prefix}{dense}down_proj.weight", width, inner, std=0.0)
        if sparse:
            normal(prefix + "mlp.gate.weight", experts, width)
            normal(prefix + "mlp.experts.gate_up_proj", experts, 2 * expert_width, width)
            normal(prefix + "mlp.experts.down_proj", experts, width, expert_width, std=0.0)
            parameters[prefix + "mlp.experts.e_score_correction_bias"] = torch.zeros(experts)
    parameters["model.norm.weight"] = torch.ones(width)
    normal("lm_head.weight", config["vocab_size"], width, std=0.0)
    return parameters


def inverse_frequencies(rope: dict[str, Any], head_dim: int) -> Tensor:
    """One a pair of rotated dimensions; YaRN blends theta's own with those of a longer context."""
    dim = int(head_dim * rope["partial_rotary_factor"])
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "default":
        return plain.float()

    def dimension_turning(times: float) -> float:
        context = rope["original_max_position_embeddings"]
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low = max(math.floor(dimension_turning(rope["beta_fast"])), 0)
    high = min(math.ceil(dimension_turning(rope["beta_slow"])), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return (plain / rope["factor"] * ramp + plain * (1 - ramp)).float()


def rope_tables(config: dict[str, Any], length: int) -> dict[bool, tuple[Tensor, Tensor]]:
    """Cosines and sines [T, rotated dims], for sliding (True) and for full layers (False)."""
    tables = {}
    for kind in ("full_attention", "sliding_attention"):
        rope = config["rope_parameters"][kind]
        half = torch.arange(length).float()[:, None] * inverse_frequencies(rope, config["head_dim"])
        angle = torch.cat([half, half], dim=-1)
        factor = rope.get("attention_factor", 1.0)
        tables[kind == "sliding_attention"] = (angle.cos() * factor, angle.sin() * factor)
    return tables


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, heads, C]; the first dimensions turn, in pairs (i, i + half), the rest pass."""
    turned, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    swapped = torch.cat([-second, first], dim=-1)
    return torch.cat([turned * cos[:, None] + swapped * sin[:, None], passed], dim=-1)


def exponential_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·kᵀ/√C)·v of N independent problems: q [N, R*Q, C], k and v [N, K, C], and
    mask [M, Q, K] of ones and zeros, where M divides N.

    The usual subtraction of the maximum is left out: q and k are normed, which bounds the scores
    far below the overflow of exp, and one pass over the scores less is a third of the time.
    """
    problems, rows, size = q.shape
    periods, queries, keys = mask.shape
    scores = torch.bmm(q, k.transpose(1, 2)).float()
    scores = scores.view(-1, periods, rows // queries, queries, keys)
    weights = torch.exp(scores * size**-0.5) * mask[:, None]
    total = weights.sum(dim=-1).view(problems, rows, 1)
    return torch.bmm(weights.to(v.dtype).view(problems, rows, keys), v) / total


def full_mask(length: int, chunk: int = 256) -> Tensor:
    """[1, chunk, T]: whether the last `chunk` queries see a key."""
    return torch.ones(min(chunk, length), length).tril(length - min(chunk, length))[None]


def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, T, H, C], k and v [B, T, G, C]; chunks of queries see only the keys up to them."""
    batch, length, heads, size = q.shape
    groups, chunk = k.shape[2], mask.shape[1]
    q = q.view(batch, length, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
    k, v = (part.transpose(1, 2).reshape(batch * groups, length, size) for part in (k, v))
    parts = []
    for start in range(0, length, chunk):
        end = start + chunk
        rows = q[:, :, :, start:end].reshape(batch * groups, -1, size)
        out = exponential_attention(rows, k[:, :end], v[:, :end], mask[:, :, length - end :])
        parts.append(out.view(batch, groups, heads // groups, chunk, size))
    return torch.cat(parts, dim=3).permute(0, 3, 1, 2, 4).reshape(batch, length, heads, size)


def sliding_mask(length: int, window: int) -> Tensor:
    """[blocks, W, 2W]: whether a query sees a key of its own block and the one before."""
    row, column = torch.arange(window)[:, None], torch.arange(2 * window)
    visible = (column > row) & (column <= row + window)
    first = torch.arange(length // window)[:, None, None] == 0
    return (visible & ~(first & (column < window))).float()


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Block-local: W queries at a time look at their own block of keys and the one before.

    q [B, T, H, C], k and v [B, T, G, C]; T must be a multiple of the window W.
    """
    batch, length, heads, size = q.shape
    groups, (blocks, window, _) = k.shape[2], mask.shape
    q = q.view(batch, blocks, window, groups, heads // groups, size).permute(0, 3, 1, 4, 2, 5)
    q = q.reshape(batch * groups * blocks, heads // groups * window, size)

    def two_blocks(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, window, 0)).view(batch, blocks + 1, window, groups, size)
        x = torch.cat([x[:, :-1], x[:, 1:]], dim=2)
        return x.permute(0, 3, 1, 2, 4).reshape(batch * groups * blocks, 2 * window, size)

    out = exponential_attention(q, two_blocks(k), two_blocks(v), mask)
    out = out.view(batch, groups, blocks, heads // groups, window, size)
    return out.permute(0, 2, 4, 1, 3, 5).reshape(batch, length, heads, size)


def attention(
    h: Tensor, w: Parameters, layer: Layer, rope: tuple[Tensor, Tensor], mask: Tensor
) -> Tensor:
    """h [B, T, D], normed; rope and mask are rope_tables' and full_mask's or sliding_mask's."""
    batch, length, _ = h.shape

    def heads_of(name: str) -> Tensor:
        return F.linear(h, w[name].to(h.dtype)).view(batch, length, -1, layer.head_dim)

    q, k, v = (heads_of(f"self_attn.{name}_proj.weight") for name in "qkv")
    q = rotate(rms_norm(q, w["self_attn.q_norm.weight"], layer.eps), *rope).to(h.dtype)
    k = rotate(rms_norm(k, w["self_attn.k_norm.weight"], layer.eps), *rope).to(h.dtype)
    out = (sliding_attention if layer.sliding else full_attention)(q, k, v, mask)
    gate = F.softplus(F.linear(h, w["self_attn.g_proj.weight"].to(h.dtype)).float())
    out = (out * gate[..., None]).to(h.dtype).reshape(batch, length, -1)
    return F.linear(out, w["self_attn.o_proj.weight"].to(h.dtype))


def swiglu(h: Tensor, w: Parameters, prefix: str) -> Tensor:
    """down(silu(gate(h)) · up(h)), of the three matrices under `prefix`."""
    gate = F.linear(h, w[prefix + "gate_proj.weight"].to(h.dtype))
    up = F.linear(h, w[prefix + "up_proj.weight"].to(h.dtype))
    return F.linear(F.silu(gate) * up, w[prefix + "down_proj.weight"].to(h.dtype))


def routed_experts(
    h: Tensor, w: Parameters, layer: Layer, router_input: Tensor
) -> tuple[Tensor, Tensor]:
    """h [T, D] -> the routed sum [T, D] before scaling, and how many tokens each expert took."""
    scores = torch.sigmoid(F.linear(router_input, w["mlp.gate.weight"]))
    bias = w["mlp.experts.e_score_correction_bias"]
    chosen, order, inverse, ends = route(scores.detach(), bias, layer.top_k)
    weights = scores.gather(1, chosen)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    tokens, width = h.shape
    rows = h[:, None, :].expand(tokens, layer.top_k, width).reshape(-1, width)
    rows = permute_rows(rows.contiguous(), order, inverse)
    both = grouped_linear(rows, w["mlp.experts.gate_up_proj"].to(h.dtype), ends)
    gate, up = both.chunk(2, dim=-1)
    out = grouped_linear(F.silu(gate) * up, w["mlp.experts.down_proj"].to(h.dtype), ends)
    out = permute_rows(out, inverse, order).view(tokens, layer.top_k, width)
    return (out.float() * weights[..., None]).sum(dim=1), torch.diff(ends, prepend=ends[:1] * 0)


def run_layer(
    x: Tensor, w: Parameters, layer: Layer, rope: tuple[Tensor, Tensor], mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """x [B, T, D] float32 -> the same, and the load of each expert (None in a dense layer)."""
    h = rms_norm(x, w["input_layernorm.weight"], layer.eps).to(layer.dtype)
    x = x + attention(h, w, layer, rope, mask)
    normed = rms_norm(x, w["post_attention_layernorm.weight"], layer.eps)
    h = normed.to(layer.dtype)
    if not layer.sparse:
        return x + swiglu(h, w, "mlp."), None
    flat = h.view(-1, h.shape[-1])
    routed, load = routed_experts(flat, w, layer, normed.view(flat.shape))
    shared = swiglu(h, w, "mlp.shared_expert.")
    return x + routed.view(x.shape) * layer.routed_scale + shared, load


def head(x: Tensor, norm: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The final norm and the output matrix: logits."""
    return F.linear(rms_norm(x, norm, eps).to(dtype), weight.to(dtype))


def head_loss(
    x: Tensor, norm: Tensor, weight: Tensor, targets: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Mean cross-entropy in nats a token."""
    logits = head(x, norm, weight, eps, dtype).float().view(-1, weight.shape[0])
    return F.cross_entropy(logits, targets.reshape(-1))


class Network:
    """The model for one sequence length; `compiled` uses torch.compile (needs a C++ compiler)."""

    def __init__(
        self, config: dict[str, Any], length: int, dtype: torch.dtype, compiled: bool
    ) -> None:
        self.config, self.dtype = config, dtype
        self.layers = layers_of(config, dtype)
        self.rope = rope_tables(config, length)
        self.mask = {False: full_mask(length), True: sliding_mask(length, config["sliding_window"])}
        self.run_layer, self.head_loss = run_layer, head_loss
        if compiled:
            self.run_layer = torch.compile(run_layer, dynamic=False)
            self.head_loss = torch.compile(head_loss, dynamic=False)

    @staticmethod
    def weights_of(parameters: Parameters, number: int) -> Parameters:
        """One layer's, by their names inside it."""
        prefix = f"model.layers.{number}."
        return {
            name.removeprefix(prefix): value
            for name, value in parameters.items()
            if name.startswith(prefix)
        }

    def step(self, x: Tensor, weights: Parameters, number: int) -> tuple[Tensor, Tensor | None]:
        """One layer, given its own weights."""
        layer = self.layers[number]
        return self.run_layer(x, weights, layer, self.rope[layer.sliding], self.mask[layer.sliding])

    def hidden(self, parameters: Parameters, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """tokens [B, T] -> the residual stream after the last layer, and each layer's load."""
        x = F.embedding(tokens, parameters["model.embed_tokens.weight"])
        loads = []
        for number in range(len(self.layers)):
            x, load = self.step(x, self.weights_of(parameters, number), number)
            if load is not None:
                loads.append(load)
        return x, loads

    def loss(
        self, parameters: Parameters, tokens: Tensor, targets: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Mean cross-entropy in nats a token, and each sparse layer's expert loads."""
        x, loads = self.hidden(parameters, tokens)
        norm, weight = parameters["model.norm.weight"], parameters["lm_head.weight"]
        eps = self.config["rms_norm_eps"]
        return self.head_loss(x, norm, weight, targets, eps, self.dtype), loads

    def logits(self, parameters: Parameters, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> float32 [B, T, V]."""
        x, _ = self.hidden(parameters, tokens)
        norm, weight = parameters["model.norm.weight"], parameters["lm_head.weight"]
        return head(x, norm, weight, self.config["rms_norm_eps"], self.dtype).float()
