"""A second, deliberately naive forward pass: loops over tokens and heads, float64, exact sums.

Written from the published description of the architecture and from Transformers'
``modeling_laguna.py``, for raw config.json objects and true weight values; it shares no code
with ``laguna_ref``. A vector is an array, anything else a Python float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def matvec(weight: Array, x: Sequence[float]) -> list[float]:
    return [dot(row, x) for row in weight.tolist()]


def rms_norm(x: Sequence[float], weight: Sequence[float], eps: float) -> list[float]:
    root = math.sqrt(math.fsum(v * v for v in x) / len(x) + eps)
    return [v / root * g for v, g in zip(x, weight, strict=True)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def silu(x: float) -> float:
    return x * sigmoid(x)


def softplus(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def softmax(x: Sequence[float]) -> list[float]:
    top = max(x)
    e = [math.exp(v - top) for v in x]
    total = math.fsum(e)
    return [v / total for v in e]


def yarn_corrections(rope: Mapping[str, Any], dim: int) -> tuple[float, float]:
    """The fractional pair indices that turn beta_fast and beta_slow times."""
    context, base = rope["original_max_position_embeddings"], rope["rope_theta"]
    fast, slow = (
        dim * math.log(context / (2 * math.pi * turns)) / (2 * math.log(base))
        for turns in (rope["beta_fast"], rope["beta_slow"])
    )
    return fast, slow


def inverse_frequencies(rope: Mapping[str, Any], head_dim: int) -> list[float]:
    dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    base = rope["rope_theta"]
    if rope["rope_type"] == "default":
        return [1 / base ** (2 * j / dim) for j in range(dim // 2)]
    fast, slow = yarn_corrections(rope, dim)
    low, high = max(math.floor(fast), 0), min(math.ceil(slow), dim - 1)
    width = high - low if high != low else 0.001
    result = []
    for j in range(dim // 2):
        extrapolated = 1 / base ** (2 * j / dim)
        interpolated = 1 / (rope["factor"] * base ** (2 * j / dim))
        ramp = min(max((j - low) / width, 0.0), 1.0)
        result.append(interpolated * ramp + extrapolated * (1 - ramp))
    return result


def attention_factor(rope: Mapping[str, Any]) -> float:
    if rope["rope_type"] == "default":
        return 1.0
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = rope["factor"]
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def rotate(
    x: Sequence[float], position: int, frequencies: Sequence[float], factor: float
) -> list[float]:
    """Pairs (i, i + half) of the leading dimensions turned; the others as they are."""
    half = len(frequencies)
    out = list(x)
    for i, frequency in enumerate(frequencies):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        out[i] = x[i] * cos * factor - x[i + half] * sin * factor
        out[i + half] = x[i + half] * cos * factor + x[i] * sin * factor
    return out


def e4m3_value(code: int) -> float:
    """What an e4m3fn code means, from the format's definition."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3_MAGNITUDES = [e4m3_value(code) for code in range(127)]


def e4m3_code(x: float) -> int:
    """The nearest code, ties to the even one, saturating; by looking at every code there is."""
    size = min(abs(x), 448.0)
    best = min(range(127), key=lambda c: (abs(E4M3_MAGNITUDES[c] - size), c & 1))
    return best | (0x80 if math.copysign(1.0, x) < 0 else 0)


def through_fp8(x: Sequence[float], scale: float) -> list[float]:
    """What a float32 value over a float32 scale comes back as from an FP8 cache."""
    quotients = [float(np.float32(v) / np.float32(scale)) for v in x]
    return [e4m3_value(e4m3_code(v)) * scale for v in quotients]


def attend(
    query: Sequence[float], keys: Sequence[Sequence[float]], values: Sequence[Sequence[float]]
) -> list[float]:
    scores = [dot(query, key) / math.sqrt(len(query)) for key in keys]
    p = softmax(scores)
    return [dot(p, [v[c] for v in values]) for c in range(len(query))]


