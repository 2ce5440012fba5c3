"""The system's Chromium, or the one that Playwright has, for tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Error, expect, sync_playwright


TIMEOUT = 60_000  # milliseconds
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}

expect.set_options(timeout=TIMEOUT)


@contextmanager
def launch_browser() -> Iterator[Browser]:
    """A browser, or the test is skipped where there is none."""
    with sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"], timeout=TIMEOUT)
        except Error:
            if "CI" in os.environ:
                raise
            pytest.skip("There is no browser to test the page with: install Chromium, or run make browser.")
        yield browser
        browser.close()
