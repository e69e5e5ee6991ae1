"""Headless Chromium for tests of pages."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

QUIET = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


def until(view: Any, condition: str) -> None:
    """Wait until the expression is true (playwright's own waiting may need `eval`, which the page forbids)."""
    end = time.monotonic() + 120
    while not view.evaluate(condition):
        assert time.monotonic() < end, f"not within two minutes: {condition}"
        view.wait_for_timeout(20)


@contextmanager
def chromium_page() -> Iterator[Any]:
    """An empty page `view`, with what it `said` (console, errors, dialogs) and `asked` for since. Skips without
    Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=list(QUIET))
        view = browser.new_page(viewport={"width": 1200, "height": 900})
        said: list[str] = []
        asked: list[str] = []
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        view.on("request", lambda request: asked.append(request.url))
        yield SimpleNamespace(view=view, said=said, asked=asked)
        browser.close()
