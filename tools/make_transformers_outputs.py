"""Writes what Transformers computes for some made-up checkpoints to tests/data/transformers.

    python tools/make_transformers_outputs.py

Needs the peers extra. ``tests/test_transformers_outputs.py`` compares with these files, so that
an installation without torch is checked too. Each file holds tokens, logits and the output of
every layer; its header the config, the seed of ``checkpoint.synth``, a hash of the weights and
the versions. Seeds are the first for which nothing hangs on noise (see ``clear_cut``).
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import compressed_tensors  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from laguna_ref import checkpoint  # noqa: E402
from laguna_ref.ops.fp8 import fp8_encode  # noqa: E402
from tests.peers import compare  # noqa: E402
from tests.peers.dequantised import write_dequantised  # noqa: E402
from tests.peers.transformers_model import Fp8Cache, load_transformers, trace  # noqa: E402
from tests.strategies import small_xs2  # noqa: E402

TARGET = ROOT / "tests" / "data" / "transformers"
TOKENS = 16
NOISE = 4e-6
"""Relative; float32 runs on different machines differ by less."""

Trace = dict[str, NDArray[Any]]


class Case(NamedTuple):
    """One file: a config, how Transformers is given its weights, what ours must be told."""

    name: str
    config: dict[str, Any]
    run: Callable[[Path, list[int]], Trace]
    options: dict[str, str]
    """Of ``laguna_ref.load``."""


def cases() -> Iterator[Case]:
    """Every kind of number: float32, bfloat16, INT4 and INT8 weights, FP8 cache."""
    dense = small_xs2("xs2")
    yield Case("xs2-float32", dense, dense_run(torch.float32), {"numerics": "float32"})
    yield Case("xs2-bfloat16", dense, dense_run(torch.bfloat16), {"numerics": "bfloat16"})
    int4 = small_xs2("xs21-int4", layer_ids=(0, 1, 4))
    yield Case("xs21-int4", int4, int4_run, {
        "numerics": "float32", "dequant": "bf16", "kv_cache": "float"})  # fmt: skip
    yield Case("xs2-int4-int8-fp8", small_xs2("xs2-int4"), released_run, {"numerics": "float32"})


def dense_run(dtype: torch.dtype) -> Callable[[Path, list[int]], Trace]:
    """Transformers on the folder as it is."""
    return lambda folder, tokens: trace(load_transformers(folder, dtype), tokens)


def int4_run(folder: Path, tokens: list[int]) -> Trace:
    """Transformers' own loader, which rounds the weights to bfloat16; the rest in float32."""
    return trace(load_transformers(folder, dequantize=True).float(), tokens)


def released_run(folder: Path, tokens: list[int]) -> Trace:
    """INT4 and INT8 dequantised exactly outside Transformers; its cache through torch's float8."""
    opened = checkpoint.open(folder)
    with tempfile.TemporaryDirectory() as parent:
        model = load_transformers(write_dequantised(folder, Path(parent) / "dense", exact=True))
    scales = [opened.kv_scales(layer.index) for layer in opened.config.layers]
    return trace(model, tokens, Fp8Cache(model, scales))


def clear_cut(folder: Path, tokens: list[int], options: Mapping[str, str]) -> bool:
    """Whether no choice of experts and no FP8 code would change by float32 noise."""
    model, seen = compare.run(folder, tokens, **options)
    for layer, stored in zip(model.config.layers, model.kv_formats, strict=True):
        at = f"model.layers.{layer.index}"
        if layer.mlp == "sparse" and compare.margins(model, seen, layer.index).min() < 10 * NOISE:
            return False
        if stored.fp8:
            for point, scale in (("k_rope", stored.k_scale), ("v_proj", stored.v_scale)):
                x = seen[f"{at}.self_attn.{point}"].astype(np.float64)
                below, above = (fp8_encode(x * (1 + d), scale, at) for d in (-NOISE, NOISE))
                if (below != above).any():
                    return False
    return True


def make(case: Case) -> None:
    """Finds a seed, runs Transformers and writes the case's file."""
    for seed in range(1000):
        tensors = checkpoint.synth(case.config, seed=seed)
        vocabulary = case.config["vocab_size"]
        tokens = np.random.default_rng(seed).integers(0, vocabulary, TOKENS).tolist()
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            checkpoint.write(folder, case.config, tensors)
            if not clear_cut(folder, tokens, case.options):
                continue
            seen = case.run(folder, tokens)
        break
    layers = [f"model.layers.{index}" for index in range(case.config["num_hidden_layers"])]
    kept = {point: seen[point].astype(np.float32) for point in [*layers, "lm_head"]}
    metadata = {
        "config": case.config,
        "seed": seed,
        "options": case.options,
        "weights_sha256": weights_hash(tensors),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, compressed_tensors)},
    }
    header = {name: json.dumps(value) for name, value in metadata.items()}
    path = TARGET / f"{case.name}.safetensors"
    save_file(kept | {"tokens": np.array(tokens, np.int64)}, path, header)
    print(f"{path.relative_to(ROOT)}: seed {seed}, {path.stat().st_size} bytes")


def weights_hash(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names and bytes of all tensors, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    TARGET.mkdir(parents=True, exist_ok=True)
    for case in cases():
        make(case)
