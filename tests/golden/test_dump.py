"""Dumps: every way to write one, and everything that nothing can be compared with."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import laguna_ref
from laguna_ref import Recorder
from laguna_ref.golden import DumpError, read_dump
from laguna_ref.golden.dump import execution_order, is_trace_point
from laguna_ref.trace import trace_points
from tests.cli.conftest import Run, run  # noqa: F401
from tests.golden.models import loaded

FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
IDS = {
    "tokens": np.array([1, 2, 3], np.int64),
    "positions": np.array([0, 1, 2], np.int64),
}


def dump(folder: Path, **changes: Any) -> Path:
    """A file of the least; ``__`` stands for a dot, None takes a tensor out."""
    arrays = IDS | {"model.norm": np.ones((3, 4), np.float32)}
    arrays |= {name.replace("__", "."): value for name, value in changes.items()}
    path = folder / "dump.safetensors"
    save_file({name: value for name, value in arrays.items() if value is not None}, path)
    return path


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_is_read_as_it_is(tmp_path: Path, dtype: Any) -> None:
    value = np.arange(12).reshape(3, 4).astype(dtype)
    from laguna_ref.checkpoint.safetensors_file import DTYPE_NAMES
    from laguna_ref.checkpoint.safetensors_writer import TensorSpec, aligned, write_file

    arrays = IDS | {"model.layers.11.mlp": value, "model.layers.2": value}
    specs = [TensorSpec(n, DTYPE_NAMES[np.dtype(a.dtype)], a.shape) for n, a in arrays.items()]
    write_file(tmp_path / "x", aligned(specs), arrays.__getitem__, {"backend": "mine"})
    found = read_dump(tmp_path / "x")
    assert list(found.points) == ["model.layers.2", "model.layers.11.mlp"]
    assert found.points["model.layers.2"].dtype == dtype
    assert np.array_equal(found.points["model.layers.2"], value)
    assert found.tokens.tolist() == [1, 2, 3]
    assert found.positions.tolist() == [0, 1, 2]
    assert found.routing is None
    assert found.meta == {"backend": "mine"}


def test_the_trace_command_writes_dumps(run: Run, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "trace.safetensors"
    run("trace", "--token-ids", "2,70,71", "--point", "*", "--out", out)
    found = read_dump(out)
    assert found.tokens.tolist() == [2, 70, 71]
    assert found.routing is not None
    assert list(found.routing) == [1, 2, 3, 4, 5, 6, 7]
    expected = [name for name in trace_points(laguna_ref.load().config) if ".topk_" not in name]
    assert list(found.points) == expected
    recorder = Recorder("*")
    laguna_ref.load()([2, 70, 71], trace=recorder)
    assert np.array_equal(found.points["model.layers.7"], recorder["model.layers.7"])
    weights = found.routing[3].weights
    assert weights is not None
    assert np.array_equal(weights, recorder["model.layers.3.mlp.topk_weights"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "tokens: missing; expected int64"),
        ({"positions": None}, "positions: missing"),
        ({"tokens": np.zeros(3, np.int32)}, "tokens: wrong type or shape.*found I32"),
        ({"tokens": np.zeros((1, 3), np.int64)}, r"tokens: wrong type or.*found I64 \[1, 3\]"),
        ({"tokens": np.zeros(0, np.int64)}, "tokens: wrong type or shape"),
        ({"positions": np.zeros(4, np.int64)}, "one position a token; expected 3; found 4"),
        ({"model__norm": None}, "holds no trace point"),
        ({"model__norm": np.zeros((3, 0), np.float32)}, "model.norm: empty"),
        ({"model__norm": np.array(1, np.float32)}, "model.norm: empty"),
        ({"model__norm": np.ones((3, 4), np.int64)}, "model.norm: wrong type; expected F32 or"),
        ({"model__layers__1__mlp__topk_ids": np.ones((3, 2), np.float32)}, "topk_ids: wrong type"),
        ({"model__layers__1__mlp__topk_weights": np.ones((3, 2), np.float32)},
         "weights of experts that are not named"),
        ({"model__layers__3__mlp__router": np.ones((3, 2), np.float32)},
         r"mlp\.router: no trace point has this name; expected such as model\.layers\.3\."),
        ({"layers__3__mlp__gates": np.ones(3, np.float32)}, r"model\.layers\.3\.mlp\.gate "),
        ({"model__layers__01__mlp": np.ones(3, np.float32)}, r"such as model\.layers\.1\.mlp "),
        ({"logits": np.ones((3, 2), np.float32)}, "logits: no trace point has this name"),
        ({"model__embed_tokens__weight": np.ones(3, np.float32)}, "such as model.embed_tokens "),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DumpError, match=message) as caught:
        read_dump(dump(tmp_path, **changes))
    assert "dump.safetensors" in str(caught.value)


@given(
    st.sampled_from([np.float32, np.float64, np.float16]),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(0, 11),
)
def test_what_is_not_finite_is_named(
    tmp_path_factory: pytest.TempPathFactory, dtype: Any, bad: float, place: int
) -> None:
    value = np.full((3, 2, 2), np.finfo(dtype).max, dtype)
    value.reshape(-1)[place] = bad
    token, head, channel = np.unravel_index(place, value.shape)
    name = "model__layers__0__self_attn__k_rope"
    path = dump(tmp_path_factory.mktemp("dump"), **{name: value, "model__norm": value[:, 0]})
    message = rf"k_rope: token {token}, channel {head}, {channel} is not finite; found -?{abs(bad)}"
    with pytest.raises(DumpError, match=message):
        read_dump(path)
    found = read_dump(path, finite=False).points["model.layers.0.self_attn.k_rope"]
    assert np.array_equal(found, value, equal_nan=True)


def test_no_safetensors_file(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="cannot be read"):
        read_dump(tmp_path / "none")
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(DumpError, match="truncated"):
        read_dump(tmp_path / "short")


def test_names_and_order_are_those_of_the_model() -> None:
    points = list(trace_points(loaded().config))
    assert all(map(is_trace_point, points))
    assert sorted(sorted(points), key=execution_order) == points
    assert not any(
        map(is_trace_point, ["", "model", "model.layers.1.", "model.layers", "lm_head.x"])
    )


LARGE = """
import resource, sys, time
from laguna_ref.golden import read_dump
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
read_dump(sys.argv[1])
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
SECONDS = 10
"""What a whole comparison may take."""


@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts in other units elsewhere")
def test_a_hundred_megabytes_take_little_time_and_no_copy(tmp_path: Path) -> None:
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    tokens, width = 1000, 2500
    ids = np.arange(tokens, dtype=np.int64)
    points = {f"model.layers.{i}": np.ones((tokens, width), np.float32) for i in range(10)}
    path = tmp_path / "large.safetensors"
    save_file({"tokens": ids, "positions": ids} | points, path)
    size = path.stat().st_size
    assert size > 100_000_000
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=True
    )
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < SECONDS
    assert kilobytes * 1024 < 1.5 * size  # the mapped file itself, once
