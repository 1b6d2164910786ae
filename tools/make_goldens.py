"""Remakes everything in ``laguna_ref/data/golden``: hashes of logits, and the goldens.

    python tools/make_goldens.py

Run it when the embedded weights, the cases or the order of a sum change; the tests compare what
this machine computes with these files, bit for bit.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import make_hashes

from laguna_ref.golden.cases import read_cases
from laguna_ref.golden.golden_file import SUFFIX
from laguna_ref.golden.jobs import ModelSpec, absolute, jobs_for, run
from laguna_ref.golden.verify import COMMITTED_GOLDENS


def main() -> None:
    """Writes every file anew and removes those of cases that are no more."""
    make_hashes.main()
    jobs = jobs_for(ModelSpec(absolute(None)), read_cases(), COMMITTED_GOLDENS, overwrite=True)
    for job in jobs:
        run(job)
    files = {job.path for job in jobs}
    for path in COMMITTED_GOLDENS.glob(f"*{SUFFIX}"):
        if path not in files:
            path.unlink()
    total = sum(path.stat().st_size for path in files)
    print(f"{len(files)} goldens in {COMMITTED_GOLDENS}, {total:,} bytes")


if __name__ == "__main__":
    main()
