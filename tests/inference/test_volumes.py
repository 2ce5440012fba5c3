"""Whole files through a network of three dimensions."""

import copy
import io
import itertools
import zipfile

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.inferers import sliding_window_inference
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from tiny_lvit import tiny_model, tiny_processor
from tiny_volumes import PATCH, tiny_volume_model, tiny_volume_processor

from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.inference.volumes import scan_to_image, segment_scan
from lvit_hf.io.readers import read_scan
from lvit_hf.model.segmenter_lvit import LViTSegmenter
from lvit_hf.model.sliding_window_lvit import list_windows, slide_window


CAPTION = "one infected area, upper left lung"
CODES = ["".join(c) for order in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*order)]
ROTATION = np.array([[0.936, -0.275, 0.218], [0.289, 0.956, -0.036], [-0.199, 0.097, 0.975]])


@pytest.fixture(scope="module")
def model():
    return tiny_volume_model(text_fusion="cross_attention")


@pytest.fixture(scope="module")
def processor():
    return tiny_volume_processor()


@pytest.fixture(scope="module")
def segmenter(model, processor):
    return LViTSegmenter(model, processor)


def noise(shape: tuple[int, ...], affine: np.ndarray | None = None) -> nibabel.Nifti1Image:
    values = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    return nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)


def test_a_volume_of_one_window_is_what_the_network_says_of_it(model, processor, segmenter):
    volume = noise((8, 16, 8))
    inputs = processor(images=volume, text=CAPTION, return_tensors="pt")
    with torch.inference_mode():
        _, scores = processor.image_processor.post_process_semantic_segmentation(
            model(**inputs), inputs, return_segmentation_scores=True
        )[0]
    np.testing.assert_allclose(segmenter.segment_volume(volume, CAPTION).probabilities, scores[0], atol=1e-5)


def test_a_large_volume_is_covered_by_windows_and_reports_its_progress(segmenter):
    steps: list[tuple[int, int]] = []
    volume = noise((20, 30, 9))
    scores = segmenter.segment_volume(volume, progress=lambda *step: steps.append(step)).probabilities
    assert scores.shape == volume.shape and 0 <= scores.min() < 0.5 < scores.max() <= 1
    total = len(list_windows((9, 30, 20), PATCH))
    assert steps[0] == (2, total) and steps[-1] == (total, total) and len(steps) > 1
    assert not np.array_equal(scores, segmenter.segment_volume(volume, CAPTION).probabilities)


@pytest.mark.parametrize("shape", [(9, 30, 20), (8, 16, 8), (23, 17, 11)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_windows_are_blended_as_monai_blends_them(shape, overlap):
    volume, torch_only = torch.rand(1, *shape), torch.nn.Conv3d(1, 2, 3, padding=1)
    with torch.inference_mode():
        expected = sliding_window_inference(volume[None], PATCH, 3, torch_only, overlap, mode="gaussian")[0]
        torch.testing.assert_close(slide_window(volume, PATCH, torch_only, overlap, batch_size=3), expected)


def test_the_work_can_be_cancelled(segmenter):
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int):
        raise Cancelled

    with pytest.raises(Cancelled):
        segmenter.segment_volume(noise((20, 30, 9)), progress=cancel)


def test_a_scan_is_segmented_in_the_order_of_its_slices_and_shows_the_middle_one(tmp_path, segmenter):
    nibabel.save(noise((20, 30, 9)), tmp_path / "a.nii.gz")
    scan, steps = read_scan(tmp_path / "a.nii.gz", keep_values=True), []
    result = segment_scan(segmenter, scan, CAPTION, progress=lambda *step: steps.append(step), batch_size=1)
    expected = segmenter.segment_volume(scan_to_image(scan), CAPTION)
    assert steps[0][0] == 1 and expected.text_used
    np.testing.assert_array_equal(result.mask(0.5), expected.probabilities > 0.5)
    np.testing.assert_allclose(result.middle.scores, expected.scores[:, 4], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(result.middle.image), np.asarray(scan.image(4)))


@pytest.mark.parametrize("code", CODES)
def test_a_file_of_any_orientation_has_its_slices_and_its_mask_in_place(tmp_path, code):
    """A voxel of the file, its slice, and a mask written for it lie at one point of the patient to 1e-4 mm."""
    affine = np.eye(4)
    affine[:3, :3] = ROTATION * (1.5, 0.7, 3)
    affine[:3, 3] = (12.5, -30.25, 7)
    values = np.zeros((6, 9, 5), np.uint8)
    values[4, 1, 3] = 255
    point = apply_affine(affine, (4, 1, 3))
    image = nibabel.Nifti1Image(values, affine).as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code)))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    ((place,),) = [np.argwhere(scan.slices == 255)]
    np.testing.assert_allclose(apply_affine(scan_to_image(scan).affine, place), point, atol=1e-4)
    scan.mask_writer.save(scan.slices == 255, tmp_path / "mask.nii.gz", "infection")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    ((place,),) = [np.argwhere(np.asarray(mask.dataobj))]
    np.testing.assert_allclose(apply_affine(mask.affine, place), point, atol=1e-4)


