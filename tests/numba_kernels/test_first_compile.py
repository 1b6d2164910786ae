"""The first run ever says how far it is, and is not much longer than it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from laguna_ref.engines.compile_notice import USUAL


@pytest.mark.slow
def test_the_bars_total_is_what_a_first_run_compiles(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "laguna_ref.cli", "generate", "def f(", "--max-tokens", "4"]
    done = subprocess.run(
        command, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    counts = [int(count) for count in re.findall(r"compiled (\d+) kernels", done.stderr)]
    assert abs(sum(counts) - USUAL) <= 2, done.stderr
