"""Setting the tensors found in a checkpoint's headers against the table of what must be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from laguna_ref.checkpoint.names import TensorRule, refuse_unsupported, tensor_rules
from laguna_ref.checkpoint.safetensors_file import SafetensorsFile, TensorEntry
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import CheckpointError
from laguna_ref.ranges import ranges


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: its file, its name there, and the header's entry."""

    file: SafetensorsFile
    stored_name: str
    entry: TensorEntry

    @property
    def dtype(self) -> str:
        """The safetensors name of its dtype, for instance ``"BF16"``."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as stored."""
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        """Its size on disk in bytes."""
        return self.entry.nbytes


@dataclass(frozen=True)
class Match:
    """A checkpoint whose headers agree with its config."""

    config: LagunaConfig
    """The config given, with every layer's gate kind settled by its tensors."""
    tensors: dict[str, StoredTensor]
    """By canonical name, in the order of the forward pass."""
    rules: dict[str, TensorRule]
    """The rules of the tensors present, by canonical name."""
    notes: list[str]


def match(config: LagunaConfig, found: Mapping[str, StoredTensor], folder: Path) -> Match:
    """Give each tensor found its canonical name; every one is used exactly once.

    Raises CheckpointError for a tensor that is missing, extra, stored under two names, empty,
    or of another shape or dtype than ``config`` says.
    """
    refuse_unsupported(config)
    config = settle_gates(config, lambda name: found[name].shape if name in found else None)
    tensors: dict[str, StoredTensor] = {}
    rules: dict[str, TensorRule] = {}
    missing: list[TensorRule] = []
    used: set[str] = set()
    for rule in tensor_rules(config):
        names = [name for name in (rule.name, *rule.aliases) if name in found]
        if len(names) > 1:
            raise CheckpointError(
                "one tensor stored under two names",
                file=found[names[0]].file.path,
                tensor=names[0],
                expected="one of them",
                found=" and ".join(names),
            )
        if names:
            stored = found[names[0]]
            _check(rule, stored)
            tensors[rule.name], rules[rule.name] = stored, rule
            used.add(names[0])
        elif not rule.optional:
            missing.append(rule)
            if len(missing) > len(found):  # a config may claim billions of experts
                break
    if missing:
        raise _missing(missing, found, folder)
    extra = [name for name in found if name not in used]
    if extra:
        raise CheckpointError(
            f"tensor that config.json leaves no place for{_and_more(extra)}",
            file=found[extra[0]].file.path,
            tensor=extra[0],
            found=_describe(found[extra[0]]),
        )
    return Match(config, tensors, rules, _notes(config, tensors))


def settle_gates(
    config: LagunaConfig, shape_of: Callable[[str], tuple[int, ...] | None]
) -> LagunaConfig:
    """``gating: true`` means per head or per element: the width of ``g_proj`` decides.

    A config that says which, in ``gating`` or ``gating_types``, is left as it is. ``shape_of``
    gives a tensor's shape by its name, None where there is none.
    """
    if config.gating is not True or config.raw.get("gating_types") is not None:
        return config
    for layer in config.layers:
        per_element = (layer.num_heads * layer.head_dim, config.hidden_size)
        shape = shape_of(f"model.layers.{layer.index}.self_attn.g_proj.weight")
        if layer.head_dim > 1 and shape == per_element:
            config = config.with_gate(layer.index, "per-element")
    return config


def _check(rule: TensorRule, stored: StoredTensor) -> None:
    if 0 in stored.shape:
        problem = "zero-length tensor"
    elif stored.shape not in rule.shapes:
        problem = "wrong shape"
    elif stored.dtype not in rule.dtypes:
        problem = "wrong dtype"
    else:
        return
    raise CheckpointError(
        problem,
        file=stored.file.path,
        tensor=stored.stored_name,
        expected=_expectation(rule),
        found=_describe(stored),
    )


def _missing(
    missing: list[TensorRule], found: Mapping[str, StoredTensor], folder: Path
) -> CheckpointError:
    """The error for the first missing tensor; says what its module has instead, if anything."""
    rule = missing[0]
    instead = "nothing"
    for module in (rule.module, *(alias.rpartition(".")[0] for alias in rule.aliases)):
        for part in ("weight", "weight_packed"):
            if f"{module}.{part}" in found and f"{module}.{part}" != rule.name:
                instead = f"{part} {_describe(found[f'{module}.{part}'])}"
    return CheckpointError(
        f"missing tensor{_and_more(missing)}",
        file=folder,
        tensor=rule.name,
        expected=f"{_expectation(rule)} ({rule.format})",
        found=instead,
    )


def _notes(config: LagunaConfig, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """What a user should know about key/value scales that are absent or unasked for."""
    have: dict[str, list[int]] = {"both": [], "none": [], "k_scale": [], "v_scale": []}
    for layer in config.layers:
        prefix = f"model.layers.{layer.index}.self_attn"
        names = [name for name in ("k_scale", "v_scale") if f"{prefix}.{name}" in tensors]
        have["both" if len(names) == 2 else names[0] if names else "none"].append(layer.index)
    notes = []
    if config.kv_cache_fp8 and have["none"]:
        notes.append(f"no k_scale and v_scale in layers {ranges(have['none'])}: 1.0 is used")
    for name, other in (("k_scale", "v_scale"), ("v_scale", "k_scale")):
        if have[name]:
            notes.append(
                f"{name} without {other} in layers {ranges(have[name])}: "
                f"it serves for both, as in vLLM"
            )
    if not config.kv_cache_fp8 and len(have["none"]) < len(config.layers):
        notes.append(
            "k_scale and v_scale are present although config.json declares no kv_cache_scheme: "
            "used only with an FP8 cache asked for"
        )
    return notes


def _expectation(rule: TensorRule) -> str:
    shapes = " or ".join(str(list(shape)) for shape in rule.shapes)
    return f"{' or '.join(rule.dtypes)} {shapes}"


def _describe(stored: StoredTensor) -> str:
    return f"{stored.dtype} {list(stored.shape)}"


def _and_more(items: list[TensorRule] | list[str]) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""
