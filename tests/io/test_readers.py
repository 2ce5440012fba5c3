import gzip
import io
import os
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import content_of, list_groups, make_dicom, save_dicom, save_zip
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from lvit_hf.inference.files import read_item
from lvit_hf.inference.predictor import list_items
from lvit_hf.io import readers
from lvit_hf.io.readers import list_files, read_mask, read_scan
from lvit_hf.io.scan import MAX_VOXELS


RAMP = np.tile(np.linspace(0, 4000, 40), (30, 1)).astype(np.uint16)


def dicom(name: str, **changes) -> pydicom.Dataset:
    """A file that comes with pydicom, with elements changed, or left out where they are None."""
    dataset = pydicom.dcmread(get_testdata_file(name))
    for element, value in changes.items():
        setattr(dataset, element, value)
        if value is None:
            delattr(dataset, element)
    return dataset


def set_pixels(dataset: pydicom.Dataset, pixels: np.ndarray) -> pydicom.Dataset:
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    return dataset


def save(dataset: pydicom.Dataset, path: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):
        dataset.save_as(path)
    return path


@pytest.fixture
def series(tmp_path) -> Path:
    """A zip of three CT slices in disorder, with a text beside them."""
    path = tmp_path / "series.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../read me.txt", "not an image")
        for number in (2, 0, 1):
            dataset = dicom("CT_small.dcm", SOPInstanceUID=generate_uid())
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.ImagePositionPatient = [-158, -179, -75 + 5 * number]
            set_pixels(dataset, RAMP + 1000 * number)
            content = io.BytesIO()
            dataset.save_as(content)
            archive.writestr(f"../../IM{number}", content.getvalue())
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_reads_pictures(tmp_path, suffix):
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / f"picture.{suffix}")
    scan = read_scan(tmp_path / f"picture.{suffix}")
    assert scan.slices.shape == (1, 30, 40, 3) and scan.spacing is None and scan.mask_writer is None
    np.testing.assert_allclose(scan.slices[0, 15, 20], (200, 100, 50), atol=6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pictures_of_16_bits_are_windowed(tmp_path, suffix):
    Image.fromarray(RAMP).save(tmp_path / f"deep.{suffix}")
    slices = read_scan(tmp_path / f"deep.{suffix}").slices
    assert slices.dtype == np.uint8 and slices[0, 0, 0] == 0 and slices[0, 0, -1] == 255
    assert (np.diff(slices[0, 0].astype(int)) > 0).all()


def test_dicom_is_rescaled_and_windowed_as_it_says(tmp_path):
    dataset = set_pixels(dicom("CT_small.dcm"), RAMP)
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    scan = read_scan(save(dataset, tmp_path / "ct.dcm"))
    hounsfield = RAMP.astype(float) - 1000
    expected = ((hounsfield - 39.5) / 399 + 0.5).clip(0, 1) * 255
    np.testing.assert_allclose(scan.slices[0], expected, atol=1)
    assert scan.spacing == pytest.approx((0.661468, 0.661468))


def test_dicom_with_white_for_the_least_value_is_inverted(tmp_path):
    dataset = set_pixels(dicom("CT_small.dcm", PhotometricInterpretation="MONOCHROME1"), RAMP)
    slices = read_scan(save(dataset, tmp_path / "inverted.dcm")).slices
    assert slices[0, 0, 0] == 255 and slices[0, 0, -1] == 0


def test_dicom_of_eight_bits_stays_as_it_is():
    path = get_testdata_file("examples_ybr_color.dcm")
    slices = read_scan(path).slices
    np.testing.assert_array_equal(slices, pydicom.pixels.pixel_array(path))
    assert slices.shape == (30, 240, 320, 3)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("examples_palette.dcm", (1, 350, 800, 3)),
        ("JPEG2000.dcm", (1, 1024, 256)),
        ("MR_small_RLE.dcm", (1, 64, 64)),
        ("rtdose_rle.dcm", (15, 10, 10)),
    ],
)
def test_reads_dicom_however_it_is_stored(name, shape):
    slices = read_scan(get_testdata_file(name)).slices
    assert slices.shape == shape and slices.max() > 200


