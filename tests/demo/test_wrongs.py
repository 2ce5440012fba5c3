"""What must never be seen on the page: an answer that is not that of what is shown."""

import re
import time

import nibabel
import numpy as np
import pytest
from app_page import (
    caption_field,
    drawn_pixels,
    expect_drawn,
    facts,
    open_page,
    segment,
    serve,
    upload,
    wait_for_result,
)
from dicom_files import make_dicom, save_dicom
from PIL import Image
from playwright.sync_api import expect

from lvit_hf.demo.engine import Engine
from lvit_hf.demo.page import is_private
from lvit_hf.inference.measurements import measure_mask
from lvit_hf.io.checkpoints import list_shipped
from lvit_hf.io.readers import read_scan
from lvit_hf.model.captions_lvit import turn_sides


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


def move(page, slider: str, value: int):
    page.locator(slider).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def choose_side(page, name: str):
    page.get_by_text(f"the {name}’s", exact=True).click()


@pytest.fixture
def defaults(page):
    """What a test changes on the page is put back, so that the next one begins as a visitor does."""
    yield
    move(page, ".threshold", 50)
    page.locator("#lvit-scale").evaluate("select => select.value = '0'")
    if page.locator("[name=lvit-side][value=patient]").is_checked():
        choose_side(page, "image")


@pytest.mark.parametrize("change", ["threshold", "side", "scale"])
def test_what_is_changed_while_a_request_runs_is_what_its_answer_is_of(page, segmenter, files, slow, change, defaults):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    # None of them is in the cache yet.
    caption = {"threshold": CAPTION.title(), "side": f"{CAPTION}.", "scale": CAPTION.upper()}[change]
    caption_field(page).fill(caption)
    caption_field(page).press("Enter")
    expect(page.locator(".lvit")).to_have_attribute("data-busy", "yes")
    if change == "threshold":
        move(page, ".threshold", 70)
    elif change == "side":
        choose_side(page, "patient")
    else:
        page.locator("#lvit-scale").evaluate(
            "select => { select.value = '96'; select.dispatchEvent(new Event('change')); }"
        )
    settings = {"side": {"side": "patient"}, "scale": {"tile_size": 96}}.get(change, {})
    [result] = segmenter.segment([read_scan(files / "picture.png").image()], [caption], **settings)
    area = int(result.mask(0.7 if change == "threshold" else 0.5).sum())
    wait_for_result(page)
    expect(page.locator(".facts")).to_contain_text(f"{area:,} px")
    check_area(page, area)
    expect(page.locator(".at-left")).to_have_text("Rpatient" if change == "side" else "Lpatient’s right")


def test_a_result_says_that_it_is_of_other_words_until_they_are_sent(page, files):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    segment(page, CAPTION)
    expect(page.locator(".old-result")).to_be_hidden()
    caption_field(page).fill("one small polyp")
    expect(page.locator(".old-result")).to_contain_text(f"This is the result of “{CAPTION}”")
    caption_field(page).fill(CAPTION)
    expect(page.locator(".old-result")).to_be_hidden()
    caption_field(page).fill("two small polyps")
    expect(page.locator(".old-result")).to_be_visible()
    page.get_by_role("button", name="中文").click()
    expect(page.locator(".old-result")).to_contain_text(f"这是“{CAPTION}”的结果")
    page.get_by_role("button", name="English").click()
    segment(page)
    expect(page.locator(".old-result")).to_be_hidden()


def test_who_names_the_patients_sides_reads_of_them_alone(page, files, defaults):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    captions = page.locator(".suggestions .use span:first-child")
    written = captions.all_inner_texts()
    choose_side(page, "patient")
    segment(page, CAPTION)
    expect(page.locator(".chips")).to_contain_text("left lung: upper")
    assert captions.all_inner_texts() == [turn_sides(text) for text in written]
    assert any("lung" in text and text != turn_sides(text) for text in written)
    caption = page.locator(".suggestions .use", has_text="lung").first
    text = caption.locator("span").first.inner_text()
    caption.click()
    wait_for_result(page)
    expect(page.locator("[name=lvit-side][value=patient]")).to_be_checked()
    expect(caption_field(page)).to_have_value(text)
    page.locator(".examples button").first.click()  # whose caption is in the image's
    expect(page.locator("[name=lvit-side][value=image]")).to_be_checked()
    wait_for_result(page)


