"""Write the real outputs of the commands that README and docs show in place of those shown.

``python tools/update_shown_outputs.py [--slow] [PAGE ...]``: an output that still matches stays as
it is. Where the page shows ``…`` for lines left out, as many are kept before and after it as now.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.docs import preparations, shown  # noqa: E402 - after the path


def main() -> None:
    """Goes over the pages; prints each block whose output was replaced."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slow", action="store_true", help="also blocks marked slow")
    parser.add_argument("pages", nargs="*", type=Path)
    options = parser.parse_args()
    failed = False
    for page in [path.resolve() for path in options.pages] or shown.PAGES:
        for index in range(len(list(shown.blocks(page)))):
            block = list(shown.blocks(page))[index]  # anew: the page may have grown
            if block.language == "console":
                failed |= not update(block, options.slow)
    sys.exit(failed)


def update(block: shown.Block, slow: bool) -> bool:
    """Runs a block and mends the page; whether all commands ended as they should."""
    well, lines = True, []
    with tempfile.TemporaryDirectory() as name:
        preparations.prepare(Path(name))
        for command in block.commands():
            now = command.shown
            if not block.excuse_of(command) and block.is_slow(command) <= slow:
                output, code = shown.run(command, Path(name))
                real = shown.presentable(output, Path(name))
                if code != command.code:
                    well = False
                    print(f"{block.name}: exit {code} of $ {command.text}\n{real}", file=sys.stderr)
                elif (now or "output" in block.keywords) and not shown.matches(now, real):
                    now = shortened(now, real)
                    print(f"{block.name}: $ {command.text}")
            lines += [f"$ {command.text}", *([now] if now else [])]
    text = block.page.read_text("utf-8")
    body = "\n".join(lines) + "\n"
    stop = block.start + len(block.body)
    block.page.write_text(text[: block.start] + body + text[stop:], "utf-8")
    return well


def shortened(before: str, real: str) -> str:
    """The real output, cut where the page cuts it."""
    old, new = before.splitlines(), real.splitlines()
    gaps = [index for index, line in enumerate(old) if line.strip() == shown.ANYTHING]
    if not gaps:
        return real
    head, tail = gaps[0], len(old) - gaps[-1] - 1
    return "\n".join([*new[:head], old[gaps[0]], *(new[-tail:] if tail else [])])


if __name__ == "__main__":
    main()
