"""Headless Chromium for tests of pages."""

import time
from typing import Any

QUIET = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


def until(view: Any, condition: str) -> None:
    """Wait until the expression is true (playwright's own waiting may need `eval`, which the page forbids)."""
    end = time.monotonic() + 30
    while not view.evaluate(condition):
        assert time.monotonic() < end, f"not within half a minute: {condition}"
        view.wait_for_timeout(20)
