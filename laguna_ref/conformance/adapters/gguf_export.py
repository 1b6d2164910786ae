"""A checkpoint as a GGUF file for llama.cpp's ``laguna`` architecture, without a vocabulary.

Follows llama.cpp ``src/models/laguna.cpp`` (what is read), ``src/llama-model.cpp`` and
``src/llama-context.cpp`` (how RoPE's keys are understood). Such a file serves token ids only.

Easy to get wrong: llama.cpp multiplies YaRN's cosine and sine by ``0.1 ln(factor) + 1`` of its
own accord and reads no ``attention_factor``; ``rope.scaling.attn_factor``, which its converter
leaves out, multiplies on top, so it has to be the quotient of the two. Nor does it read
``beta_fast`` and ``beta_slow``: whoever loads the file has to pass them on, or they are 32 and 1
(``llamacpp_model`` does).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import gguf
import ml_dtypes
import numpy as np

from laguna_ref.checkpoint import Checkpoint
from laguna_ref.config import LagunaConfig, LayerSpec
from laguna_ref.errors import LagunaError
from laguna_ref.numerics import Array
from laguna_ref.rope_spec import RopeSpec

ARCHITECTURE = "laguna"
BLOCK_BYTES = 32 * 1024 * 1024
"""Most of a weight that is held as float32 at a time."""
METADATA_BYTES = 1024 * 1024
"""More than a header takes; part of the room asked for."""

FloatName = Literal["F32", "BF16"]
TYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
FILE_TYPES = {"F32": gguf.LlamaFileType.ALL_F32, "BF16": gguf.LlamaFileType.MOSTLY_BF16}
SCORES = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}
"""llama.cpp ``llama_expert_gating_func_type``; the gguf package's own list lacks the last."""

NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.g_proj": "attn_gate",
    "self_attn.o_proj": "attn_output",
}
PROJECTIONS = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


