"""The system's Chromium, headless, watched: where it goes and what it complains about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARTEFACTS = "LAGUNA_ARTEFACTS"
"""The environment variable that names the folder for screenshots."""
SECONDS = 240
"""Most that anything may take: with kernels to compile on a busy machine it is minutes."""
WIDE, NARROW = (1360, 850), (390, 844)


@contextmanager
def browser() -> Iterator[Any]:
    """A running browser; skips where there is none on the path."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser on the path: looked for {', '.join(NAMES)}")
    sandbox = os.geteuid() != 0  # as root Chromium starts only without one
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, chromium_sandbox=sandbox)
        yield running
        running.close()


class Visit:
    """An open page of ``origin``, with every request it made and every word of its console."""

    def __init__(
        self, browser: Any, origin: str, *, size: tuple[int, int] = WIDE, dark: bool = False
    ) -> None:
        self.origin = origin
        self.requests: list[Any] = []
        self.complaints: list[str] = []
        self._context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
        )
        self.page = self._context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("console", lambda message: self._complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self._complain("error", str(error)))
        self.page.goto(origin)

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def __getitem__(self, selector: str) -> Any:
        return self.page.locator(selector)

    def set(self, **fields: str | int | bool) -> None:
        """Fills in settings: ``max_tokens`` is the field ``#max-tokens``."""
        for name, value in fields.items():
            field = self[f"#{name.replace('_', '-')}"]
            field.set_checked(value) if isinstance(value, bool) else field.fill(str(value))

    def say(self, text: str) -> None:
        """Sends a message and waits for the end of its answer."""
        before = self[".assistant"].count()
        self["#message"].fill(text)
        self["#message"].press("Enter")
        self.ended(before + 1)

    def ended(self, answers: int) -> None:
        """Waits until there are so many answers, none of them unfinished."""
        self[f":nth-match(.assistant, {answers})"].wait_for()
        self[f":nth-match(.assistant, {answers}):not([aria-busy])"].wait_for()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Of the chat requests made."""
        return [one.post_data_json for one in self.requests if one.method == "POST"]

    def close(self) -> None:
        """Ends; fails where the page went elsewhere or complained."""
        self._context.close()
        elsewhere = [one.url for one in self.requests if not one.url.startswith(f"{self.origin}/")]
        assert not elsewhere
        assert not self.complaints


def shoot(visit: Visit, name: str, folder: Path) -> Path:
    """A screenshot, in the folder that ``LAGUNA_ARTEFACTS`` names or else in ``folder``."""
    target = Path(os.environ.get(ARTEFACTS) or folder)
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{name}.png"
    visit.page.screenshot(path=path)
    return path
