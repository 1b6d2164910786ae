"""What the cells of walkthroughs run: this environment's programs, printing for a page.

A Jupyter kernel asks programs for colours (``FORCE_COLOR``), whatever its own environment says,
and its ``%%bash`` hands on output in pieces, which a page would show as lines. Both are mended
inside the kernel, by a start-up file of a profile made for this build.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

START_UP = """\
import os
import subprocess

from IPython.core.magic import register_cell_magic

for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR"):
    os.environ.pop(name, None)


@register_cell_magic
def bash(_, cell):
    done = subprocess.run(["bash", "-c", cell], capture_output=True, text=True)
    print(done.stdout, end="")
    if done.returncode not in (0, 1, 3):  # a verdict is no mistake
        raise RuntimeError(f"exit {done.returncode}: {done.stderr}")
"""
PRINTING = {"NO_COLOR": "1", "COLUMNS": "100"}


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    folder = tempfile.TemporaryDirectory(prefix="ipython-")
    start_up = Path(folder.name) / "profile_default" / "startup"
    start_up.mkdir(parents=True)
    (start_up / "plain.py").write_text(START_UP)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"IPYTHONDIR": folder.name, "PYDEVD_DISABLE_FILE_VALIDATION": "1"} | PRINTING
    app.connect("build-finished", lambda *_: folder.cleanup())
    return {"parallel_read_safe": True}
