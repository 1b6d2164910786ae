"""How a weight is stored, and how rows of it become numbers: one file a format."""

from laguna_ref.checkpoint.formats.dense import DenseWeight
from laguna_ref.checkpoint.formats.packed_int import PackedIntWeight
from laguna_ref.checkpoint.formats.weight import DEQUANT, FloatType, Weight

__all__ = ["DEQUANT", "DenseWeight", "FloatType", "PackedIntWeight", "Weight"]
