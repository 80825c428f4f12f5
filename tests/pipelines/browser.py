"""A page opened from disk in a real browser that records errors and requests."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@contextlib.contextmanager
def opened(path: Path, **options) -> Iterator[Page]:
    """The page, which must cause no errors and send no requests."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    seen: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options}).new_page()
            page.on("console", lambda message: seen.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: seen.append(f"error: {error}"))
            page.on("request", lambda request: request.url.startswith("data:") or seen.append(request.url))
            page.on("dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
            page.goto(path.absolute().as_uri())
            yield page
        finally:
            browser.close()
    assert seen == [path.absolute().as_uri()]


def keep_screenshot(page: Page, name: str, **options) -> None:
    """Save a screenshot in the folder that CI keeps, if it is set."""
    if folder := os.environ.get("EPITHRE_BEAM_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", **options)
