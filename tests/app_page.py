"""What the tests in a browser share: the served page, opened, and what is typed and read on it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, expect

from lvit_hf.demo import build_demo, launch
from lvit_hf.inference.segmenter import Segmenter


TIMEOUT = 120_000  # milliseconds
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
BY_PICTURE, BY_FILE = "Image", "Or a DICOM, NIfTI or TIFF file"

expect.set_options(timeout=TIMEOUT)


@contextmanager
def serve(segmenter: Segmenter) -> Iterator[str]:
    """The address of a page for a segmenter."""
    demo = build_demo(segmenter)
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


class RunCounter:
    """Counts how often the network of a segmenter runs, and on how many images each time."""

    def __init__(self, segmenter: Segmenter):
        self.sizes: list[int] = []
        segmenter.model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, module, args, inputs, outputs):
        self.sizes.append(len(outputs.logits))

    @property
    def runs(self) -> int:
        return len(self.sizes)


@contextmanager
def open_page(browser: Browser, url: str, tab: str = "", **settings) -> Iterator[Page]:
    """The open page, maybe at another tab than the first one.

    It fails if the console has an error, another host is asked, or the page is too wide.
    """
    context = browser.new_context(**{**DESKTOP, **settings})
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    errors: list[str] = []
    hosts: set[str | None] = set()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(url)
    page.locator("button.primary").first.wait_for()
    if tab:
        page.get_by_role("tab", name=tab).click()
    yield page
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert errors == [], errors  # pytest does not spell out what a helper compares
    assert hosts <= {"127.0.0.1", "localhost", None}  # None: blob and data addresses
    assert overflow <= 0


def segment_button(page: Page) -> Locator:
    return page.get_by_role("button", name="Segment", exact=True)


def caption_field(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Caption What to find and where")


def readings(page: Page) -> tuple[str, str]:
    return page.get_by_label("Area in pixels").input_value(), page.get_by_label("Score").input_value()


def file_input(page: Page, label: str) -> Locator:
    """Where the browser puts files that are chosen for a field that is empty."""
    field = page.locator(".block", has=page.get_by_test_id("block-label").filter(has_text=re.compile(rf"^\s*{label}")))
    return field.locator("input[type=file]")


def upload(page: Page, file: str | Path, label: str = BY_PICTURE):
    """Gives a picture, or a file by the field with another label, to the tab of one image."""
    file_input(page, label).set_input_files(file)
    page.get_by_role("button", name="Remove Image").wait_for()


def wait_for_mask(page: Page) -> Locator:
    mask = page.get_by_alt_text("segmentation mask").first
    mask.wait_for()
    return mask
