"""The service: what it answers is what a segmenter says, and what it is asked wrongly it refuses with a sentence."""

import csv
import io
import json
import re
import runpy
import subprocess
import unicodedata
import warnings
import zipfile
from pathlib import Path

import highdicom
import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import make_dicom, save_dicom
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from missing import skip_where_missing
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from lvit_hf.demo import launch
from lvit_hf.inference import collection
from lvit_hf.inference.collection import MAX_IMAGES, collect, is_series
from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.inference.files import FileResult, Item, describe_result
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io import readers
from lvit_hf.io.readers import read_scan


ROOT = Path(__file__).parents[2]
CAPTION = "one infected area, upper left lung"
AFFINE = np.array([[-2.0, 0, 0, 40], [0, 0, 3.0, -20], [0, 2.5, 0, 7], [0, 0, 0, 1]])


def read_picture(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_mask_its_overlay_and_its_report_are_those_of_the_package(client, segmenter, files):
    mask, overlay, report = client.predict(
        handle_file(files / "picture.png"), CAPTION, 0.4, side="patient", api_name="/segment"
    )
    scan = read_scan(files / "picture.png")
    [result] = segmenter.segment([scan.image()], [CAPTION], side="patient")
    np.testing.assert_array_equal(read_picture(mask) > 0, result.mask(0.4))
    np.testing.assert_array_equal(read_picture(overlay), np.asarray(draw_overlay(result.image, result.mask(0.4))))
    expected = describe_result(FileResult(Item("picture.png", CAPTION), None, scan, result), 0.4)
    expected = json.loads(json.dumps(expected))
    assert {name: report[name] for name in expected} == expected
    assert Path(mask).name == "picture_mask.png" and "/" not in report["model"]


def test_captions_are_written_and_those_not_understood_are_ignored_used_or_refused(client, segmenter, files):
    image = handle_file(files / "picture.png")
    written = client.predict(image, api_name="/caption")
    [result] = segmenter.segment([Image.open(files / "picture.png")])
    assert [row["text"] for row in written["captions"]] == [row["text"] for row in result.described["captions"]]
    dog = "a photo of a dog"
    assert client.predict(image, dog, api_name="/segment")[2]["text_used"] is False
    assert client.predict(image, dog, on_unknown="use", api_name="/segment")[2]["text_used"] is True
    with pytest.raises(AppError):
        client.predict(image, dog, on_unknown="error", api_name="/segment")


def test_captions_are_written_of_the_slice_that_is_asked_for(client, segmenter, tmp_path):
    path = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((24, 20, 3), np.float32), np.eye(4)), path)
    scan = read_scan(path)
    for number in range(len(scan)):
        written = client.predict(handle_file(path), slice_number=number + 1, api_name="/caption")
        [result] = segmenter.segment([scan.image(number)])
        shown = [row["probability"] for row in result.described["captions"]]
        assert [row["probability"] for row in written["captions"]] == pytest.approx(shown, abs=1e-4)


def test_a_checkpoint_without_a_head_writes_no_captions(client, checkpoint, files):
    with pytest.raises(AppError, match="has no caption head"):
        client.predict(handle_file(files / "picture.png"), str(checkpoint), api_name="/caption")


def test_tiles_are_not_told_what_is_true_of_the_whole_image_alone(client, files):
    for name, used in (("picture.png", True), ("slide.png", False)):
        report = client.predict(handle_file(files / name), CAPTION, 0.5, 96, api_name="/segment")[2]
        assert report["text_used"] is used


