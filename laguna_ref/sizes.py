"""How large a model is, from its config alone: bytes, parameters, operations, cache.

Everything here is exact arithmetic over the shapes of the published layout. One table,
``linears``, lists every weight matrix; the rest are sums over it. For decoding one token at
batch 1:

- *touched bytes*: what must come from memory for the weights: every dense matrix once, of the
  routed experts the K chosen ones, the row of the embedding, norms and biases. Scales count,
  ``weight_shape`` does not. The cache comes on top: ``cache_bytes``, read whole for each token.
- *FLOPs*: two (multiply, add) for each weight of each matrix product; the head is given apart,
  since a prompt needs it once. Attention's own products grow with the context and come on top:
  ``attention_flops``. Norms, RoPE, softmax and activations (under 1 %) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from laguna_ref.checkpoint.formats.packed_int import words_per_row
from laguna_ref.config import LagunaConfig, LayerSpec
from laguna_ref.quantization import DENSE, WeightFormat

FLOAT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
CORRECTION_BIAS_BYTES = 4
"""The router's bias is float32 in every published checkpoint."""
KV_SCALE_BYTES = 2
"""``k_scale`` and ``v_scale`` are one bfloat16 each."""
FP8_BLOCK = 128
"""FP8 weights have one scale for each block of 128 x 128."""
NVFP4_GROUP = 16


class LinearSize(NamedTuple):
    """One weight matrix, or all routed experts' matrices of one name in one layer."""

    layer: int | None
    """None for ``lm_head``."""
    name: str
    """Name inside the layer; ``mlp.experts.*.gate_proj`` for routed experts."""
    rows: int
    columns: int
    format: WeightFormat
    stored: int
    """How many of them the checkpoint holds: E for routed experts, 0 for a tied head."""
    used: int
    """How many of them one token is multiplied with: K for routed experts."""

    @property
    def parameters(self) -> int:
        """Elements of one such matrix, scales not counted."""
        return self.rows * self.columns


def linears(config: LagunaConfig) -> Iterator[LinearSize]:
    """Every weight matrix that a token is multiplied with, in the order of the forward pass."""
    for layer in config.layers:
        yield from _layer_linears(config, layer)
    head = DENSE if config.tie_word_embeddings else config.weight_format("lm_head")
    stored = 0 if config.tie_word_embeddings else 1
    yield LinearSize(None, "lm_head", config.vocab_size, config.hidden_size, head, stored, 1)


def _layer_linears(config: LagunaConfig, layer: LayerSpec) -> Iterator[LinearSize]:
    formats = dict(layer.formats)
    hidden = config.hidden_size
    queries = layer.num_heads * layer.head_dim
    keys = layer.num_kv_heads * layer.head_dim
    for name, rows, columns in (
        ("self_attn.q_proj", queries, hidden),
        ("self_attn.k_proj", keys, hidden),
        ("self_attn.v_proj", keys, hidden),
        ("self_attn.g_proj", layer.gate_width, hidden),
        ("self_attn.o_proj", hidden, queries),
    ):
        yield LinearSize(layer.index, name, rows, columns, formats[name], 1, 1)

    def mlp(home: str, width: int, stored: int, used: int) -> Iterator[LinearSize]:
        for part, rows, columns in (
            ("gate_proj", width, hidden),
            ("up_proj", width, hidden),
            ("down_proj", hidden, width),
        ):
            name = f"{home}.{part}"
            form = formats[name.replace("*", "0")]
            yield LinearSize(layer.index, name, rows, columns, form, stored, used)

    if layer.mlp == "dense":
        yield from mlp("mlp", layer.intermediate_size, 1, 1)
        return
    router = LinearSize(
        layer.index, "mlp.gate", config.num_experts, hidden, formats["mlp.gate"], 1, 1
    )
    yield router
    experts, chosen = config.num_experts, config.num_experts_per_tok
    yield from mlp("mlp.experts.*", layer.intermediate_size, experts, chosen)
    yield from mlp("mlp.shared_expert", config.shared_expert_intermediate_size, 1, 1)


def weight_bytes(rows: int, columns: int, form: WeightFormat, float_bytes: int = 2) -> int:
    """Bytes that a product with a weight [rows, columns] reads: its codes and its scales.

    >>> weight_bytes(512, 2048, WeightFormat("pack-quantized", 4, 128))
    540672
    """
    if form.kind == "pack-quantized":
        bits, group = form.bits or 0, form.group_size or columns
        return rows * (words_per_row(columns, bits) * 4 + columns // group * float_bytes)
    if form.kind == "float-quantized":
        blocks = -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK)
        return rows * columns + blocks * float_bytes
    if form.kind == "nvfp4-pack-quantized":
        group = form.group_size or NVFP4_GROUP
        return rows * columns // 2 + rows * columns // group + 4
    return rows * columns * float_bytes


