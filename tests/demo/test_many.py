import csv
import io
import json
import re
import zipfile
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from app_page import file_input, open_page
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import expect
from pydicom.data import get_testdata_file

from lvit_hf.demo.collection import MAX_IMAGES, collect
from lvit_hf.io import readers


CAPTION = "one infected area"


@pytest.fixture
def page(browser, url, window):
    with open_page(browser, url, "Many images", **window) as page:
        yield page


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "png")
    return content.getvalue()


def write_zip(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(picture(seed))
    (folder / "broken.png").write_bytes(picture(0)[:-40])
    (folder / "captions.csv").write_text(f'image,text\na.png,"{CAPTION}, left"\nmissing.png,{CAPTION}\n')
    flat = nibabel.Nifti1Image(np.random.default_rng(2).random((9, 8, 1)).astype(np.float32), np.diag([2, 3, 4, 1]))
    nibabel.save(flat, folder / "flat.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 5), np.uint8), np.eye(4)), folder / "volume.nii")
    write_zip(folder / "set.zip", {f"images/{number}.png": picture(number) for number in range(120)})
    return folder


def segment_many(client: Client, *paths: Path, **settings) -> tuple[zipfile.ZipFile, dict]:
    archive, report = client.predict([handle_file(path) for path in paths], api_name="/segment_many", **settings)
    return zipfile.ZipFile(archive), report


def read_mask(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(archive.read(f"masks/{name}")))) > 0


def test_files_of_every_kind_with_their_captions(client, segmenter, files, tmp_path):
    dicom = Path(get_testdata_file("CT_small.dcm"))
    paths = [files / "a.png", files / "b.png", dicom, files / "flat.nii.gz", files / "captions.csv"]
    archive, report = segment_many(client, *paths, text="right", threshold=0.4)
    rows = {row["image"]: row for row in report["images"]}
    assert list(rows) == ["a.png", "b.png", "CT_small.dcm", "flat.nii.gz"]
    assert [row["text"] for row in rows.values()] == [f"{CAPTION}, left", "right", "right", "right"]
    for name in ("a.png", "b.png"):
        expected = segmenter.segment([files / name], [rows[name]["text"]])[0]
        np.testing.assert_array_equal(read_mask(archive, rows[name]["mask"]), expected.mask(0.4))
        assert rows[name]["area_pixels"] == expected.mask(0.4).sum()
    ct = rows["CT_small.dcm"]
    assert ct["area_mm2"] == pytest.approx(ct["area_pixels"] * 0.661468**2)
    archive.extractall(tmp_path)
    written = highdicom.seg.segread(tmp_path / "masks" / "CT_small_mask.dcm")
    assert written.FrameOfReferenceUID == pydicom.dcmread(dicom).FrameOfReferenceUID
    grid = nibabel.load(tmp_path / "masks" / "flat_mask.nii.gz")
    np.testing.assert_array_equal(grid.affine, np.diag([2, 3, 4, 1]))
    assert report["failures"] == [
        {
            "image": "missing.png",
            "text": CAPTION,
            "error": "The CSV file has a caption for missing.png, but there is no such image.",
        }
    ]


def test_the_zip_holds_the_table_and_the_measurements(client, files):
    archive, report = segment_many(client, files / "a.png", files / "broken.png")
    assert json.loads(archive.read("measurements.json")) == report
    image, failure = csv.DictReader(io.StringIO(archive.read("table.csv").decode("utf-8-sig")))
    assert image["image"] == "a.png" and int(image["area_pixels"]) == report["images"][0]["area_pixels"]
    assert failure["image"] == "broken.png" and "broken image file" in failure["error"] and failure["mask"] == ""


def test_bad_files_are_rows_with_a_reason(client, files, tmp_path):
    bad = {
        "broken.png": picture(0)[:-40],
        "empty.png": b"",
        "text.jpg": b"I am no image",
        "inner.zip": (files / "a.png").read_bytes(),
        "volume.nii": (files / "volume.nii").read_bytes(),
        "bomb.png": picture(0, (20_000, 1))[:200],
        "huge.tif": tiff_of(5000),
        "zeros.dcm": bytes(101 * 1024**2),
        "notes.txt": "a text",
        "good.png": picture(0),
    }
    report = segment_many(client, write_zip(tmp_path / "bad.zip", bad), files / "a.png")[1]
    reasons = {row["image"]: row["error"] for row in report["failures"]}
    assert [row["image"] for row in report["images"]] == ["good.png", "a.png"]
    assert reasons.keys() == bad.keys() - {"good.png"}
    assert "has 5 slices" in reasons["volume.nii"] and "zip inside a zip" in reasons["inner.zip"]
    assert "16 million pixels" in reasons["huge.tif"] and "more than 100 MB" in reasons["zeros.dcm"]
    for name, reason in reasons.items():
        assert name in reason or name == "huge.tif", reason
        assert "/tmp" not in reason


def tiff_of(side: int) -> bytes:
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "tiff", compression="group4")
    return content.getvalue()


