import io
import re
import time
import warnings
import zipfile
from pathlib import Path

import highdicom
import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from app_page import file_input, open_page
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from nibabel.testing import data_path
from playwright.sync_api import Page, expect
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from lvit_hf.demo import volume_tab
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.readers import read_scan


CAPTION = "one infected area"
AFFINE = np.array([[-2.0, 0, 0, 40], [0, 0, 3.0, -20], [0, 2.5, 0, 7], [0, 0, 0, 1]])


@pytest.fixture
def page(browser, url, window):
    with open_page(browser, url, "A volume", **window) as page:
        yield page


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    noise = np.random.default_rng(0)
    voxels = noise.integers(-500, 1500, (24, 12, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), folder / "noise.nii.gz")
    long = noise.integers(0, 255, (16, 16, 200)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(long, np.eye(4)), folder / "long.nii.gz")
    too_long = np.zeros((4, 4, volume_tab.MAX_SLICES + 1), np.uint8)
    nibabel.save(nibabel.Nifti1Image(too_long, np.eye(4)), folder / "too_long.nii.gz")
    write_series(folder / "series.zip", [0, 1, 2, 3, 4, 5])
    write_series(folder / "gap.zip", [0, 1, 3])
    (folder / "broken.nii.gz").write_bytes((folder / "noise.nii.gz").read_bytes()[:100])
    return folder


def write_series(path: Path, numbers: list[int]):
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


def expected_masks(segmenter: Segmenter, path: Path, text: str, threshold: float) -> np.ndarray:
    """Each slice segmented by itself."""
    scan = read_scan(path)
    return np.stack([segmenter.segment([scan.image(index)], [text])[0].mask(threshold) for index in range(len(scan))])


def read_nifti_mask(path: str | Path) -> np.ndarray:
    return read_scan(path).slices > 0


def test_the_endpoint_gives_the_mask_on_the_grid_of_a_nifti_file(client, segmenter, files):
    mask_file, measures = client.predict(handle_file(files / "noise.nii.gz"), CAPTION, 0.4, api_name="/segment_volume")
    expected = expected_masks(segmenter, files / "noise.nii.gz", CAPTION, 0.4)
    mask, source = nibabel.load(mask_file), nibabel.load(files / "noise.nii.gz")
    assert Path(mask_file).name == "noise_mask.nii.gz"
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    np.testing.assert_array_equal(read_nifti_mask(mask_file), expected)

    areas = expected.sum(axis=(1, 2))
    assert 0 < measures["voxels"] == expected.sum() < expected.size
    assert measures["volume_ml"] == pytest.approx(expected.sum() * 2 * 2.5 * 3 / 1000)
    assert measures["slices_with_findings"] == np.count_nonzero(areas)
    assert measures["area_pixels_by_slice"] == areas.tolist()
    assert measures["largest_slice"] == areas.argmax() and measures["largest_slice_area_pixels"] == areas.max()
    assert (measures["text"], measures["text_used"], measures["volume"]) == (CAPTION, True, "noise.nii.gz")
    scan = read_scan(files / "noise.nii.gz")
    probabilities = [
        result.probabilities
        for result in segmenter.segment(list(map(scan.image, range(len(scan)))), [CAPTION] * len(scan))
    ]
    assert measures["mean_probability"] == pytest.approx(np.stack(probabilities)[expected].mean(), abs=0.005)


def test_the_mask_of_a_series_points_to_its_slices_in_its_frame_of_reference(client, segmenter, files):
    mask_file, measures = client.predict(handle_file(files / "series.zip"), api_name="/segment_volume")
    expected = expected_masks(segmenter, files / "series.zip", "", 0.5)
    written = highdicom.seg.segread(mask_file)
    original = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    assert written.FrameOfReferenceUID == original.FrameOfReferenceUID
    instances = [header.SOPInstanceUID for header in read_scan(files / "series.zip").mask_writer.headers]
    masks = written.get_pixels_by_source_instance(instances, ignore_spatial_locations=True)[..., 0]
    np.testing.assert_array_equal(masks.astype(bool), expected)
    assert measures["volume_ml"] == pytest.approx(expected.sum() * 0.661468**2 * 2.5 / 1000)
    assert str(original.PatientName).split("^")[0].encode() not in Path(mask_file).read_bytes()


