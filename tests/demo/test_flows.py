"""What visitors do with the page, by mouse and by keyboard, on a desktop and on a phone, in both languages."""

import base64
import io
import json
import re
import zipfile
from pathlib import Path

import nibabel
import nibabel.testing
import numpy as np
import pytest
from app_page import (
    caption_field,
    expect_drawn,
    facts,
    open_page,
    segment,
    upload,
    wait_for_picture,
    wait_for_result,
)
from axe_playwright_python.sync_playwright import Axe
from chromium import DESKTOP, PHONE
from dicom_files import make_dicom, save_dicom
from PIL import Image
from playwright.sync_api import Page, expect

from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.io.readers import read_scan


CAPTION = "one infected area, upper left lung"


def unfold(page: Page, details: str):
    """Clicks until it is open: what comes in above it may move it from under the first click."""
    while page.locator(details).get_attribute("open") is None:
        page.locator(f"{details} > summary").click()


def download(page: Page, button: str, folder: Path) -> Path:
    page.locator(".downloads > summary").click()
    with page.expect_download() as event:
        page.get_by_role("button", name=button).click()
    path = folder / event.value.suggested_filename
    event.value.save_as(path)
    return path


def check_mask(page: Page, segmenter, path: Path, text: str = "", index: int = 0):
    """Whether the page says and draws of a file what a segmenter says of it."""
    [result] = segmenter.segment([read_scan(path).image(index)], [text])
    expect_drawn(page, int(result.mask(0.5).sum()))


def test_the_page_opens_with_a_result_in_view_and_few_tab_stops_before_it(browser, url):
    with open_page(browser, url) as page:
        for selector in (".segment", ".examples button", "canvas", ".facts"):
            expect(page.locator(selector).first).to_be_in_viewport(ratio=1)
        stops = 0
        while not page.evaluate("document.activeElement.matches('.segment')"):
            page.keyboard.press("Tab")
            stops += 1
            assert stops <= 5
        expect(page.get_by_label("Two captions")).to_be_checked()
        assert page.locator(".examples span").all_text_contents()[:2] == ["both lungs", "right lung only"]
        expect(page.locator(".same")).to_be_visible()
        expect(page.locator(".tagline")).to_contain_text(
            "Segments chest radiographs, colonoscopy frames and H&E slides"
        )
        for pane, text in ((".first", "bilateral"), (".second", "unilateral")):
            expect(page.locator(f".pane-text{pane}")).to_contain_text(re.compile(f"“{text}.*Caption"))
        page.locator(".examples button").nth(2).click()
        expect(page.locator(".family")).to_have_value("nuclei")  # the builder begins with what is shown
    with open_page(browser, url, **PHONE) as page:
        expect(page.locator(".views label:has(:checked)")).to_be_in_viewport(ratio=0.99)
        expect(page.locator(".tagline")).to_be_visible()
        tops = [
            page.locator(selector).bounding_box()["y"] for selector in (".viewer", "#lvit-text", ".strip", ".drop")
        ]
        assert tops == sorted(tops)
        page.locator(".examples button").nth(1).click()
        wait_for_result(page)
        for selector in (".segment", ".examples button", "canvas", ".facts"):
            expect(page.locator(selector).first).to_be_in_viewport(ratio=0.9)
        page.locator("nav .menu summary").first.click()
        expect(page.locator("nav .menu > div").first).to_be_in_viewport(ratio=1)


def test_nothing_spills_out_on_the_narrowest_phone(browser, url):
    with open_page(browser, url, viewport={"width": 320, "height": 640}) as page:
        segment(page, "x" * 90)
        expect(page.locator(".chips .unknown").first).to_be_visible()
        wide, high = page.locator(".lvit").evaluate(
            """root => [
                [".chips span, .notes li", one => one.getBoundingClientRect().right > 320],
                ["nav a, nav summary", one => one.offsetHeight > 30],
            ].map(([names, wrong]) => [...root.querySelectorAll(names)].filter(wrong).map(one => one.textContent))"""
        )
        assert (wide, high) == ([], [])


def test_a_low_window_opens_at_its_top(browser, url):
    with open_page(browser, url, viewport={"width": 640, "height": 450}) as page:
        wait_for_result(page)
        assert page.evaluate("window.scrollY") == 0


