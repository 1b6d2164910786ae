"""The float32 matrix rate of NumPy, measured in a process of its own.

OpenBLAS picks its kernel when it is loaded, and environment variables can hold it to an old one:
so this file is also a script, which imports nothing but NumPy and is started without them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np

HELD_BACK_BY = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that make OpenBLAS something else than what it would choose for this CPU."""
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def rate(size: int, repeats: int) -> float:
    """The best of several square products, GFLOP/s."""
    numbers = np.random.default_rng(0)
    a = numbers.standard_normal((size, size), dtype=np.float32)
    b = numbers.standard_normal((size, size), dtype=np.float32)
    out = a @ b
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def rate_in_process(size: int, repeats: int, threads: int) -> float:
    """``rate`` with so many threads, in a process that OpenBLAS may adapt to this CPU."""
    environment = {k: v for k, v in os.environ.items() if k not in HELD_BACK_BY}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(size), str(repeats)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


if __name__ == "__main__":
    sys.stdout.write(f"{rate(int(sys.argv[1]), int(sys.argv[2]))}\n")