def extra_bytes(form: WeightFormat) -> int:
    """Bytes stored beside a weight that no product reads.

    ``weight_shape`` (two int64) of packed integers, the activations' scale of NVFP4.
    """
    return {"pack-quantized": 16, "nvfp4-pack-quantized": 4}.get(form.kind, 0)


class FormatSize(NamedTuple):
    """What a checkpoint stores in one format."""

    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Sizes:
    """The sums; see the module's docstring for what is counted."""

    parameters: int
    """Elements of all weights, norms and biases."""
    active_parameters: int
    """Those that take part in one token; of the embedding one row."""
    disk_bytes: int
    """Bytes of all tensors, headers not counted."""
    touched_bytes: int
    """Bytes of weights read to decode one token, head included."""
    head_bytes: int
    """The head's share of ``touched_bytes``."""
    flops: int
    """Of all matrix products with weights for one token, head included."""
    head_flops: int
    """The head's share of ``flops``."""
    by_format: dict[str, FormatSize]
    """What is stored, by weight format; norms, embedding and biases count as ``dense``."""


def sizes(config: LagunaConfig) -> Sizes:
    """Parameters, bytes on disk, bytes and FLOPs per decoded token.

    >>> from laguna_ref.checkpoint import preset
    >>> xs2 = sizes(LagunaConfig.from_dict(preset("xs2-int4")))
    >>> f"{xs2.disk_bytes / 1e9:.1f} GB, {xs2.touched_bytes / 1e9:.2f} GB per token"
    '23.9 GB, 4.28 GB per token'
    """
    float_bytes = FLOAT_BYTES[config.torch_dtype]
    active, touched, flops, head_bytes, head_flops = 0, 0, 0, 0, 0
    stored: dict[str, FormatSize] = {}

    def store(form: WeightFormat, number: int, nbytes: int) -> None:
        before = stored.get(str(form), FormatSize(0, 0))
        stored[str(form)] = FormatSize(before.parameters + number, before.nbytes + nbytes)

    small, small_bytes = _small_tensors(config, float_bytes)
    embedding = config.vocab_size * config.hidden_size
    store(DENSE, small + embedding, small_bytes + embedding * float_bytes)
    active += small + config.hidden_size
    touched += small_bytes + config.hidden_size * float_bytes
    for linear in linears(config):
        nbytes = weight_bytes(linear.rows, linear.columns, linear.format, float_bytes)
        on_disk = linear.stored * (nbytes + extra_bytes(linear.format))
        store(linear.format, linear.stored * linear.parameters, on_disk)
        active += linear.used * linear.parameters
        touched += linear.used * nbytes
        flops += linear.used * 2 * linear.parameters
        if linear.name == "lm_head":
            head_bytes, head_flops = nbytes, 2 * linear.parameters
    parameters = sum(size.parameters for size in stored.values())
    disk_bytes = sum(size.nbytes for size in stored.values())
    return Sizes(
        parameters, active, disk_bytes, touched, head_bytes, flops, head_flops,
        {name: size for name, size in stored.items() if size.parameters},
    )  # fmt: skip


def expected_weight_bytes(config: LagunaConfig, tokens: int) -> float:
    """Bytes of weights that some of ``tokens`` tokens need, if experts are chosen evenly.

    >>> from laguna_ref.checkpoint import preset
    >>> xs2 = LagunaConfig.from_dict(preset("xs2-int4"))
    >>> [f"{expected_weight_bytes(xs2, tokens) / 1e9:.1f} GB" for tokens in (1, 16, 256)]
    ['4.3 GB', '11.6 GB', '23.5 GB']
    """
    total = 0.0
    for linear in linears(config):
        among = max(1, linear.stored)  # a tied head is the embedding's matrix
        needed = among * (1 - (1 - linear.used / among) ** tokens)
        total += needed * weight_bytes(
            linear.rows, linear.columns, linear.format, FLOAT_BYTES[config.torch_dtype]
        )
    return total


def _small_tensors(config: LagunaConfig, float_bytes: int) -> tuple[int, int]:
    """Elements of norms and correction biases; bytes of those and of the cache's scales."""
    norms = config.hidden_size
    biases, scales = 0, 0
    for layer in config.layers:
        norms += 2 * config.hidden_size + 2 * layer.head_dim
        biases += config.num_experts if layer.mlp == "sparse" else 0
        scales += 2 if config.kv_cache_fp8 else 0
    nbytes = norms * float_bytes + biases * CORRECTION_BIAS_BYTES + scales * KV_SCALE_BYTES
    return norms + biases, nbytes


def attention_flops(config: LagunaConfig, context: int) -> int:
    """FLOPs of one token's scores and weighted sum over ``context`` tokens, itself included."""
    return sum(
        4 * layer.num_heads * layer.head_dim * min(context, layer.window or context)
        for layer in config.layers
    )
