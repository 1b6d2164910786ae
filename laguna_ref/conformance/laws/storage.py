"""Laws of what is stored: packed weights, the FP8 cache, and powers of two moved between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from laguna_ref.conformance.laws.case import Case
from laguna_ref.conformance.laws.example import Config, Example
from laguna_ref.conformance.laws.law import Claim, Law, Open, Same, Setting, traced
from laguna_ref.conformance.laws.weights import Tensors, pack, unpack
from laguna_ref.conformance.strategies import configs, examples, fp8_cache, packed_experts
from laguna_ref.numerics import FLOAT64, Array
from laguna_ref.ops.fp8 import fp8_decode, fp8_encode


def two_encodings(case: Case, opened: Open) -> Iterator[Claim]:
    """A group of even integers is the same as their halves with twice the scale.

    Catches: the offset of 8 (or 128) missing, a wrong order of nibbles that scales hide, a scale
    of another group, integers rounded on their way.
    """
    bits = case.config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"]

    def change(stored: Tensors) -> Mapping[str, Array]:
        for name in [name for name in stored if name.endswith(".weight_packed")]:
            scale = f"{name.removesuffix('packed')}scale"
            columns = stored[name].shape[1] * 32 // bits
            stored[name] = pack(unpack(stored[name], bits, columns) // 2, bits)
            stored[scale] = _times(stored[scale], 1)
        return stored

    found = opened(case.changed("scales doubled", change)).logits(case.tokens)
    yield Same("integers halved", found, opened(case.model()).logits(case.tokens))


def key_scale(case: Case, opened: Open) -> Iterator[Claim]:
    """k_norm and k_scale times 2**n, q_norm times 2**-n leave the logits unchanged.

    Catches: k_scale ignored, applied once instead of on writing and on reading, applied twice,
    inverted, exchanged with v_scale, taken from another layer; keys quantised before k_norm.
    """
    yield from _balanced(case, opened, {"k_norm.weight": 1, "k_scale": 1, "q_norm.weight": -1})


def value_scale(case: Case, opened: Open) -> Iterator[Claim]:
    """v_proj and v_scale times 2**n, o_proj times 2**-n leave the logits unchanged.

    Catches: v_scale ignored, applied once or twice, inverted, exchanged with k_scale.
    """
    yield from _balanced(case, opened, {"v_proj.weight": 1, "v_scale": 1, "o_proj.weight": -1})


def _balanced(case: Case, opened: Open, signs: Mapping[str, int]) -> Iterator[Claim]:
    exponent, layers = case.chosen["exponent"], case.config["num_hidden_layers"]
    only = case.chosen["layer"] % layers
    pattern = re.compile(rf"model\.layers\.{only}\.self_attn\.({'|'.join(signs)})$")

    def change(stored: Tensors) -> Mapping[str, Array]:
        for name in stored:
            match = pattern.match(name)
            if match:
                stored[name] = _times(stored[name], exponent * signs[match[1]])
        return stored

    found = opened(case.changed("powers of two moved", change)).logits(case.tokens)
    what = f"2**{exponent} moved in layer {only}"
    yield Same(what, found, opened(case.model()).logits(case.tokens))


def fp8_idempotent(case: Case, opened: Open) -> Iterator[Claim]:
    """What was read from the FP8 cache, written and read again, is the same.

    Catches: another float8 (e5m2), a scale forgotten on one side, values beyond 448 that turn to
    NaN, the new token's own key and value used unquantised.
    """
    backend: Any = opened(case.model())
    stored = case.tensors()
    names = []
    for layer in range(case.config["num_hidden_layers"]):
        at = f"model.layers.{layer}.self_attn"
        names += [(f"{at}.{kind}_cached", f"{at}.{kind}_scale") for kind in "kv"]
    trace = traced(backend, case.tokens, [point for point, _ in names])
    for point, name in names:
        read = np.asarray(trace[point], np.float64)
        scale = np.float32(stored[name].astype(np.float32)[0])
        again = fp8_decode(fp8_encode(read, scale, point), scale, FLOAT64)
        yield Same(f"{point} written again", again, read, logits=False)


def first_token(case: Case, opened: Open) -> Iterator[Claim]:
    """At position 0 attention's output, before the gate, is the cached value itself.

    Catches: an attention sink, a softmax over padding, values of the wrong head, the value
    taken before the cache rounds it.
    """
    backend: Any = opened(case.model())
    for layer, heads in enumerate(case.config["num_attention_heads_per_layer"]):
        at = f"model.layers.{layer}.self_attn"
        trace = traced(backend, case.tokens, [f"{at}.attention", f"{at}.v_cached"])
        values = np.asarray(trace[f"{at}.v_cached"])[:1]
        group = heads // case.config["num_key_value_heads"]
        found = np.asarray(trace[f"{at}.attention"])[:1].reshape(1, heads, -1)
        yield Same(f"{at}.attention", found, np.repeat(values, group, axis=1), logits=False)


def _times(array: Array, exponent: int) -> Array:
    """Times a power of two: exact in the stored type."""
    return np.asarray(np.ldexp(array.astype(np.float64), exponent).astype(array.dtype))


def _cached(setting: Setting) -> st.SearchStrategy[Config]:
    return configs(setting, **fp8_cache())


def _any_cache(setting: Setting) -> st.SearchStrategy[Config]:
    return st.one_of(configs(setting), _cached(setting))


@st.composite
def _packed(draw: st.DrawFn, setting: Setting) -> Config:
    bits = draw(st.sampled_from((4, 8)))
    config: Config = draw(configs(setting, mlp=("sparse",), **packed_experts(bits)))
    return config


def _powers(draw: st.DrawFn, config: Config, count: int) -> dict[str, int]:
    exponents = st.integers(-6, 6).filter(bool)
    return {"exponent": draw(exponents), "layer": draw(st.integers(0, 2))}


def _of(
    model: Callable[[Setting], st.SearchStrategy[Config]], **options: Any
) -> Callable[[Setting], st.SearchStrategy[Example]]:
    return lambda setting: examples(setting, model, **options)


LAWS = (
    Law("two-encodings", two_encodings, _of(_packed), exact=True, needs=("packed",)),
    Law("key-scale", key_scale, _of(_cached, chosen=_powers), exact=True, fp8=True),
    Law("value-scale", value_scale, _of(_cached, chosen=_powers), exact=True, fp8=True),
    Law("fp8-idempotent", fp8_idempotent, _of(_cached), exact=True, needs=("trace",), fp8=True),
    Law("first-token", first_token, _of(_any_cache), exact=True, needs=("trace",)),
)
