"""The plain engine: every operation is the NumPy one of ``laguna_ref/ops``."""

from laguna_ref.engines.blas_threads import computing
from laguna_ref.ops.attention import attention
from laguna_ref.ops.experts import experts
from laguna_ref.ops.gate import apply_gate, gate_values
from laguna_ref.ops.linear import embed, linear
from laguna_ref.ops.mlp import mlp
from laguna_ref.ops.norm import rms_norm
from laguna_ref.ops.residual import add, combine
from laguna_ref.ops.rope import apply_rope, rope_tables
from laguna_ref.ops.router import route, scores_of

__all__ = [
    "add",
    "apply_gate",
    "apply_rope",
    "attention",
    "combine",
    "computing",
    "embed",
    "experts",
    "gate_values",
    "linear",
    "mlp",
    "rms_norm",
    "rope_tables",
    "route",
    "scores_of",
]
