"""What must never be seen on the page: an answer that is not that of what is shown."""

import re
import time

import nibabel
import numpy as np
import pytest
from app_page import drawn_pixels, expect_drawn, facts, open_page, segment, serve, upload, wait_for_result
from PIL import Image
from playwright.sync_api import expect

from lvit_hf.demo.engine import Engine
from lvit_hf.demo.page import is_private
from lvit_hf.inference.measurements import measure_mask
from lvit_hf.io.readers import read_scan


CAPTION = "one infected area, upper left lung"


def expected_area(segmenter, path, text: str, tile_size: int | None = None) -> int:
    [result] = segmenter.segment([read_scan(path).image()], [text], tile_size=tile_size)
    return measure_mask(result.mask(0.5), result.probabilities)["area_pixels"]


def check_area(page, area: int):
    assert facts(page)["Area"].startswith(f"{area:,} px")
    expect_drawn(page, area)


def test_of_two_images_at_once_the_last_one_stays_with_its_own_mask(page, segmenter, files, slow):
    upload(page, files / "picture.png")
    page.wait_for_timeout(300)
    upload(page, files / "other.png")
    wait_for_result(page, "other.png")
    page.wait_for_timeout(2500)  # milliseconds, in which the first one would have come
    expect(page.locator("canvas")).to_have_attribute("data-name", "other.png")
    check_area(page, expected_area(segmenter, files / "other.png", ""))


def test_examples_clicked_one_after_another_end_with_the_last_one(page, slow):
    buttons = page.locator(".examples button")
    buttons.nth(2).click()
    page.wait_for_timeout(200)
    buttons.nth(0).click()
    wait_for_result(page, "chest-xray.jpg")
    page.wait_for_timeout(2500)
    expect(page.locator("canvas")).to_have_attribute("data-name", "chest-xray.jpg")
    assert facts(page)["Finding"] == "infection"


def test_a_tiled_run_that_is_left_behind_is_cancelled_and_changes_nothing(page, segmenter, files, slow):
    network = slow
    upload(page, files / "slide.png")
    wait_for_result(page, "slide.png")
    page.locator(".settings summary").click()
    page.get_by_label(re.compile("^Scale")).select_option("96")
    expect(page.locator(".busy")).to_contain_text(re.compile(r"\d+ / \d+"))
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    runs = network.runs
    page.wait_for_timeout(3000)
    assert network.runs <= runs + 1
    check_area(page, expected_area(segmenter, files / "picture.png", ""))
    page.locator(".settings summary").click()


def test_nothing_old_stands_while_something_new_is_computed(page, files, slow):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    page.locator("#lvit-text").fill(CAPTION)
    page.locator(".segment").click()
    expect(page.locator(".lvit")).to_have_attribute("data-busy", "yes")
    for selector in (".verdict", ".downloads", ".notes", ".written", ".more"):
        expect(page.locator(selector)).to_be_hidden()
    assert facts(page) == {}
    assert page.locator("canvas").get_attribute("data-result") == ""
    wait_for_result(page)
    assert facts(page)


def test_another_checkpoint_forgets_the_result_of_the_first(page, files, checkpoint, slow):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    page.locator(".settings summary").click()
    page.get_by_label("Checkpoint").fill(str(checkpoint))
    page.get_by_label("Checkpoint").press("Enter")
    page.get_by_label("Checkpoint").blur()
    expect(page.locator(".lvit")).to_have_attribute("data-busy", "yes")
    assert facts(page) == {}
    wait_for_result(page)
    page.locator(".more summary").click()
    expect(page.locator(".more dl")).to_contain_text(str(checkpoint))
    expect(page.locator(".written")).to_be_hidden()  # it writes no captions
    page.get_by_label("Checkpoint").fill("lvit-small")
    page.get_by_label("Checkpoint").blur()
    wait_for_result(page)
    page.locator(".more summary").click()
    page.locator(".settings summary").click()


