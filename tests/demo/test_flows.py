"""What visitors do with one image, in a browser: formats, clipboard, keyboard, languages, and what they can see."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel.testing
import numpy as np
import pytest
from app_page import (
    BY_FILE,
    BY_PICTURE,
    DESKTOP,
    PHONE,
    RunCounter,
    caption_field,
    file_input,
    open_page,
    readings,
    segment_button,
    serve,
    upload,
    wait_for_mask,
)
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from pydicom.data import get_testdata_file
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf.inference.captioning import CaptioningSegmenter
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.readers import read_scan


CAPTION = "one infected area"
FORMATS = {
    "picture.png": BY_PICTURE,
    "deep.png": BY_PICTURE,
    "picture.jpg": BY_PICTURE,
    "picture.bmp": BY_PICTURE,
    "picture.webp": BY_PICTURE,
    "picture.tif": BY_PICTURE,
    "deep.tiff": BY_FILE,
    "scan.dcm": BY_FILE,
    "volume.nii": BY_FILE,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One file of each format."""
    folder = tmp_path_factory.mktemp("files")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    deep = Image.fromarray(np.linspace(1000, 3000, 60 * 90).astype(np.uint16).reshape(60, 90))
    for name in FORMATS:
        if name.startswith(("picture", "deep")):
            (picture if name.startswith("picture") else deep).save(folder / name)
    (folder / "scan.dcm").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    (folder / "volume.nii").write_bytes(Path(nibabel.testing.data_path, "anatomical.nii").read_bytes())
    return folder


@pytest.fixture(scope="module")
def server():
    """The page's address and a count of the network's runs."""
    segmenter = CaptioningSegmenter(tiny_model(), tiny_processor())
    counter = RunCounter(segmenter)
    with serve(segmenter) as url:
        yield url, counter


@pytest.fixture(scope="module")
def page(browser, server):
    """A page that a visitor uses for one image after another."""
    with open_page(browser, server[0], permissions=["clipboard-read", "clipboard-write"]) as page:
        yield page


@pytest.fixture
def empty_page(page) -> Page:
    if page.get_by_role("button", name="Remove Image").is_visible():
        page.get_by_role("button", name="Remove Image").click()
    expect(page.get_by_label("Area in pixels")).to_have_value("")
    return page


def segment(page: Page):
    segment_button(page).click()
    expect(page.get_by_label("Area in pixels")).not_to_have_value("")


def check_area(page: Page, segmenter: Segmenter, file: Path, text: str = "", index: int = 0):
    """Whether the page says of a file what a segmenter says of it."""
    [expected] = segmenter.segment([read_scan(file).image(index)], [text])
    assert readings(page)[0] == str(expected.measure()["area_pixels"])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_segmented(empty_page, segmenter, files, name):
    upload(empty_page, files / name, FORMATS[name])
    segment(empty_page)
    check_area(empty_page, segmenter, files / name)


def test_a_slice_of_a_volume_is_chosen_with_the_slider(empty_page, segmenter, files):
    page = empty_page
    upload(page, files / "volume.nii", BY_FILE)
    number = page.get_by_label("number input for Slice")
    number.wait_for()
    slider = page.get_by_role("slider", name="range slider for Slice")
    slider.focus()
    for _ in range(11):
        slider.press("ArrowRight")
    expect(number).to_have_value("12")
    slider.blur()
    segment(page)
    check_area(page, segmenter, files / "volume.nii", index=11)


@pytest.mark.parametrize("name, field", [("picture.png", BY_PICTURE), ("scan.dcm", BY_FILE)])
def test_a_file_is_dropped(empty_page, segmenter, files, name, field):
    encoded = base64.b64encode((files / name).read_bytes()).decode()
    transfer = empty_page.evaluate_handle(
        """async ([encoded, name]) => {
            const content = await (await fetch("data:;base64," + encoded)).arrayBuffer();
            const transfer = new DataTransfer();
            const type = name.endsWith(".png") ? "image/png" : "";
            transfer.items.add(new File([content], name, {type}));
            return transfer;
        }""",
        [encoded, name],
    )
    file_input(empty_page, field).dispatch_event("drop", {"dataTransfer": transfer})
    empty_page.get_by_role("button", name="Remove Image").wait_for()
    segment(empty_page)
    check_area(empty_page, segmenter, files / name)


def test_the_builder_writes_a_sentence_that_stays_editable(page):
    page.get_by_role("button", name="Build a caption").click()
    page.get_by_label("upper").first.check()
    page.get_by_role("button", name="Write it").first.click()
    written = "unilateral pulmonary infection, one infected area, upper left lung."
    expect(caption_field(page)).to_have_value(written)
    caption_field(page).press("End")
    caption_field(page).type(" left")
    expect(caption_field(page)).to_have_value(f"{written} left")
    page.get_by_role("button", name="No text").click()
    expect(caption_field(page)).to_have_value("")


