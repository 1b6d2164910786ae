"""Laws of RoPE and of heads, and agreement with the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from laguna_ref.conformance.laws.case import Case
from laguna_ref.conformance.laws.example import Config, Example
from laguna_ref.conformance.laws.law import Claim, Law, Open, Same, Setting, traced
from laguna_ref.conformance.laws.weights import Tensors
from laguna_ref.conformance.strategies import configs, examples
from laguna_ref.numerics import Array

MAX_SHIFT = 900


def shifted_positions(case: Case, opened: Open) -> Iterator[Claim]:
    """Shifting all positions by one number changes nothing, within the error of the angles.

    With a float cache: FP8 rounds keys after RoPE. Catches: angles in too few bits, a query and
    a key turned by different frequencies, positions counted from the wrong end, RoPE on values.
    """
    backend: Any = opened(case.model())
    shift = case.chosen["shift"]
    places = [place + shift for place in range(len(case.tokens))]
    found = backend.logits(case.tokens, positions=places)
    yield Same(f"positions + {shift}", found, backend.logits(case.tokens))


def unrotated(case: Case, opened: Open) -> Iterator[Claim]:
    """The dimensions of a head that RoPE does not rotate are left as they were.

    Catches: partial_rotary_factor ignored or halved twice, the attention factor applied to the
    whole head, interleaved pairs on full layers.
    """
    backend: Any = opened(case.model())
    for layer, kind in enumerate(case.config["layer_types"]):
        if kind == "full_attention":
            at = f"model.layers.{layer}.self_attn"
            points = [f"{at}.{part}" for part in ("q_norm", "q_rope", "k_norm", "k_rope")]
            trace = traced(backend, case.tokens, points)
            for part in "qk":
                before, after = (
                    np.asarray(trace[f"{at}.{part}_{step}"])[..., _rotated(case.config) :]
                    for step in ("norm", "rope")
                )
                yield Same(f"{at}.{part}_rope", after, before, logits=False)


def placeless(case: Case, opened: Open) -> Iterator[Claim]:
    """Where queries have nothing in the rotated dimensions, positions have no influence at all.

    The same as ``unrotated``, seen from the logits alone. Catches: partial_rotary_factor ignored,
    positions that reach anything but RoPE.
    """
    half = _rotated(case.config)

    def change(stored: Tensors) -> Mapping[str, Array]:
        for name in stored:
            if name.endswith("q_norm.weight"):
                weight = stored[name].copy()
                weight[:half] = 0
                stored[name] = weight
        return stored

    backend: Any = opened(case.changed("placeless", change))
    places = [place * case.chosen["stretch"] for place in range(len(case.tokens))]
    found = backend.logits(case.tokens, positions=places)
    yield Same("positions stretched", found, backend.logits(case.tokens))


def twin_heads(case: Case, opened: Open) -> Iterator[Claim]:
    """Two query heads with the same weights and the same key head have the same output.

    So what one of them feeds into ``o_proj`` may come from either. Catches: query heads mapped to
    the wrong key head (interleaved groups), head counts of the other kind of layer, a gate of
    another head.
    """
    group = case.chosen["group"]

    def twins(stored: Tensors, share: float) -> Mapping[str, Array]:
        for layer in range(case.config["num_hidden_layers"]):
            _make_twins(case.config, stored, layer, group, share)
        return stored

    first = case.changed("first twin", lambda stored: twins(stored, 1.0))
    both = case.changed("both twins", lambda stored: twins(stored, 0.5))
    expected = opened(first).logits(case.tokens)
    yield Same("half of it from each twin", opened(both).logits(case.tokens), expected)


def agreement(case: Case, opened: Open) -> Iterator[Claim]:
    """The logits are the oracle's.

    Catches: whatever the other laws, which know no reference, cannot see: a wrong constant.
    """
    exact = case.model().oracle("float64")
    yield Same("the oracle's logits", opened(case.model()).logits(case.tokens), exact(case.tokens))


def _make_twins(config: Config, stored: Tensors, layer: int, g: int, share: float) -> None:
    """The first and the last query head of key head ``g``; the first puts in ``share``."""
    at = f"model.layers.{layer}.self_attn"
    group = config["num_attention_heads_per_layer"][layer] // config["num_key_value_heads"]
    key_head = g % config["num_key_value_heads"]
    a, b = key_head * group, key_head * group + group - 1
    width = config["head_dim"]
    for part, rows in (("q_proj", width), ("g_proj", _gate_rows(config))):
        matrix = stored[f"{at}.{part}.weight"].copy()
        matrix[b * rows : (b + 1) * rows] = matrix[a * rows : (a + 1) * rows]
        stored[f"{at}.{part}.weight"] = matrix
    out = stored[f"{at}.o_proj.weight"].astype(np.float32)
    of_first = out[:, a * width : (a + 1) * width].copy()
    out[:, b * width : (b + 1) * width] = (1 - share) * of_first
    if a != b:
        out[:, a * width : (a + 1) * width] = share * of_first
    stored[f"{at}.o_proj.weight"] = out.astype(stored[f"{at}.o_proj.weight"].dtype)


def _gate_rows(config: Config) -> int:
    return int(config["head_dim"]) if config["gating"] == "per-element" else 1


def _rotated(config: Config) -> int:
    """Rotated dimensions of a head in full layers."""
    rope = config["rope_parameters"]["full_attention"]
    return int(config["head_dim"] * rope["partial_rotary_factor"])


def _shifts(draw: st.DrawFn, config: Config, count: int) -> dict[str, int]:
    return {"shift": draw(st.integers(1, MAX_SHIFT))}


def _shifted(setting: Setting) -> st.SearchStrategy[Example]:
    return examples(setting, configs, chosen=_shifts)


def _full(setting: Setting) -> st.SearchStrategy[Config]:
    return configs(setting, attention=("full_attention",))


def _with_full(setting: Setting) -> st.SearchStrategy[Example]:
    return examples(setting, _full)


def _stretched(setting: Setting) -> st.SearchStrategy[Example]:
    return examples(
        setting, _full,
        chosen=lambda draw, config, count: {"stretch": draw(st.integers(2, 50))},
    )  # fmt: skip


def _twins(setting: Setting) -> st.SearchStrategy[Example]:
    def model(setting: Setting) -> st.SearchStrategy[Config]:
        pairs = configs(setting, num_key_value_heads=2)
        return pairs.map(_two_a_group)

    return examples(
        setting, model, chosen=lambda draw, config, count: {"group": draw(st.integers(0, 1))}
    )


def _two_a_group(config: Config) -> Config:
    """At least two query heads for each of two key heads."""
    heads = [2 * max(2, count // 2) for count in config["num_attention_heads_per_layer"]]
    return config | {"num_attention_heads": heads[0], "num_attention_heads_per_layer": heads}


def _agreeing(setting: Setting) -> st.SearchStrategy[Example]:
    return examples(setting, configs)


LAWS = (
    Law("shifted-positions", shifted_positions, _shifted, exact=False, needs=("positions",)),
    Law("unrotated", unrotated, _with_full, exact=True, needs=("trace",)),
    Law("placeless", placeless, _stretched, exact=True, needs=("positions",)),
    # The halves are added in another place of the sum.
    Law("twin-heads", twin_heads, _twins, exact=False),
    Law("agreement", agreement, _agreeing, exact=False),
)