def swiglu(x: Sequence[float], weights: Mapping[str, Array], prefix: str) -> list[float]:
    gate = matvec(weights[f"{prefix}.gate_proj.weight"], x)
    up = matvec(weights[f"{prefix}.up_proj.weight"], x)
    inner = [silu(g) * u for g, u in zip(gate, up, strict=True)]
    return matvec(weights[f"{prefix}.down_proj.weight"], inner)


def router_scores(config: Mapping[str, Any], logits: Sequence[float]) -> list[float]:
    name = config.get("moe_router_score_func", "sigmoid")
    if name == "softmax":
        return softmax(logits)
    if name == "sqrtsoftplus":
        return [math.sqrt(softplus(z)) for z in logits]
    return [sigmoid(z) for z in logits]


def route(
    config: Mapping[str, Any], logits: Sequence[float], bias: Sequence[float]
) -> tuple[list[int], list[float], float]:
    """Experts, weights, and by how much the last chosen is ahead of the first not chosen."""
    scores = router_scores(config, logits)
    k = config["num_experts_per_tok"]
    selection = [s + b for s, b in zip(scores, bias, strict=True)]
    order = sorted(range(len(scores)), key=lambda e: (-selection[e], e))
    chosen = order[:k]
    gaps = [selection[order[i]] - selection[order[i + 1]] for i in range(min(k, len(order) - 1))]
    total = math.fsum(scores[e] for e in chosen) if config.get("norm_topk_prob", True) else 1.0
    return chosen, [scores[e] / total for e in chosen], min(gaps, default=math.inf)


def forward(
    config: Mapping[str, Any],
    weights: Mapping[str, Array],
    tokens: Sequence[int],
    *,
    positions: Sequence[int] | None = None,
    fp8: bool = False,
) -> tuple[dict[str, Array], float]:
    """Every trace point by name, and the smallest routing margin met."""
    return _Pass(config, weights, positions or range(len(tokens)), fp8).run(tokens)