def test_slices_of_volumes_and_spacing(client, files, tmp_path):
    ct = client.predict(handle_file(files / "scan.dcm"), api_name="/segment")[2]
    assert ct["area_mm2"] == pytest.approx(ct["area_pixels"] * 0.661468**2)
    assert "modality CT" in ct["out_of_scope"]
    ramp = np.linspace(0, 900, 5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    nibabel.save(nibabel.Nifti1Image(ramp, np.diag([2, 3, 4, 1])), tmp_path / "volume.nii.gz")
    volume = handle_file(tmp_path / "volume.nii.gz")
    assert client.predict(volume, slice_number=7, api_name="/segment")[2]["slice"] == 6
    for number in (0, 8):
        with pytest.raises(AppError, match=f"slice_number is {number}, but volume.nii.gz has 7, counted from 1"):
            client.predict(volume, slice_number=number, api_name="/segment")


def write_series(path: Path, numbers: list[int]) -> Path:
    """CT slices, 2.5 mm apart, in disorder, in a folder of a zip with other things."""
    noise = np.random.default_rng(1)
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("study/read me.txt", "not an image")
        for number in noise.permutation(numbers):
            dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.ImagePositionPatient = [-158, -179, -75 + 2.5 * float(number)]
            dataset.Rows, dataset.Columns = 30, 40
            dataset.PixelData = (noise.integers(0, 900, (30, 40)) + 100 * number).astype("<i2").tobytes()
            content = io.BytesIO()
            dataset.save_as(content)
            archive.writestr(f"study/IM{number}", content.getvalue())
    return path


def expected_masks(segmenter: Segmenter, path: Path, text: str = "") -> np.ndarray:
    """Each slice segmented by itself."""
    scan = read_scan(path)
    return np.stack([segmenter.segment([scan.image(index)], [text])[0].mask(0.5) for index in range(len(scan))])


def test_the_mask_of_a_nifti_file_lies_on_its_grid(client, segmenter, tmp_path):
    path = tmp_path / "noise.nii.gz"
    voxels = np.random.default_rng(0).integers(-500, 1500, (24, 12, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)
    mask, report = client.predict(handle_file(path), CAPTION, api_name="/segment_volume")
    masks = expected_masks(segmenter, path, CAPTION)
    np.testing.assert_array_equal(nibabel.load(mask).affine, nibabel.load(path).affine)
    np.testing.assert_array_equal(read_scan(mask).slices > 0, masks)
    assert report["volume_ml"] == pytest.approx(masks.sum() * 2 * 2.5 * 3 / 1000)
    assert report["area_pixels_by_slice"] == masks.sum(axis=(1, 2)).tolist()


def test_the_mask_of_a_series_points_to_its_slices_and_names_nobody(client, segmenter, tmp_path):
    path = write_series(tmp_path / "series.zip", [0, 1, 2, 3])
    assert is_series(path)
    mask = client.predict(handle_file(path), api_name="/segment_volume")[0]
    written, original = highdicom.seg.segread(mask), pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    assert written.FrameOfReferenceUID == original.FrameOfReferenceUID
    instances = [header.SOPInstanceUID for header in read_scan(path).mask_writer.headers]
    masks = written.get_pixels_by_source_instance(instances, ignore_spatial_locations=True)[..., 0]
    np.testing.assert_array_equal(masks.astype(bool), expected_masks(segmenter, path))
    assert str(original.PatientName).split("^")[0].encode() not in Path(mask).read_bytes()


def test_frames_without_a_place_have_a_mask_without_one(client):
    """Ultrasound."""
    frames = handle_file(get_testdata_file("examples_ybr_color.dcm"))
    mask, report = client.predict(frames, CAPTION, api_name="/segment_volume")
    assert nibabel.load(mask).shape[2] == report["slices"] == 30 and report["volume_ml"] is None


def png(seed: int = 0) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)).save(content, "png")
    return content.getvalue()


