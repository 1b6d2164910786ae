"""The one table of what a checkpoint of a config must contain: name, shape, dtype.

Canonical names are those of the published Laguna XS.2 checkpoints. Others that hold the same
tensor elsewhere (Transformers' spelling) are accepted as aliases; everything downstream sees
the canonical name only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from laguna_ref.checkpoint.formats.packed_int import words_per_row
from laguna_ref.config import LagunaConfig, LayerSpec
from laguna_ref.errors import CheckpointError, UnsupportedFormatError
from laguna_ref.quantization import DENSE, WeightFormat

Part = Literal[
    "embedding", "norm", "linear", "packed", "scale", "shape", "correction_bias", "kv_scale"
]
"""What a tensor is; ``packed``, ``scale`` and ``shape`` are parts of one quantised Linear."""

FLOAT_DTYPES = ("BF16", "F16", "F32")
SUPPORTED_FORMATS = ("dense", "pack-quantized")


class TensorRule(NamedTuple):
    """One tensor that a checkpoint must (or, if ``optional``, may) contain."""

    name: str
    part: Part
    shapes: tuple[tuple[int, ...], ...]
    """The shapes accepted, the published one first."""
    dtypes: tuple[str, ...]
    module: str
    """The module it belongs to: the name without its last piece."""
    format: WeightFormat = DENSE
    matrix: tuple[int, int] = (0, 0)
    """(out, in) of the Linear it belongs to, whatever its stored shape."""
    aliases: tuple[str, ...] = ()
    optional: bool = False


def tensor_rules(config: LagunaConfig) -> Iterator[TensorRule]:
    """Every tensor of a checkpoint of ``config``, in the order of the forward pass.

    Raises UnsupportedFormatError for a format that is known but not implemented, and
    CheckpointError for a group size that does not divide the columns it groups.
    """
    hidden, vocab = config.hidden_size, config.vocab_size
    yield _dense("model.embed_tokens.weight", "embedding", (vocab, hidden))
    for layer in config.layers:
        yield from _layer_rules(config, layer)
    yield _dense("model.norm.weight", "norm", (hidden,))
    if not config.tie_word_embeddings:
        yield from _linear_rules(config, "lm_head", vocab, hidden)


def refuse_unsupported(config: LagunaConfig) -> None:
    """Raise UnsupportedFormatError for the first weight in a format that is not implemented."""
    for layer in config.layers:
        for module, form in layer.formats:
            _check_format(f"model.layers.{layer.index}.{module}", form)


def _check_format(module: str, form: WeightFormat) -> None:
    if form.kind not in SUPPORTED_FORMATS:
        raise UnsupportedFormatError(
            "weight format not supported",
            tensor=module,
            expected=" or ".join(SUPPORTED_FORMATS),
            found=form.kind,
        )


def _layer_rules(config: LagunaConfig, layer: LayerSpec) -> Iterator[TensorRule]:
    hidden, head_dim = config.hidden_size, layer.head_dim
    prefix = f"model.layers.{layer.index}"
    attention = f"{prefix}.self_attn"
    queries, keys = layer.num_heads * head_dim, layer.num_kv_heads * head_dim

    yield _dense(f"{prefix}.input_layernorm.weight", "norm", (hidden,))
    yield from _linear_rules(config, f"{attention}.q_proj", queries, hidden)
    yield from _linear_rules(config, f"{attention}.k_proj", keys, hidden)
    yield from _linear_rules(config, f"{attention}.v_proj", keys, hidden)
    yield _dense(f"{attention}.q_norm.weight", "norm", (head_dim,))
    yield _dense(f"{attention}.k_norm.weight", "norm", (head_dim,))
    for name in ("k_scale", "v_scale"):
        yield TensorRule(
            f"{attention}.{name}",
            "kv_scale",
            ((1,), ()),
            (*FLOAT_DTYPES, "F64"),
            attention,
            optional=True,
        )
    yield from _linear_rules(config, f"{attention}.g_proj", layer.gate_width, hidden)
    yield from _linear_rules(config, f"{attention}.o_proj", hidden, queries)
    yield _dense(f"{prefix}.post_attention_layernorm.weight", "norm", (hidden,))

    mlp = f"{prefix}.mlp"
    if layer.mlp == "dense":
        yield from _mlp_rules(config, mlp, hidden, layer.intermediate_size)
        return
    yield from _linear_rules(config, f"{mlp}.gate", config.num_experts, hidden)
    yield TensorRule(
        f"{mlp}.experts.e_score_correction_bias",
        "correction_bias",
        ((config.num_experts,),),
        ("F32", "BF16", "F16"),
        f"{mlp}.experts",
        aliases=(f"{mlp}.gate.e_score_correction_bias",),
    )
    for expert in range(config.num_experts):
        yield from _mlp_rules(config, f"{mlp}.experts.{expert}", hidden, layer.intermediate_size)
    shared = config.shared_expert_intermediate_size
    yield from _mlp_rules(
        config, f"{mlp}.shared_expert", hidden, shared, alias=f"{mlp}.shared_experts"
    )


def _mlp_rules(
    config: LagunaConfig, prefix: str, hidden: int, width: int, alias: str | None = None
) -> Iterator[TensorRule]:
    for name, rows, columns in (
        ("gate_proj", width, hidden),
        ("up_proj", width, hidden),
        ("down_proj", hidden, width),
    ):
        other = None if alias is None else f"{alias}.{name}"
        yield from _linear_rules(config, f"{prefix}.{name}", rows, columns, other)


def _linear_rules(
    config: LagunaConfig, module: str, rows: int, columns: int, alias: str | None = None
) -> Iterator[TensorRule]:
    """The tensors of one Linear [rows, columns]: one if dense, up to three if packed."""
    form = config.weight_format(module)
    if alias is not None and config.weight_format(alias) == DENSE:
        # An ignore list spelled for one name of the shared expert means it under both.
        form = DENSE
    _check_format(module, form)
    if form == DENSE:
        aliases = () if alias is None else (f"{alias}.weight",)
        yield _dense(f"{module}.weight", "linear", (rows, columns), aliases)
        return
    bits, group = form.bits or 0, form.group_size or columns
    if columns % group:
        raise CheckpointError(
            "group size does not divide the columns of the weight",
            tensor=module,
            expected=f"a divisor of {columns}",
            found=group,
        )
    parts: tuple[tuple[str, Part, tuple[int, ...], tuple[str, ...], bool], ...] = (
        ("weight_packed", "packed", (rows, words_per_row(columns, bits)), ("I32",), False),
        ("weight_scale", "scale", (rows, columns // group), FLOAT_DTYPES, False),
        ("weight_shape", "shape", (2,), ("I64", "I32"), True),
    )
    for name, part, shape, dtypes, optional in parts:
        aliases = () if alias is None else (f"{alias}.{name}",)
        yield TensorRule(
            f"{module}.{name}",
            part,
            (shape,),
            dtypes,
            module,
            form,
            (rows, columns),
            aliases,
            optional,
        )


def _dense(
    name: str, part: Part, shape: tuple[int, ...], aliases: tuple[str, ...] = ()
) -> TensorRule:
    matrix = (shape[0], shape[1]) if len(shape) == 2 else (0, 0)
    module = name.removesuffix(".weight")
    return TensorRule(name, part, (shape,), FLOAT_DTYPES, module, matrix=matrix, aliases=aliases)
