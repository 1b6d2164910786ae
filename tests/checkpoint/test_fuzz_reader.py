"""The reader against damaged checkpoints: they load, or raise LagunaError; nothing else.

Starts from small valid checkpoints and damages bytes, JSON fields and whole files. Neither
time nor memory may run away: an example that takes more than ``SECONDS`` or asks for more than
``BYTES`` of address space fails.

16,000 new examples: ``HYPOTHESIS_PROFILE=nightly pytest tests/checkpoint/test_fuzz_reader.py``.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laguna_ref import checkpoint
from laguna_ref.errors import LagunaError
from tests.checkpoint.small import dense_config, small_config, write_small

SECONDS = 20
BYTES = 1 << 30
"""A thousand times what any of these checkpoints needs."""

SIZES = {
    "vocab_size": 7,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "shared_expert_intermediate_size": 4,
}
Files = dict[str, bytes]


def int_config(bits: int) -> dict[str, Any]:
    """Layer 0 and one sparse layer of either width."""
    return checkpoint.presets.slice_layers(small_config(**SIZES), [0, bits // 4])


BASES = ("dense", "int4", "int8", "sharded")


@cache
def base_files(base: str) -> Files:
    """One of the valid checkpoints, as file name -> content."""
    configs = {
        "dense": dense_config(**SIZES),
        "int4": int_config(4),
        "int8": int_config(8),
        "sharded": small_config(**SIZES),
    }
    options = {"max_shard_bytes": 4000} if base == "sharded" else {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_small(Path(folder) / base, configs[base], **options)
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "checkpoint"


@contextmanager
def limited() -> Iterator[None]:
    """A hang becomes a TimeoutError and a huge allocation a MemoryError: neither a LagunaError."""

    def too_slow(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    memory = Path("/proc/self/statm")  # Linux only, like the limit of the address space
    before = resource.getrlimit(resource.RLIMIT_AS)
    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    if memory.exists():
        used = int(memory.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)


# What damage may look like ----------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**53, 2**60, 2**63 - 1, 2**63, 2**64, 10**300]),
    st.sampled_from([-1.0, 0.0, 0.5, 8.0, 1e400, float("nan"), float("inf")]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=5,
)
WORDS = st.sampled_from(
    [
        *("F32", "BF16", "F16", "F64", "I32", "I64", "U8", "BOOL", "F8_E4M3", "F4"),
        *("sparse", "dense", "sliding_attention", "full_attention", "per-element"),
        *("pack-quantized", "re:.*", "Linear", "yarn", "default", "sqrtsoftplus"),
    ]
)


def paths(value: Any) -> list[tuple[Any, ...]]:
    """Where to find each part of a JSON value."""
    found: list[tuple[Any, ...]] = [()]
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        found += [(key, *rest) for key in keys for rest in paths(value[key])]
    return found


def damage_json(draw: st.DrawFn, text: str) -> str:
    """Replace, delete, rename or copy one part of a JSON document."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # damaged before, and no JSON any more
        return damage_text(draw, text)
    where = draw(st.sampled_from(paths(value)))
    if not where:
        return json.dumps(draw(VALUES))
    parent = value
    for key in where[:-1]:
        parent = parent[key]
    key = where[-1]
    action = draw(st.sampled_from(["replace", "number", "word", "delete", "rename", "copy"]))
    if action in ("replace", "number", "word"):
        parent[key] = draw({"replace": VALUES, "number": NUMBERS, "word": WORDS}[action])
    elif action == "delete":
        del parent[key]
    elif isinstance(parent, dict):
        name = draw(st.sampled_from(sorted(parent)) | st.text(max_size=6))
        parent[name] = parent[key] if action == "copy" else parent.pop(key)
    else:
        parent.insert(key, parent[key])
    return json.dumps(value)