@pytest.mark.parametrize("name", ["deep.tif", "scan.dcm", "picture.png"])
def test_one_field_takes_every_kind_of_file(page, segmenter, files, name):
    upload(page, files / name)
    wait_for_result(page, name)
    check_mask(page, segmenter, files / name)
    assert ("Area" in facts(page)) == (name != "scan.dcm")  # a CT, and the checkpoint knows none


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_file_is_dropped_or_pasted(page, segmenter, files, event):
    name = {"drop": "scan.dcm", "paste": "other.png"}[event]
    page.evaluate(
        """async ([encoded, name, event]) => {
            const content = await (await fetch("data:;base64," + encoded)).arrayBuffer();
            const transfer = new DataTransfer();
            transfer.items.add(new File([content], name));
            const node = event === "drop" ? document.querySelector(".lvit canvas") : document.body;
            const settings = {bubbles: true, cancelable: true};
            node.dispatchEvent(event === "drop" ? new DragEvent("drop", {dataTransfer: transfer, ...settings})
                                                : new ClipboardEvent("paste", {clipboardData: transfer, ...settings}));
        }""",
        [base64.b64encode((files / name).read_bytes()).decode(), name, event],
    )
    wait_for_result(page, name)
    check_mask(page, segmenter, files / name)


def test_text_is_dragged_into_the_caption(page, files):
    upload(page, files / "picture.png", text="on the left")
    wait_for_result(page, "picture.png")
    text = caption_field(page)
    text.scroll_into_view_if_needed()
    box = text.bounding_box()
    browser = page.context.new_cdp_session(page)
    # The browser's own drag: whether a movement of the mouse begins one depends on the speed of the machine.
    for step in ("dragEnter", "dragOver", "drop"):
        browser.send(
            "Input.dispatchDragEvent",
            {
                "type": step,
                "x": box["x"] + 20,
                "y": box["y"] + 16,
                "data": {"items": [{"mimeType": "text/plain", "data": "polyp "}], "dragOperationsMask": 1},
            },
        )
    expect(text).to_have_value(re.compile("polyp"))


def test_text_that_is_pasted_with_a_picture_of_it_is_text(page, files):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    page.locator("#lvit-text").evaluate(
        """node => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(9)], "table.png"));
            transfer.setData("text/plain", "one polyp");
            node.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));
        }"""
    )
    page.wait_for_timeout(200)
    expect(page.locator(".given")).to_have_text("picture.png")


def test_a_zip_of_one_picture_is_that_picture(page, segmenter, files, tmp_path):
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.write(files / "other.png", "images/other.png")
    upload(page, tmp_path / "one.zip")
    wait_for_result(page, "images/other.png")
    segment(page, CAPTION)
    check_mask(page, segmenter, files / "other.png", CAPTION)
    expect(page.locator(".many")).to_be_hidden()


def test_a_caption_is_read_while_it_is_typed_and_answered_with_enter(page, segmenter, files):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    caption_field(page).fill(CAPTION)
    expect(page.locator(".chips")).to_contain_text("lung infection")
    expect(page.locator(".chips")).to_contain_text("left lung: upper")
    caption_field(page).press("Enter")
    wait_for_result(page)
    check_mask(page, segmenter, files / "picture.png", CAPTION)
    expect(page.locator(".verdict")).to_contain_text("Caption")
    caption_field(page).fill("a photo of a dog")
    expect(page.locator(".chips .unknown").first).to_be_visible()
    segment(page)
    expect(page.locator(".verdict")).to_have_text("Caption not used")
    expect(page.locator(".verdict")).to_have_class(re.compile("amber"))
    expect(page.locator(".notes li").first).to_be_visible()


def test_what_is_typed_stays_for_the_next_picture_and_what_the_page_wrote_does_not(page, files):
    caption, add = "one small polyp", page.locator(".drop input[type=file]").set_input_files
    upload(page, files / "picture.png", text=caption)
    wait_for_result(page, "picture.png")
    expect(page.locator(".more dl")).to_contain_text(caption)
    expect(page.locator(".more dl")).to_contain_text("ScaleWhole image")
    page.locator(".suggestions .use").first.click()
    wait_for_result(page, "picture.png")
    page.locator("#lvit-other").evaluate("(field, text) => field.value = text", caption)
    for name, before in (("other.png", None), ("picture.png", ".examples button")):
        if before:
            page.locator(before).nth(1).click()
            wait_for_result(page, "chest-xray.jpg")
        add(files / name)
        wait_for_result(page, name)
        expect(caption_field(page)).to_have_value("")
        expect(page.locator("#lvit-other")).to_have_value("")


