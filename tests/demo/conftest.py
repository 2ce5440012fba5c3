import os
import shutil
import time

import pytest
from app_page import DESKTOP, PHONE, TIMEOUT, serve
from gradio_client import Client
from playwright.sync_api import Error, sync_playwright


@pytest.fixture(scope="module")
def url(segmenter):
    """The address of a page for the segmenter."""
    with serve(segmenter) as url:
        yield url


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def browser():
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


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def window(request) -> dict:
    """Settings of a browser's window, for tests that run in each."""
    return request.param


class SlowRuns:
    """Counts the runs of a network, each of which takes a second more than it needs."""

    def __init__(self):
        self.count = 0

    def wait(self, *_):
        self.count += 1
        time.sleep(1)

    def assert_ended(self, before: float):
        """The network does not run any more, and has run less often than that."""
        time.sleep(2.5)  # the run that was going on
        count = self.count
        time.sleep(2.5)
        assert self.count == count < before


@pytest.fixture
def slow_runs(segmenter):
    """Makes the network as slow as a large one."""
    runs = SlowRuns()
    handle = segmenter.model.register_forward_hook(runs.wait)
    yield runs
    handle.remove()
