"""Laws of the routed experts: their numbering, the unchosen, the correction bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from hypothesis import strategies as st

from laguna_ref.conformance.laws.case import Case
from laguna_ref.conformance.laws.example import Config, Example
from laguna_ref.conformance.laws.law import Claim, Law, Open, Same, Setting
from laguna_ref.conformance.laws.weights import Tensors
from laguna_ref.conformance.strategies import configs, examples
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder

FORCING_BIAS = 4.0
"""No score exceeds 1, so experts with this bias go before all others."""
HUGE = 2.0**100
"""Finite in bfloat16; its square is not, even in float32."""


def expert_order(case: Case, opened: Open) -> Iterator[Claim]:
    """Permuting the experts together with their router rows and biases changes nothing.

    Catches: expert weights off by one, a bias, a scale or a weight looked up by slot instead of
    by expert, experts read in the order of names (1, 10, 2).
    """
    order = np.random.default_rng(case.chosen["order"]).permutation(case.config["num_experts"])
    other = case.changed("experts permuted", lambda stored: _permuted(case.config, stored, order))
    found = opened(other).logits(case.tokens)
    yield Same("experts permuted", found, opened(case.model()).logits(case.tokens))


def unchosen_experts(case: Case, opened: Open) -> Iterator[Claim]:
    """An expert that no token chooses may hold any finite weights.

    Catches: every expert evaluated and weighted by what should be zero (a huge one then gives
    infinity times zero), tokens sent to experts that were not chosen, one expert too many.
    """
    unchosen = _unchosen(case)
    if not unchosen:
        return
    scale = (1.0, 16.0, HUGE)[case.chosen["size"]]

    def change(stored: Tensors) -> Mapping[str, Array]:
        for name, array in stored.items():
            if any(name.startswith(f"{prefix}.") for prefix in unchosen):
                signs = np.where(np.arange(array.size).reshape(array.shape) % 3, 1.0, -1.0)
                stored[name] = (signs * scale).astype(array.dtype)
        return stored

    found = opened(case.changed("unchosen experts changed", change)).logits(case.tokens)
    yield Same("unchosen experts changed", found, opened(case.model()).logits(case.tokens))


def correction_bias(case: Case, opened: Open) -> Iterator[Claim]:
    """The bias changes the choice, never the weights.

    With a bias that puts K experts before all others, the model is the one that has these K
    alone and no bias. Catches: the bias ignored, the bias left in the experts' weights, top-k
    one too many or too few, weights normalised over all experts.
    """
    config = case.config
    chosen = config["num_experts_per_tok"]
    kept = np.random.default_rng(case.chosen["order"]).permutation(config["num_experts"])[:chosen]
    forced = case.changed("bias forces", lambda stored: _forced(config, stored, kept))
    alone = case.changed(
        "experts alone", lambda stored: _alone(config, stored, kept), num_experts=chosen
    )
    found = opened(forced).logits(case.tokens)
    yield Same("chosen by their bias", found, opened(alone).logits(case.tokens))


def _unchosen(case: Case) -> list[str]:
    """Names of the experts that the oracle goes to with no token; margins are beyond noise."""
    recorder = Recorder("*topk_ids")
    case.model().oracle("float32")(case.tokens, trace=recorder)
    return [
        f"{at}.experts.{expert}"
        for at in _sparse(case.config)
        for expert in range(case.config["num_experts"])
        if expert not in recorder[f"{at}.topk_ids"]
    ]


def _sparse(config: Config) -> list[str]:
    kinds = enumerate(config["mlp_layer_types"])
    return [f"model.layers.{layer}.mlp" for layer, kind in kinds if kind == "sparse"]


def _permuted(config: Config, stored: Tensors, order: Array) -> Tensors:
    """Expert ``new`` is what ``order[new]`` was; ``order`` may leave some out."""
    result = dict(stored)
    for at in _sparse(config):
        for name in (f"{at}.gate.weight", f"{at}.experts.e_score_correction_bias"):
            result[name] = stored[name][order]
        of_experts = [name for name in stored if name.startswith(f"{at}.experts.")]
        parts = sorted({name.split(".", 6)[6] for name in of_experts if name.count(".") > 6})
        for name in of_experts:
            if name.count(".") > 6:
                del result[name]
        for new, old in enumerate(order.tolist()):
            for part in parts:
                result[f"{at}.experts.{new}.{part}"] = stored[f"{at}.experts.{old}.{part}"]
    return result


def _forced(config: Config, stored: Tensors, kept: Array) -> Tensors:
    for at in _sparse(config):
        bias = np.zeros(config["num_experts"], np.float32)
        bias[kept] = FORCING_BIAS
        stored[f"{at}.experts.e_score_correction_bias"] = bias
    return stored


def _alone(config: Config, stored: Tensors, kept: Array) -> Tensors:
    result = _permuted(config, stored, kept)
    for at in _sparse(config):
        result[f"{at}.experts.e_score_correction_bias"] = np.zeros(len(kept), np.float32)
    return result


def _order(draw: st.DrawFn, config: Config, count: int) -> dict[str, int]:
    return {"order": draw(st.integers(0, 999))}


def _permutations(setting: Setting) -> st.SearchStrategy[Example]:
    return examples(setting, configs, chosen=_order)


def _choices(setting: Setting) -> st.SearchStrategy[Example]:
    """Always with a choice of experts, whatever the precision; few tokens leave some unchosen."""
    return examples(
        Setting(), configs, tokens=(1, 4),
        chosen=lambda draw, config, count: {
            "order": draw(st.integers(0, 999)), "size": draw(st.integers(0, 2)),
        },
    )  # fmt: skip


LAWS = (
    Law("expert-order", expert_order, _permutations, exact=True, routed=True),
    Law("unchosen-experts", unchosen_experts, _choices, exact=True, routed=True),
    # The sum over experts is taken in the order of scores, which the bias rounds.
    Law("correction-bias", correction_bias, _choices, exact=False),
)