def test_fullscreen_shows_the_whole_picture_with_its_mask(page, tmp_path):
    pixels = np.full((120, 200, 3), 128, np.uint8)
    for rows in (slice(0, 20), slice(-20, None)):
        for columns in (slice(0, 20), slice(-20, None)):
            pixels[rows, columns] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "corners.png")
    upload(page, tmp_path / "corners.png")
    wait_for_result(page, "corners.png")
    page.get_by_label("Opacity").fill("0")
    before = drawn_pixels(page)
    page.get_by_role("button", name="Fullscreen").click()
    page.wait_for_function("document.fullscreenElement !== null")
    page.wait_for_timeout(300)
    quarters = page.locator("canvas").evaluate(
        """canvas => {
            const {width, height} = canvas;
            const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            const found = new Set();
            for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
                const at = 4 * (y * width + x);
                if (data[at] > 200 && data[at + 1] < 80) found.add(`${2 * x < width} ${2 * y < height}`);
            }
            return found.size;
        }"""
    )
    assert quarters == 4
    expect_drawn(page, before)
    page.evaluate("document.exitFullscreen()")
    page.get_by_label("Opacity").fill("40")


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    path = tmp_path_factory.mktemp("volumes") / "brain.nii.gz"
    noise = np.random.default_rng(0).integers(0, 1500, (24, 12, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(noise, np.diag([2, 3, 2.5, 1])), path)
    return path


def test_a_volume_that_no_checkpoint_knows_is_out_of_scope(page, volume):
    upload(page, volume)
    wait_for_result(page, "brain.nii.gz")
    page.get_by_role("button", name="All slices").click()
    wait_for_result(page)
    expect(page.locator(".verdict")).to_have_text("Out of scope")
    expect(page.locator(".verdict")).to_have_class(re.compile("amber"))
    expect(page.locator(".notes")).to_contain_text("The file is a volume, but the checkpoint was trained on")
    assert "Slices with findings" not in facts(page)


def test_left_and_right_are_marked_and_may_be_the_patients(page, segmenter, files):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    segment(page, CAPTION)
    expect(page.locator(".at-left")).to_have_text("Lpatient’s right")
    check_area(page, expected_area(segmenter, files / "picture.png", CAPTION))
    page.get_by_text("the patient’s", exact=True).click()
    wait_for_result(page)
    expect(page.locator(".at-left")).to_have_text("Rpatient")
    turned = segmenter.segment([read_scan(files / "picture.png").image()], [CAPTION], side="patient")[0]
    check_area(page, int(turned.mask(0.5).sum()))
    page.get_by_text("the image’s", exact=True).click()
    wait_for_result(page)


def test_a_slide_that_is_shrunk_asks_for_tiles(page, segmenter, files):
    caption = "The nuclei are evenly distributed."
    upload(page, files / "slide.png")
    wait_for_result(page, "slide.png")
    segment(page, caption)
    expect(page.locator(".notes")).to_contain_text("loses most nuclei")
    page.get_by_role("button", name="Tiles, 20×").click()
    wait_for_result(page)
    expect(page.locator(".notes")).not_to_contain_text("loses most nuclei")
    check_area(page, expected_area(segmenter, files / "slide.png", caption, tile_size=96))
    page.locator("#lvit-scale").evaluate("select => select.value = '0'")
    upload(page, files / "slide.png", files / "picture.png")
    page.locator(".many tbody tr").first.wait_for()
    page.locator("#lvit-text").fill(caption)
    page.locator(".segment").click()
    expect(page.locator(".notes")).to_contain_text("loses most nuclei")


def test_visitors_name_no_folders_unless_who_runs_the_page_lets_them(browser, segmenter, checkpoint, monkeypatch):
    with pytest.raises(ValueError, match="This page serves only mine, lvit-small"):
        Engine(segmenter, "mine").checkpoint("/etc")
    monkeypatch.setenv("SPACE_ID", "user/space")
    assert not is_private()
    monkeypatch.delenv("SPACE_ID")
    assert is_private()
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    with serve(segmenter, any_model=True) as url, open_page(browser, url.replace("0.0.0.0", "127.0.0.1")) as page:
        page.locator(".settings summary").click()
        page.get_by_label("Checkpoint").fill(str(checkpoint))
        page.get_by_label("Checkpoint").blur()
        expect(page.get_by_role("alert")).to_contain_text("This page serves only")


def test_who_leaves_ends_their_work(browser, url, files, slow):
    with open_page(browser, url) as page:
        upload(page, files / "slide.png")
        wait_for_result(page, "slide.png")
        page.locator(".settings summary").click()
        page.get_by_label(re.compile("^Scale")).select_option("96")
        expect(page.locator(".busy")).to_contain_text(re.compile(r"\d+ / \d+"))
    time.sleep(2)
    runs = slow.runs
    time.sleep(2)
    assert slow.runs == runs
