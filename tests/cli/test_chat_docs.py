"""docs/chat.md: its Python runs; its commands are run by tests/docs."""

from __future__ import annotations

import re
from typing import Any

from tests.meta.sources import ROOT

PAGE = (ROOT / "docs" / "chat.md").read_text("utf-8")


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["prompt"].text.endswith("<assistant>\n<think>")
    assert names["tokenizer"].decode(names["prompt"].ids) == names["prompt"].text
