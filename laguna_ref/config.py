"""config.json -> LagunaConfig -> one LayerSpec per layer; every key is used or refused.

Key names are those of the published configs. A key that is absent and that changes the maths
takes a default only where the released implementation has one; each default taken is listed in
``LagunaConfig.defaults`` with its source, each key that is known but has no effect on the
forward pass in ``LagunaConfig.unused`` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from laguna_ref.config_keys import ConfigReader
from laguna_ref.errors import ConfigError
from laguna_ref.json_file import read_json
from laguna_ref.quantization import QuantizationConfig, WeightFormat, parse_quantization
from laguna_ref.rope_spec import RopeSpec, parse_rope

ATTENTION_KINDS = ("full_attention", "sliding_attention")
MAX_LAYERS, MAX_EXPERTS = 10_000, 65_536
"""Beyond these a config is a mistake, not a model; tables are made of every layer and expert."""


@dataclass(frozen=True)
class LayerSpec:
    """Everything one decoder layer needs to know about itself."""

    index: int
    attention: str
    """``full_attention`` or ``sliding_attention``."""
    num_heads: int
    """Query heads H; differs between the kinds of attention."""
    num_kv_heads: int
    head_dim: int
    window: int | None
    """Keys a query sees, its own token included; None on full layers."""
    rope: RopeSpec
    gate: str
    """``per-head`` or ``per-element``."""
    gate_activation: str
    """``softplus`` or ``sigmoid``."""
    mlp: str
    """``dense`` or ``sparse``."""
    intermediate_size: int
    """Width of the dense MLP, or of one routed expert."""
    formats: tuple[tuple[str, WeightFormat], ...]
    """Storage format of each Linear of the layer, by its name inside the layer."""

    @property
    def gate_width(self) -> int:
        """Rows of ``g_proj``."""
        return self.num_heads * (self.head_dim if self.gate == "per-element" else 1)

    @property
    def weight_format(self) -> WeightFormat:
        """The format of the layer's largest weights: its experts', or its dense MLP's."""
        name = "mlp.experts.0.gate_proj" if self.mlp == "sparse" else "mlp.gate_proj"
        return dict(self.formats)[name]


