"""Which storage format each Linear of a checkpoint has: compressed-tensors' ``config_groups``.

Follows compressed-tensors ``utils/match.py`` and ``quantization/quant_config.py``: a module is
quantised by the first group one of whose targets matches, exact names before regular
expressions before class names, unless an ``ignore`` entry matches it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from laguna_ref.errors import ConfigError

SUPPORTED_BITS = (4, 8)

Target = str | re.Pattern[str]
"""The name of a module or class, or a pattern that a module's name begins with."""


@dataclass(frozen=True)
class WeightFormat:
    """How a weight is stored: ``dense``, or one of compressed-tensors' formats."""

    kind: str
    bits: int | None = None
    group_size: int | None = None

    def __str__(self) -> str:
        if self.kind == "pack-quantized":
            return f"INT{self.bits} g{self.group_size}"
        return {"float-quantized": "FP8 block", "nvfp4-pack-quantized": "NVFP4"}.get(
            self.kind, self.kind
        )


DENSE = WeightFormat("dense")


@dataclass(frozen=True)
class QuantizationGroup:
    """One entry of ``quantization_config.config_groups``."""

    name: str
    targets: tuple[str, ...]
    format: WeightFormat


@dataclass(frozen=True)
class QuantizationConfig:
    """``quantization_config`` of config.json, or its absence (no groups, no FP8 cache)."""

    groups: tuple[QuantizationGroup, ...] = ()
    ignore: tuple[str, ...] = ()
    kv_cache_fp8: bool = False
    unused: tuple[tuple[str, str], ...] = ()

    def format_of(self, module: str) -> WeightFormat:
        """The format of the Linear called ``module`` in the checkpoint.

        >>> QuantizationConfig().format_of("lm_head").kind
        'dense'
        """
        if any(_matches(module, pattern) for pattern in self._ignored):
            return DENSE
        for target, group in self._targets:
            if _matches(module, target):
                return group.format
        return DENSE

    # Compiled once: a checkpoint asks for the format of 30 thousand modules.
    @cached_property
    def _ignored(self) -> tuple[Target, ...]:
        return tuple(_compiled(pattern) for pattern in self.ignore)

    @cached_property
    def _targets(self) -> tuple[tuple[Target, QuantizationGroup], ...]:
        """The most specific first, otherwise in the order of the groups."""
        pairs = [(target, group) for group in self.groups for target in group.targets]
        pairs.sort(key=lambda pair: _specificity(pair[0]))
        return tuple((_compiled(target), group) for target, group in pairs)


def parse_quantization(raw: Any, source: str) -> QuantizationConfig:
    """Reads ``quantization_config``; raises ConfigError for anything it cannot honour."""
    if raw is None:
        return QuantizationConfig()
    if not isinstance(raw, dict):
        raise ConfigError("must be an object", file=source, key="quantization_config", found=raw)
    key = "quantization_config"
    unknown = sorted(set(raw) - _KNOWN)
    if unknown:
        raise ConfigError(
            "unknown key", file=source, key=f"{key}.{unknown[0]}", found=raw[unknown[0]]
        )
    if raw.get("quant_method", "compressed-tensors") != "compressed-tensors":
        raise ConfigError(
            "unsupported quantisation method",
            file=source,
            key=f"{key}.quant_method",
            expected="compressed-tensors",
            found=raw["quant_method"],
        )
    if raw.get("sparsity_config"):
        raise ConfigError(
            "sparse weights are not supported", file=source, key=f"{key}.sparsity_config"
        )
    _refuse_online_transforms(raw.get("transform_config"), source)
    groups = raw.get("config_groups") or {}
    if not isinstance(groups, dict):
        raise ConfigError("must be an object", file=source, key=f"{key}.config_groups")
    return QuantizationConfig(
        groups=tuple(_parse_group(name, group, raw, source) for name, group in groups.items()),
        ignore=_patterns(raw.get("ignore") or [], source, f"{key}.ignore"),
        kv_cache_fp8=_parse_kv_cache_scheme(raw.get("kv_cache_scheme"), source),
        unused=tuple((f"{key}.{k}", why) for k, why in _UNUSED.items() if raw.get(k) is not None),
    )


_UNUSED = {
    "quantization_status": "the tensors show whether the weights are compressed",
    "transform_config": "offline rotations are already in the stored weights",
    "global_compression_ratio": "a statistic",
    "version": "of the tool that wrote the checkpoint",
    "sparsity_config": "empty: no sparse weights",
}
_KNOWN = {"config_groups", "ignore", "kv_cache_scheme", "format", "quant_method", *_UNUSED}