def write_zip(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def segment_many(client: Client, *paths: Path, **settings) -> tuple[zipfile.ZipFile, dict]:
    archive, report = client.predict([handle_file(path) for path in paths], api_name="/segment_many", **settings)
    return zipfile.ZipFile(archive), report


def test_files_of_every_kind_with_their_captions(client, segmenter, files, tmp_path):
    captions = tmp_path / "captions.csv"
    captions.write_text(f'image,text\npicture.png,"{CAPTION}"\nmissing.png,{CAPTION}\n')
    volume = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((9, 8, 3), np.float32), np.eye(4)), volume)
    bad = {
        "empty.png": b"",
        "text.jpg": b"I am no image",
        "inner.zip": png(),
        "notes.txt": "a text",
        "good.png": png(),
    }
    many = write_zip(tmp_path / "many.zip", bad | {"huge.png": (files / "huge.png").read_bytes()})
    paths = (files / "picture.png", files / "scan.dcm", volume, many, captions)
    archive, report = segment_many(client, *paths, text="all infected areas")
    rows = {row["image"]: row for row in report["images"]}
    assert list(rows) == ["picture.png", "scan.dcm", "volume.nii", "good.png"]
    assert [row["text"] for row in rows.values()] == [CAPTION, *["all infected areas"] * 3]
    assert rows["volume.nii"]["slices"] == 3 and rows["volume.nii"]["masks"] == ["volume_mask.nii.gz"]
    [expected] = segmenter.segment([Image.open(files / "picture.png")], [CAPTION])
    mask = read_picture(io.BytesIO(archive.read("masks/picture_mask.png"))) > 0
    np.testing.assert_array_equal(mask, expected.mask(0.5))
    reasons = {row["image"]: row["error"] for row in report["failures"]}
    assert reasons.keys() == bad.keys() - {"good.png"} | {"huge.png", "missing.png"}
    assert "16 million pixels" in reasons["huge.png"] and "zip inside a zip" in reasons["inner.zip"]
    assert not any("/tmp" in reason for reason in reasons.values())
    table = list(csv.DictReader(io.StringIO(archive.read("table.csv").decode("utf-8-sig"))))
    assert table[0]["image"] == "picture.png" and int(table[0]["area_pixels"]) == rows["picture.png"]["area_pixels"]
    assert json.loads(archive.read("report.json")) == report


def test_settings_of_a_call_hold_for_every_file_and_slice(client, segmenter, files, tmp_path):
    archive, report = segment_many(client, files / "picture.png", text=CAPTION, threshold=0.3, side="patient")
    [expected] = segmenter.segment([Image.open(files / "picture.png")], [CAPTION], side="patient")
    mask = read_picture(io.BytesIO(archive.read("masks/picture_mask.png"))) > 0
    np.testing.assert_array_equal(mask, expected.mask(0.3))
    assert report["images"][0]["area_pixels"] == mask.sum()
    path = tmp_path / "noise.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((24, 12, 3), np.float32), AFFINE), path)
    volume, report = client.predict(handle_file(path), CAPTION, 0.3, side="patient", api_name="/segment_volume")
    scan, masks = read_scan(path), read_scan(volume).slices > 0
    slices, texts = [scan.image(index) for index in range(len(scan))], [CAPTION] * len(scan)
    expected_masks = [result.mask(0.3) for result in segmenter.segment(slices, texts, side="patient")]
    np.testing.assert_array_equal(masks, expected_masks)
    assert report["voxels"] == masks.sum()


def test_names_are_never_trusted(client, tmp_path):
    names = ["../../evil.png", "/etc/evil.png", "C:\\windows\\evil.png", "a/same.png", "b/SAME.jpg", "(1)/()/x.png"]
    names += ["=cmd|' /C calc'!A0.png", "<img src=x onerror=alert(1)>.png", "结果.png"]
    junk = {"__MACOSX/a/._same.png": b"x", ".DS_Store": b"x", "a/Thumbs.db": b"x", "a/": b""}
    members = {name: png(number) for number, name in enumerate(names)} | junk
    archive, report = segment_many(client, write_zip(tmp_path / "names.zip", members))
    assert not report["failures"] and len(report["images"]) == len(names)
    masks = [name for name in archive.namelist() if name.startswith("masks/")]
    assert len({name.casefold() for name in masks}) == len(names)
    assert all(name.count("/") == 1 and ".." not in name and "\\" not in name for name in masks)
    table = list(csv.reader(io.StringIO(archive.read("table.csv").decode("utf-8-sig"))))
    assert not any(cell.startswith(("=", "+", "@")) for row in table for cell in row)