def test_what_the_model_writes_is_a_click_away(page, segmenter, files):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    [result] = segmenter.segment([Image.open(files / "picture.png")])
    captions = [caption["text"] for caption in result.described["captions"][:3]]
    buttons = page.locator(".suggestions .use span:first-child")
    assert buttons.all_inner_texts() == captions
    page.locator(".suggestions .beside").nth(2).click()
    expect(page.locator(".pane-text.second p")).to_have_text(f"“{captions[2].rstrip('.')}”")
    expect(page.get_by_label("Two captions")).to_be_checked()
    page.locator(".suggestions .use").nth(1).click()
    expect(caption_field(page)).to_have_value(captions[1])
    wait_for_result(page)
    check_mask(page, segmenter, files / "picture.png", captions[1])


def test_the_builder_writes_a_caption_that_stays_editable(page):
    page.locator(".builder summary").click()
    page.get_by_role("button", name="Write it").click()
    expect(page.locator(".builder").get_by_role("alert")).to_have_text("Choose what the caption is to say first.")
    page.get_by_label("Kind of finding").select_option("lung infection")
    page.locator(".attributes").get_by_text("upper", exact=True).first.click()
    page.get_by_role("button", name="Write it").click()
    expect(caption_field(page)).to_have_value("unilateral pulmonary infection, one infected area, upper left lung.")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_label("Kind of finding").select_option("polyp")
    page.locator(".attributes select[data-name=size]").select_option("small")
    page.get_by_role("button", name="Write it").click()
    expect(caption_field(page)).to_have_value(re.compile("small.*polyp"))
    page.locator(".builder summary").click()


def test_two_captions_of_one_image_stand_side_by_side(page, files):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    segment(page, CAPTION)
    unfold(page, ".words")
    page.get_by_label("Another caption").fill("one infected area, lower right lung")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_label("Two captions")).to_be_checked()
    expect(page.locator(".pane-text.first")).to_contain_text("upper left lung")
    expect(page.locator(".pane-text.second")).to_contain_text("lower right lung")
    page.get_by_label("Another caption").fill("a photo of a dog")
    page.get_by_label("Another caption").press("Enter")
    expect(page.locator(".pane-text.second span")).to_have_text("Caption not used")
    expect(page.locator(".pane-text.second span")).to_have_class("amber")
    expect(page.locator(".pane-text.first span")).to_have_text(page.locator(".verdict").inner_text())
    expect(page.locator(".of-first")).to_be_visible()
    expect(page.locator(".notes")).to_contain_text("“a photo of a dog” – ")
    expect(page.locator(".notes")).to_contain_text(f"“{CAPTION}” – The caption speaks of lung infection")
    page.locator(".views").get_by_text("Mask", exact=True).click()
    expect(page.locator(".of-first")).to_be_hidden()
    expect(page.locator(".notes")).not_to_contain_text("“")
    page.locator(".words summary").click()
    segment(page, "")
    expect(page.get_by_label("Two captions")).to_be_hidden()


def test_the_threshold_redraws_at_once_and_all_numbers_follow(page, network, segmenter, files, tmp_path):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    segment(page, CAPTION)
    [result] = segmenter.segment([Image.open(files / "picture.png")], [CAPTION])
    runs = network.runs
    seconds = page.evaluate(
        """async () => {
            const slider = document.querySelector(".threshold");
            const start = performance.now();
            slider.value = 70;
            slider.dispatchEvent(new Event("input"));
            await new Promise(requestAnimationFrame);
            return performance.now() - start;
        }"""
    )
    assert seconds < 200  # milliseconds: one frame, on a machine that does other things too
    area = int(result.mask(0.7).sum())
    expect_drawn(page, area)
    expect(page.locator(".facts")).to_contain_text(f"{area:,} px")
    mask = np.asarray(Image.open(download(page, "Mask (PNG)", tmp_path))) > 0
    np.testing.assert_array_equal(mask, result.mask(0.7))
    overlay = np.asarray(Image.open(download(page, "Overlay (PNG)", tmp_path)))
    np.testing.assert_array_equal(overlay, np.asarray(draw_overlay(result.image, result.mask(0.7))))
    report = json.loads(download(page, "Measurements (JSON)", tmp_path).read_text())
    assert (report["area_pixels"], report["threshold"], report["text"]) == (area, 0.7, CAPTION)
    names = zipfile.ZipFile(download(page, "Everything (zip)", tmp_path)).namelist()
    assert {"masks/picture_mask.png", "overlays/picture_overlay.png", "table.csv", "report.json"} == set(names)
    assert network.runs == runs
    page.get_by_label("Threshold").fill("50")