def test_a_series_is_sorted_and_has_a_spacing(series):
    scan = read_scan(series)
    assert scan.slices.shape == (3, 30, 40)
    assert (np.diff(scan.slices.mean(axis=(1, 2))) > 0).all()
    assert scan.slice_spacing == pytest.approx(5)


def test_the_mask_of_a_series_points_to_its_slices_and_names_nobody(series, tmp_path):
    scan = read_scan(series)
    masks = np.zeros(scan.slices.shape, bool)
    masks[2, 4:9, 5:8] = True
    scan.mask_writer.save(masks, tmp_path / "mask.dcm", "lesion")
    written = highdicom.seg.segread(tmp_path / "mask.dcm")
    original = dicom("CT_small.dcm")
    assert written.FrameOfReferenceUID == original.FrameOfReferenceUID
    assert written.PatientID == "" and str(written.PatientName) == "" and written.PatientBirthDate == ""
    assert str(original.PatientName).split("^")[0].encode() not in (tmp_path / "mask.dcm").read_bytes()
    frame = written.get_pixels_by_source_instance([scan.mask_writer.headers[2].SOPInstanceUID])
    np.testing.assert_array_equal(frame[0, ..., 0].astype(bool), masks[2])


def enhanced_ct(depths: list[float]) -> pydicom.Dataset:
    """A CT file with several frames, each with its place."""
    dataset = dicom("CT_small.dcm", PixelSpacing=None, ImagePositionPatient=None)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.NumberOfFrames = len(depths)
    dataset.PixelData = dataset.PixelData * len(depths)
    measures, orientation, shared = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 3
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for depth in depths:
        place, frame = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [-10, -20, depth]
        frame.PlanePositionSequence = [place]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    return dataset


def test_frames_of_one_file_have_their_spacing(tmp_path):
    scan = read_scan(save(enhanced_ct([5, 8, 11, 14]), tmp_path / "frames.dcm"))
    assert scan.slices.shape == (4, 128, 128)
    assert scan.spacing == (0.5, 0.25) and scan.slice_spacing == pytest.approx(3)
    uneven = read_scan(save(enhanced_ct([5, 8, 14, 17]), tmp_path / "frames.dcm"))
    assert uneven.spacing == (0.5, 0.25) and uneven.slice_spacing is None


def test_frames_of_one_file_lie_where_they_say(tmp_path):
    scan = read_scan(save(enhanced_ct([5, 8, 11, 14]), tmp_path / "frames.dcm"))
    place = scan.mask_writer.slices_affine @ [2, 10, 4, 1]  # slice, row, column
    np.testing.assert_allclose(place[:3], [10 - 4 * 0.25, 20 - 10 * 0.5, 11])  # DICOM's x and y have the other sign
    uneven = read_scan(save(enhanced_ct([5, 8, 14, 17]), tmp_path / "frames.dcm"))
    assert uneven.mask_writer.slices_affine is None


def test_the_mask_of_frames_has_their_frame_of_reference(tmp_path):
    scan = read_scan(save(enhanced_ct([5, 8, 11]), tmp_path / "frames.dcm"))
    masks = np.zeros((3, 128, 128), bool)
    masks[1, 4:9, 5:8] = True
    scan.mask_writer.save(masks, tmp_path / "mask.dcm", "lesion")
    written = highdicom.seg.segread(tmp_path / "mask.dcm")
    assert written.FrameOfReferenceUID == dicom("CT_small.dcm").FrameOfReferenceUID
    place = written.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert list(place) == [-10, -20, 8]
    np.testing.assert_array_equal(written.pixel_array.reshape(128, 128).astype(bool), masks[1])


def test_frames_without_a_place_have_no_mask(tmp_path):
    scan = read_scan(get_testdata_file("rtdose.dcm"))
    with pytest.raises(ValueError, match="does not allow a Segmentation"):
        scan.mask_writer.save(np.zeros((15, 10, 10), bool), tmp_path / "mask.dcm", "lesion")


