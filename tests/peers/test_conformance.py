"""Transformers with a float8 cache that divides in float32, as vLLM's does: it conforms.

``test_transformers_backend`` has it as its users get it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from laguna_ref.conformance.judge import judge
from laguna_ref.load import EMBEDDED
from laguna_ref.trace import trace_points
from tests.conformance.samples import Dump
from tests.peers.dequantised import write_dequantised
from tests.peers.judged import TOKENS, judged_by
from tests.peers.transformers_model import Fp8Cache, load_transformers, trace

pytestmark = pytest.mark.peer

PRECISION = "bfloat16+fp8-kv"


def test_transformers_conforms(tmp_path: Path, figures: dict[str, str]) -> None:
    folder = write_dequantised(EMBEDDED, tmp_path / "dense", exact=False)
    theirs = load_transformers(folder, torch.bfloat16)
    model, golden = judged_by(EMBEDDED, "bf16", "checkpoint", PRECISION)
    tokens = golden.case.tokens
    scales = [(float(kv.k_scale), float(kv.v_scale)) for kv in model.kv_formats]
    seen = trace(theirs, tokens, Fp8Cache(theirs, scales))
    points = {name: seen[name] for name in trace_points(model.config) if name in seen}
    meta = {"backend": "transformers", "precision": PRECISION, "config": theirs.config.to_dict()}
    dump = Dump(np.array(tokens), np.arange(TOKENS), points, meta=meta)
    report = judge(golden, dump, model=model)
    assert report.verdict == "conforming", (report.reason, report.first_divergence)
    assert report.routing.violations == 0
    figures[f"conformance of Transformers, {PRECISION}, dividing in float32"] = (
        f"{report.share_of_budget:.2f} of the budget used, {report.routing.excused} of "
        f"{report.routing.compared} choices excused"
    )