def distance_to_scale(page: Page) -> float:
    """How far the colour in the middle of the stage is from those of the bar of probabilities, from 0 to 255."""
    *color, _ = page.locator(".stage canvas").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data]"
    )
    bar = page.locator(".scale-bar i").evaluate("bar => getComputedStyle(bar).backgroundImage")
    stops = np.array([list(map(int, found)) for found in re.findall(r"rgb\((\d+), (\d+), (\d+)\)", bar)])
    scale = np.stack([np.interp(np.linspace(0, 4, 401), range(5), channel) for channel in stops.T], axis=1)
    return float(np.abs(scale - color).max(axis=1).min())


def test_two_fingers_zoom_where_they_are(browser, url, tmp_path):
    pixels = np.full((200, 200, 3), 128, np.uint8)
    pixels[60:70, 95:105] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "dot.png")
    with open_page(browser, url, **PHONE, has_touch=True) as page:
        upload(page, tmp_path / "dot.png")
        wait_for_result(page, "dot.png")
        page.get_by_label("Opacity").fill("0")
        canvas = page.locator(".stage canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + 0.325 * box["height"]  # the picture is as high as the stage
        devices = page.context.new_cdp_session(page)

        def touch(kind: str, *places: float):
            points = [{"x": x + place, "y": y, "id": number} for number, place in enumerate(places)]
            devices.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", -20, 20)
        for step in range(1, 9):
            touch("touchMove", -20 - 5 * step, 20 + 5 * step)
        touch("touchEnd")
        expect(page.locator(".stage")).to_have_class(re.compile("zoomed"))
        page.wait_for_timeout(100)  # milliseconds, until it is drawn
        color = canvas.evaluate(
            "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]",
            [x - box["x"], y - box["y"]],
        )
        assert color[0] > 200 and color[1] < 80


def test_every_view_is_drawn_and_zoomed(page, files):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    segment(page, CAPTION)
    pictures: list[str] = []
    for name in ("Mask", "Before / after", "Probability", "Effect of the text"):
        page.locator(".views").get_by_text(name, exact=True).click()
        pictures.append(wait_for_picture(page, *pictures))
        expect(page.locator(".opacity + output")).to_have_text("100 %" if name == "Probability" else "40 %")
        if name == "Probability":
            assert distance_to_scale(page) <= 3
    expect(page.locator(".legend")).to_contain_text("only without the text")
    page.locator(".views").get_by_text("Before / after", exact=True).click()
    handle = page.get_by_role("slider", name="Before / after")
    handle.press("End")
    expect(handle).to_have_attribute("aria-valuenow", "100")
    handle.press("ArrowLeft")
    expect(handle).to_have_attribute("aria-valuenow", "98")
    page.locator(".views").get_by_text("Mask", exact=True).click()
    canvas = page.locator("canvas")
    before = wait_for_picture(page, *pictures[1:])
    canvas.press("+")
    zoomed = wait_for_picture(page, before)
    canvas.press("0")
    assert wait_for_picture(page, zoomed) == before


def test_a_true_mask_is_compared_until_another_result_comes(page, files, tmp_path):
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    Image.new("1", (90, 60)).save(tmp_path / "truth.png")
    page.locator(".more summary").click()
    page.locator(".truth-file").set_input_files(tmp_path / "truth.png")
    expect(page.locator(".facts")).to_contain_text("Dice")
    assert facts(page)["Dice"] == "0"
    for name, sentence in (("slide.png", "they must be of one size"), ("broken.png", "broken.png is a broken image")):
        page.locator(".truth-file").set_input_files(files / name)
        expect(page.get_by_role("alert")).to_contain_text(sentence)
        assert "gradio" not in page.get_by_role("alert").inner_text()
        assert "Dice" not in facts(page)
    page.locator(".truth-file").set_input_files(tmp_path / "truth.png")
    expect(page.locator(".facts")).to_contain_text("Dice")
    expect(page.get_by_role("alert")).to_be_hidden()
    segment(page)
    assert "Dice" not in facts(page)
    page.locator(".more summary").click()


@pytest.mark.parametrize(
    "name, sentence", [("broken.png", "broken.png is a broken image file"), ("huge.png", "16 million pixels")]
)
def test_a_file_that_cannot_be_used_gets_a_sentence_and_the_next_one_works(page, files, name, sentence):
    upload(page, files / name)
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    assert facts(page) == {}
    upload(page, files / "picture.png")
    wait_for_result(page, "picture.png")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_volume_has_a_slider_and_all_its_slices(page, segmenter, tmp_path):
    noise = np.random.default_rng(0).integers(0, 1500, (24, 12, 20)).astype(np.int16)
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(noise, np.diag([2, 3, 2.5, 1])), path)
    upload(page, path)
    wait_for_result(page, "volume.nii.gz")
    slices = len(read_scan(path))
    check_mask(page, segmenter, path, index=slices // 2)
    page.get_by_role("slider", name="Slice").fill("3")
    wait_for_result(page)
    check_mask(page, segmenter, path, index=2)
    page.get_by_role("button", name="All slices").click()
    wait_for_result(page)
    masks = [segmenter.segment([read_scan(path).image(index)])[0].mask(0.5) for index in range(slices)]
    for index in (4, 7):
        page.get_by_role("slider", name="Slice").fill(str(index + 1))
        expected = int(masks[index].sum())
        expect(page.locator("canvas")).to_have_attribute("aria-label", re.compile(f": {expected} pixels"))
    mask = read_scan(download(page, "Mask (DICOM or NIfTI)", tmp_path)).slices > 0
    np.testing.assert_array_equal(mask, np.stack(masks))
    caption_field(page).fill("no polyp")
    page.get_by_role("button", name="All slices").click()
    wait_for_result(page)
    expect_drawn(page, 0)
    expect(page.locator(".slice + output")).to_have_text(f"8 / {slices}")  # as before: no other shows more


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for number in range(40):
            content = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(content, "png")
            archive.writestr(f"images/{number}.png", content.getvalue())
    (folder / "captions.csv").write_text(f'image,text\npicture.png,"{CAPTION}"\nmissing.png,one\n')
    return folder


def test_several_files_are_a_table_whose_rows_are_shown_on_a_click(page, segmenter, files, many, tmp_path):
    uploads = [files / "picture.png", files / "other.png", files / "broken.png", many / "captions.csv"]
    upload(page, *uploads)
    rows = page.locator(".many tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.nth(0)).to_contain_text(f"{CAPTION} – Caption does not fit")
    assert [row.get_attribute("class") for row in rows.all()] == ["amber-row", None, "amber-row", "amber-row"]
    expect(rows.nth(2)).to_contain_text("broken.png is a broken image file")
    expect(rows.nth(3)).to_contain_text("missing.png, but there is no such image")
    report = json.loads(zipfile.ZipFile(download(page, "Masks, overlays and table", tmp_path)).read("report.json"))
    assert [row["text"] for row in report["images"]] == [CAPTION, None]
    page.get_by_role("button", name="picture.png").click()
    wait_for_result(page, "picture.png")
    check_mask(page, segmenter, files / "picture.png", CAPTION)
    expect(rows).to_have_count(4)


def test_volumes_in_a_table_have_sizes_and_slices_of_volumes(page, segmenter, files, tmp_path):
    frames = np.random.default_rng(1).integers(0, 255, (3, 30, 40), np.uint8)
    elements = {"Modality": "XC", "NumberOfFrames": 3, "PixelData": frames.tobytes()}
    save_dicom(make_dicom(frames[0], **elements), tmp_path / "frames.dcm")
    upload(page, files / "picture.png", tmp_path / "frames.dcm")
    rows = page.locator(".many tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(re.compile(r"\d px \("))
    expect(rows.nth(1)).to_contain_text(re.compile(r"[\d,]+ voxels \([\d.]+ %\)\s*[123] of 3 slices"))
    page.get_by_role("button", name="frames.dcm").click()
    wait_for_result(page, "frames.dcm")
    scan = read_scan(tmp_path / "frames.dcm")
    for index in (2, 0, 1):
        page.get_by_role("slider", name="Slice").fill(str(index + 1))
        [expected] = segmenter.segment([scan.image(index)])
        expect_drawn(page, int(expected.mask(0.5).sum()))
    page.get_by_role("button", name="picture.png").click()
    wait_for_result(page, "picture.png")
    expect(page.locator(".slice-label")).to_be_hidden()


def test_stop_keeps_what_is_done_and_says_so(page, many, slow):
    upload(page, many / "set.zip")
    expect(page.locator(".busy")).to_contain_text(re.compile("[1-9][0-9]* / 40"))
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("alert")).to_contain_text(re.compile(r"Stopped: \d+ of 40 are done and in the zip."))
    assert 0 < page.locator(".many tbody tr").count() < 40
    runs = slow.runs
    page.wait_for_timeout(2500)
    assert slow.runs == runs


def test_of_work_that_is_stopped_at_once_there_is_no_table(page, many, slow):
    upload(page, many / "set.zip", text="one polyp")
    expect(page.locator(".busy")).to_contain_text("0 / 40")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("alert")).to_have_text("Stopped. Nothing of it was kept.")
    expect(page.locator(".many")).to_be_hidden()
    expect(page.locator(".downloads")).to_be_hidden()


def test_the_keyboard_is_enough(browser, url, files):
    with open_page(browser, url) as page:

        def press_until(condition: str, key: str = "Tab"):
            for _ in range(60):
                if page.evaluate(condition):
                    return
                page.keyboard.press(key)
            raise AssertionError(f"{key} does not lead to {condition}.")

        def is_on(selector: str) -> str:
            return f"document.activeElement.matches({selector!r})"

        with page.expect_file_chooser() as chooser:
            press_until(is_on(".choose input"))  # in here: a browser that is told of it just before a key may miss it
            page.keyboard.press("Enter")
        chooser.value.set_files(files / "picture.png")
        wait_for_result(page, "picture.png")
        press_until(is_on(".suggestions .use"))
        page.keyboard.press("Enter")
        wait_for_result(page, "picture.png")
        press_until(is_on("#lvit-text"), "Shift+Tab")
        assert page.evaluate("document.activeElement.value")
        page.keyboard.press("Control+a")
        page.keyboard.type(CAPTION)
        page.keyboard.press("Enter")
        wait_for_result(page)
        expect(page.locator(".more dl")).to_contain_text(CAPTION)
        press_until(is_on("[name=lvit-view]"))
        page.keyboard.press("ArrowRight")
        press_until(is_on(".handle"))
        page.keyboard.press("ArrowRight")
        before = page.locator("canvas").get_attribute("aria-label")
        press_until(is_on(".threshold"))
        page.keyboard.press("PageUp")
        expect(page.locator("canvas")).not_to_have_attribute("aria-label", before)
        press_until(is_on(".downloads > summary"))
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        with page.expect_download() as event:
            page.keyboard.press("Enter")
        assert event.value.suggested_filename == "picture_mask.png"
        press_until(is_on(".examples button"), "Shift+Tab")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        wait_for_result(page, "chest-xray.jpg")


@pytest.mark.parametrize(
    "settings",
    [DESKTOP, {**DESKTOP, "color_scheme": "dark"}, {**PHONE, "locale": "zh-CN"}],
    ids=["light", "dark", "phone, dark and Chinese"],
)
def test_the_page_is_accessible(browser, url, files, settings):
    """Labels, alternative texts, roles and contrast, as WCAG 2 A and AA ask for."""
    with open_page(browser, url, **settings) as page:
        segment(page, "a photo of a dog")
        page.locator(".notes li").first.wait_for()
        for summary in page.locator(".ask details > summary, .more > summary, .badge > summary").all():
            summary.click()
        page.locator(".suggestions .beside").first.press("Enter")
        expect(page.locator(".stage canvas")).to_be_focused()
        expect(page.get_by_role("radio", checked=True).and_(page.locator("[value=words]"))).to_be_attached()
        for view in ("split", "heat", "effect", "words"):
            page.locator(f"[name=lvit-view][value={view}]").evaluate("input => input.click()")
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert found.violations_count == 0, found.generate_report()


def test_the_page_is_chinese_where_the_browser_asks_for_it(browser, url, files):
    with open_page(browser, url, locale="zh-CN") as page:
        segment(page, "a photo of a dog")
        expect(page.locator(".segment")).to_have_text("分割")
        expect(page.locator(".verdict")).to_have_text("未使用描述")
        upload(page, files / "broken.png")
        expect(page.get_by_role("alert")).to_have_text("broken.png 是损坏的图像文件。")
        texts = page.locator(".lvit").evaluate(
            """root => {
                const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
                const found = [];
                while (walker.nextNode()) {
                    const {parentElement: parent, data} = walker.currentNode;
                    if (parent.offsetParent && !parent.closest(".suggestions, .given, .device, pre")) found.push(data);
                }
                return found;
            }"""
        )
        english = [text for text in texts if len(re.findall(r"[A-Za-z]{3,}", text)) > 1]
        assert [text for text in english if not re.search("[\u4e00-\u9fff]", text)] == []
        page.get_by_role("button", name="English").click()
        expect(page.locator(".segment")).to_have_text("Segment")
        expect(page.get_by_role("alert")).to_contain_text("broken.png is a broken image file")