def test_nothing_about_the_patient_is_kept(tmp_path):
    dataset = dicom("CT_small.dcm")
    dataset.PatientName, dataset.PatientID, dataset.InstitutionName = "Doe^Jane", "ID-4711", "Some Hospital"
    scan = read_scan(save(dataset, tmp_path / "named.dcm"))
    header = scan.mask_writer.headers[0].to_json()
    assert not any(secret in header for secret in ("Doe", "ID-4711", "Hospital", "1CT1"))


def test_a_mask_of_one_dicom_frame(tmp_path):
    scan = read_scan(get_testdata_file("CT_small.dcm"))
    scan.mask_writer.save(np.zeros((1, 128, 128), bool), tmp_path / "empty.dcm", "lesion")
    assert not highdicom.seg.segread(tmp_path / "empty.dcm").pixel_array.any()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "ASL"])
def test_nifti_is_read_axially_and_its_mask_has_its_grid(tmp_path, axes):
    """A bright corner at the patient's right front of the head is on the upper left of the last slice."""
    values = np.zeros((8, 10, 12), np.int16)
    values[-3:, -2:, -1] = 700  # R, A, S
    affine = np.diag([2.0, 3.0, 4.0, 1])
    affine[:3, 3] = (-7, 5, 11)
    image = nibabel.Nifti1Image(values, affine)
    orientation = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(orientation)
    image.header["descrip"] = "Doe, Jane"
    nibabel.save(image, tmp_path / "volume.nii.gz")
    scan = read_scan(tmp_path / "volume.nii.gz")
    assert scan.slices.shape == (12, 10, 8)
    assert scan.spacing == (3, 2) and scan.slice_spacing == 4
    bright = scan.slices > 127
    assert bright[-1, :2, :3].all() and bright.sum() == 6

    scan.mask_writer.save(bright, tmp_path / "mask.nii.gz", "lesion")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(image.dataobj) > 0)
    np.testing.assert_allclose(mask.affine, image.affine)
    assert b"Doe" not in gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())


def test_nifti_of_two_axes_and_values_that_are_no_numbers(tmp_path):
    values = np.linspace(-50, 50, 120, dtype=np.float32).reshape(10, 12)
    values[0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "flat.nii")
    scan = read_scan(tmp_path / "flat.nii")
    assert scan.slices.shape == (1, 12, 10)
    scan.mask_writer.save(scan.slices > 127, tmp_path / "mask.nii.gz", "lesion")
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == (10, 12)


def test_masks_of_any_format(tmp_path):
    mask = np.zeros((1, 30, 40), bool)
    mask[0, 3:9, 4:20] = True
    Image.fromarray(mask[0]).save(tmp_path / "mask.png")
    grid = nibabel.Nifti1Image(mask.T[::-1, ::-1].astype(np.uint8), np.eye(4))
    nibabel.save(grid, tmp_path / "mask.nii.gz")
    for name in ("mask.png", "mask.nii.gz"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), mask)


