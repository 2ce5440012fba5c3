import shutil
import time
from pathlib import Path

import pytest
import torch
from app_page import DESKTOP, PHONE, TIMEOUT, serve
from gradio_client import Client
from playwright.sync_api import sync_playwright
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf.inference import Segmenter


# Models of the tests are too small to share out; threads that wait for busy cores make them a hundred times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The folder of a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny_model(), tiny_processor())


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
        browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"], timeout=TIMEOUT)
        yield browser
        browser.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def window(request) -> dict:
    """Settings of a browser's window, for tests that run in each."""
    return request.param


@pytest.fixture
def slow_runs(segmenter):
    """Counts the runs of the network, each as slow as that of a large one."""
    runs: list = []

    def wait(*_):
        runs.append(1)
        time.sleep(1)

    handle = segmenter.model.register_forward_hook(wait)
    yield runs
    handle.remove()
