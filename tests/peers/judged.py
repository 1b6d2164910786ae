"""A backend run and judged as the kit does it: oracle, golden with a budget, dump, verdict."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref import checkpoint, load
from laguna_ref.checkpoint import preset
from laguna_ref.conformance.backend import can, describe, oracle_options, precision_of
from laguna_ref.conformance.judge import judge
from laguna_ref.conformance.report import Report
from laguna_ref.load import EMBEDDED
from laguna_ref.model import Laguna
from laguna_ref.trace import trace_points
from tests.conformance.samples import Dump, Golden, budget_for, golden_of, prompt

TOKENS, RUNS = 24, 100


def published_rope(folder: Path, **rope_changes: Any) -> Path:
    """A small dense checkpoint whose RoPE parameters are those of the published XS.2.

    ``rope_changes`` are of the full layers; a value of None takes the key out.
    """
    config = preset("xs2", layer_ids=[0, 1, 2, 4]) | {
        "vocab_size": 256,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_attention_heads": 4,
        "num_attention_heads_per_layer": [4, 8, 8, 4],
        "num_key_value_heads": 2,
        "head_dim": 64,
        "sliding_window": 8,
        "max_position_embeddings": 4096,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    }
    full = config["rope_parameters"]["full_attention"] | rope_changes
    kept = {key: value for key, value in full.items() if value is not None}
    config["rope_parameters"] = config["rope_parameters"] | {"full_attention": kept}
    checkpoint.write(folder, config, checkpoint.synth(config, seed=3))
    return folder


def oracle_of(backend: Any, folder: Path) -> Laguna:
    """The model that computes the function which the backend was given to compute."""
    return load(folder, engine="numpy", numerics="float64", **oracle_options(backend))


@cache
def judged_by(folder: Path, dequant: str, kv_cache: str, precision: str) -> tuple[Laguna, Golden]:
    """The oracle, and a golden with a budget: worth keeping, as it takes most of the time."""
    model = load(folder, engine="numpy", numerics="float64", dequant=dequant, kv_cache=kv_cache)
    # On the made-up checkpoints those of seed 0 meet no near tie, on laguna-tiny the default ones.
    seeds = () if folder == EMBEDDED else (0,)
    tokens = tuple(token % model.config.vocab_size for token in prompt(TOKENS, *seeds))
    return model, golden_of(model, tokens, budget_for(model, tokens, precision, RUNS))


def verdict(backend: Any, folder: Path, *, traced: bool = True) -> Report:
    """What the judge says of one prompt of ``TOKENS`` tokens."""
    options = oracle_options(backend)
    model, golden = judged_by(
        folder, options["dequant"], options["kv_cache"], precision_of(backend)
    )
    tokens = golden.case.tokens
    if traced and can(backend, "trace"):
        points = dict(backend.trace(tokens, list(trace_points(model.config))))
    else:
        points = {"lm_head": backend.logits(tokens)}
    meta = describe(backend) | {"backend": backend.name, "precision": precision_of(backend)}
    dump = Dump(np.array(tokens), np.arange(TOKENS), points, meta=meta)
    return judge(golden, dump, model=model)


def summary(report: Report) -> str:
    """One line for the figures at the end of a run."""
    first = report.first_divergence
    if report.verdict == "conforming":
        return f"conforming, {report.share_of_budget:.2f} of the budget used"
    where = "" if first is None else f", first at {first.point}"
    return f"{report.verdict}{where} ({report.reason})"
