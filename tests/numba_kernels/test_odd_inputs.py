"""Arrays of any layout and place in memory: the same bits, or the same error as always."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref.checkpoint import DenseWeight, PackedIntWeight
from laguna_ref.engines import numba_engine
from laguna_ref.numerics import BF16, FLOAT32, FLOAT64
from laguna_ref.ops.router import RouterSpec
from tests.numba_kernels.drawn import activations, expert, generator, weight
from tests.numba_kernels.test_attention import case

SPEC = RouterSpec(2, "sigmoid", 0.0, True)


def strided(x: Any) -> Any:
    """Equal numbers, every second element of a larger array."""
    wide = np.full((*x.shape, 2), 9, x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def transposed(x: Any) -> Any:
    return np.asfortranarray(x)


def reversed_twice(x: Any) -> Any:
    return x[::-1].copy()[::-1]


def read_only(x: Any) -> Any:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def unaligned(x: Any) -> Any:
    """At an odd byte."""
    raw = np.zeros(x.nbytes + 1, np.uint8)
    moved = raw[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    assert not moved.flags.aligned or x.dtype.itemsize == 1
    return moved


LAYOUTS = pytest.mark.parametrize(
    "layout", [strided, transposed, reversed_twice, read_only, unaligned], ids=lambda f: f.__name__
)


@LAYOUTS
@pytest.mark.parametrize("tokens", [1, 5])
def test_activations(layout: Callable[[Any], Any], tokens: int) -> None:
    x = activations(FLOAT32, tokens, 16)
    w, norm = weight("bf16", 9, 16), np.ones(16, np.float32)
    experts = [expert("bf16", 16, 8, e) for e in range(4)]
    gate, bias = weight("bf16", 4, 16), np.zeros(4, np.float32)
    _, ids, shares = numba_engine.route(x, gate, bias, SPEC, FLOAT32)
    operations: dict[str, Callable[[Any], Any]] = {
        "linear": lambda a: numba_engine.linear(a, w, FLOAT32),
        "norm": lambda a: numba_engine.rms_norm(a, norm, 1e-6, FLOAT32),
        "gate": lambda a: numba_engine.gate_values(a, "softplus", FLOAT32),
        "mlp": lambda a: numba_engine.mlp(a, experts[0], FLOAT32),
        "router": lambda a: numba_engine.route(a, gate, bias, SPEC, FLOAT32)[0],
        "experts": lambda a: numba_engine.experts(a, ids, shares, experts, FLOAT32),
    }
    for name, operation in operations.items():
        assert np.array_equal(operation(layout(x)), operation(x)), name
        assert np.array_equal(x, activations(FLOAT32, tokens, 16)), f"{name} changed its input"


@LAYOUTS
@pytest.mark.parametrize("head_dim", [8, 13])
@pytest.mark.parametrize("cache", ["float", "fp8"])
def test_attention(layout: Callable[[Any], Any], head_dim: int, cache: str) -> None:
    q, kv = case(FLOAT32, 5, 9, 4, 2, head_dim, cache)
    expected = numba_engine.attention(q, kv, None, FLOAT32)
    moved = replace(kv, keys=layout(kv.keys), values=layout(kv.values))
    assert np.array_equal(numba_engine.attention(q, moved, None, FLOAT32), expected)
    assert np.array_equal(numba_engine.attention(layout(q), kv, None, FLOAT32), expected)


@LAYOUTS
def test_routing(layout: Callable[[Any], Any]) -> None:
    experts = [expert("bf16", 16, 8, e) for e in range(4)]
    x = activations(FLOAT32, 5, 16)
    ids = np.array([[0, 1], [1, 2], [3, 0], [2, 1], [0, 3]])
    shares = generator(0).random((5, 2)).astype(np.float32)
    expected = numba_engine.experts(x, ids, shares, experts, FLOAT32)
    found = numba_engine.experts(x, layout(ids), layout(shares), experts, FLOAT32)
    assert np.array_equal(found, expected)


@LAYOUTS
@pytest.mark.parametrize("stored", ["bf16", "f16", "f32", "int4", "int8"])
def test_weights(layout: Callable[[Any], Any], stored: str) -> None:
    w = weight(stored, 9, 64, group=32)
    if isinstance(w, PackedIntWeight):
        moved: Any = replace(w, packed=layout(w.packed), scale=layout(w.scale))
    else:
        moved = replace(w, array=layout(w.array))
    for tokens in (1, 3):
        x = activations(FLOAT32, tokens, 64)
        expected = numba_engine.linear(x, w, FLOAT32)
        assert np.array_equal(numba_engine.linear(x, moved, FLOAT32), expected)


@LAYOUTS
def test_norm_weights(layout: Callable[[Any], Any]) -> None:
    x, norm = activations(FLOAT32, 3, 16), activations(FLOAT32, 16)
    expected = numba_engine.rms_norm(x, norm, 1e-6, FLOAT32)
    assert np.array_equal(numba_engine.rms_norm(x, layout(norm), 1e-6, FLOAT32), expected)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32)])
def test_a_memory_map_that_begins_at_any_byte(tmp_path: Path, dtype: Any, offset: int) -> None:
    """The last weight ends with the file: nothing beyond it may be read."""
    w = weight("bf16" if dtype == BF16 else "f32", 33, 24)
    assert isinstance(w, DenseWeight)
    file = tmp_path / "weights"
    file.write_bytes(b"\xff" * offset + w.array.tobytes())
    raw = np.memmap(file, np.uint8, "r", offset=offset)
    mapped = DenseWeight("mapped", raw.view(dtype).reshape(w.shape))
    for tokens in (1, 4):
        x = activations(FLOAT32, tokens, 24)
        expected = numba_engine.linear(x, w, FLOAT32)
        assert np.array_equal(numba_engine.linear(x, mapped, FLOAT32), expected)


@pytest.mark.parametrize("numerics", [FLOAT32, FLOAT64], ids=lambda n: n.name)
@pytest.mark.parametrize("exponent", [-140, -120, 100, 126])
def test_products_of_any_size(numerics: Any, exponent: int) -> None:
    """A power of two in every activation is one in every result, until the type ends."""
    w = weight("f32", 9, 24)
    for tokens in (1, 3):
        x = activations(numerics, tokens, 24)
        whole = numba_engine.linear(x, w, numerics)
        found = numba_engine.linear(np.ldexp(x, exponent), w, numerics)
        expected = np.ldexp(whole, exponent)
        if numerics is FLOAT32 and exponent < 0:
            spacing = 24 * float(np.finfo(np.float32).smallest_subnormal)
            assert np.abs(found.astype(np.float64) - expected).max() <= spacing
        else:
            assert np.array_equal(found, expected)


def test_one_expert_alone_and_all_of_them() -> None:
    x = activations(FLOAT32, 3, 16)
    only = [expert("bf16", 16, 8)]
    one = numba_engine.experts(x, np.zeros((3, 1), int), np.ones((3, 1), np.float32), only, FLOAT32)
    assert np.array_equal(one, numba_engine.mlp(x, only[0], FLOAT32))


def test_an_expert_that_is_not_there() -> None:
    only = [expert("bf16", 16, 8)]
    x, shares = activations(FLOAT32, 1, 16), np.ones((1, 1), np.float32)
    for bad in (1, 99):
        with pytest.raises(IndexError):
            numba_engine.experts(x, np.array([[bad]]), shares, only, FLOAT32)