def dicom_series(path, step: np.ndarray):
    """Six oblique slices in disorder, with one bright pixel in the slice 2 from below; returns where it lies."""
    rows, columns = np.array([0.936, 0.289, -0.199]), np.array([-0.275, 0.956, 0.097])
    rows, columns = rows / np.linalg.norm(rows), columns / np.linalg.norm(columns)
    columns = columns - rows * (rows @ columns)
    columns /= np.linalg.norm(columns)
    with zipfile.ZipFile(path, "w") as archive:
        for number in (3, 0, 5, 2, 4, 1):
            dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.ImagePositionPatient = [float(value) for value in np.array([10.0, -20, 30]) + number * step]
            dataset.ImageOrientationPatient = [*map(float, rows), *map(float, columns)]
            dataset.PixelSpacing = [0.8, 0.6]
            pixels = np.zeros((12, 10), np.uint16)
            pixels[7, 4] = 900 if number == 2 else 0
            dataset.Rows, dataset.Columns = pixels.shape
            dataset.PixelRepresentation = 0
            dataset.PixelData = pixels.tobytes()
            content = io.BytesIO()
            dataset.save_as(content)
            archive.writestr(f"{number}.dcm", content.getvalue())
    return np.array([10.0, -20, 30]) + 2 * step + 7 * 0.8 * columns + 4 * 0.6 * rows


@pytest.mark.parametrize("step", [(0.3, -0.1, 2.5), (0.3, 0.4, -2.5)], ids=["upward", "downward, tilted"])
def test_a_dicom_series_has_its_slices_and_its_mask_in_place(tmp_path, step):
    point = dicom_series(tmp_path / "series.zip", np.array(step))
    scan = read_scan(tmp_path / "series.zip")
    place = np.unravel_index(scan.slices.argmax(), scan.slices.shape)
    ras = apply_affine(scan_to_image(scan).affine, place)
    np.testing.assert_allclose(ras * (-1, -1, 1), point, atol=1e-4)
    scan.mask_writer.save(scan.slices == scan.slices.max(), tmp_path / "mask.dcm", "infection")
    segmentation = highdicom.seg.segread(tmp_path / "mask.dcm")
    (frame,) = np.argwhere(segmentation.pixel_array.reshape(-1, 12, 10).any((1, 2)))
    position = segmentation.PerFrameFunctionalGroupsSequence[frame[0]].PlanePositionSequence[0].ImagePositionPatient
    first = point - (np.array(point) - np.array([10.0, -20, 30]) - 2 * np.array(step))
    np.testing.assert_allclose(np.array(position, float), first, atol=1e-4)


def test_a_scan_has_the_mask_of_its_file(tmp_path, model, processor):
    """Of the file's own values, and nearly that mask of the 8 bits in which slices are shown."""
    volume = noise((9, 17, 8), np.diag([-1.0, 1, 1, 1]))
    nibabel.save(volume, tmp_path / "scan.nii.gz")
    direct = LViTSegmenter(model, processor).segment_volume(volume, CAPTION).probabilities > 0.5
    segmenter = Segmenter(copy.deepcopy(model), processor)
    for keep_values, least in ((True, 1.0), (False, 0.9)):
        scan = read_scan(tmp_path / "scan.nii.gz", keep_values)
        result = segment_scan(segmenter, scan, CAPTION)
        assert result.counts.shape == scan.slices.shape and result.middle.text_used
        measured = result.measure(0.5, scan)
        assert measured["volume_ml"] == pytest.approx(result.mask(0.5).sum() / 1000)
        scan.mask_writer.save(result.mask(0.5), tmp_path / "mask.nii.gz", "infection")
        mask = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj) > 0
        assert 2 * (mask & direct).sum() / (mask.sum() + direct.sum()) >= least


@pytest.mark.parametrize("slope", [2.5, -1.0])
def test_a_scan_keeps_the_measured_values_of_a_nifti_file(tmp_path, slope):
    volume = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    volume.header.set_slope_inter(slope, 7)
    nibabel.save(volume, tmp_path / "scan.nii")
    image = scan_to_image(read_scan(tmp_path / "scan.nii", keep_values=True))
    places = np.argwhere(np.ones(image.shape))
    voxels = np.rint(apply_affine(np.linalg.inv(volume.affine) @ image.affine, places)).astype(int)
    expected = nibabel.load(tmp_path / "scan.nii").get_fdata()[tuple(voxels.T)]
    np.testing.assert_allclose(np.asarray(image.dataobj).ravel(), expected)


def test_a_scan_keeps_the_measured_values_of_a_dicom_series(tmp_path):
    dicom_series(tmp_path / "series.zip", np.array((0.3, -0.1, 2.5)))
    scan = read_scan(tmp_path / "series.zip", keep_values=True)
    assert scan.values.shape == scan.slices.shape and np.nanmax(scan.values) == 900 - 1024  # its intercept
    assert scan.values.argmax() == scan.slices.argmax() and read_scan(tmp_path / "series.zip").values is None


def test_images_and_volumes_need_a_checkpoint_of_their_own(model, processor):
    with pytest.raises(ValueError, match="three dimensions: it takes volumes"):
        LViTSegmenter(model, processor).segment([Image.new("L", (20, 20), 90)])
    with pytest.raises(ValueError, match="two dimensions: it takes images"):
        LViTSegmenter(tiny_model(), tiny_processor()).segment_volume(noise((8, 16, 8)))


def test_pictures_are_no_volume(tmp_path):
    Image.new("L", (20, 20), 90).save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match="NIfTI file, a DICOM series"):
        scan_to_image(read_scan(tmp_path / "picture.png"))
