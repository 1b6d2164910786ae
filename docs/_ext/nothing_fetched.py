"""The finished site works without a network: a page that fetches anything is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.errors import SphinxError

# A link is something to follow; these are fetched when a page is opened.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|link(?![^>]*rel="canonical"))\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)"""
)
IMPORTED = re.compile(r"""(?:@import\s+|url\()["']?((?:https?:)?//[^"')]+)""")


def fetched(folder: Path) -> list[str]:
    """What any page or style of a folder would fetch from elsewhere."""
    found = []
    for path in sorted(folder.rglob("*")):
        pattern = {".html": FETCHED, ".css": IMPORTED}.get(path.suffix)
        if pattern is not None:
            text = path.read_text("utf-8")
            found += [f"{path.relative_to(folder)}: {url}" for url in pattern.findall(text)]
    return found


def check(app: Any, exception: Exception | None) -> None:
    """The hook of ``build-finished``."""
    if exception is None and app.builder.format == "html":
        found = fetched(Path(app.outdir))
        if found:
            raise SphinxError(f"{len(found)} things fetched from elsewhere, first: {found[0]}")


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