def damage_text(draw: st.DrawFn, text: str) -> str:
    """Splice something that need not be JSON into a JSON document."""
    at = draw(st.integers(0, len(text)))
    drop = draw(st.integers(0, 12))
    splice = draw(
        st.sampled_from(["NaN", "[" * 3000, "9" * 5000, "\\ud800", "\0", '"a":1,', "1e999", ","])
        | st.text(max_size=4)
    )
    return text[:at] + splice + text[at + drop :]


def damage_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Overwrite, cut, lengthen or drop some bytes, more often near the start."""
    action = draw(st.sampled_from(["overwrite", "cut", "append", "remove"]))
    at = draw(st.integers(0, min(len(data), 64)) | st.integers(0, len(data)))
    splice = draw(st.binary(min_size=1, max_size=9))
    return {
        "overwrite": data[:at] + splice + data[at + len(splice) :],
        "cut": data[:at],
        "append": data + splice,
        "remove": data[:at] + data[at + len(splice) :],
    }[action]


def damage_header(draw: st.DrawFn, data: bytes) -> bytes:
    """Damage the header of a safetensors file, its length kept right or not."""
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length].decode(errors="replace"), data[8 + length :]
    text = draw(st.sampled_from([damage_json, damage_json, damage_text]))(draw, text)
    header = text.encode(errors="surrogatepass")
    written = draw(st.just(len(header)) | st.integers(0, 2**64 - 1))
    return written.to_bytes(8, "little") + header + rest


@st.composite
def damaged_checkpoints(draw: st.DrawFn) -> Files:
    """The files of a checkpoint to which one to three things have happened."""
    files = dict(base_files(draw(st.sampled_from(BASES))))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        data = files[name]
        action = draw(st.sampled_from(["bytes", "structure", "structure", "swap", "absent"]))
        if action == "bytes":
            files[name] = damage_bytes(draw, data)
        elif action == "swap":
            files[name] = files[draw(st.sampled_from(sorted(files)))]
        elif action == "absent":
            del files[name]
            if not files:
                break
        elif name.endswith(".safetensors") and len(data) >= 8:
            files[name] = damage_header(draw, data)
        else:
            text = damage_json(draw, data.decode(errors="replace"))
            files[name] = text.encode(errors="surrogatepass")
    return files


# The property -----------------------------------------------------------------------------


def use(path: Path) -> None:
    """Everything a reader of checkpoints does with one."""
    opened = checkpoint.open(path)
    for name, rule in opened.rules.items():
        tensor = opened.tensor(name)
        assert tensor.shape in rule.shapes
        assert len(tensor.tobytes()) == opened.tensors[name].nbytes
        if rule.part in ("linear", "packed", "embedding"):
            for dequant in ("exact", "bf16"):
                rows = opened.weight(rule.module).rows(dtype=np.float32, dequant=dequant)
                assert rows.shape == rule.matrix
    for layer in opened.config.layers:
        opened.kv_scales(layer.index)


def put(folder: Path, files: Files) -> None:
    """Make a folder of these files and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def refused_or_fine(call: Any, path: Path) -> bool:
    """Whether ``call(path)`` returned; fails for any exception but a proper LagunaError."""
    try:
        with np.errstate(all="ignore"):  # damaged numbers overflow; that is their right
            call(path)
    except LagunaError as error:
        line = str(error)
        assert len(line.splitlines()) == 1
        line.encode()  # it can be printed
        return False
    return True


@settings(max_examples=8 * settings.default.max_examples)
@given(files=damaged_checkpoints())
def test_damaged_checkpoints_load_or_are_refused(scratch: Path, files: Files) -> None:
    put(scratch, files)
    with limited():
        refused_or_fine(use, scratch)
        refused_or_fine(checkpoint.verify, scratch)


@pytest.mark.parametrize("base", BASES)
def test_undamaged_checkpoints_load(base: str, scratch: Path) -> None:
    """The fuzz would pass if everything were refused."""
    put(scratch, base_files(base))
    assert refused_or_fine(use, scratch)
    assert checkpoint.verify(scratch) == []
