"""A server of the page and a browser in front of it, for tests that use the page as visitors do."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect, sync_playwright

from lvit_hf.demo import build_demo, launch
from lvit_hf.inference import Segmenter


TIMEOUT = 120_000  # milliseconds

expect.set_options(timeout=TIMEOUT)


@contextmanager
def serve(segmenter: Segmenter) -> Iterator[str]:
    """The address of the page."""
    demo = build_demo(segmenter)
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


@contextmanager
def open_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"], timeout=TIMEOUT)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, url: str, tab: str, **settings) -> Iterator[Page]:
    """A tab of the page. It fails if the browser's console has an error or the page is wider than the window."""
    context = browser.new_context(**settings)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.get_by_role("tab", name=tab).click()
    yield page
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert not errors, errors
    assert overflow <= 0, overflow
