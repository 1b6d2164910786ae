"""laguna_ref: the reference forward pass of Laguna XS.2 and the oracle its ports are held to.

>>> import laguna_ref
>>> model = laguna_ref.load()            # the embedded laguna-tiny
>>> logits = model([2, 70, 71])          # [3, vocab_size], float32
"""

from laguna_ref import checkpoint
from laguna_ref.config import LagunaConfig, LayerSpec
from laguna_ref.errors import LagunaError
from laguna_ref.generate import generate
from laguna_ref.kv_cache import KVCache
from laguna_ref.load import load
from laguna_ref.model import Laguna
from laguna_ref.trace import Recorder

__version__ = "0.1.0"

__all__ = [
    "KVCache",
    "Laguna",
    "LagunaConfig",
    "LagunaError",
    "LayerSpec",
    "Recorder",
    "__version__",
    "checkpoint",
    "generate",
    "load",
]