def bad_files(folder: Path) -> dict[str, str]:
    """Files that cannot be used, each with a part of the sentence that says why."""
    picture = io.BytesIO()
    Image.new("RGB", (40, 30)).save(picture, "png")
    (folder / "truncated.png").write_bytes(picture.getvalue()[:-40])
    (folder / "text.png").write_text("I am no image")
    (folder / "empty.png").touch()
    (folder / "text.dcm").write_text("I am no image")
    (folder / "text.nii").write_text("I am no image")
    (folder / "text.nii.gz").write_text("I am no image")
    (folder / "text.zip").write_bytes(b"PK\x03\x04 and no more")
    save(dicom("CT_small.dcm", PixelData=None), folder / "report.dcm")
    save(dicom("CT_small.dcm", Rows=4000), folder / "short.dcm")
    save(dicom("CT_small.dcm", Rows=65535, Columns=65535), folder / "bomb.dcm")
    save(dicom("CT_small.dcm", PhotometricInterpretation=None), folder / "unknown.dcm")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.uint8), np.eye(4)), folder / "four.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 1, 3), np.uint8), np.eye(4)), folder / "five.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), complex), np.eye(4)), folder / "complex.nii")
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), np.nan), np.eye(4)), folder / "nan.nii")
    huge = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes()
    huge = bytearray(huge)
    huge[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    (folder / "huge.nii").write_bytes(huge)
    whole = nibabel.Nifti1Image(np.random.default_rng(0).random((20, 20, 20)), np.eye(4)).to_bytes()
    (folder / "truncated.nii.gz").write_bytes(gzip.compress(whole)[:5000])
    with zipfile.ZipFile(folder / "nothing.zip", "w") as archive:
        archive.writestr("a.txt", "no image")
    return {
        "truncated.png": "truncated.png is a broken image file",
        "text.png": "text.png is not an image",
        "empty.png": "empty.png is empty",
        "text.dcm": "text.dcm is not a DICOM file",
        "text.nii": "text.nii",
        "text.nii.gz": "text.nii.gz",
        "text.zip": "text.zip is a broken zip",
        "report.dcm": "report.dcm is a DICOM file without an image",
        "short.dcm": "short.dcm is a DICOM file that cannot be read",
        "bomb.dcm": f"more than the {MAX_VOXELS:,}",
        "unknown.dcm": "unknown.dcm is a DICOM file that cannot be read",
        "four.nii": "four.nii has 4 axes",
        "five.nii": "five.nii has 5 axes",
        "complex.nii": "complex.nii holds",
        "nan.nii": "nan.nii has no value that is a number",
        "huge.nii": f"more than the {MAX_VOXELS:,}",
        "truncated.nii.gz": "truncated.nii.gz is a broken NIfTI file",
        "nothing.zip": "nothing.zip has no DICOM file in it",
    }


def test_bad_files_give_a_sentence(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(ValueError) as caught:
            read_scan(tmp_path / name)
        assert message in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(FileNotFoundError):
        read_scan(tmp_path / "missing.png")


def test_of_several_files_one_series_is_taken(series, tmp_path):
    with zipfile.ZipFile(series) as archive:
        contents = [archive.read(name) for name in archive.namelist() if "IM" in name]

    def pack(*datasets) -> Path:
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            for number, content in enumerate(datasets):
                archive.writestr(str(number), content)
        return tmp_path / "other.zip"

    assert len(read_scan(pack(contents[0], contents[0]))) == 1
    scan = read_scan(pack(contents[0], contents[1], Path(get_testdata_file("MR_small.dcm")).read_bytes()))
    assert len(scan) == 2 and scan.notes == ("Left out: 2 (another series).",)


def slice_at(number: int, series: str = "1.2.3", **elements) -> pydicom.Dataset:
    return make_dicom(RAMP + 100 * number, position=(0, 0, 5 * number), series=series, **elements)


@pytest.mark.parametrize(
    "name", ["CT.1.2.IMA", "a.dicom", "IM.v2", "scan 1.5mm", "1.2.840.17", "IM1", "a.dcm.gz", "IM1.gz", "series.zip"]
)
def test_a_folder_s_dicom_files_are_found_whatever_their_names(tmp_path, name):
    content = content_of(slice_at(0))
    if name.endswith(".zip"):
        content = save_zip({str(number): slice_at(number) for number in range(2)}, tmp_path / "z").read_bytes()
        (tmp_path / "z").unlink()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png.gz").write_bytes(gzip.compress((tmp_path / "a.png").read_bytes()))
    for other in ("notes.txt", "notes.txt.gz", "README", "._IM1", "empty"):
        (tmp_path / other).write_bytes(b"" if other == "empty" else b"no image")
    save_zip({"word/document.xml": b"<xml/>"}, tmp_path / "letter.docx")
    found = [path for (path,) in list_groups(tmp_path)]
    assert [path.name for path in found] == sorted([name, "a.png", "a.png.gz"])
    for path in found:
        assert read_scan(path).slices.shape[1:3] == RAMP.shape


def test_what_cannot_be_opened_is_listed_and_left_out_of_a_series(tmp_path):
    for number in range(2):
        save_dicom(slice_at(number), tmp_path / str(number))
    (tmp_path / "2").symlink_to(tmp_path / "away")
    assert [path.name for group in list_groups(tmp_path) for path in group] == ["0", "1", "2"]
    assert read_scan(tmp_path).notes == ("Left out: 2 (No such file or directory).",)
    assert [item.path.name for item in list_items([tmp_path], None)] == ["0", "2"]
    with pytest.raises(FileNotFoundError, match="away"):
        read_scan([tmp_path / "0", tmp_path / "away"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_folders_and_files_that_may_not_be_opened_are_told_of(tmp_path):
    for number in range(4):
        save_dicom(slice_at(number), tmp_path / str(number // 2) / str(number))
    (tmp_path / "1").chmod(0)
    (tmp_path / "0" / "0").chmod(0)
    try:
        items = list_items([tmp_path, tmp_path / "1"], None)
        assert [item.path.relative_to(tmp_path).as_posix() for item in items] == ["0/0", "0/1", "1", "1"]
        for item in (items[0], *items[2:]):
            with pytest.raises(ValueError, match=f"{item.path} cannot be opened: Permission denied"):
                read_scan(item.path)
        assert read_scan(tmp_path).notes == ("Left out: 0, 1 (Permission denied).",)
    finally:
        (tmp_path / "1").chmod(0o700)


def test_the_slices_of_a_series_are_found_in_all_folders(tmp_path):
    for number in range(6):
        save_dicom(slice_at(number), tmp_path / "apart" / str(number) / "IM1")
        save_dicom(slice_at(number % 3), tmp_path / "copies" / str(number // 3) / str(number))
        save_dicom(slice_at(number, SeriesInstanceUID=None), tmp_path / "unnamed" / str(number // 3) / str(number))
    names = [item.name for item in list_items([tmp_path / "apart"], None)]
    assert names == [str(tmp_path / "apart")]
    for folder in ("copies", "unnamed"):
        assert [len(group) for group in list_groups(tmp_path / folder)] == [3, 3]
        names = [item.name for item in list_items([tmp_path / folder], None)]
        assert names == [str(tmp_path / folder / part) for part in "01"]


@pytest.mark.parametrize(
    "elements, names",
    [
        ({"SeriesNumber": ["4", "5"], "SeriesDescription": ["T1", "T2"]}, ["4", "5"]),
        ({"SeriesNumber": ["4", "4"], "SeriesDescription": ["T1/ax", "T2"]}, ["T1 ax", "T2"]),
        ({"SeriesNumber": ["4", None], "SeriesInstanceUID": ["1.1", "1.2"]}, ["1.1", "1.2"]),
        ({"SeriesInstanceUID": [None, None], "StudyInstanceUID": ["2.1", "2.2"]}, ["2.1", "2.2"]),
        ({"StudyInstanceUID": [None, "2.2"]}, ["1", "2"]),
    ],
)
def test_series_in_one_folder_have_names_of_their_own(tmp_path, elements, names):
    uids = {"SeriesInstanceUID": ["1.2.0", "1.2.1"]} if "SeriesNumber" in elements else {}
    for number in range(6):
        own = {name: values[number // 3] for name, values in {**uids, **elements}.items()}
        save_dicom(slice_at(number % 3, **own), tmp_path / str(number))
    items = list_items([tmp_path], None)
    assert [item.name for item in items] == [f"{tmp_path} (series {name})" for name in names]
    assert [[path.name for path in item.series] for item in items] == [["0", "1", "2"], ["3", "4", "5"]]


def test_a_segmentation_among_images_is_left_out_and_named(tmp_path):
    scan = read_scan(save_dicom(slice_at(0), tmp_path / "0.dcm"))
    scan.mask_writer.save(np.ones((1, *RAMP.shape), bool), tmp_path / "seg.dcm", "polyp")
    for number in range(1, 3):
        save_dicom(slice_at(number), tmp_path / f"{number}.dcm")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    for path in (tmp_path, [path for path in list_files(tmp_path) if path.suffix]):
        assert read_scan(path).notes == ("Left out: seg.dcm (a DICOM Segmentation).",)
    assert len(list_items([tmp_path], None)) == 2
    with pytest.raises(ValueError, match="seg.dcm is a DICOM Segmentation, which is a mask and no image"):
        read_scan(tmp_path / "seg.dcm")
    assert read_mask(tmp_path / "seg.dcm").all()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_files_of_one_name_in_a_zip_are_all_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3):
            archive.writestr("IM1", content_of(slice_at(number)))
    assert len(read_scan(tmp_path / "a.zip")) == 3


@pytest.mark.parametrize("given", ["", [], b"a.png"])
def test_what_is_no_path_is_refused(given):
    with pytest.raises(ValueError, match="An image is a path"):
        read_scan(given)


def test_a_zip_is_its_images_and_series_unless_it_is_one_series(tmp_path):
    slices = {f"{part}/{number}": slice_at(number, f"1.2.{part}") for part in "12" for number in range(3)}
    picture = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint8)).save(picture, "png")
    one = {name: file for name, file in slices.items() if name[0] == "1"} | {"read me.txt": b"text"}
    scout = {"scout": slice_at(0, "1.2.9")}
    for name, files, expected in (
        ("one.zip", one, {"": 3}),
        ("scout.zip", one | scout, {"": 3}),
        ("two.zip", slices, {"/1": 3, "/2": 3}),
        (
            "mixed.zip",
            one | {"../a.png": picture.getvalue(), "x/a.png": picture.getvalue()},
            {"/1": 3, "/a.png": 1, "/x/a.png": 1},
        ),
        ("none.zip", {"read me.txt": b"text"}, {"": 0}),
        ("broken.zip", b"PK\x03\x04 no zip", {"": 0}),
    ):
        path = tmp_path / name
        path.write_bytes(files) if isinstance(files, bytes) else save_zip(files, path)
        items = list_items([path], None)
        assert {item.name: len(read_item(item).scan or ()) for item in items} == {
            f"{path}{ending}": slices for ending, slices in expected.items()
        }
    flat = {name.replace("/", "-"): file for name, file in slices.items()}
    names = [item.name for item in list_items([save_zip(flat, tmp_path / "flat.zip")], None)]
    assert names == [f"{tmp_path}/flat.zip (series 1.2.{part})" for part in "12"]


@pytest.mark.parametrize("excess, is_too_large", [(0, False), (1, True)])
def test_a_zip_may_hold_two_gigabytes(tmp_path, excess, is_too_large):
    """By what its table of contents says; nothing is unpacked before."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.dcm", "b.dcm"):
            archive.writestr(name, b"x")
    for info, size in zip(archive.infolist(), (1024**3, 1024**3 + excess)):
        info.file_size = size
    with zipfile.ZipFile(path, "a") as written:  # writes its table anew
        written.filelist[:] = archive.infolist()
        written._didModify = True
    with pytest.raises(ValueError) as caught:
        read_scan(path)
    assert ("holds more than 2000 files or 2 GB" in str(caught.value)) == is_too_large


def test_what_is_packed_by_gzip_is_not_unpacked_beyond_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_UNPACKED_BYTES", 1024**2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    picture = io.BytesIO()
    Image.new("L", (8, 8), 9).save(picture, "png")
    for number, size in enumerate((1024**2, 1024**2 + 1)):
        content = picture.getvalue() + bytes(size - len(picture.getvalue()))
        path = tmp_path / f"{number}.png.gz"
        path.write_bytes(gzip.compress(content))
    assert read_scan(tmp_path / "0.png.gz").slices.max() == 9
    with pytest.raises(ValueError, match="1.png.gz would have more than 0 GB unpacked"):
        read_scan(path)
    assert not list((tmp_path / "temporary").iterdir())


def test_folders_of_one_series_are_joined_only_by_places_of_their_own(tmp_path):
    """A file without a place may be a copy of any, and is no slice beside others."""
    for number in range(4):
        save_dicom(slice_at(number), tmp_path / "joined" / str(number // 2) / str(number))
        place = {"ImagePositionPatient": None} if number > 1 else {}
        save_dicom(slice_at(number, **place), tmp_path / "apart" / str(number // 2) / str(number))
        save_dicom(slice_at(number % 3), tmp_path / "overlap" / str(number // 2) / str(number))
    sizes = {name: sorted(map(len, list_groups(tmp_path / name))) for name in ("joined", "apart", "overlap")}
    assert sizes == {"joined": [4], "apart": [1, 1, 2], "overlap": [2, 2]}


def test_of_many_files_none_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_FILES", 3)
    files = {str(number): slice_at(number) for number in range(3)}
    paths = [save_dicom(file, tmp_path / "a" / name) for name, file in files.items()]
    given = (tmp_path / "a", paths, save_zip(files, tmp_path / "a.zip"))
    assert [len(read_scan(each)) for each in given] == [3, 3, 3]
    paths.append(save_dicom(slice_at(3), tmp_path / "a" / "3"))
    save_zip({**files, "3": slice_at(3)}, tmp_path / "a.zip")
    for each, name in zip(given, (str(tmp_path / "a"), "The series", "a.zip")):
        with pytest.raises(ValueError, match=f"^{name} holds more than 3 files"):
            read_scan(each)


def test_a_zip_that_is_encrypted_or_damaged_is_refused(tmp_path):
    whole = bytearray(save_zip({"x/IM1": slice_at(0)}, tmp_path / "a.zip").read_bytes())
    sentences = {"flag": r"^a.zip is encrypted\.", "content": "^a.zip is a broken zip: IM1 is damaged"}
    for change, sentence in sentences.items():
        content = whole.copy()
        if change == "flag":  # in the table of contents
            content[content.index(b"PK\x01\x02") + 8] |= 1
        else:
            content[len(content) // 2] ^= 1
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            read_scan(tmp_path / "a.zip")


def test_a_picture_that_is_too_large_is_one_under_every_name(tmp_path):
    header = io.BytesIO()
    Image.new("1", (8, 8)).save(header, "png")
    content = bytearray(header.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    for name in ("a.png", "a.dcm", "a.nii", "a"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is too large: Image size .3600000000 pixels"):
            read_scan(tmp_path / name)


def test_what_is_no_file_is_not_listed(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "b.png" / "c.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "away")
    assert list_files(tmp_path) == [tmp_path / "b.png" / "c.png", tmp_path / "gone.png"]


def test_of_a_zip_only_the_members_that_are_named_are_read(tmp_path):
    path = save_zip({f"a/{number}": slice_at(number) for number in range(4)}, tmp_path / "a.zip")
    whole, part = read_scan(path), read_scan(path, members=[PurePosixPath("a/1"), PurePosixPath("a/2")])
    expected = read_scan(save_zip({str(number): slice_at(number) for number in (1, 2)}, tmp_path / "b.zip"))
    assert len(whole) == 4
    np.testing.assert_array_equal(part.slices, expected.slices)


def test_a_mask_of_a_series_may_be_a_folder_or_a_zip(tmp_path):
    masks = {str(number): make_dicom((1000 * number < RAMP).astype(np.uint8), (0, 0, number)) for number in range(3)}
    for name, file in masks.items():
        save_dicom(file, tmp_path / "masks" / name)
    (tmp_path / "masks" / "read me.txt").write_text("text")
    expected = [1000 * number < RAMP for number in range(3)]
    for given in (tmp_path / "masks", save_zip(masks, tmp_path / "masks.zip")):
        np.testing.assert_array_equal(read_mask(given), expected)