def test_everything_about_a_result_is_shown_and_downloaded(empty_page, server, segmenter, files, tmp_path):
    page, counter = empty_page, server[1]
    upload(page, files / "picture.png")
    caption_field(page).fill(CAPTION)
    segment(page)
    check_area(page, segmenter, files / "picture.png", CAPTION)
    runs = counter.runs
    segment_button(page).click()
    expect(page.get_by_label("Use of the caption")).to_have_value("read by the network")
    for tab, shown in (
        ("Compare", page.locator(".slider-wrap img").first),
        ("Probability", page.get_by_alt_text("Heat map of the probability")),
        ("Effect of the text", page.get_by_role("button", name="only with the text")),
        ("Overlay", page.get_by_role("button", name="foreground")),
    ):
        page.get_by_role("tab", name=tab).click()
        expect(shown).to_be_visible()
    measures = json.loads(download(page, "Download measurements", tmp_path).read_text())
    assert str(measures["area_pixels"]) == readings(page)[0]
    overlay = np.asarray(Image.open(download(page, "Download overlay", tmp_path)))
    [expected] = segmenter.segment([files / "picture.png"], [CAPTION])
    np.testing.assert_array_equal(overlay, np.asarray(expected.overlay()))
    assert counter.runs == runs


def download(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as event:
        page.get_by_role("button", name=button).click()
    path = folder / event.value.suggested_filename
    event.value.save_as(path)
    return path


def test_a_large_image_goes_through_in_tiles(empty_page, files):
    page = empty_page
    Image.open(files / "picture.png").resize((360, 240)).save(files / "slide.png")
    upload(page, files / "slide.png")
    caption_field(page).fill("upper left")
    page.get_by_role("button", name="Model and scale").click()
    page.get_by_role("combobox", name="Scale").click()
    page.get_by_role("option", name="Tiles of 96 pixels").click()
    segment(page)
    expect(page.get_by_label("Use of the caption")).to_have_value(re.compile("^not read: it names a place"))


def test_a_picture_is_pasted(empty_page, segmenter, files):
    """The last one on its page, whose picture input waits for the clipboard then."""
    encoded = base64.b64encode((files / "picture.png").read_bytes()).decode()
    empty_page.evaluate(
        """async encoded => {
            const blob = await (await fetch("data:image/png;base64," + encoded)).blob();
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        encoded,
    )
    # As many buttons as there are: it is gone where the picture has come.
    paste = empty_page.get_by_label("Paste from clipboard")
    press_until(
        lambda: paste.evaluate_all("buttons => buttons.forEach(button => button.click())"),
        empty_page.get_by_role("button", name="Remove Image").is_visible,
        empty_page,
    )
    caption_field(empty_page).fill("")
    segment(empty_page)
    check_area(empty_page, segmenter, files / "picture.png")


def press_until(press: Callable, is_done: Callable, page: Page):
    """Presses again where nothing happens: a page that is still being built does not hear the first press."""
    for _ in range(30):
        press()
        page.wait_for_timeout(1000)
        if is_done():
            return
    raise AssertionError("Nothing happens.")


def press_tab_to(page: Page, target: Locator):
    """Goes on to an element as users of a keyboard do."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if target.evaluate("element => element.contains(document.activeElement)"):
            return
    raise AssertionError(f"Tab does not reach {target}.")


def test_the_keyboard_is_enough_and_its_order_is_that_of_the_work(browser, server, files, tmp_path):
    with open_page(browser, server[0]) as page:
        press_tab_to(page, page.locator("button:has(input[type=file])").first)
        choosers: list = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))
        press_until(lambda: page.keyboard.press("Space"), lambda: choosers, page)
        choosers[0].set_files(files / "picture.png")
        page.get_by_role("button", name="Remove Image").wait_for()
        press_tab_to(page, caption_field(page))
        page.keyboard.type(CAPTION)
        press_tab_to(page, segment_button(page))
        page.keyboard.press("Enter")
        expect(page.get_by_label("Area in pixels")).not_to_have_value("")
        before = readings(page)[0]
        press_tab_to(page, page.get_by_role("slider", name="range slider for Threshold"))
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        expect(page.get_by_label("Area in pixels")).not_to_have_value(before)
        button = page.get_by_role("button", name="Download mask", exact=True)
        press_tab_to(page, button)
        with page.expect_download() as event:
            page.keyboard.press("Enter")
        assert event.value.suggested_filename == "picture_mask.png"


@pytest.mark.parametrize(
    "settings, button, use",
    [
        (DESKTOP, "Segment", "Use of the caption"),
        ({**DESKTOP, "color_scheme": "dark"}, "Segment", "Use of the caption"),
        ({**PHONE, "locale": "zh-CN"}, "分割", "文本的使用"),
    ],
    ids=["light", "dark", "phone, dark and Chinese"],
)
def test_the_page_is_accessible(browser, server, settings, button, use):
    """Labels, alternative texts, roles and contrast, as WCAG 2 A and AA ask for."""
    with open_page(browser, server[0], **settings) as page:
        page.get_by_test_id("dataset-cell-0-0").click()
        expect(page.get_by_label(use)).to_have_value("read by the network")
        expect(page.get_by_role("button", name=button, exact=True)).to_be_visible()
        wait_for_mask(page)
        for accordion in page.locator("button.label-wrap").all():
            accordion.click()
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert found.violations_count == 0, found.generate_report()