class ExportError(LagunaError):
    """A model that llama.cpp's ``laguna`` does not know, or no room to write it."""


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of the file: a vector, a matrix, or the stack of all experts' matrices."""

    name: str
    opened: Checkpoint
    sources: tuple[str, ...]
    """Modules whose weights it holds, one for each expert; a vector's own tensor name."""
    shape: tuple[int, ...]
    dtype: FloatName

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * int(TYPES[self.dtype].itemsize)

    def blocks(self) -> Iterator[Array]:
        """Its numbers in the order of the file, a few rows at a time."""
        if len(self.shape) == 1:
            yield self.opened.tensor(self.sources[0]).astype(TYPES[self.dtype])
            return
        rows, columns = self.shape[-2:]
        step = max(1, BLOCK_BYTES // (4 * columns))
        for module in self.sources:
            weight = self.opened.weight(module)
            for start in range(0, rows, step):
                block = weight.rows(start, min(start + step, rows), dtype=np.float32)
                yield block.astype(TYPES[self.dtype])

    def tofile(self, file: BinaryIO) -> None:
        """What the writer calls, as it would on an array that had to be held whole."""
        for block in self.blocks():
            block.tofile(file)


def export(
    opened: Checkpoint, path: Path, dtype: FloatName = "BF16", *, attn_factor: bool = True
) -> None:
    """Writes ``path``: packed experts are dequantised, then rounded to ``dtype``.

    Without ``attn_factor`` that key is left out, as llama.cpp's own converter leaves it out.
    Norms, the router and its bias are float32, as llama.cpp's own converter has them. The
    checkpoint's FP8 cache is left out: llama.cpp has no scales for one. Raises ExportError.
    """
    refuse_unsupported(opened.config)
    listed = list(tensors(opened, dtype))
    needed = sum(tensor.nbytes for tensor in listed) + METADATA_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise ExportError(
            "not enough room for the GGUF file", file=path,
            expected=f"{needed:,} bytes free", found=f"{free:,}",
        )  # fmt: skip
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_file_type(FILE_TYPES[dtype])
    add_metadata(writer, opened.config, attn_factor=attn_factor)
    for tensor in listed:
        kind = gguf.GGMLQuantizationType[tensor.dtype]
        writer.add_tensor_info(tensor.name, tensor.shape, TYPES["F32"], tensor.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in listed:
        writer.write_tensor_data(tensor)
    writer.close()


def refuse_unsupported(config: LagunaConfig) -> None:
    """Raises ExportError for what llama.cpp's ``laguna`` would compute differently."""
    mlps = [layer.mlp for layer in config.layers]
    sliding = _rope_of(config, "sliding_attention")
    full = _rope_of(config, "full_attention")
    rope = "rope_parameters"
    for key, wrong, expected in (
        ("moe_router_logit_softcapping", config.moe_router_logit_softcapping != 0, "none"),
        ("gating_activation", any(x.gate_activation != "softplus" for x in config.layers),
         "softplus"),
        ("mlp_layer_types", "dense" in mlps[leading_dense(config):], "dense layers first"),
        (rope, sliding is not None and sliding.rope_type != "default",
         "plain RoPE on sliding layers"),
        (rope, full is not None and not full.truncate, "truncate true"),
        (rope, full is not None and _falls(full), "a ramp from beta_fast up to beta_slow"),
        # Where the first layer slides, its rotated dimensions are taken for all.
        (rope, full is not None and config.layers[0].rope.rotary_dim != full.rotary_dim,
         "the first layer full, or as many rotated dimensions in all"),
    ):  # fmt: skip
        if wrong:
            raise ExportError("llama.cpp has no such Laguna", key=key, expected=expected)


def _falls(rope: RopeSpec) -> bool:
    """A ramp whose ends are in the wrong order, which llama.cpp makes a step of."""
    low, high = rope.yarn_ramp() if rope.rope_type == "yarn" else (0.0, 1.0)
    return high < low


def leading_dense(config: LagunaConfig) -> int:
    """How many layers before the first sparse one."""
    mlps = [layer.mlp for layer in config.layers]
    return mlps.index("sparse") if "sparse" in mlps else len(mlps)


def add_metadata(
    writer: gguf.GGUFWriter, config: LagunaConfig, *, attn_factor: bool = True
) -> None:
    """Everything of the config that llama.cpp reads."""
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(config.layers))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count([layer.num_heads for layer in config.layers])
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_leading_dense_block_count(leading_dense(config))
    _add_experts(writer, config)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([layer.window is not None for layer in config.layers])
    _add_rope(writer, config, attn_factor)


def _add_experts(writer: gguf.GGUFWriter, config: LagunaConfig) -> None:
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if not config.num_experts:
        return
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    scores = gguf.Keys.LLM.EXPERT_GATING_FUNC.format(arch=ARCHITECTURE)
    writer.add_uint32(scores, SCORES[config.moe_router_score_func])
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_weights_scale(config.moe_routed_scaling_factor)


def _add_rope(writer: gguf.GGUFWriter, config: LagunaConfig, attn_factor: bool) -> None:
    sliding = _rope_of(config, "sliding_attention")
    # Without full layers their keys are read but not used.
    full = _rope_of(config, "full_attention") or sliding
    assert full is not None
    writer.add_rope_dimension_count(full.rotary_dim)
    writer.add_rope_freq_base(full.rope_theta)
    if sliding is not None:
        writer.add_rope_dimension_count_swa(sliding.rotary_dim)
        writer.add_rope_freq_base_swa(sliding.rope_theta)
    if full.rope_type == "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        return
    assert full.original_max_position_embeddings is not None
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(full.factor)
    writer.add_rope_scaling_orig_ctx_len(full.original_max_position_embeddings)
    writer.add_rope_scaling_yarn_beta_fast(full.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(full.beta_slow)
    if attn_factor:
        factor = full.attention_factor / default_attention_factor(full)
        writer.add_rope_scaling_attn_factors(factor)


def default_attention_factor(rope: RopeSpec) -> float:
    """What llama.cpp scales YaRN's cosine and sine by unless told otherwise."""
    return 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1.0 else 1.0


def _rope_of(config: LagunaConfig, kind: str) -> RopeSpec | None:
    return next((layer.rope for layer in config.layers if layer.attention == kind), None)


def tensors(opened: Checkpoint, dtype: FloatName) -> Iterator[GGUFTensor]:
    """Every tensor of the file, in the order of the forward pass."""
    config = opened.config

    def vector(name: str, source: str) -> GGUFTensor:
        return GGUFTensor(name, opened, (source,), opened.tensors[source].shape, "F32")

    def matrix(name: str, *modules: str, dtype: FloatName = dtype) -> GGUFTensor:
        stack = (len(modules),) if "_exps" in name else ()
        shape = (*stack, *opened.weight(modules[0]).shape)
        return GGUFTensor(f"{name}.weight", opened, modules, shape, dtype)

    yield matrix("token_embd", "model.embed_tokens")
    for layer in config.layers:
        ours, theirs = f"model.layers.{layer.index}", f"blk.{layer.index}"
        for source, name in NORMS.items():
            yield vector(f"{theirs}.{name}.weight", f"{ours}.{source}.weight")
        for source, name in ATTENTION.items():
            yield matrix(f"{theirs}.{name}", f"{ours}.{source}")
        if layer.mlp == "sparse":
            bias = f"{ours}.mlp.experts.e_score_correction_bias"
            yield vector(f"{theirs}.exp_probs_b.bias", bias)
            yield matrix(f"{theirs}.ffn_gate_inp", f"{ours}.mlp.gate", dtype="F32")
        for name, modules in _mlp(layer, config.num_experts):
            yield matrix(f"{theirs}.{name}", *(f"{ours}.mlp{module}" for module in modules))
    yield vector("output_norm.weight", "model.norm.weight")
    if not config.tie_word_embeddings:
        yield matrix("output", "lm_head")


def _mlp(layer: LayerSpec, experts: int) -> Iterator[tuple[str, list[str]]]:
    """Names in the file, and the modules below ``mlp`` that each of them holds."""
    for source, name in PROJECTIONS.items():
        if layer.mlp == "dense":
            yield name, [f".{source}"]
        else:
            yield f"{name}_exps", [f".experts.{expert}.{source}" for expert in range(experts)]
            yield f"{name}_shexp", [f".shared_expert.{source}"]