class _Pass:
    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Array],
        positions: Sequence[int],
        fp8: bool,
    ) -> None:
        self.config, self.weights, self.positions, self.fp8 = config, weights, positions, fp8
        self.eps = config["rms_norm_eps"]
        self.trace: dict[str, list[Any]] = {}
        self.margin = math.inf

    def keep(self, name: str, value: list[Any]) -> list[Any]:
        self.trace.setdefault(name, []).append(value)
        return value

    def norm(self, module: str, x: Sequence[float]) -> list[float]:
        return rms_norm(x, self.weights[f"{module}.weight"].tolist(), self.eps)

    def run(self, tokens: Sequence[int]) -> tuple[dict[str, Array], float]:
        embedding = self.weights["model.embed_tokens.weight"]
        stream = [self.keep("model.embed_tokens", embedding[t].tolist()) for t in tokens]
        for layer in range(self.config["num_hidden_layers"]):
            self.layer(layer, stream)
        tied = self.config["tie_word_embeddings"]
        head = embedding if tied else self.weights["lm_head.weight"]
        for x in stream:
            self.keep("lm_head", matvec(head, self.keep("model.norm", self.norm("model.norm", x))))
        return {name: np.array(value) for name, value in self.trace.items()}, self.margin

    def layer(self, index: int, stream: list[list[float]]) -> None:
        at = f"model.layers.{index}"
        for t, added in enumerate(self.attention(index, stream)):
            x = [a + b for a, b in zip(stream[t], added, strict=True)]
            h = self.norm(f"{at}.post_attention_layernorm", x)
            self.keep(f"{at}.post_attention_layernorm", h)
            if self.config["mlp_layer_types"][index] == "dense":
                y = swiglu(h, self.weights, f"{at}.mlp")
            else:
                y = self.experts(f"{at}.mlp", h)
            self.keep(f"{at}.mlp", y)
            stream[t] = self.keep(at, [a + b for a, b in zip(x, y, strict=True)])

    def attention(self, index: int, stream: list[list[float]]) -> list[list[float]]:
        config, weights = self.config, self.weights
        at = f"model.layers.{index}.self_attn"
        kind = config["layer_types"][index]
        rope = config["rope_parameters"][kind]
        head_dim, kv_heads = config["head_dim"], config["num_key_value_heads"]
        frequencies, factor = inverse_frequencies(rope, head_dim), attention_factor(rope)
        heads = config["num_attention_heads_per_layer"][index]
        keys: list[list[list[float]]] = []
        values: list[list[list[float]]] = []
        outputs = []

        def per_head(name: str, h: list[float]) -> list[list[float]]:
            flat = self.keep(f"{at}.{name}", matvec(weights[f"{at}.{name}.weight"], h))
            return [flat[i : i + head_dim] for i in range(0, len(flat), head_dim)]

        def normed(name: str, x: list[list[float]]) -> list[list[float]]:
            return self.keep(f"{at}.{name}", [self.norm(f"{at}.{name}", head) for head in x])

        def rotated(name: str, x: list[list[float]], position: int) -> list[list[float]]:
            turned = [rotate(head, position, frequencies, factor) for head in x]
            return self.keep(f"{at}.{name}", turned)

        for t, x in enumerate(stream):
            h = self.norm(f"model.layers.{index}.input_layernorm", x)
            self.keep(f"model.layers.{index}.input_layernorm", h)
            q = normed("q_norm", per_head("q_proj", h))
            k = normed("k_norm", per_head("k_proj", h))
            v = per_head("v_proj", h)
            q = rotated("q_rope", q, self.positions[t])
            k = rotated("k_rope", k, self.positions[t])
            if self.fp8:
                k = [through_fp8(head, weights[f"{at}.k_scale"].item()) for head in k]
                v = [through_fp8(head, weights[f"{at}.v_scale"].item()) for head in v]
            keys.append(self.keep(f"{at}.k_cached", k))
            values.append(self.keep(f"{at}.v_cached", v))
            window = config["sliding_window"] if kind == "sliding_attention" else t + 1
            seen = range(max(0, t - window + 1), t + 1)
            attended = []
            for head in range(heads):
                g = head // (heads // kv_heads)
                attended.append(
                    attend(q[head], [keys[s][g] for s in seen], [values[s][g] for s in seen])
                )
            self.keep(f"{at}.attention", attended)
            outputs.append(self.gated(at, h, attended))
        return outputs

    def gated(self, at: str, h: list[float], attended: list[list[float]]) -> list[float]:
        act = sigmoid if self.config.get("gating_activation") == "sigmoid" else softplus
        logits = self.keep(f"{at}.g_proj", matvec(self.weights[f"{at}.g_proj.weight"], h))
        gate = self.keep(f"{at}.gate", [act(z) for z in logits])
        head_dim = len(attended[0])
        per_head = len(gate) == len(attended)
        flat = [
            value * gate[i if per_head else i * head_dim + c]
            for i, head in enumerate(attended)
            for c, value in enumerate(head)
        ]
        out = self.keep(f"{at}.o_proj", matvec(self.weights[f"{at}.o_proj.weight"], flat))
        return self.keep(at, out)

    def experts(self, at: str, h: list[float]) -> list[float]:
        config, weights = self.config, self.weights
        logits = matvec(weights[f"{at}.gate.weight"], h)
        cap = config.get("moe_router_logit_softcapping", 0.0)
        if cap > 0:
            logits = [cap * math.tanh(z / cap) for z in logits]
        self.keep(f"{at}.gate", logits)
        bias = weights[f"{at}.experts.e_score_correction_bias"].tolist()
        ids, shares, margin = route(config, logits, bias)
        self.margin = min(self.margin, margin)
        self.keep(f"{at}.topk_ids", ids)
        self.keep(f"{at}.topk_weights", shares)
        outputs = [swiglu(h, weights, f"{at}.experts.{e}") for e in ids]
        routed = [dot(shares, [y[d] for y in outputs]) for d in range(len(h))]
        self.keep(f"{at}.experts", routed)
        shared = self.keep(f"{at}.shared_experts", swiglu(h, weights, f"{at}.shared_expert"))
        scaling = config["moe_routed_scaling_factor"]
        return [scaling * a + b for a, b in zip(routed, shared, strict=True)]