def test_names_are_never_trusted(client, tmp_path):
    names = [
        "../../evil.png",
        "/etc/evil.png",
        "C:\\windows\\evil.png",
        "a/same.png",
        "b/same.png",
        "b/SAME.jpg",
        "=cmd|' /C calc'!A0.png",
        "<img src=x onerror=alert(1)>.png",
        "结果.png",
    ]
    members = {name: picture(number) for number, name in enumerate(names)}
    junk = {"__MACOSX/a/._same.png": b"x", ".DS_Store": b"x", "a/Thumbs.db": b"x", "a/": b""}
    archive, report = segment_many(client, write_zip(tmp_path / "names.zip", members | junk))
    assert not report["failures"]
    assert len(report["images"]) == len(names)
    masks = [name for name in archive.namelist() if name.startswith("masks/")]
    assert len({name.casefold() for name in masks}) == len(masks) == len(report["images"])
    assert all(name.count("/") == 1 and ".." not in name and "\\" not in name for name in masks)
    assert {"evil_mask.png", "evil-2_mask.png", "same_mask.png", "same-2_mask.png", "结果_mask.png"} <= {
        row["mask"] for row in report["images"]
    }
    table = list(csv.reader(io.StringIO(archive.read("table.csv").decode("utf-8-sig"))))
    assert not any(cell.startswith(("=", "+", "@")) for row in table for cell in row)


def test_captions_find_their_images_in_folders(tmp_path):
    content = picture(0)
    table = "image,text\nleft/1.png,one\nright\\1.PNG,two\nleft/1.png,three\n2.png,four\n1.png,five\n,six\n"
    members = {"set/captions.csv": "\ufeff" + table}
    members |= {"set/left/1.png": content, "set/right/1.png": content, "set/deep/2.png": content, "3.png": content}
    items = collect([str(write_zip(tmp_path / "set.zip", members))], "default")
    assert [(item.name, item.text) for item in items if not item.problem] == [
        ("set/left/1.png", "one"),
        ("set/left/1.png", "three"),
        ("set/right/1.png", "two"),
        ("set/deep/2.png", "four"),
        ("3.png", "default"),
    ]
    ambiguous, nameless = [item.problem for item in items if item.problem]
    assert "2 images have this name" in ambiguous and "no such image" in nameless


@pytest.mark.parametrize(
    "members, message",
    [
        ({"captions.csv": "file,text\na.png,one\n"}, "captions.csv needs the columns image and text"),
        ({"captions.csv": b"image,text\n\xff\xfe,one\n"}, "captions.csv is not a CSV file in UTF-8"),
        ({}, "There is no image"),
        ({f"{number}.png": b"" for number in range(MAX_IMAGES + 1)}, "501 images, more than the 500"),
    ],
)
def test_what_is_wrong_with_all_of_it_is_a_sentence(client, tmp_path, members, message):
    with pytest.raises(AppError) as caught:
        segment_many(client, write_zip(tmp_path / "bad.zip", members))
    assert message in str(caught.value) and "/tmp" not in str(caught.value)


def test_a_zip_that_would_fill_the_memory_is_a_row(client, files, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_UNPACKED_BYTES", 1024**3)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(11):
            archive.writestr(f"{number}.png", bytes(99 * 1024**2))
    report = segment_many(client, tmp_path / "bomb.zip", files / "a.png")[1]
    assert [row["image"] for row in report["images"]] == ["a.png"]
    (failure,) = report["failures"]
    assert failure["image"] == "bomb.zip" and "more than 2000 files or 1 GB" in failure["error"]


def test_from_files_to_a_zip_by_hand(page, files, tmp_path):
    expect(page.get_by_role("button", name="Download masks and table")).to_be_disabled()
    uploads = [files / name for name in ("a.png", "b.png", "broken.png", "captions.csv")]
    file_input(page, "Images or zips").set_input_files(uploads)
    expect(page.get_by_role("cell", name="captions.csv")).to_be_visible()
    page.get_by_role("textbox", name="Caption For images").fill(CAPTION)
    page.get_by_role("button", name="Segment the images").click()
    button = page.get_by_role("button", name="Download masks and table")
    expect(button).to_be_enabled()
    for text in ("broken.png is a broken image file", "missing.png, but there is no such image"):
        expect(page.get_by_role("gridcell", name=text)).to_be_attached()
    expect(page.get_by_role("columnheader", name="Area in pixels")).to_be_attached()
    expect(page.get_by_role("button", name="Thumbnail 2 of 2")).to_be_attached()
    with page.expect_download() as download:
        button.click()
    assert download.value.suggested_filename == "segmentations.zip"
    download.value.save_as(tmp_path / "result.zip")
    report = json.loads(zipfile.ZipFile(tmp_path / "result.zip").read("measurements.json"))
    assert [row["text"] for row in report["images"]] == [f"{CAPTION}, left", CAPTION]


def test_stop_ends_the_work_and_keeps_what_there_is(page, slow_runs, files):
    page.get_by_role("button", name="Segment the images").click()
    expect(page.get_by_text("Add images first")).to_be_visible()
    file_input(page, "Images or zips").set_input_files(files / "set.zip")
    expect(page.get_by_role("cell", name="set.zip")).to_be_visible()
    page.get_by_role("button", name="Segment the images").click()
    expect(page.get_by_text(re.compile(r"[1-9]\d* / 120"))).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Segment the images")).to_be_enabled()
    slow_runs.assert_ended(before=120 / 8)
    expect(page.get_by_role("gridcell", name="images/3.png").first).to_be_attached()
    expect(page.get_by_role("button", name="Download masks and table")).to_be_disabled()


def test_words_are_chinese_where_the_browser_asks_for_them(browser, url, files):
    with open_page(browser, url, "多张图像", locale="zh-CN") as page:
        page.locator("input[type=file][multiple]").set_input_files(files / "a.png")
        expect(page.get_by_role("cell", name="a.png")).to_be_visible()
        page.get_by_role("button", name="分割这些图像").click()
        expect(page.get_by_role("columnheader", name="面积(像素)")).to_be_attached()