def _parse_group(name: str, raw: Any, whole: dict[str, Any], source: str) -> QuantizationGroup:
    key = f"quantization_config.config_groups.{name}"
    if not isinstance(raw, dict) or not isinstance(raw.get("weights"), dict):
        raise ConfigError("must be an object with weights", file=source, key=key, found=raw)
    weights = raw["weights"]
    _refuse_unknown(raw, _GROUP_KEYS, source, key)
    _refuse_unknown(weights, _ARGUMENT_KEYS, source, f"{key}.weights")
    kind = raw.get("format") or whole.get("format")
    if kind == "pack-quantized":
        bits, group = weights.get("num_bits"), weights.get("group_size")
        if (
            weights.get("type", "int") != "int"
            or type(bits) is not int
            or bits not in SUPPORTED_BITS
        ):
            raise ConfigError(
                "unsupported packed weights",
                file=source,
                key=f"{key}.weights",
                expected="type int, num_bits 4 or 8",
                found=f"type {weights.get('type')}, num_bits {bits}",
            )
        if weights.get("strategy") != "group" or type(group) is not int or group < 1:
            raise ConfigError(
                "unsupported strategy",
                file=source,
                key=f"{key}.weights",
                expected="strategy group with a positive group_size",
                found=f"strategy {weights.get('strategy')}, group_size {group}",
            )
        if weights.get("symmetric") is not True or weights.get("actorder"):
            raise ConfigError(
                "unsupported quantisation",
                file=source,
                key=f"{key}.weights",
                expected="symmetric true, actorder null",
                found=f"symmetric {weights.get('symmetric')}, actorder {weights.get('actorder')}",
            )
        if raw.get("input_activations") or raw.get("output_activations"):
            raise ConfigError("quantised activations are not supported", file=source, key=key)
        weight_format = WeightFormat(kind, bits, group)
    elif kind in ("float-quantized", "nvfp4-pack-quantized"):
        # Known by name, so that a config can be inspected; opening such weights is refused.
        bits, group = weights.get("num_bits"), weights.get("group_size")
        for name, value in (("num_bits", bits), ("group_size", group)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(
                    "wrong value", file=source, key=f"{key}.weights.{name}",
                    expected="a positive integer or null", found=value,
                )  # fmt: skip
        weight_format = WeightFormat(kind, bits, group)
    else:
        raise ConfigError("unknown weight format", file=source, key=f"{key}.format", found=kind)
    return QuantizationGroup(
        name, _patterns(raw.get("targets") or [], source, f"{key}.targets"), weight_format
    )


def _patterns(raw: Any, source: str, key: str) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise ConfigError("must be a list of strings", file=source, key=key, found=raw)
    for item in raw:
        if item.startswith("re:"):
            _refuse_slow_pattern(item, source, key)
            try:
                re.compile(item[3:])
            except (re.error, OverflowError, RecursionError) as problem:
                raise ConfigError(f"bad pattern ({problem})", file=source, key=key) from problem
    return tuple(raw)


_GROUP_KEYS = {"targets", "weights", "input_activations", "output_activations", "format"}
_ARGUMENT_KEYS = {
    "actorder", "block_structure", "dynamic", "group_size", "num_bits", "observer",
    "observer_kwargs", "scale_dtype", "strategy", "symmetric", "type", "zp_dtype",
}  # fmt: skip
"""compressed-tensors ``QuantizationArgs``; what is not checked by name is of the quantiser."""


def _refuse_unknown(raw: dict[str, Any], known: set[str], source: str, key: str) -> None:
    for name in raw:
        if name not in known:
            raise ConfigError("unknown key", file=source, key=f"{key}.{name}", found=raw[name])


def _refuse_online_transforms(raw: Any, source: str) -> None:
    """Rotations of weights were done when they were stored; others would be ours to do."""
    groups = raw.get("config_groups", {}) if isinstance(raw, dict) else {}
    for name, group in groups.items() if isinstance(groups, dict) else ():
        applied = group.get("apply", []) if isinstance(group, dict) else []
        for entry in applied if isinstance(applied, list) else ():
            location = entry.get("location") if isinstance(entry, dict) else entry
            if location not in ("weight_input", "weight_output"):
                raise ConfigError(
                    "transforms at run time are not supported", file=source,
                    key=f"quantization_config.transform_config.config_groups.{name}",
                    expected="location weight_input or weight_output", found=location,
                )  # fmt: skip


def _refuse_slow_pattern(pattern: str, source: str, key: str) -> None:
    """A pattern that backtracks without end would hang the reader.

    Repeating a group, or more than three open repetitions, is what it takes; published
    patterns have two.
    """
    repeats = len(re.findall(r"(?<!\\)[*+]|\{\d*,\d*\}", pattern))
    if re.search(r"\)\s*[*+{]", pattern) or repeats > 3:
        raise ConfigError(
            "pattern could take for ever to match", file=source, key=key,
            expected="no repeated group, at most three repetitions", found=pattern,
        )  # fmt: skip


def _parse_kv_cache_scheme(raw: Any, source: str) -> bool:
    if raw is None:
        return False
    if not isinstance(raw, dict):
        raise ConfigError(
            "must be an object", file=source, key="quantization_config.kv_cache_scheme", found=raw
        )
    _refuse_unknown(raw, _ARGUMENT_KEYS, source, "quantization_config.kv_cache_scheme")
    expected = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
    found = {name: raw.get(name, value) for name, value in expected.items()}
    if found != expected or raw.get("dynamic"):
        raise ConfigError(
            "unsupported cache quantisation",
            file=source,
            key="quantization_config.kv_cache_scheme",
            expected=f"{expected}, not dynamic",
            found=found | {"dynamic": raw.get("dynamic")},
        )
    return True


def _compiled(target: str) -> Target:
    return re.compile(target[3:]) if target.startswith("re:") else target


def _matches(module: str, target: Target) -> bool:
    if isinstance(target, re.Pattern):
        return target.match(module) is not None
    return target in (module, "Linear") and (target != "Linear" or _is_linear(module))


def _is_linear(module: str) -> bool:
    """Whether the released implementation has an nn.Linear of this name.

    The embedding is no Linear; the router (``mlp.gate``) is a bare parameter in Transformers.
    """
    return not module.endswith(("embed_tokens", "norm", "layernorm", "mlp.gate"))


def _specificity(target: str) -> int:
    return 1 if target.startswith("re:") else 2 if target == "Linear" else 0
