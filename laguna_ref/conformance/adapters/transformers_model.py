"""Transformers' Laguna as a backend: loaded from a folder as its users load it."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from transformers import Cache, DynamicCache, LagunaConfig, LagunaForCausalLM

import laguna_ref
from laguna_ref.checkpoint import Checkpoint
from laguna_ref.conformance.adapters.installed import effective_config, versions
from laguna_ref.conformance.adapters.transformers_backend import Settings
from laguna_ref.conformance.adapters.transformers_trace import array, forced_routing, recording
from laguna_ref.conformance.backend import BackendError
from laguna_ref.conformance.export import DEQUANT, export, is_quantised
from laguna_ref.conformance.replay import Routing
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder, trace_points

CAPABILITIES = ("trace", "forced_routing", "positions", "chunks", "batch", "padding")
KV_SCALES = (".k_scale", ".v_scale")


class TransformersBackend:
    """A loaded model with eager attention, whose values between modules can be looked at."""

    name = "transformers"
    capabilities: Collection[str] = CAPABILITIES
    version = versions("transformers", "torch", "compressed-tensors")

    def __init__(self, opened: Checkpoint, settings: Settings) -> None:
        self.model = load(opened, settings)
        fp8 = opened.config.kv_cache_fp8 and not settings.float_cache
        if fp8:
            quantise_cache(self.model, opened)
        self.oracle = {
            "dequant": DEQUANT[settings.dtype],
            "kv_cache": "checkpoint" if fp8 else "float",
        }
        self.precision = _precision(settings.dtype, fp8)
        self.config = _effective(self.model, opened, settings, fp8)
        self._points = trace_points(opened.config)
        self._pad = opened.config.pad_token_id or 0

    def logits(
        self, tokens: Sequence[int], *, positions: Sequence[int] | None = None,
        routing: Routing | None = None,
    ) -> Array:  # fmt: skip
        """Logits [T, V]."""
        with self._routed(routing):
            return self._run(tokens, positions)

    def trace(
        self, tokens: Sequence[int], points: Sequence[str], *,
        positions: Sequence[int] | None = None, routing: Routing | None = None,
    ) -> Mapping[str, Array]:  # fmt: skip
        """The trace points asked for, by name or pattern."""
        recorder = Recorder(*points)

        def keep(name: str, value: torch.Tensor) -> None:
            if name in self._points and recorder.wants(name):
                recorder.record(name, array(value))

        with self._routed(routing), recording(self.model, keep):
            self._run(tokens, positions)
        return {name: recorder[name] for name in self._points if name in recorder}

    def prefill(self, tokens: Sequence[int]) -> tuple[Cache, Array]:
        """A cache that holds the tokens, and their logits."""
        return self.decode(DynamicCache(config=self.model.config), tokens)

    def decode(self, state: Cache, tokens: Sequence[int]) -> tuple[Cache, Array]:
        """Any number of tokens more."""
        cache = copy.deepcopy(state)
        return cache, self._run(tokens, cache=cache)

    def batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """All in one run, padded on the right with the config's own token, which is masked."""
        longest = max(len(tokens) for tokens in sequences)
        rows = [[*tokens, *[self._pad] * (longest - len(tokens))] for tokens in sequences]
        mask = [[int(at < len(tokens)) for at in range(longest)] for tokens in sequences]
        with torch.inference_mode():
            output = self.model(
                self._tensor(rows), attention_mask=self._tensor(mask), use_cache=False
            )
        pairs = zip(output.logits, sequences, strict=True)
        return [array(logits[: len(tokens)]) for logits, tokens in pairs]

    def _run(
        self, tokens: Sequence[int], positions: Sequence[int] | None = None,
        cache: Cache | None = None,
    ) -> Array:  # fmt: skip
        options: dict[str, Any] = {}
        if positions is not None:
            # Without a mask, positions that jump are taken for several sequences in one row.
            ones = [[1] * len(tokens)]
            options = {"position_ids": self._tensor([positions]),
                       "attention_mask": self._tensor(ones)}  # fmt: skip
        with torch.inference_mode():
            output = self.model(
                self._tensor([tokens]), past_key_values=cache, use_cache=cache is not None,
                **options,
            )  # fmt: skip
        return array(output.logits[0])

    def _tensor(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([[int(x) for x in row] for row in rows], device=self.model.device)

    @contextmanager
    def _routed(self, routing: Routing | None) -> Iterator[None]:
        with ExitStack() as stack:
            if routing:
                stack.enter_context(forced_routing(self.model, routing))
            yield


def load(opened: Checkpoint, settings: Settings) -> LagunaForCausalLM:
    """The checkpoint on its device; packed weights by way of a dense copy of our own making.

    Transformers 5.23 would decode INT8 experts as INT4 and draw shared experts at random.
    Raises BackendError for tensors it misses or does not know.
    """
    dtype = getattr(torch, settings.dtype)
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError("this torch sees no CUDA device", found=torch.__version__)
    with tempfile.TemporaryDirectory(prefix="laguna-ref-") as folder:
        source = opened.path
        if is_quantised(opened):
            source = export(opened, Path(folder) / "dense", settings.dtype)
        with _quiet():
            model, report = LagunaForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation="eager", output_loading_info=True
            )
        model = model.to(settings.device).eval()
    if dtype == torch.float32:
        # Experts may have stayed in bfloat16. Never the other way: it would round inv_freq.
        model = model.float()
    unexpected = [key for key in report["unexpected_keys"] if not key.endswith(KV_SCALES)]
    for what, keys in (("misses", report["missing_keys"]), ("does not know", unexpected)):
        if keys:
            raise BackendError(f"Transformers {what} a tensor", file=opened.path, tensor=min(keys))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and reports on stderr; as it was, afterwards."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def quantise_cache(model: LagunaForCausalLM, opened: Checkpoint) -> None:
    """Puts compressed-tensors' own hook before the cache, with the checkpoint's scales.

    Transformers puts it there when it loads a quantised checkpoint; the dense copy declares
    nothing. Layers without scales have 1, as vLLM takes them.
    """
    scheme = opened.config.to_dict()["quantization_config"]["kv_cache_scheme"]
    declared = QuantizationConfig(config_groups={}, kv_cache_scheme=scheme)
    with redirect_stderr(io.StringIO()):  # a progress bar over nothing
        apply_quantization_config(model, declared)
    for index, layer in enumerate(model.model.layers):
        k_scale, v_scale = opened.kv_scales(index) or (1.0, 1.0)
        layer.self_attn.k_scale.data.fill_(k_scale)
        layer.self_attn.v_scale.data.fill_(v_scale)


def _precision(dtype: str, fp8: bool) -> str:
    if dtype == "float32":
        return "float32"
    return "bfloat16+fp8-kv" if fp8 else "bfloat16"


def _effective(
    model: LagunaForCausalLM, opened: Checkpoint, settings: Settings, fp8: bool
) -> dict[str, Any]:
    known = set(LagunaConfig.__dataclass_fields__) | {"model_type"}
    used = {key: value for key, value in model.config.to_dict().items() if key in known}
    rotary = model.model.rotary_emb
    computed = {
        "attention": model.config._attn_implementation,
        "experts": model.config._experts_implementation,
        "device": settings.device,
        "dtype": settings.dtype,
        "weights": "a dense copy" if is_quantised(opened) else "the folder itself",
        "kv_cache": "FP8, by compressed-tensors' hook" if fp8 else settings.dtype,
        "attention_factor": {
            kind: getattr(rotary, f"{kind}_attention_scaling") for kind in rotary.rope_type
        },
    }
    return effective_config(opened.config.to_dict(), used, computed)


def opened(folder: Path, settings: Settings) -> TransformersBackend:
    """The checkpoint in ``folder``."""
    return TransformersBackend(laguna_ref.checkpoint.open(folder), settings)
