"""mlx-lm's Laguna as a backend, in float32: its kernels for experts know no other type on a CPU."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_model

import laguna_ref
from laguna_ref.checkpoint import Checkpoint
from laguna_ref.conformance.adapters.installed import effective_config, versions
from laguna_ref.conformance.adapters.mlx_trace import array, forced_routing, recording
from laguna_ref.conformance.backend import BackendError
from laguna_ref.conformance.export import export, is_quantised
from laguna_ref.conformance.replay import Routing
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder, trace_points

CAPABILITIES = ("trace", "forced_routing", "chunks", "batch", "padding")
ROPE_KEYS = frozenset(
    {"rope_theta", "partial_rotary_factor", "rope_type", "type", "factor", "beta_fast",
     "original_max_position_embeddings", "beta_slow", "mscale", "mscale_all_dim"}
)  # fmt: skip
"""What mlx-lm reads of one kind of layer: ``_layer_rope`` of models/laguna.py and
``initialize_rope`` of models/rope_utils.py."""

Cache = list[Any]


class MlxBackend:
    """A loaded model; what it does with the config is shown as it is, and not mended."""

    name = "mlx"
    capabilities: Collection[str] = CAPABILITIES
    version = versions("mlx-lm", "mlx")
    precision = "float32"
    oracle = {"dequant": "exact", "kv_cache": "float"}  # noqa: RUF012

    def __init__(self, opened: Checkpoint) -> None:
        self.model = load(opened)
        self.config = _effective(self.model, opened)
        self._points = trace_points(opened.config)

    def logits(self, tokens: Sequence[int], *, routing: Routing | None = None) -> Array:
        """Logits [T, V]."""
        with self._routed(routing):
            return array(self._run(tokens))

    def trace(
        self, tokens: Sequence[int], points: Sequence[str], *, routing: Routing | None = None
    ) -> Mapping[str, Array]:
        """The trace points asked for, of those that it has."""
        recorder = Recorder(*points)
        seen: dict[str, mx.array] = {}

        def keep(name: str, value: mx.array) -> None:
            if name in self._points and recorder.wants(name):
                seen[name] = value

        with self._routed(routing), recording(self.model, keep):
            keep("lm_head", self._run(tokens))
        return {name: array(seen[name]) for name in self._points if name in seen}

    def prefill(self, tokens: Sequence[int]) -> tuple[Cache, Array]:
        """A cache that holds the tokens, and their logits."""
        return self.decode(self.model.make_cache(), tokens)

    def decode(self, state: Cache, tokens: Sequence[int]) -> tuple[Cache, Array]:
        """Any number of tokens more."""
        cache = copy.deepcopy(state)
        return cache, array(self._run(tokens, cache))

    def batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """All in one run, padded on the right; the causal mask hides what comes after."""
        longest = max(len(tokens) for tokens in sequences)
        rows = [[*tokens, *[0] * (longest - len(tokens))] for tokens in sequences]
        logits = array(self.model(mx.array(rows)))
        return [row[: len(tokens)] for row, tokens in zip(logits, sequences, strict=True)]

    def _run(self, tokens: Sequence[int], cache: Cache | None = None) -> mx.array:
        """Logits [T, V], computed."""
        logits: mx.array = self.model(mx.array([[int(t) for t in tokens]]), cache=cache)[0]
        mx.eval(logits)
        return logits

    @contextmanager
    def _routed(self, routing: Routing | None) -> Iterator[None]:
        if not routing:
            yield
            return
        with forced_routing(self.model, routing):
            yield


def load(opened: Checkpoint) -> Any:
    """The model in float32, by way of a dense copy of our own making where it is quantised.

    Raises BackendError with mlx-lm's own words where it cannot load the checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="laguna-ref-") as folder:
        source = opened.path
        if is_quantised(opened):
            source = export(opened, Path(folder) / "dense", "float32")
        try:
            model, _ = load_model(source)
        except (ValueError, TypeError, KeyError) as error:
            raise BackendError(f"mlx-lm cannot load it: {error}", file=opened.path) from error
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    return model


def _effective(model: Any, opened: Checkpoint) -> dict[str, Any]:
    used = asdict(model.args)
    if used["rope_parameters"]:
        used["rope_parameters"] = {
            kind: {key: value for key, value in rope.items() if key in ROPE_KEYS}
            for kind, rope in used["rope_parameters"].items()
            if isinstance(rope, Mapping)
        }
    kinds = zip(model.args.layer_types, model.layers, strict=True)
    computed = {
        "device": str(mx.default_device()),
        "dtype": "float32",
        "weights": "a dense copy" if is_quantised(opened) else "the folder itself",
        "kv_cache": "float32",
        "attention_factor": {
            kind: float(getattr(layer.self_attn.rope, "mscale", 1.0)) for kind, layer in kinds
        },
    }
    return effective_config(opened.config.to_dict(), used, computed)


def opened(folder: Path) -> MlxBackend:
    """The checkpoint in ``folder``."""
    return MlxBackend(laguna_ref.checkpoint.open(folder))
