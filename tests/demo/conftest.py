from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from app_page import Network, open_page, serve
from captioning import captioning_model
from chromium import launch_browser
from gradio_client import Client
from PIL import Image
from playwright.sync_api import Browser, Page
from pydicom.data import get_testdata_file
from tiny_lvit import tiny_processor

from lvit_hf.inference.segmenter import Segmenter


@pytest.fixture(scope="session", autouse=True)
def uploads(tmp_path_factory) -> Iterator[None]:
    """A folder for the uploads of this process: a server that stops deletes its own, by names that others have too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        yield


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """A segmenter that writes and judges captions."""
    return Segmenter(captioning_model("lung infection", "polyp", "nuclei"), tiny_processor())


@pytest.fixture(scope="module")
def network(segmenter) -> Network:
    return Network(segmenter)


@pytest.fixture
def slow(network) -> Iterator[Network]:
    """The network takes a second for each run."""
    network.delay = 1.0
    yield network
    network.delay = 0.0


@pytest.fixture(scope="module")
def url(segmenter, network) -> Iterator[str]:
    """The address of a page for the segmenter, which lets visitors name any checkpoint."""
    with serve(segmenter, any_model=True) as url:
        yield url


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, url) -> Iterator[Page]:
    """A page that a visitor uses for one image after another."""
    with open_page(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        yield page


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A picture, a deep one, a broken one, one with too many pixels, a slide, and a slice of CT."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0)
    for name, shape in (("picture.png", (60, 90)), ("other.png", (60, 80)), ("slide.png", (300, 400))):
        Image.fromarray(noise.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / name)
    Image.fromarray(np.linspace(1000, 3000, 60 * 90).astype(np.uint16).reshape(60, 90)).save(folder / "deep.tif")
    (folder / "broken.png").write_bytes((folder / "picture.png").read_bytes()[:300])
    Image.new("1", (5000, 5000)).save(folder / "huge.png")
    (folder / "scan.dcm").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    return folder