def test_the_volume_is_unknown_where_a_slice_is_missing(client, files):
    measures = client.predict(handle_file(files / "gap.zip"), api_name="/segment_volume")[1]
    assert measures["volume_ml"] is None and measures["largest_slice_area_mm2"] > 0


def test_frames_without_a_place_have_a_mask_without_one(client, segmenter):
    """Ultrasound."""
    frames = Path(get_testdata_file("examples_ybr_color.dcm"))
    mask_file, measures = client.predict(handle_file(frames), CAPTION, api_name="/segment_volume")
    np.testing.assert_array_equal(read_nifti_mask(mask_file), expected_masks(segmenter, frames, CAPTION, 0.5))
    assert (measures["slices"], measures["volume_ml"]) == (30, None)
    dose = client.predict(handle_file(get_testdata_file("rtdose.dcm")), api_name="/segment_volume")[0]
    assert nibabel.load(dose).shape == (10, 10, 15)


def test_a_real_scan(client):
    """A brain that comes with nibabel."""
    path = Path(data_path, "anatomical.nii")
    mask_file, measures = client.predict(handle_file(path), api_name="/segment_volume")
    source, mask = nibabel.load(path), nibabel.load(mask_file)
    assert mask.shape == source.shape and measures["voxels"] == np.count_nonzero(mask.dataobj)
    np.testing.assert_allclose(mask.affine, source.affine)


@pytest.mark.parametrize(
    "name, message",
    [
        ("broken.nii.gz", "broken.nii.gz is not a NIfTI file, or a broken one"),
        ("too_long.nii.gz", "too_long.nii.gz has 1,001 slices, more than the 1,000"),
    ],
)
def test_the_endpoint_refuses_with_a_sentence(client, files, name, message):
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(files / name), api_name="/segment_volume")
    assert message in str(caught.value) and "/gradio/" not in str(caught.value)


def test_agents_find_the_tool_with_a_description_of_every_parameter(url):
    tools = {tool["name"]: tool["inputSchema"] for tool in httpx.get(f"{url}gradio_api/mcp/schema").json()}
    for name, required in (("segment_volume", ["volume"]), ("segment_many", ["files"])):
        assert tools[name]["required"] == required
        assert all(field["description"] for field in tools[name]["properties"].values())


def upload(page: Page, path: Path):
    file_input(page, "NIfTI, DICOM or zip").set_input_files(path)
    expect(page.get_by_label("Slices × rows × columns")).not_to_have_value("")


def segment(page: Page):
    page.get_by_role("button", name="Segment the volume").click()
    expect(page.get_by_role("button", name="Download mask volume")).to_be_enabled()


def set_slider(page: Page, label: str, value: str):
    field = page.get_by_label(f"number input for {label}").locator("visible=true")
    field.fill(value)
    field.press("Enter")


def count_runs(segmenter: Segmenter) -> list:
    """A list that grows with every run of the network."""
    runs: list = []
    segmenter.model.register_forward_hook(lambda *_: runs.append(1))
    return runs


