"""Pages in a real Chromium, as a reader has them: no network, no errors, both colour schemes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OPEN_ALL = "for (const fold of document.querySelectorAll('details')) fold.open = true"
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"


@dataclass
class Opened:
    """A page with the errors that it logged and the addresses that it asked for."""

    page: Page
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Return the faults of access that axe-core finds, contrast among them."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; skip the test where there is none."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, *, state: str = "", width: int = 1100) -> Iterator[Opened]:
    """Open a file in a new window."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    shown = Opened(page)
    page.on("console", lambda said: shown.problems.append(said.text))
    page.on("pageerror", lambda error: shown.problems.append(str(error)))
    page.on("request", lambda request: shown.requests.append(request.url))
    page.goto(f"file://{path}{state}")
    yield shown
    page.close()