def test_a_patient_has_sides_on_frontal_images_alone(page, files, volume, defaults):
    upload(page, files / "scan.dcm")  # a CT, which is out of scope
    choose_side(page, "patient")
    wait_for_result(page, "scan.dcm")
    segment(page, CAPTION)
    expect(page.locator(".at-left")).to_have_text("Limage")
    assert facts(page) == {}  # no size of it is named
    expect(page.locator(".written")).to_be_hidden()
    upload(page, files / "picture.png")
    segment(page, "one small polyp on the left")
    expect(page.locator(".at-left")).to_have_text("Limage")


def test_two_captions_of_a_volume_show_the_same_slice(page, segmenter, volume):
    upload(page, volume)
    wait_for_result(page, "brain.nii.gz")
    caption_field(page).fill(CAPTION)
    page.get_by_role("button", name="All slices").click()
    wait_for_result(page)
    page.locator(".words").evaluate("details => details.open = true")
    page.get_by_label("Another caption").fill("one infected area, lower right lung")
    page.get_by_label("Another caption").press("Enter")
    expect(page.get_by_label("Two captions")).to_be_checked()
    for number in (None, 3, 9):
        if number:
            move(page, ".slice", number)
            image = read_scan(volume).image(number - 1)
            expect_drawn(page, int(segmenter.segment([image], [CAPTION])[0].mask(0.5).sum()))
        left, right = page.locator("canvas").first.evaluate(
            """async canvas => {
                document.querySelector(".opacity").value = 0;
                document.querySelector(".opacity").dispatchEvent(new Event("input"));
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
                const context = canvas.getContext("2d");
                const half = Math.floor(canvas.width / 2);
                return [0, half].map(left => {
                    const data = context.getImageData(left, 0, half, canvas.height).data;
                    const grey = [];
                    for (let at = 0; at < data.length; at += 4)
                        if (Math.abs(data[at] - data[at + 1]) < 3) grey.push(data[at]);
                    return grey.reduce((sum, value) => sum + value, 0) / grey.length;
                });
            }"""
        )
        assert left == pytest.approx(right, rel=0.02)
    move(page, ".opacity", 40)
    page.locator(".words").evaluate("details => details.open = false")


def test_of_two_comparisons_at_once_the_last_one_is_shown(page, volume, slow):
    slow.delay = 0.2
    upload(page, volume)
    page.get_by_role("button", name="All slices").click()
    wait_for_result(page, "brain.nii.gz")
    page.locator(".words").evaluate("details => details.open = true")
    for text in ("one infected area, lower right lung", "two small polyps on the left"):
        page.get_by_label("Another caption").fill(text)
        page.get_by_label("Another caption").press("Enter")
        page.wait_for_timeout(100)
    expect(page.locator(".pane-text.second")).to_contain_text("two small polyps")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.locator(".words").evaluate("details => details.open = false")


@pytest.fixture
def table(page, files, tmp_path):
    """A table of two pictures, of which a CSV file has a caption for one."""
    (tmp_path / "captions.csv").write_text(f'image,text\npicture.png,"{CAPTION}"\n')
    upload(page, files / "picture.png", files / "other.png", tmp_path / "captions.csv")
    rows = page.locator(".many tbody tr")
    expect(rows).to_have_count(2)
    expect(page.locator(".lvit")).to_have_attribute("data-busy", "no")
    return rows


@pytest.mark.parametrize("change", ["threshold", "side", "scale", "caption", "row"])
def test_a_table_says_that_it_is_of_other_words_or_settings(page, table, change, defaults):
    old = page.locator(".old-table")
    expect(old).to_be_hidden()
    if change == "threshold":
        move(page, ".threshold", 60)
    elif change == "side":
        choose_side(page, "patient")
    elif change == "scale":
        page.locator("#lvit-scale").evaluate(
            "select => { select.value = '96'; select.dispatchEvent(new Event('change')); }"
        )
    elif change == "caption":
        caption_field(page).fill("one small polyp")
    else:
        page.get_by_role("button", name="other.png").click()
        wait_for_result(page, "other.png")
        expect(old).to_be_hidden()
        segment(page, "one small polyp")
    expect(old).to_be_visible()
    expect(table).to_have_count(2)
    page.get_by_role("button", name="Segment" if change != "row" else "All files", exact=True).click()
    expect(old).to_be_hidden()
    expect(table).to_have_count(2)