def test_from_a_file_to_a_mask_volume_by_hand(page, segmenter, files, tmp_path):
    runs = count_runs(segmenter)
    upload(page, files / "noise.nii.gz")
    expect(page.get_by_label("Slices × rows × columns")).to_have_value("12 × 20 × 24; 2.5 × 3 × 2 mm")
    page.get_by_role("textbox", name="Caption One for all slices").fill(CAPTION)
    segment(page)
    expected = expected_masks(segmenter, files / "noise.nii.gz", CAPTION, 0.5)
    areas = expected.sum(axis=(1, 2))
    expect(page.get_by_label("Voxels")).to_have_value(f"{expected.sum():,}")
    expect(page.get_by_label("Slices with findings")).to_have_value(f"{np.count_nonzero(areas)} / 12")
    expect(page.get_by_label("number input for Slice")).to_have_value(str(areas.argmax() + 1))
    count = len(runs)

    mask = page.get_by_alt_text("segmentation mask").first
    source = mask.get_attribute("src")
    set_slider(page, "Slice", str(areas.argmin() + 1))
    expect(mask).not_to_have_attribute("src", source)
    page.get_by_role("button", name="Thumbnail 5 of 12").click()
    expect(page.get_by_label("number input for Slice")).to_have_value("5")

    set_slider(page, "Threshold", "0.7")
    expected = expected_masks(segmenter, files / "noise.nii.gz", CAPTION, 0.7)
    expect(page.get_by_label("Voxels")).to_have_value(f"{expected.sum():,}")
    button = page.get_by_role("button", name="Download mask volume")
    expect(button).to_be_enabled()
    with page.expect_download() as download:
        button.click()
    download.value.save_as(tmp_path / "mask.nii.gz")
    assert download.value.suggested_filename == "noise_mask.nii.gz"
    np.testing.assert_array_equal(nibabel.load(tmp_path / "mask.nii.gz").affine, AFFINE)
    np.testing.assert_array_equal(read_nifti_mask(tmp_path / "mask.nii.gz"), expected)
    assert len(runs) - count == 2 * 12 - 12  # those of `expected_masks`


def test_a_broken_volume_gives_a_sentence_and_a_series_works_after_it(page, files, tmp_path):
    file_input(page, "NIfTI, DICOM or zip").set_input_files(files / "broken.nii.gz")
    expect(page.get_by_test_id("toast-body")).to_contain_text("broken.nii.gz is not a NIfTI file, or a broken one")
    page.get_by_role("button", name="Clear").first.click()
    page.get_by_role("button", name="Segment the volume").click()
    expect(page.get_by_text("Add a volume first")).to_be_visible()
    upload(page, files / "series.zip")
    segment(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download mask volume").click()
    assert download.value.suggested_filename == "series_mask.dcm"
    download.value.save_as(tmp_path / "mask.dcm")
    original = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    assert pydicom.dcmread(tmp_path / "mask.dcm").FrameOfReferenceUID == original.FrameOfReferenceUID
    page.get_by_role("button", name="Clear").first.click()
    upload(page, files / "gap.zip")
    expect(page.get_by_label("Voxels")).to_have_value("")
    expect(page.get_by_role("button", name="Download mask volume")).to_be_disabled()


def test_stop_ends_the_work_and_the_page_goes_on(page, slow_runs, files):
    upload(page, files / "long.nii.gz")
    page.get_by_role("button", name="Segment the volume").click()
    expect(page.get_by_text(re.compile(r"[1-9]\d* / 200"))).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Segment the volume")).to_be_enabled()
    slow_runs.assert_ended(before=200 / 8)
    expect(page.get_by_label("Voxels")).to_have_value("")
    page.get_by_role("button", name="Clear").first.click()
    upload(page, files / "noise.nii.gz")
    segment(page)


def test_a_visitor_who_leaves_ends_the_work(browser, url, slow_runs, files):
    with open_page(browser, url, "A volume") as page:
        upload(page, files / "long.nii.gz")
        page.get_by_role("button", name="Segment the volume").click()
        expect(page.get_by_text(re.compile(r"[1-9]\d* / 200"))).to_be_visible()
    slow_runs.assert_ended(before=200 / 8)


def test_a_client_can_cancel(client, slow_runs, files):
    job = client.submit(handle_file(files / "long.nii.gz"), api_name="/segment_volume")
    while slow_runs.count < 2:
        time.sleep(0.1)
    job.cancel()
    slow_runs.assert_ended(before=200 / 8)
