"""What the tests in a browser share: the served page, opened, and what is typed and read on it."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from chromium import DESKTOP, TIMEOUT
from playwright.sync_api import Browser, Locator, Page, expect

from lvit_hf.demo import build_demo, launch
from lvit_hf.inference.segmenter import Segmenter


@contextmanager
def serve(segmenter: Segmenter, **settings) -> Iterator[str]:
    """The address of a page for a segmenter."""
    demo = build_demo(segmenter, **settings)
    with socket.socket() as free:  # two tests at once would find the same port that Gradio tries first
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True, server_port=port)
    yield url
    demo.close()


class Network:
    """Counts the runs of a segmenter's network, and can make it as slow as a large one.

    Args:
        segmenter: Its owner.
    """

    def __init__(self, segmenter: Segmenter):
        self.sizes: list[int] = []
        self.delay = 0.0
        segmenter.model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, module, args, inputs, outputs):
        self.sizes.append(len(outputs.logits))
        time.sleep(self.delay)

    @property
    def runs(self) -> int:
        return len(self.sizes)


@contextmanager
def open_page(browser: Browser, url: str, has_example: bool = True, **settings) -> Iterator[Page]:
    """The open page, with its first result where it begins with an example.

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
    page.locator(".language:not(:empty)").wait_for()
    if has_example:
        wait_for_result(page)
    yield page
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert errors == [], errors  # pytest does not spell out what a helper compares
    assert hosts <= {"127.0.0.1", "localhost", None}  # None: blob and data addresses
    assert overflow <= 0


def wait_for_result(page: Page, name: str | None = None):
    """Waits until a result is drawn, of a file of that name, and nothing more is on its way."""
    named = f"[data-name='{name}']" if name else ""
    page.locator(f".lvit[data-busy=no] canvas:not([data-result=''])[data-result]{named}").wait_for()


def caption_field(page: Page) -> Locator:
    return page.locator("#lvit-text")


def segment(page: Page, text: str | None = None):
    """Segments what is on the page and waits for the result."""
    if text is not None:
        caption_field(page).fill(text)
    page.locator(".segment").click()
    wait_for_result(page)


def upload(page: Page, *files: str | Path, text: str = ""):
    """Types a caption and gives files to the page, which segments them."""
    caption_field(page).fill(text)
    page.locator(".drop input[type=file]").set_input_files(list(files))


def facts(page: Page) -> dict[str, str]:
    """The strip of facts."""
    rows = page.locator(".facts > div")
    return dict(rows.evaluate_all("rows => rows.map(row => [...row.children].map(cell => cell.innerText))"))


def drawn_pixels(page: Page) -> int:
    """Pixels of the mask on the stage, as its label says."""
    label = page.locator(".stage canvas").get_attribute("aria-label") or ""
    return int(label.split(": ")[-1].split()[0])


def expect_drawn(page: Page, pixels: int):
    """Waits until the mask on the stage has so many pixels."""
    expect(page.locator(".stage canvas")).to_have_attribute("aria-label", re.compile(rf": {pixels} "))


def wait_for_picture(page: Page, *others: str) -> str:
    """The picture on the stage, as soon as it is none of these."""
    page.wait_for_function(
        "others => !others.includes(document.querySelector('.stage canvas').toDataURL())", arg=list(others)
    )
    return page.locator(".stage canvas").evaluate("canvas => canvas.toDataURL()")