def test_a_row_is_segmented_with_its_own_words_and_those_typed_for_it(page, segmenter, files, table):
    page.get_by_role("button", name="picture.png").click()
    wait_for_result(page, "picture.png")
    expect(caption_field(page)).to_have_value(CAPTION)
    other = "one infected area, lower right lung"
    caption_field(page).fill(other)
    caption_field(page).press("Enter")
    wait_for_result(page)
    check_area(page, expected_area(segmenter, files / "picture.png", other))
    expect(table).to_have_count(2)
    page.locator(".words").evaluate("details => details.open = true")
    page.get_by_label("Another caption").fill("two small polyps")
    page.get_by_label("Another caption").press("Enter")
    expect(page.locator(".pane-text.second")).to_contain_text("two small polyps")
    page.locator(".words").evaluate("details => details.open = false")
    expect(page.locator("canvas").first).to_have_attribute("data-name", "picture.png")
    page.get_by_role("button", name="other.png").click()
    wait_for_result(page, "other.png")
    expect(caption_field(page)).to_have_value("")


def delay_next(page, address: str):
    """The page's next request to that address takes 700 ms more."""
    page.evaluate(
        """address => {
            const original = window.fetch;
            window.fetch = async (...args) => {
                if (String(args[0].url ?? args[0]).includes(address)) {
                    window.fetch = original;
                    await new Promise(done => setTimeout(done, 700));
                }
                return original(...args);
            };
        }""",
        address,
    )


def test_an_upload_can_be_stopped(page, files):
    delay_next(page, "/upload")
    upload(page, files / "picture.png")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("alert")).to_have_text("Stopped. The files were not added.")
    page.wait_for_timeout(1000)
    assert page.locator("canvas").first.get_attribute("data-name") == ""
    upload(page, files / "other.png")
    wait_for_result(page, "other.png")


@pytest.mark.parametrize("step", ["upload", "look"])
def test_what_is_typed_and_sent_while_a_file_comes_in_is_of_that_file(page, segmenter, volume, step):
    delay_next(page, {"upload": "/upload", "look": "/component_server"}[step])
    upload(page, volume)
    page.wait_for_timeout(200)
    expect(page.locator(".given")).to_contain_text("brain.nii.gz")
    expect(page.locator(".busy")).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    caption_field(page).fill(CAPTION)
    caption_field(page).press("Enter")
    page.locator(".segment").click()
    assert page.locator(".slice-label").is_hidden()  # it is still on its way
    wait_for_result(page, "brain.nii.gz")
    expect(page.get_by_role("slider", name="Slice")).to_be_visible()
    expect(caption_field(page)).to_have_value(CAPTION)
    scan = read_scan(volume)
    [result] = segmenter.segment([scan.image(len(scan) // 2)], [CAPTION])
    expect_drawn(page, int(result.mask(0.5).sum()))


@pytest.mark.parametrize(
    "caption, said", [("", r"nothing found \(probability of none: \d+ %\)"), ("no polyp", "none, as the caption says")]
)
def test_an_empty_mask_is_no_finding(page, files, caption, said, defaults):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    segment(page, caption)
    if not caption:
        move(page, ".threshold", 100)
    expect(page.locator(".facts")).to_contain_text(re.compile(said))
    assert set(facts(page)) == {"Finding"}
    expect(page.locator(".legend")).to_be_hidden()


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


def test_a_slide_that_is_shrunk_asks_for_tiles(page, segmenter, files, tmp_path):
    caption = "The nuclei are evenly distributed."
    upload(page, files / "slide.png")
    wait_for_result(page, "slide.png")
    segment(page, caption)
    expect(page.locator(".notes")).to_contain_text("loses most nuclei")
    page.get_by_role("button", name="Tiles, 20×").click()
    wait_for_result(page)
    expect(page.locator(".notes")).not_to_contain_text("loses most nuclei")
    check_area(page, expected_area(segmenter, files / "slide.png", caption, tile_size=96))
    upload(page, files / "slide.png", files / "picture.png", text=caption)
    page.locator(".many tbody tr").first.wait_for()
    expect(page.locator(".notes")).to_contain_text("loses most nuclei")
    save_dicom(make_dicom(np.arange(120_000, dtype=np.uint16).reshape(300, 400), Modality="CT"), tmp_path / "ct.dcm")
    upload(page, tmp_path / "ct.dcm", text=caption)
    wait_for_result(page, "ct.dcm")
    expect(page.locator(".notes")).to_have_text(re.compile("The file is of modality CT"))
    expect(page.locator(".notes li")).to_have_count(1)


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
        assert set(page.get_by_label("Checkpoint").locator("option").all_inner_texts()) == set(list_shipped())
        page.locator(".model option").first.evaluate("(option, name) => option.value = name", str(checkpoint))
        page.get_by_label("Checkpoint").dispatch_event("change")
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
