"""What the cells of walkthroughs run: this environment's programs, printing for a page.

A Jupyter kernel asks programs for colours (``FORCE_COLOR``), whatever its own environment says, so
that is undone inside the kernel, by a start-up file of a profile made for this build.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

START_UP = """\
import os

for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR"):
    os.environ.pop(name, None)
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