def test_captions_find_their_images_in_folders(tmp_path):
    table = "\ufeffimage,text\nleft/1.png,one\nright\\1.PNG,two\nleft/1.png,three\n2.png,four\n1.png,five\n,six\n"
    images = ("set/left/1.png", "set/right/1.png", "set/deep/2.png", "3.png")
    path = write_zip(tmp_path / "set.zip", {"set/captions.csv": table} | dict.fromkeys(images, png()))
    items = collect([str(path)], "default")
    assert [(item.name, item.text) for item in items if not item.problem] == [
        ("set/left/1.png", "one"),
        ("set/left/1.png", "three"),
        ("set/right/1.png", "two"),
        ("set/deep/2.png", "four"),
        ("3.png", "default"),
    ]
    ambiguous, nameless = [item.problem for item in items if item.problem]
    assert "2 images have this name" in ambiguous and "no such image" in nameless


def test_a_name_is_the_same_however_its_accents_are_written(tmp_path):
    name = unicodedata.normalize("NFD", "caf\u00e9.png")
    files = {"captions.csv": "image,text\ncaf\u00e9.png,one\n", name: png()}
    [item] = collect([str(write_zip(tmp_path / "all.zip", files))], "default")
    assert (item.text, item.problem) == ("one", None)


def test_a_table_means_the_images_beside_it_first(tmp_path):
    tables = {f"{folder}captions.csv": f"image,text\na.png,{folder}\n" for folder in ("one/", "two/")}
    tables["captions.csv"] = "image,text\na.png,top\n"
    images = dict.fromkeys(("a.png", "one/a.png", "two/a.png"), png())
    items = collect([str(write_zip(tmp_path / "all.zip", tables | images))], "default")
    assert [(item.text, item.problem) for item in items] == [("top", None), ("one/", None), ("two/", None)]


def test_a_file_in_a_zip_that_is_too_large_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "MAX_FILE_BYTES", 1024**2)
    path = write_zip(tmp_path / "all.zip", {"large.png": bytes(1024**2 + 1), "small.png": png()})
    large, small = collect([str(path)], "")
    assert large.problem == "large.png has more than 1 MB." and small.problem is None


def test_a_zip_of_two_series_or_of_one_slice_is_no_volume(tmp_path):
    for name, series, places, expected in (
        ("one", "1.2.3", (0, 5), True),
        ("slice", "1.2.3", (0,), False),
        ("two", None, (0, 5), False),
    ):
        for place in places:
            dataset = make_dicom(np.zeros((8, 9), np.uint16), position=(0, 0, place))
            dataset.SeriesInstanceUID = series or generate_uid()
            save_dicom(dataset, tmp_path / name / f"{place}.dcm")
        members = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        assert is_series(write_zip(tmp_path / f"{name}.zip", members)) == expected


@pytest.mark.parametrize(
    "members, message",
    [
        ({"captions.csv": "file,text\na.png,one\n"}, "captions.csv needs the columns image and text"),
        ({"captions.csv": b"image,text\n\xff\xfe,one\n"}, "captions.csv is not a CSV file in UTF-8"),
        ({f"{number}.png": b"" for number in range(MAX_IMAGES + 1)}, "501 images, more than the 500"),
    ],
    ids=["columns", "encoding", "number"],
)
def test_what_is_wrong_with_all_files_is_a_sentence(client, tmp_path, members, message):
    with pytest.raises(AppError) as caught:
        segment_many(client, write_zip(tmp_path / "bad.zip", members))
    assert message in str(caught.value) and "/tmp" not in str(caught.value)


