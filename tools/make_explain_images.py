"""Draws the pictures of docs/explain.md: python tools/make_explain_images.py

They are those of laguna-ref explain on laguna-tiny with --plot, so they change with its weights.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "images"
PICTURES = {
    "explain-token": ["token", "import numpy as"],
    "explain-routing": ["routing"],
    "explain-rope": ["rope", "--model", "xs2-int4"],
    "explain-diff": ["diff", "base", "fault:rope.scaling_ignored"],
}
"""Arguments of laguna-ref explain by the name of the picture."""


def main() -> None:
    """Runs each command."""
    FOLDER.mkdir(exist_ok=True)
    for name, arguments in PICTURES.items():
        command = [sys.executable, "-m", "laguna_ref.cli", "explain", *arguments]
        plot = ["--plot", str(FOLDER / f"{name}.svg")]
        subprocess.run([*command, *plot], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