@dataclass(frozen=True)
class LagunaConfig:
    """A checked config.json; attributes carry the names of its keys."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    sliding_window: int | None
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    moe_routed_scaling_factor: float
    moe_router_score_func: str
    moe_router_logit_softcapping: float
    norm_topk_prob: bool
    gating: bool | str
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: tuple[int, ...]
    pad_token_id: int | None
    torch_dtype: str
    layers: tuple[LayerSpec, ...]
    quantization: QuantizationConfig
    defaults: tuple[tuple[str, Any, str], ...]
    """(key, value taken, source of the default) for each key that was absent."""
    unused: tuple[tuple[str, str], ...]
    """(key, reason) for each key that is known and has no effect on the forward pass."""
    ignored: tuple[tuple[str, Any], ...]
    """(key, value) for each unknown key that the caller chose to ignore."""
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_file(cls, path: str | Path, *, ignore_keys: Iterable[str] = ()) -> LagunaConfig:
        """Reads ``path`` (config.json or the folder it lies in); raises ConfigError."""
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        return cls.from_dict(
            read_json(path, ConfigError), source=str(path), ignore_keys=ignore_keys
        )

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], *, source: str = "config.json", ignore_keys: Iterable[str] = ()
    ) -> LagunaConfig:
        """Checks a config's JSON object; raises ConfigError naming key, found and expected."""
        return _parse(raw, source, tuple(ignore_keys))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object this config was read from."""
        return dict(self.raw)

    @property
    def kv_cache_fp8(self) -> bool:
        """Whether the checkpoint declares an FP8 key/value cache."""
        return self.quantization.kv_cache_fp8

    def weight_format(self, module: str) -> WeightFormat:
        """Storage format of a Linear by its published name, e.g. ``model.layers.1.mlp.gate``."""
        return self.quantization.format_of(module)

    def with_gate(self, index: int, kind: str) -> LagunaConfig:
        """The same config with layer ``index`` gated ``per-head`` or ``per-element``.

        ``gating: true`` means per head in XS.2 and per element in M.1's own code, so a
        checkpoint settles it by the width of ``g_proj``.
        """
        layers = tuple(
            replace(layer, gate=kind) if layer.index == index else layer for layer in self.layers
        )
        return replace(self, layers=layers)


def _parse(raw: dict[str, Any], source: str, ignore_keys: tuple[str, ...]) -> LagunaConfig:
    keys = ConfigReader(raw, source, ignore_keys)
    keys.refuse_unsupported()
    count = keys.positive_int("num_hidden_layers", maximum=MAX_LAYERS)
    head_dim = keys.positive_int("head_dim")
    kv_heads = keys.positive_int("num_key_value_heads")
    kinds = keys.layer_list(
        "layer_types", count, ATTENTION_KINDS, "full_attention", "Transformers: every layer full"
    )
    mlps = _mlp_kinds(keys, count)
    heads = _head_counts(keys, count, kv_heads)
    gating, gates = _gates(keys, count)
    gate_activation = keys.choice(
        "gating_activation", ("softplus", "sigmoid"), "softplus", "released code (not the card)"
    )
    sliding = "sliding_attention" in kinds
    sparse, dense = "sparse" in mlps, "dense" in mlps
    window = keys.size_if(sliding, "sliding_window", "no layer is sliding") or None
    intermediate = keys.size_if(dense, "intermediate_size", "no layer is dense")
    num_experts = keys.size_if(sparse, "num_experts", "no layer is sparse", maximum=MAX_EXPERTS)
    top_k = keys.size_if(sparse, "num_experts_per_tok", "no layer is sparse")
    moe_intermediate = keys.size_if(sparse, "moe_intermediate_size", "no layer is sparse")
    shared_intermediate = keys.size_if(
        sparse, "shared_expert_intermediate_size", "no layer is sparse"
    )
    if top_k > num_experts:
        raise keys.error("num_experts_per_tok", "chooses more experts than there are", num_experts)
    rope = _rope(keys, head_dim, dict.fromkeys(kinds))
    quantization = parse_quantization(keys.get("quantization_config"), source)
    layers = tuple(
        _layer(
            index, kinds[index], heads[index], kv_heads, head_dim,
            window if kinds[index] == "sliding_attention" else None, rope[kinds[index]],
            gates[index], gate_activation, mlps[index],
            moe_intermediate if mlps[index] == "sparse" else intermediate, quantization,
        )
        for index in range(count)
    )  # fmt: skip
    return LagunaConfig(
        vocab_size=keys.positive_int("vocab_size"),
        hidden_size=keys.positive_int("hidden_size"),
        intermediate_size=intermediate,
        num_hidden_layers=count,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=keys.positive_int("max_position_embeddings"),
        rms_norm_eps=keys.number("rms_norm_eps", minimum=0.0),
        sliding_window=window,
        num_experts=num_experts,
        num_experts_per_tok=top_k,
        moe_intermediate_size=moe_intermediate,
        shared_expert_intermediate_size=shared_intermediate,
        moe_routed_scaling_factor=keys.number(
            "moe_routed_scaling_factor", 1.0, "Transformers LagunaConfig"
        ),
        moe_router_score_func=_score_function(keys),
        moe_router_logit_softcapping=keys.number(
            "moe_router_logit_softcapping", 0.0, "Transformers LagunaConfig: none", minimum=0.0
        ),
        norm_topk_prob=keys.boolean("norm_topk_prob", True, "Transformers always renormalises"),
        gating=gating,
        tie_word_embeddings=keys.boolean("tie_word_embeddings", False, "Transformers"),
        bos_token_id=keys.token_id("bos_token_id"),
        eos_token_id=keys.token_ids("eos_token_id"),
        pad_token_id=keys.token_id("pad_token_id"),
        torch_dtype=_torch_dtype(keys),
        layers=layers,
        quantization=quantization,
        defaults=tuple(keys.defaults),
        ignored=keys.refuse_unknown(),
        unused=tuple(keys.unused) + quantization.unused,
        raw=dict(raw),
    )


def _layer(
    index: int, attention: str, num_heads: int, num_kv_heads: int, head_dim: int,
    window: int | None, rope: RopeSpec, gate: str, gate_activation: str, mlp: str,
    intermediate_size: int, quantization: QuantizationConfig,
) -> LayerSpec:  # fmt: skip
    modules = [f"self_attn.{name}_proj" for name in "qkvgo"]
    homes = ["mlp"]
    if mlp == "sparse":
        modules.append("mlp.gate")
        homes = ["mlp.experts.0", "mlp.shared_expert"]
    modules += [f"{home}.{name}_proj" for home in homes for name in ("gate", "up", "down")]
    formats = tuple((m, quantization.format_of(f"model.layers.{index}.{m}")) for m in modules)
    return LayerSpec(
        index, attention, num_heads, num_kv_heads, head_dim, window, rope, gate,
        gate_activation, mlp, intermediate_size, formats,
    )  # fmt: skip


def _mlp_kinds(keys: ConfigReader, count: int) -> tuple[str, ...]:
    """Dense or sparse per layer: ``mlp_layer_types``, or the older pair of keys it replaced."""
    step = keys.positive_int("decoder_sparse_step", 1)
    only = keys.get("mlp_only_layers")
    legacy: tuple[str, ...] | None = None
    if only is not None:
        if not isinstance(only, list) or not all(type(i) is int for i in only):
            raise keys.error("mlp_only_layers", "wrong value", "a list of layer indices", only)
        # Qwen-MoE's rule, from which these keys come.
        legacy = tuple(
            "dense" if index in only or (index + 1) % step else "sparse" for index in range(count)
        )
    elif step != 1:
        raise keys.error("decoder_sparse_step", "needs mlp_only_layers beside it")
    if keys.get("mlp_layer_types") is None and legacy is not None:
        return legacy
    kinds = keys.layer_list(
        "mlp_layer_types", count, ("dense", "sparse"), None,
        "Transformers: first layer dense, the rest sparse",
        tuple("sparse" if index else "dense" for index in range(count)),
    )  # fmt: skip
    if legacy is not None and legacy != kinds:
        raise keys.error(
            "mlp_layer_types", "contradicts mlp_only_layers and decoder_sparse_step", legacy, kinds
        )
    return kinds


def _head_counts(keys: ConfigReader, count: int, kv_heads: int) -> tuple[int, ...]:
    per_layer = keys.get("num_attention_heads_per_layer")
    if per_layer is None:
        heads = (keys.positive_int("num_attention_heads"),) * count
    else:
        keys.note_unused("num_attention_heads", "num_attention_heads_per_layer decides")
        ok = isinstance(per_layer, list) and len(per_layer) == count
        if not ok or not all(type(h) is int and h > 0 for h in per_layer):
            raise keys.error(
                "num_attention_heads_per_layer", "wrong value", f"{count} positive ints", per_layer
            )
        heads = tuple(per_layer)
    for index, number in enumerate(heads):
        if number % kv_heads:
            raise keys.error(
                "num_attention_heads_per_layer",
                f"layer {index}: query heads must be a multiple of the key/value heads",
                f"a multiple of {kv_heads}",
                number,
            )
    return heads


def _gates(keys: ConfigReader, count: int) -> tuple[bool | str, tuple[str, ...]]:
    gating = keys.get("gating")
    if gating is None:
        gating = keys.take_default("gating", True, "Transformers LagunaConfig: per head")
    if gating is not True and gating not in ("per-head", "per-element"):
        raise keys.error("gating", "wrong value", "true, per-head or per-element", gating)
    types = keys.get("gating_types")
    if types is None:
        return gating, (("per-head" if gating is True else gating),) * count
    per_layer = keys.layer_list("gating_types", count, ("per_head", "per_element"), None, "")
    return gating, tuple(kind.replace("_", "-") for kind in per_layer)


def _score_function(keys: ConfigReader) -> str:
    """Router scores; ``moe_router_use_sigmoid`` is the older name of the choice."""
    legacy = keys.get("moe_router_use_sigmoid")
    default = "softmax" if legacy is False else "sigmoid"
    name = keys.choice(
        "moe_router_score_func", ("sigmoid", "softmax", "sqrtsoftplus"), default,
        "moe_router_use_sigmoid" if legacy is not None else "released code",
    )  # fmt: skip
    if legacy is not None and (name == "softmax") == bool(legacy):
        raise keys.error("moe_router_score_func", "contradicts moe_router_use_sigmoid", None, name)
    return name


def _torch_dtype(keys: ConfigReader) -> str:
    old, new = keys.get("torch_dtype"), keys.get("dtype")
    name = new if new is not None else old
    if old is not None and old != name:
        raise keys.error("torch_dtype", "contradicts dtype", new, old)
    if name is None:
        return str(keys.take_default("torch_dtype", "bfloat16", "published checkpoints"))
    if name not in ("bfloat16", "float16", "float32"):
        raise keys.error("torch_dtype", "wrong value", "bfloat16, float16 or float32", name)
    return str(name)


def _rope(keys: ConfigReader, head_dim: int, kinds: Iterable[str]) -> dict[str, RopeSpec]:
    """RoPE of each kind of attention, from the nested layout or the older flat one.

    Nested (published): ``rope_parameters`` holds one object per kind; a scalar beside them is
    a workaround for a validator of Transformers and says nothing (only ``truncate`` is read
    there, as Transformers does). Flat (older family members): ``rope_parameters``, or
    ``rope_scaling`` with ``rope_theta``, describes the full layers and
    ``swa_rope_parameters`` the sliding ones.
    """
    rope = keys.get("rope_parameters")
    name = "rope_parameters"
    if rope is None:
        rope, name = keys.get("rope_scaling") or {"rope_type": "default"}, "rope_scaling"
    else:
        keys.note_unused("rope_scaling", "rope_parameters decides")
    swa = keys.get("swa_rope_parameters")
    for key, value in ((name, rope), ("swa_rope_parameters", swa)):
        if value is not None and not isinstance(value, dict):
            raise keys.error(key, "wrong value", "an object", value)
    nested = any(isinstance(rope.get(kind), dict) for kind in ATTENTION_KINDS)
    shared: dict[str, Any] = {}
    if nested:
        if swa is not None and swa != rope.get("sliding_attention"):
            raise keys.error(
                "swa_rope_parameters", f"contradicts {name}", rope.get("sliding_attention"), swa
            )
        keys.note_unused("swa_rope_parameters", f"{name}.sliding_attention decides")
        strays = {key: value for key, value in rope.items() if key not in ATTENTION_KINDS}
        for key, value in strays.items():
            if key == "truncate":
                shared["truncate"] = value
            elif key == "original_max_position_embeddings":
                keys.unused.append((f"{name}.{key}", "stray scalar beside the objects per kind"))
            else:
                raise keys.error(f"{name}.{key}", "unknown key", None, value)
    for key in ("partial_rotary_factor", "rope_theta"):
        if keys.get(key) is not None:
            shared[key] = keys.get(key)
    result: dict[str, RopeSpec] = {}
    missing: set[str] = set()
    for kind in kinds:
        if nested:
            raw, key = rope.get(kind), f"{name}.{kind}"
            if not isinstance(raw, dict):
                raise keys.error(key, "missing", "an object", raw)
        elif kind == "sliding_attention" and swa is not None:
            raw, key = swa, "swa_rope_parameters"
        else:
            raw, key = rope, name
        if raw.get("rope_type", raw.get("type")) is None:
            raw = {**raw, "rope_type": "default"}
        missing.update(set(shared) - set(raw))
        result[kind] = parse_rope({**shared, **raw}, head_dim, keys.source, key, keys.unused)
    for key in set(shared) - missing - {"truncate"}:
        keys.note_unused(key, "the parameters of each kind of attention have their own")
    return result
