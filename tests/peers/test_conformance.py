"""Transformers, hooked and dumped, judged on laguna-tiny: conforming at its declared precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from laguna_ref import load
from laguna_ref.conformance.judge import judge
from laguna_ref.load import EMBEDDED
from laguna_ref.trace import trace_points
from tests.conformance.samples import Dump, budget_for, golden_of, prompt
from tests.peers.dequantised import write_dequantised
from tests.peers.transformers_model import Fp8Cache, load_transformers, trace

pytestmark = pytest.mark.peer

TOKENS, RUNS = 24, 100


@pytest.mark.parametrize(
    ("precision", "kv_cache"),
    [
        ("float32", "float"),
        ("float32", "checkpoint"),
        ("bfloat16", "float"),
        ("bfloat16+fp8-kv", "checkpoint"),
    ],
)
def test_transformers_conforms(
    precision: str, kv_cache: str, tmp_path: Path, figures: dict[str, str]
) -> None:
    exact = precision == "float32"
    folder = write_dequantised(EMBEDDED, tmp_path / "dense", exact=exact)
    theirs = load_transformers(folder, torch.float32 if exact else torch.bfloat16)
    model = load(engine="numpy", numerics="float64", dequant="exact" if exact else "bf16",
                 kv_cache=kv_cache)  # fmt: skip
    tokens = prompt(TOKENS)
    golden = golden_of(model, tokens, budget_for(model, tokens, precision, RUNS))
    cache = None
    if kv_cache == "checkpoint":
        scales = [(float(kv.k_scale), float(kv.v_scale)) for kv in model.kv_formats]
        cache = Fp8Cache(theirs, scales)
    seen = trace(theirs, tokens, cache)
    points = {name: seen[name] for name in trace_points(model.config) if name in seen}
    meta = {
        "backend": "transformers",
        "precision": precision,
        "config": theirs.config.to_dict(),
    }
    dump = Dump(np.array(tokens), np.arange(TOKENS), points, meta=meta)
    report = judge(golden, dump, model=model)
    assert report.verdict == "conforming", (report.reason, report.first_divergence)
    assert report.routing.violations == 0
    figures[f"conformance of Transformers, {precision}, {kv_cache} cache"] = (
        f"{report.share_of_budget:.2f} of the budget used, {report.routing.excused} of "
        f"{report.routing.compared} choices excused"
    )
