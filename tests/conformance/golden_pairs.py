"""Golden files that are awkward together."""

from __future__ import annotations

from pathlib import Path

import laguna_ref
from laguna_ref.golden.cases import Case
from laguna_ref.golden.golden import make
from laguna_ref.golden.golden_file import write_golden


def two_of_one_name(folder: Path) -> None:
    """Goldens of two prompts, (5, 6) and (7, 8), of cases that are both called ``short``."""
    model = laguna_ref.load(engine="numpy", numerics="float64")
    for file, tokens in (("a", (5, 6)), ("b", (7, 8))):
        case = Case("short", tokens, None, "checkpoint", (2,), (), None)
        write_golden(folder / f"{file}.safetensors", make(model, case))
