"""A static Space on loopback, as its README has it served, and the page in a browser."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
from chromium import DESKTOP, TIMEOUT
from huggingface_hub import SpaceCard
from missing import skip_where_missing
from PIL import Image
from playwright.sync_api import Browser, Page

from lvit_hf.publishing.npm import copy_packages


def need_packages(folder: Path):
    """Skips a test where the packages of npm are neither in the cache nor to be had."""
    with skip_where_missing("The packages of npm are not to be had.", ValueError):
        copy_packages(folder)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder and notes what is asked for."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def end_headers(self):
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_):
        pass


class Site(ThreadingHTTPServer):
    """A web server for a folder.

    Args:
        folder: What it serves. Of a Space, with the headers that its README asks for.
    """

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=folder))
        card = folder / "README.md"
        self.headers = SpaceCard.load(card).data.to_dict()["custom_headers"] if card.exists() else {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


@contextmanager
def serve_folder(folder: Path) -> Iterator[Site]:
    site = Site(folder)
    yield site
    site.close()


@contextmanager
def open_static(browser: Browser, url: str) -> Iterator[Page]:
    """The open page, ready to segment. It fails if the console has an error."""
    context = browser.new_context(**DESKTOP)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    wait_until_ready(page)
    yield page
    context.close()
    assert errors == [], errors  # pytest does not spell out what a helper compares


def wait_until_ready(page: Page):
    page.locator("#segment:enabled").wait_for()


def give(page: Page, image: Path, text: str = ""):
    """Gives an image and a caption to the page, and waits for the mask."""
    page.locator("#caption").fill(text)
    page.locator("#file").set_input_files(image)
    wait_for_mask(page)


def wait_for_mask(page: Page):
    page.locator("#save:enabled").wait_for()


def save_mask(page: Page) -> np.ndarray:
    """The mask that a visitor saves: booleans of shape `(height, width)`."""
    with page.expect_download() as download:
        page.locator("#save").click()
    return np.asarray(Image.open(BytesIO(download.value.path().read_bytes())).convert("L")) > 127


def read_fact(page: Page, name: str) -> str:
    return page.locator(f"dt:text-is('{name}') + dd").inner_text()


def read_area(page: Page) -> int:
    """Pixels of the mask, as the page says."""
    return int(re.search(r"(\d+) pixels", read_fact(page, "Area"))[1])