def test_a_zip_that_would_fill_the_memory_is_a_row(client, files, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_UNPACKED_BYTES", 1024**2)
    bomb = write_zip(tmp_path / "bomb.zip", {"zeros.png": bytes(2 * 1024**2)})
    report = segment_many(client, bomb, files / "picture.png")[1]
    assert [row["image"] for row in report["images"]] == ["picture.png"]
    assert [row["image"] for row in report["failures"]] == ["bomb.zip"]


@pytest.fixture(scope="module")
def app_url(checkpoint):
    """The address of what `app.py` serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVIT_MODEL", str(checkpoint))
        demo = runpy.run_path(str(ROOT / "app.py"))["demo"]
    yield launch(demo, prevent_thread_lock=True, quiet=True)[1]
    demo.close()


def read_code_blocks(language: str, url: str) -> list[str]:
    text = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8").replace("http://127.0.0.1:7860", url.rstrip("/"))
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_snippets_of_the_documentation_run(app_url, tmp_path):
    one, several = read_code_blocks("python", app_url)
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 9, 2), np.float32), np.eye(4)), tmp_path / "ct.nii.gz")
    write_zip(tmp_path / "images.zip", {"a.png": png()})
    for name in ("ct.nii.gz", "images.zip"):
        several = several.replace(name, str(tmp_path / name))
    names: dict = {}
    exec(one.replace("examples/", f"{ROOT}/examples/") + several, names)
    assert Path(names["mask"]).name.endswith(".nii.gz") and zipfile.is_zipfile(names["archive"])


def test_the_commands_of_the_documentation_run(app_url):
    [commands] = [block for block in read_code_blocks("bash", app_url) if "curl" in block]
    with skip_where_missing("The documentation's commands need curl.", FileNotFoundError):
        subprocess.run(["curl", "--version"], check=True, capture_output=True)
    shell = ["bash", "-euo", "pipefail", "-c", commands]
    answer = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    image = handle_file(ROOT / "examples" / "chest-xray.jpg")
    measured = Client(app_url, verbose=False).predict(
        image, "one infected area, lower left lung", api_name="/segment"
    )[2]
    assert json.loads(answer.split("data: ")[-1])[2] == measured


def test_agents_find_tools_whose_every_parameter_is_described(app_url):
    tools = {tool["name"]: tool for tool in httpx.get(f"{app_url}gradio_api/mcp/schema").json()}
    required = {"segment": "image", "caption": "image", "segment_volume": "volume", "segment_many": "files"}
    assert tools.keys() == required.keys()
    for name, tool in tools.items():
        assert tool["description"] and tool["inputSchema"]["required"] == [required[name]]
        assert all(field["description"] for field in tool["inputSchema"]["properties"].values())
    parameters = httpx.get(f"{app_url}gradio_api/info").json()["named_endpoints"]["/segment"]["parameters"]
    names = ["image", "text", "threshold", "tile_size", "model", "slice_number", "side", "on_unknown"]
    assert [parameter["parameter_name"] for parameter in parameters] == names


def test_the_server_refuses_heavy_files(app_url):
    heavy = {"files": ("heavy.png", bytes(101 * 1024**2))}
    assert httpx.post(f"{app_url}gradio_api/upload", files=heavy).status_code == 413


def test_app_says_what_is_wrong_with_its_model(tmp_path, monkeypatch):
    monkeypatch.setenv("LVIT_MODEL", str(tmp_path))
    with pytest.raises(SystemExit, match=f"Error: {tmp_path} is not an LViT checkpoint"):
        runpy.run_path(str(ROOT / "app.py"))


def test_app_says_what_is_wrong_with_its_port(monkeypatch):
    for port in ("eight", "0", "65536", "-1"):
        monkeypatch.setenv("GRADIO_SERVER_PORT", port)
        with pytest.raises(SystemExit, match=f"Error: GRADIO_SERVER_PORT is the number of a port, .*{port}"):
            runpy.run_path(str(ROOT / "app.py"))
