import json
import os
import re
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
from app_page import BY_FILE, RunCounter, file_input, open_page, readings, segment_button, serve, upload
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import expect
from pydicom.data import get_testdata_file
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf import demo as demo_module
from lvit_hf.inference.captioning import CaptioningSegmenter
from lvit_hf.inference.segmenter import Segmenter


ROOT = Path(demo_module.__file__).parents[2]
CAPTION = "one infected area"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A picture, a deep one, a broken one and one with too many pixels."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(folder / "picture.png")
    Image.fromarray(np.linspace(1000, 3000, 60 * 90).astype(np.uint16).reshape(60, 90)).save(folder / "deep.png")
    (folder / "broken.png").write_bytes((folder / "picture.png").read_bytes()[:300])
    Image.new("1", (5000, 5000)).save(folder / "huge.png")
    return folder


@pytest.fixture(scope="module")
def app_client(checkpoint):
    """A client of `app.py`, run as users run it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "LVIT_MODEL": str(checkpoint),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield connect(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def connect(url: str, process: subprocess.Popen) -> Client:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return Client(url, verbose=False)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"app.py does not answer; its exit status is {process.poll()}.")


def test_the_endpoint_answers_as_the_segmenter(app_client, checkpoint, files):
    mask_file, overlay_file, measures = app_client.predict(
        handle_file(files / "picture.png"), CAPTION, 0.4, api_name="/segment"
    )
    expected = Segmenter.from_pretrained(checkpoint).segment([files / "picture.png"], [CAPTION])[0]
    np.testing.assert_array_equal(np.asarray(Image.open(mask_file)), np.where(expected.mask(0.4), 255, 0))
    np.testing.assert_array_equal(np.asarray(Image.open(overlay_file)), np.asarray(expected.overlay(0.4)))
    assert Path(mask_file).name == "picture_mask.png"
    assert measures["area_pixels"] == expected.measure(0.4)["area_pixels"]
    assert (measures["text"], measures["text_used"], measures["image"]) == (CAPTION, True, "picture.png")
    assert "/" not in measures["model"]


def test_the_endpoint_needs_an_image_alone_and_describes_its_parameters(app_client, files):
    assert app_client.predict(handle_file(files / "deep.png"), api_name="/segment")[2]["width"] == 90
    description = app_client.view_api(return_format="dict", print_info=False)
    assert description["named_endpoints"].keys() >= {"/segment", "/segment_volume", "/segment_many", "/caption"}
    parameters = description["named_endpoints"]["/segment"]["parameters"]
    names = ["image", "text", "threshold", "tile_size", "model", "slice_number"]
    assert [parameter["parameter_name"] for parameter in parameters] == names


def test_the_endpoint_takes_dicom_and_slices_of_volumes(app_client, files):
    ct = app_client.predict(handle_file(get_testdata_file("CT_small.dcm")), api_name="/segment")[2]
    assert ct["area_mm2"] == pytest.approx(ct["area_pixels"] * 0.661468**2)
    ramp = np.linspace(0, 900, 5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    nibabel.save(nibabel.Nifti1Image(ramp, np.diag([2, 3, 4, 1])), files / "volume.nii.gz")
    volume = handle_file(files / "volume.nii.gz")
    assert app_client.predict(volume, slice_number=7, api_name="/segment")[2]["slice"] == 6
    with pytest.raises(AppError, match="There is no slice 8: the file has 7, counted from 1."):
        app_client.predict(volume, slice_number=8, api_name="/segment")


def read_code_blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_examples_of_the_documentation_run(app_client, tmp_path):
    python, of_several = read_code_blocks("python")
    [curl] = [block for block in read_code_blocks("bash") if "curl" in block]
    address = app_client.src.rstrip("/")
    python, curl = (block.replace("http://127.0.0.1:7860", address) for block in (python, curl))
    names: dict = {}
    exec(python.replace("examples/", f"{ROOT}/examples/"), names)
    shell = ["bash", "-euo", "pipefail", "-c", curl]
    answer = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "event: complete" in answer
    _, _, measurements = json.loads(answer.split("data: ")[-1])
    assert measurements == names["measurements"]
    assert measurements["text"] == "one infected area, lower left lung"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 9, 2), np.float32), np.eye(4)), tmp_path / "ct.nii.gz")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(ROOT / "examples" / "chest-xray.jpg", "chest-xray.jpg")
    for name in ("ct.nii.gz", "images.zip"):
        of_several = of_several.replace(name, str(tmp_path / name))
    exec(of_several, names)
    assert Path(names["mask"]).name.endswith(".nii.gz") and zipfile.is_zipfile(names["archive"])


def test_the_health_check_and_the_tools_for_agents(app_client):
    assert httpx.get(f"{app_client.src}health").text == "ok"
    tools = {tool["name"]: tool for tool in httpx.get(f"{app_client.src}gradio_api/mcp/schema").json()}
    assert {"segment", "caption"} <= tools.keys()
    for name in ("segment", "caption"):
        assert tools[name]["description"] and tools[name]["inputSchema"]["required"] == ["image"]
        assert all(field["description"] for field in tools[name]["inputSchema"]["properties"].values())


def test_tiles_are_not_told_what_is_true_of_the_whole_image_alone(app_client, files):
    image = handle_file(files / "picture.png")
    Image.open(files / "picture.png").resize((180, 120)).save(files / "slide.png")
    slide = handle_file(files / "slide.png")
    assert app_client.predict(image, "upper left", 0.5, 96, api_name="/segment")[2]["text_used"] is True
    assert app_client.predict(slide, "upper left", 0.5, 96, api_name="/segment")[2]["text_used"] is False


@pytest.mark.parametrize("name, message", [("broken.png", "broken.png"), ("huge.png", "16 million pixels")])
def test_the_endpoint_refuses_with_a_sentence(app_client, files, name, message):
    with pytest.raises(AppError) as caught:
        app_client.predict(handle_file(files / name), CAPTION, api_name="/segment")
    assert message in str(caught.value)
    assert "/gradio/" not in str(caught.value)


def test_the_server_refuses_heavy_files(app_client):
    heavy = {"files": ("heavy.png", bytes(101 * 1024**2))}
    assert httpx.post(f"{app_client.src}gradio_api/upload", files=heavy).status_code == 413


def test_app_says_what_is_wrong_with_its_model(tmp_path, monkeypatch):
    monkeypatch.setenv("LVIT_MODEL", str(tmp_path))
    with pytest.raises(SystemExit, match=f"Error: {tmp_path} is not an LViT checkpoint"):
        runpy.run_path(str(ROOT / "app.py"))


@pytest.fixture(scope="module")
def server():
    """The page's address and a count of the network's runs."""
    segmenter = CaptioningSegmenter(tiny_model(), tiny_processor())
    counter = RunCounter(segmenter)
    with serve(segmenter) as url:
        yield url, counter


@pytest.fixture
def page(browser, server, window):
    with open_page(browser, server[0], **window) as page:
        yield page


def test_from_upload_to_download(page, server, files, tmp_path):
    counter = server[1]
    expect(page.get_by_role("button", name="Download mask", exact=True)).to_be_disabled()
    upload(page, files / "picture.png")
    page.get_by_role("textbox", name="Caption What to find and where").fill(CAPTION)
    segment_button(page).click()
    mask = page.get_by_alt_text("segmentation mask").first
    mask.wait_for()
    expect(page.get_by_label("Use of the caption")).to_have_value("read by the network")
    before, source, runs = readings(page), mask.get_attribute("src"), counter.runs

    page.get_by_label("number input for Threshold").fill("0.8")
    page.get_by_label("number input for Threshold").press("Enter")
    expect(page.get_by_label("Area in pixels")).not_to_have_value(before[0])
    expect(mask).not_to_have_attribute("src", source)
    assert mask.evaluate("image => image.decode().then(() => image.naturalWidth)") == 90
    assert counter.runs == runs

    with page.expect_download() as download:
        page.get_by_role("button", name="Download mask", exact=True).click()
    assert download.value.suggested_filename == "picture_mask.png"
    download.value.save_as(tmp_path / "mask.png")
    saved = np.asarray(Image.open(tmp_path / "mask.png"))
    assert readings(page)[0] == str(np.count_nonzero(saved))


def test_a_broken_file_gives_a_sentence_and_the_next_one_works(page, files):
    upload(page, files / "broken.png")
    segment_button(page).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("broken.png is a broken image file")
    page.get_by_role("button", name="Remove Image").click()
    segment_button(page).click()
    expect(page.get_by_text("Add an image first.")).to_be_visible()
    upload(page, files / "picture.png")
    segment_button(page).click()
    page.get_by_alt_text("segmentation mask").first.wait_for()


def test_an_example_needs_one_click_and_another_image_clears_its_results(page, files):
    page.get_by_test_id("dataset-cell-1-0").click()
    expect(page.get_by_label("Use of the caption")).to_have_value("read by the network")
    assert int(readings(page)[0]) >= 0
    page.get_by_role("button", name="Remove Image").click()
    expect(page.get_by_label("Area in pixels")).to_have_value("")
    expect(page.get_by_role("button", name="Download mask", exact=True)).to_be_disabled()
    upload(page, files / "broken.png")
    segment_button(page).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("broken.png is a broken image file")


def test_a_dicom_file_is_measured_in_mm_and_compared_until_another_image_comes(page, files):
    Image.new("1", (128, 128)).save(files / "truth.png")
    upload(page, get_testdata_file("CT_small.dcm"), BY_FILE)
    segment_button(page).click()
    expect(page.get_by_label("Area in mm²")).not_to_have_value("")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download mask as DICOM or NIfTI").click()
    assert download.value.suggested_filename == "CT_small_mask.dcm"
    page.get_by_role("button", name="Compare with a true mask").click()
    file_input(page, "True mask").set_input_files(files / "truth.png")
    expect(page.get_by_label("Dice")).to_have_value("0.0")
    page.get_by_test_id("dataset-cell-0-0").click()
    expect(page.get_by_label("Use of the caption")).to_have_value("read by the network")
    expect(page.get_by_label("Dice")).to_have_value("")
    expect(page.get_by_label("Area in mm²")).to_have_value("")
