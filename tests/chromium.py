"""The system's Chromium, or the one that Playwright has, for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from missing import skip_where_missing
from playwright.sync_api import Browser, expect, sync_playwright


TIMEOUT = 60_000  # milliseconds
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}

expect.set_options(timeout=TIMEOUT)


@contextmanager
def launch_browser() -> Iterator[Browser]:
    """A browser, or the test is skipped where there is none, or a library that Playwright needs is missing."""
    with ExitStack() as stack:
        reason = "There is no browser to test the page with: install Chromium, or run make browser."
        with skip_where_missing(reason, Exception):
            playwright = stack.enter_context(sync_playwright())
            installed = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"], timeout=TIMEOUT)
        yield browser
        browser.close()
