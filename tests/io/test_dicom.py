"""Kinds of oddities in DICOM files, each as a table of them."""

import io
import warnings
import zlib

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, CORONAL, SAGITTAL, content_of, list_groups, make_dicom, save_dicom, save_zip
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from lvit_hf.inference.collection import is_series
from lvit_hf.io.readers import read_mask, read_scan


RAMP = np.linspace(-1000, 1000, 64 * 64).reshape(64, 64).astype(np.int16)
EIGHT_BITS = np.arange(256, dtype=np.uint8).reshape(16, 16)
PIXELS = np.random.default_rng(0).integers(-1000, 1000, (16, 12)).astype(np.int16)


def read(dataset, tmp_path, name="a.dcm"):
    return read_scan(save_dicom(dataset, tmp_path / name))


# Values to greys


@pytest.mark.parametrize("slope, intercept", [(None, None), (0.01, 0), (16, -1024), (1, 500), (1e-5, 0)])
def test_a_rescale_of_all_pixels_does_not_change_the_picture(tmp_path, slope, intercept):
    scan = read(make_dicom(EIGHT_BITS, RescaleSlope=slope, RescaleIntercept=intercept), tmp_path)
    np.testing.assert_array_equal(scan.slices[0], EIGHT_BITS)
    deep = read(make_dicom(RAMP, RescaleSlope=slope, RescaleIntercept=intercept), tmp_path)
    np.testing.assert_array_equal(deep.slices, read(make_dicom(RAMP), tmp_path).slices)


def test_a_negative_slope_makes_a_negative(tmp_path):
    scan = read(make_dicom(EIGHT_BITS, RescaleSlope=-1, RescaleIntercept=255), tmp_path)
    np.testing.assert_array_equal(scan.slices[0], 255 - EIGHT_BITS)


@pytest.mark.parametrize("slope", [b"0 ", b"nan ", b"inf ", b"abc ", b"1\\2 ", b""])
def test_a_slope_that_cannot_be_is_not_used(tmp_path, slope):
    scan = read(make_dicom(RAMP, RescaleSlope=slope, RescaleIntercept=-1024), tmp_path)
    np.testing.assert_array_equal(scan.slices, read(make_dicom(RAMP), tmp_path).slices)
    assert any("RescaleSlope" in note for note in scan.notes) == bool(slope)


@pytest.mark.parametrize("center", [-300, 0, 40])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "FOO"])
def test_a_window_is_applied_whatever_its_centre(tmp_path, center, function):
    scan = read(make_dicom(RAMP, WindowCenter=center, WindowWidth=400, VOILUTFunction=function), tmp_path)
    shown = scan.slices[0]
    assert shown[center - 600 > RAMP].max() < 5 and shown[center + 600 < RAMP].min() > 250
    np.testing.assert_allclose(shown[np.abs(RAMP - center) < 2], 127.5, atol=3)
    assert bool(scan.notes) == (function == "FOO")


@pytest.mark.parametrize(
    "center, width", [(b"40", b"0"), (b"40", None), (None, b"400"), (b"40", b"-5"), (b"nan ", b"400"), (b"x ", b"y ")]
)
def test_a_window_that_cannot_be_is_not_used(tmp_path, center, width):
    scan = read(make_dicom(RAMP, WindowCenter=center, WindowWidth=width), tmp_path)
    np.testing.assert_array_equal(scan.slices, read(make_dicom(RAMP), tmp_path).slices)
    assert "window" in scan.notes[0]


def test_the_first_window_that_can_be_is_taken(tmp_path):
    two = read(make_dicom(RAMP, WindowCenter=[40, 300], WindowWidth=[0, 200]), tmp_path)
    np.testing.assert_array_equal(
        two.slices, read(make_dicom(RAMP, WindowCenter=300, WindowWidth=200), tmp_path).slices
    )


def test_a_window_that_shows_nothing_is_not_used(tmp_path):
    scan = read(make_dicom(RAMP, WindowCenter=30000, WindowWidth=100), tmp_path)
    assert len(np.unique(scan.slices)) > 200 and "shows nothing" in scan.notes[0]


@pytest.mark.parametrize(
    "windows", [[None, 40, 40], [40, None, 40], [40, 140, 240], [40, 40, 40]], ids=lambda windows: str(windows)
)
def test_equal_slices_look_alike_whatever_windows_they_have(tmp_path, windows):
    files = {}
    for number, center in enumerate(windows):
        window = {} if center is None else {"WindowCenter": center, "WindowWidth": 400}
        files[f"IM{number}"] = make_dicom(PIXELS, (0, 0, 5 * number), **window)
    scan = read_scan(save_zip(files, tmp_path / "series.zip"))
    np.testing.assert_array_equal(scan.slices[0], scan.slices[1])
    np.testing.assert_array_equal(scan.slices[0], scan.slices[2])
    assert any("no window in common" in note for note in scan.notes) == (len(set(windows)) > 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_slices_with_scales_of_their_own_are_comparable(tmp_path, sign):
    """As in PET: the same stored values mean twice as much in the second slice."""
    pixels = sign * np.abs(PIXELS)
    files = {
        f"IM{n}": make_dicom(pixels, (0, 0, n), RescaleSlope=sign * (1 + n), RescaleIntercept=0) for n in range(2)
    }
    first, second = read_scan(save_zip(files, tmp_path / "pet.zip")).slices.astype(int)
    middle = (second > 0) & (second < 255)
    np.testing.assert_allclose(second[middle], 2 * first[middle], atol=4)


def test_one_table_of_greys(tmp_path):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 16])
    item.add_new("LUTData", "US", [65535 - 257 * number for number in range(256)])
    scan = read(make_dicom(EIGHT_BITS, VOILUTSequence=Sequence([item])), tmp_path)
    np.testing.assert_allclose(scan.slices[0].astype(int), 255 - EIGHT_BITS.astype(int), atol=1)


@pytest.mark.parametrize("value", [-2000, 2000, 63536])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_change_the_rest(tmp_path, value, photometric):
    pixels = RAMP.copy()
    pixels[:20] = value - 65536 if value > 32767 else value
    dataset = make_dicom(pixels, PhotometricInterpretation=photometric)
    dataset.add_new("PixelPaddingValue", "US" if value > 32767 else "SS", value)
    shown = read(dataset, tmp_path).slices[0]
    assert not shown[:20].any()
    expected = read(make_dicom(RAMP[20:], PhotometricInterpretation=photometric), tmp_path).slices[0]
    np.testing.assert_array_equal(shown[20:], expected)


def test_a_wide_border_does_not_squeeze_the_greys(tmp_path):
    pixels = np.full((64, 64), -3024, np.int16)
    pixels[16:48, 16:48] = RAMP[16:48, 16:48]
    assert len(np.unique(read(make_dicom(pixels), tmp_path).slices[0, 16:48, 16:48])) > 150


def test_one_extreme_value_changes_nothing(tmp_path):
    pixels = RAMP.astype(np.int32)
    plain = read(make_dicom(pixels), tmp_path).slices[0].astype(int)
    pixels[3, 3] = 2**31 - 1
    changed = np.abs(read(make_dicom(pixels), tmp_path).slices[0] - plain)
    assert changed[3, 3] > 200 and np.count_nonzero(changed > 2) == 1


@pytest.mark.parametrize("photometric, shape", [("MONOCHROME1", None), ("MONOCHROME2", "INVERSE")])
def test_white_for_the_least_value(tmp_path, photometric, shape):
    dataset = make_dicom(EIGHT_BITS, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    np.testing.assert_array_equal(read(dataset, tmp_path).slices[0], 255 - EIGHT_BITS)


def test_colours_of_16_bits_are_windowed_and_keep_their_hue(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 12, 3)).astype(np.uint16)
    shown = read(make_dicom(pixels), tmp_path).slices[0]
    assert shown.max() == 255
    np.testing.assert_allclose(shown, pixels / 4095 * 255, atol=4)


def test_fewer_than_8_bits_fill_the_range(tmp_path):
    dataset = make_dicom(EIGHT_BITS % 16, BitsStored=4, HighBit=3)
    np.testing.assert_array_equal(read(dataset, tmp_path).slices[0], (EIGHT_BITS % 16) * 17)


def test_more_values_than_the_bits_that_are_said(tmp_path):
    dataset = make_dicom(np.abs(RAMP).astype(np.uint16), BitsStored=8, HighBit=7)
    assert len(np.unique(read(dataset, tmp_path).slices)) > 200


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("dtype, bits", [(np.uint16, 12), (np.int16, 12), (np.uint16, 8), (np.uint8, 6)])
@pytest.mark.parametrize("high", ["lowest", "middle", "highest"])
@pytest.mark.parametrize("overlay", [False, True])
def test_values_lie_in_the_bits_that_the_header_names(tmp_path, syntax, dtype, bits, high, overlay):
    """Unused bits may be below or above the values, and old overlays lie in them."""
    allocated = 8 * np.dtype(dtype).itemsize
    unused = {"lowest": 0, "middle": (allocated - bits) // 2, "highest": allocated - bits}[high]
    half = 2 ** (bits - 1) if dtype == np.int16 else 0
    values = np.arange(2**bits, dtype=np.int64).reshape(16, -1) - half
    noise = np.random.default_rng(0).integers(0, 2**allocated, values.shape) if overlay else 0
    used = (2**bits - 1) << unused
    words = ((values << unused) & used | noise & ~used) & (2**allocated - 1)
    stored = words.astype(f"u{allocated // 8}").view(dtype)
    window = {"WindowCenter": 2 ** (bits - 1) - half, "WindowWidth": 2**bits}
    elements = {"BitsStored": bits, "HighBit": unused + bits - 1, "PixelRepresentation": int(half > 0), **window}
    dataset = make_dicom(stored, **elements)
    if syntax == RLELossless:  # it would refuse values beyond the bits
        dataset.BitsStored, dataset.HighBit = allocated, allocated - 1
        dataset.compress(RLELossless)
        dataset.BitsStored, dataset.HighBit = bits, unused + bits - 1
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        dataset["PixelData"].VR = "OW" if allocated == 16 else "OB"
        dataset.file_meta.TransferSyntaxUID = syntax
    scan = read_scan(save_dicom(dataset, tmp_path / "a.dcm"), keep_values=True)
    np.testing.assert_array_equal(scan.values[0], values)
    np.testing.assert_allclose(scan.slices[0], (values + half) / (2**bits - 1) * 255, atol=0.6)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_a_high_bit_that_the_values_disprove_is_not_used(tmp_path, dtype):
    pixels = np.arange(-1000, 1000, dtype=np.int16).reshape(40, 50) + (1000 if dtype == np.uint16 else 0)
    dataset = make_dicom(pixels.astype(dtype), BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(
        read_scan(save_dicom(dataset, tmp_path / "a.dcm"), keep_values=True).values[0], pixels
    )


def test_a_high_bit_of_a_dark_image_is_used_though_all_values_would_fit(tmp_path):
    values = np.arange(100, dtype=np.uint16).reshape(10, 10)
    dataset = make_dicom(values << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(
        read_scan(save_dicom(dataset, tmp_path / "a.dcm"), keep_values=True).values[0], values
    )


def test_the_labels_of_a_mask_lie_in_the_bits_that_the_header_names(tmp_path):
    labels = np.arange(24, dtype=np.uint16).reshape(4, 6) % 3
    dataset = make_dicom(labels << 8 | 0x11, BitsStored=8, HighBit=15)
    np.testing.assert_array_equal(read_mask(save_dicom(dataset, tmp_path / "a.dcm"))[0], labels > 0)


# Elements beside the pixels


@pytest.mark.parametrize(
    "element, value",
    [
        ("PixelSpacing", b"0.5 "),
        ("PixelSpacing", b"0.5\\0.5\\0.5 "),
        ("PixelSpacing", b"0.5mm\\0.5mm "),
        ("PixelSpacing", b"0\\0 "),
        ("PixelSpacing", b"-1\\-1 "),
        ("PixelSpacing", b"nan\\nan "),
        ("ImagePositionPatient", b"0\\0 "),
        ("ImageOrientationPatient", b"0\\0\\0\\0\\0\\0 "),
        ("ImageOrientationPatient", b"1\\0\\0\\1\\0\\0 "),
        ("SliceThickness", b"thin"),
    ],
)
def test_an_element_that_cannot_be_is_not_used_and_named(tmp_path, element, value):
    scan = read(make_dicom(RAMP, **{element: value}), tmp_path)
    assert any(element in note for note in scan.notes)
    assert scan.spacing == (None if element == "PixelSpacing" else (0.5, 0.25))


def test_elements_that_the_pixels_do_not_need(tmp_path):
    reference = Dataset()
    reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    elements = {"SourceImageSequence": Sequence([reference]), "PixelSpacing": b"", "NumberOfFrames": 1}
    scan = read(make_dicom(RAMP, **elements), tmp_path)
    assert scan.spacing is None and not scan.notes


@pytest.mark.parametrize("value", [b"one ", b"0 ", b"-2", b"1\\2 "])
def test_a_number_of_frames_that_cannot_be_is_one(tmp_path, value):
    scan = read_scan(save_dicom(make_dicom(PIXELS, NumberOfFrames=value), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(scan.slices, read_scan(save_dicom(make_dicom(PIXELS), tmp_path / "b.dcm")).slices)
    assert scan.notes == ("The file's NumberOfFrames cannot be and is not used: it is read as one frame.",)


def test_spacing_is_of_rows_and_then_of_columns(tmp_path):
    assert read(make_dicom(RAMP), tmp_path).spacing == (0.5, 0.25)


# Series


def series(orientation=AXIAL, step=(0, 0, 5), count=4, **elements) -> dict[str, Dataset]:
    """Slices that grow brighter along a step, from a place away from the origin."""
    start = np.array([-100, 50, 200])
    return {
        f"IM{number}": make_dicom(
            PIXELS // 8 + 100 * number, (start + number * np.array(step)).tolist(), orientation, **elements
        )
        for number in range(count)
    }


OTHERS = {
    "a scout": (make_dicom(PIXELS, (-7, 3, 210), SAGITTAL), "another direction"),
    "another size": (make_dicom(PIXELS[:8], (0, 0, 300)), "another size"),
    "another series": (make_dicom(PIXELS, series="1.2.4"), "another series"),
    "another study": (make_dicom(PIXELS, (0, 0, 300), StudyInstanceUID="1.2.9"), "another study"),
    "another space": (make_dicom(PIXELS, (0, 0, 300), FrameOfReferenceUID="1.2.8"), "another frame of reference"),
    "another spacing": (make_dicom(PIXELS, (0, 0, 300), PixelSpacing=[1, 0.5]), "another spacing"),
    "a report": (make_dicom(PIXELS, series="1.2.5", PixelData=None), "without an image"),
    "no rows": (make_dicom(PIXELS, (0, 0, 300), Rows=0), "has no pixels"),
    "a slice without a place": (make_dicom(PIXELS, ImagePositionPatient=None), "no place"),
    "a broken file": (content_of(make_dicom(PIXELS, (-100, 50, 400), PixelData=bytes(50))), "cannot be read"),
    "a text": (b"no image", "no DICOM file"),
    "dicomdir": (make_dicom(PIXELS, PixelData=None), None),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("first", [True, False])
def test_what_does_not_belong_to_a_series_is_left_out_and_named(tmp_path, name, first):
    other, reason = OTHERS[name]
    files = {name: other, **series()} if first else {**series(), name: other}
    scan = read_scan(save_zip(files, tmp_path / "series.zip"))
    np.testing.assert_array_equal(scan.slices, read_scan(save_zip(series(), tmp_path / "plain.zip")).slices)
    assert scan.slice_spacing == 5
    if reason is None:
        assert not scan.notes
    else:
        [note] = scan.notes
        assert "Left out" in note and name in note and reason in note


TILTED = (1, 0, 0, 0, 0.8, 0.6)
DIRECTIONS = {
    "axial": (AXIAL, (0, 0, 5)),
    "axial, from the head": (AXIAL, (0, 0, -5)),
    "coronal": (CORONAL, (0, 5, 0)),
    "sagittal": (SAGITTAL, (-5, 0, 0)),
    "oblique": (TILTED, (0, -3, 4)),
    "a gantry's tilt": (TILTED, (0, 0, 6.25)),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_slices_are_ordered_along_their_normal(tmp_path, name):
    orientation, step = DIRECTIONS[name]
    files = series(orientation, step)
    shuffled = {key: files[key] for key in ("IM2", "IM0", "IM3", "IM1")}
    scan = read_scan(save_zip(shuffled, tmp_path / "series.zip"))
    brightness = np.diff(scan.slices.mean(axis=(1, 2)))
    normal = np.cross(orientation[:3], orientation[3:])
    assert (np.sign(brightness) == np.sign(np.dot(step, normal))).all()
    assert scan.slice_spacing == pytest.approx(5)


@pytest.mark.parametrize("places", [[[0, 0, 0]] * 3, [None] * 3])
def test_radiographs_of_one_series_are_images_by_themselves(tmp_path, places):
    files = {f"{index}.dcm": make_dicom(PIXELS, ImagePositionPatient=place) for index, place in enumerate(places)}
    paths = [save_dicom(dataset, tmp_path / name) for name, dataset in files.items()]
    assert list_groups(tmp_path) == [(path,) for path in paths]
    assert not is_series(save_zip(files, tmp_path / "study.zip"))
    slices = [save_dicom(dataset, tmp_path / "ct" / name) for name, dataset in series().items()]
    assert list_groups(tmp_path / "ct") == [tuple(slices)]
    assert is_series(save_zip(series(), tmp_path / "series.zip"))


def test_the_parts_of_a_series_can_be_a_folder_or_a_list(tmp_path):
    files = series()
    expected = read_scan(save_zip(files, tmp_path / "series.zip")).slices
    paths = [save_dicom(file, tmp_path / f"ST0/SE{n % 2}/{name}") for n, (name, file) in enumerate(files.items())]
    (tmp_path / "ST0" / ".DS_Store").write_bytes(b"junk")
    for given in (tmp_path / "ST0", paths, paths[::-1]):
        scan = read_scan(given)
        np.testing.assert_array_equal(scan.slices, expected)
        assert not scan.notes
    assert len(read_scan([paths[0]])) == 1


def test_a_missing_slice_is_named(tmp_path):
    files = series()
    del files["IM2"]
    scan = read_scan(save_zip(files, tmp_path / "series.zip"))
    assert scan.slice_spacing is None and "5 to 10 mm apart" in scan.notes[0]


def test_a_copy_is_left_out_and_another_file_of_the_same_slice_refused(tmp_path):
    files = series()
    scan = read_scan(save_zip({**files, "copy": content_of(files["IM1"])}, tmp_path / "copy.zip"))
    assert len(scan) == 4 and "copy" in scan.notes[0]
    twice = {**files, "again": make_dicom(PIXELS, files["IM1"].ImagePositionPatient)}
    with pytest.raises(ValueError, match="same slice"):
        read_scan(save_zip(twice, tmp_path / "twice.zip"))


def turned(angle: float) -> list[float]:
    return [np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0]


# Of the last of three slices: its depth and elements, how many slices there are then, and how far apart they are.
TOLERANCES = {
    "rounded places": (10.05, {}, 3, 5.025),
    "other gaps": (10.2, {}, 3, None),
    "turned a little": (10, {"ImageOrientationPatient": turned(0.01)}, 3, 5),
    "turned": (10, {"ImageOrientationPatient": turned(0.03)}, 2, 5),
    "directions of a length near one": (10, {"ImageOrientationPatient": [1.01, 0, 0, 0, 0.99, 0]}, 3, 5),
    "directions of another length": (10, {"ImageOrientationPatient": [1.03, 0, 0, 0, 1, 0]}, 2, 5),
    "directions askew": (10, {"ImageOrientationPatient": [1, 0, 0, 0.03, 0.9995, 0]}, 2, 5),
    "rounded spacing": (10, {"PixelSpacing": [0.5004, 0.2502]}, 3, 5),
    "another spacing": (10, {"PixelSpacing": [0.5, 0.2505]}, 2, 5),
    "no spacing": (10, {"PixelSpacing": None}, 3, 5),
    "a slice beside another": (5.02, {}, 3, None),
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_slices_of_a_series_differ_by_rounding_alone(tmp_path, name):
    depth, elements, count, distance = TOLERANCES[name]
    files = [make_dicom(PIXELS), make_dicom(PIXELS, (0, 0, 5)), make_dicom(PIXELS, (0, 0, depth), **elements)]
    scan = read_scan(save_zip(dict(zip("abc", files)), tmp_path / "series.zip"))
    assert len(scan) == count and scan.slice_spacing == (distance and pytest.approx(distance))
    assert scan.spacing == (0.5, 0.25) and any("Left out: c" in note for note in scan.notes) == (count == 2)
    assert any("apart" in note for note in scan.notes) == (distance is None)


def test_slices_closer_than_places_are_rounded_are_the_same(tmp_path):
    files = {str(number): make_dicom(PIXELS + number, (0, 0, depth)) for number, depth in enumerate((0, 5, 5.009))}
    with pytest.raises(ValueError, match="Several DICOM files of the series are of the same slice"):
        read_scan(save_zip(files, tmp_path / "series.zip"))


@pytest.mark.parametrize("shift, fits", [(0.4, True), (0.6, False)])
def test_frames_of_a_segmentation_lie_near_their_slices(tmp_path, shift, fits):
    scan = read_scan(save_zip(series(), tmp_path / "series.zip"))
    files = {name: make_dicom(PIXELS, [-100, 50, 200 + shift + 5 * number]) for number, name in enumerate(series())}
    masks = np.random.default_rng(0).random(scan.slices.shape) > 0.8
    read_scan(save_zip(files, tmp_path / "other.zip")).mask_writer.save(masks, tmp_path / "mask.dcm", "polyp")
    if fits:
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.dcm", scan), masks)
    else:
        with pytest.raises(ValueError, match="mask.dcm has frames where the scan has no slice"):
            read_mask(tmp_path / "mask.dcm", scan)


def test_a_series_of_which_no_slice_can_be_read_is_refused(tmp_path):
    files = {name: make_dicom(PIXELS, (0, 0, ord(name)), PixelData=bytes(50)) for name in "ab"}
    with pytest.raises(
        ValueError, match="^s.zip has no slice that can be read: b is a DICOM file that cannot be read: .*[^.]\\.$"
    ):
        read_scan(save_zip(files, tmp_path / "s.zip"))
    short = {name: make_dicom(PIXELS, (0, 0, ord(name)), Rows=0) for name in "ab"}
    with pytest.raises(ValueError, match="^s.zip has no DICOM image in it: a has no pixels: .*[^.]\\.$"):
        read_scan(save_zip(short, tmp_path / "s.zip"))
    scan = read_scan(save_zip(series() | files | short, tmp_path / "s.zip"))
    assert scan.notes == ("Left out: a, b (has no pixels: its shape is (1, 0, 12)).",)
    scan = read_scan(save_zip(series() | files, tmp_path / "s.zip"))
    [note] = scan.notes
    assert note.startswith("Left out: a, b (is a DICOM file that cannot be read: ") and note.count("Left out") == 1


def test_files_without_any_place_are_no_volume(tmp_path):
    files = series(ImagePositionPatient=None)
    with pytest.raises(ValueError, match="do not say where their slices lie"):
        read_scan(save_zip(files, tmp_path / "series.zip"))


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("missing", ["SliceThickness", "FrameOfReferenceUID", None])
def test_the_mask_of_a_series_keeps_its_place_whatever_anonymisers_took_out(tmp_path, name, missing):
    files = series(*DIRECTIONS[name], **({missing: None} if missing else {}))
    scan = read_scan(save_zip(files, tmp_path / "series.zip"))
    masks = np.random.default_rng(0).random(scan.slices.shape) > 0.8
    masks[1] = False
    scan.mask_writer.save(masks, tmp_path / "mask.dcm", "infection")
    places = [
        list(group.PlanePositionSequence[0].ImagePositionPatient)
        for group in highdicom.seg.segread(tmp_path / "mask.dcm").PerFrameFunctionalGroupsSequence
    ]
    assert len(places) == 3 and all(
        place in [list(file.ImagePositionPatient) for file in files.values()] for place in places
    )
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.dcm", scan), masks)
    assert len(read_mask(tmp_path / "mask.dcm")) == 3
    index, row, column = 2, 3, 4
    header = scan.mask_writer.headers[index]
    directions = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
    place = np.array(header.ImagePositionPatient, float) + directions[0] * column * 0.25 + directions[1] * row * 0.5
    np.testing.assert_allclose(scan.mask_writer.slices_affine @ [index, row, column, 1], [*(place * [-1, -1, 1]), 1])


def test_a_segmentation_of_another_scan_is_refused(tmp_path):
    scan = read_scan(save_zip(series(), tmp_path / "series.zip"))
    other = read_scan(save_zip(series(step=(0, 0, 7)), tmp_path / "other.zip"))
    other.mask_writer.save(np.ones(other.slices.shape, bool), tmp_path / "mask.dcm", "infection")
    with pytest.raises(ValueError, match="belongs to another"):
        read_mask(tmp_path / "mask.dcm", scan)


def test_segments_at_one_place_are_joined(tmp_path):
    scan = read_scan(save_zip(series(), tmp_path / "series.zip"))
    masks = np.random.default_rng(0).random((2, *scan.slices.shape)) > 0.7
    parts = []
    for number, mask in enumerate(masks):
        scan.mask_writer.save(mask, tmp_path / f"{number}.dcm", "infection")
        parts.append(pydicom.dcmread(tmp_path / f"{number}.dcm"))
    both = parts[0]
    both.PixelData += parts[1].PixelData
    both.PerFrameFunctionalGroupsSequence.extend(parts[1].PerFrameFunctionalGroupsSequence)
    both.NumberOfFrames = 2 * len(scan)
    both.save_as(tmp_path / "both.dcm")
    np.testing.assert_array_equal(read_mask(tmp_path / "both.dcm", scan), masks.any(0))


def frames(depths: list[float], orientations=None) -> Dataset:
    """One file with a frame at each depth, brighter the deeper it lies."""
    dataset = make_dicom(PIXELS, PixelSpacing=None, ImagePositionPatient=None, ImageOrientationPatient=None)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.NumberOfFrames = len(depths)
    dataset.PixelData = b"".join((PIXELS // 8 + 20 * int(depth)).astype(np.int16).tobytes() for depth in depths)
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 3
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for depth, orientation in zip(depths, orientations or [AXIAL] * len(depths)):
        place, plane, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient, plane.ImageOrientationPatient = [-10, -20, depth], list(orientation)
        group.PlanePositionSequence, group.PlaneOrientationSequence = [place], [plane]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


@pytest.mark.parametrize("own", [False, True])
def test_frames_out_of_order_are_ordered_and_their_masks_are_not_mixed_up(tmp_path, own):
    """Whether the frames share the sizes of their pixels or each says them."""
    dataset = frames([11, 5, 8, 14])
    if own:
        [shared] = dataset.SharedFunctionalGroupsSequence
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        del shared.PixelMeasuresSequence
    scan = read(dataset, tmp_path)
    assert scan.spacing == (0.5, 0.25)
    assert (np.diff(scan.slices.mean(axis=(1, 2))) > 0).all() and scan.slice_spacing == pytest.approx(3)
    masks = np.zeros(scan.slices.shape, bool)
    masks[0, 2:4, 5:9] = True
    scan.mask_writer.save(masks, tmp_path / "mask.dcm", "infection")
    [group] = highdicom.seg.segread(tmp_path / "mask.dcm").PerFrameFunctionalGroupsSequence
    assert list(group.PlanePositionSequence[0].ImagePositionPatient) == [-10, -20, 5]
    written = highdicom.seg.segread(tmp_path / "mask.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(written.PixelSpacing) == [0.5, 0.25] and written.SliceThickness == 3
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.dcm", scan), masks)


def test_frames_of_other_directions_are_left_out(tmp_path):
    scan = read(frames([1, 5, 8, 11], [SAGITTAL, AXIAL, AXIAL, AXIAL]), tmp_path)
    assert len(scan) == 3 and "1 frames of a.dcm" in scan.notes[0]


def test_several_volumes_in_one_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same slice"):
        read(frames([5, 8, 5, 8]), tmp_path)


def test_frames_have_windows_and_scales_of_their_own(tmp_path):
    dataset = frames([5, 8])
    for group, center in zip(dataset.PerFrameFunctionalGroupsSequence, (0, 40)):
        window, scale = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 400
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -center, "HU"
        group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [scale]
    assert any("no window in common" in note for note in read(dataset, tmp_path).notes)


# Forms


def encoded(syntax, pixels=PIXELS) -> bytes:
    dataset = make_dicom(pixels)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(">i2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.compress(RLELossless)
    return content_of(dataset)


WHOLE = content_of(make_dicom(PIXELS))
FORMS = {
    "as the standard has it": WHOLE,
    "without a preamble": WHOLE[132:],
    "without a preamble and its own elements": WHOLE[144 + int.from_bytes(WHOLE[140:144], "little") :],
    "a preamble that begins like TIFF": b"II*\0" + WHOLE[4:],
    "implicit": encoded(ImplicitVRLittleEndian),
    "big endian": encoded(ExplicitVRBigEndian),
    "deflated": encoded(DeflatedExplicitVRLittleEndian),
    "run lengths": encoded(RLELossless),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["IM000001", "a.dcm", "1.2.840.5", "a.png"])
def test_every_form_is_read_under_every_name(tmp_path, form, name):
    (tmp_path / name).write_bytes(FORMS[form])
    np.testing.assert_array_equal(read_scan(tmp_path / name).slices, read(make_dicom(PIXELS), tmp_path).slices)


@pytest.mark.parametrize(
    "name", ["JPGExtended.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg_gdcm.dcm"]
)
def test_compressed_files_are_read(name):
    assert read_scan(get_testdata_file(name)).slices.max() > 200


def test_jpeg_lossless_is_read_and_a_damaged_one_is_a_sentence(tmp_path):
    dataset = make_dicom(EIGHT_BITS)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = pydicom.encaps.encapsulate([encode_lossless(EIGHT_BITS)])
    dataset["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(read(dataset, tmp_path).slices[0], EIGHT_BITS)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    with pytest.raises(ValueError, match="a.dcm has pixels stored as JPEG Lossless.* that pylibjpeg cannot decode"):
        read(dataset, tmp_path)


def encode_lossless(pixels: np.ndarray) -> bytes:
    """JPEG Lossless, first-order prediction: each difference to the pixel before it by its number of bits."""
    rows, columns = pixels.shape
    previous = np.column_stack([np.r_[128, pixels[:-1, 0]], pixels[:, :-1]]).astype(int)
    bits = ""
    for difference in (pixels.astype(int) - previous).ravel():
        size = int(abs(difference)).bit_length()
        bits += f"{size:04b}"  # the code of each size, see below
        if size:
            bits += f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    frame = bytes([0xFF, 0xC3, 0, 11, 8, rows >> 8, rows & 255, columns >> 8, columns & 255, 1, 1, 0x11, 0])
    codes = bytes([0, 0, 0, 10]) + bytes(12)  # ten codes of four bits, for the sizes 0 to 9
    table = bytes([0xFF, 0xC4, 0, 2 + 1 + 16 + 10, 0]) + codes + bytes(range(10))
    scan = bytes([0xFF, 0xDA, 0, 8, 1, 1, 0, 1, 0, 0])
    return b"\xff\xd8" + frame + table + scan + data + b"\xff\xd9"


def test_a_missing_decoder_is_named(tmp_path):
    decoder = get_decoder(JPEGLosslessSV1)
    dataset = make_dicom(EIGHT_BITS, PixelData=pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"]))
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    plugins = {name: decoder._available.pop(name) for name in list(decoder._available)}
    try:
        with pytest.raises(ValueError, match="no decoder for it is installed; pip install 'pylibjpeg"):
            read(dataset, tmp_path)
    finally:
        decoder._available.update(plugins)
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    with pytest.raises(ValueError, match="MPEG2.*there is no decoder"):
        read(dataset, tmp_path)


def test_what_would_not_fit_into_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("lvit_hf.io.dicom.MAX_INFLATED_BYTES", 100_000)
    whole = encoded(DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(wbits=-15)
    (tmp_path / "bomb.dcm").write_bytes(whole[:start] + packer.compress(bytes(1_000_000)) + packer.flush())
    with pytest.raises(ValueError, match="bomb.dcm would have more than"):
        read_scan(tmp_path / "bomb.dcm")


def test_nothing_about_the_patient_is_kept_or_said(tmp_path):
    files = series(PatientName="Doe^Jane", PatientID="ID-4711", SeriesDescription="Jane")
    scan = read_scan(save_zip({**files, "x": make_dicom(PIXELS, series="9", PatientName="Doe")}, tmp_path / "s.zip"))
    kept = " ".join(header.to_json() for header in scan.mask_writer.headers) + " ".join(scan.notes)
    assert not any(secret in kept for secret in ("Doe", "ID-4711", "Jane"))


def test_warnings_of_libraries_do_not_reach_the_user(tmp_path):
    with warnings.catch_warnings(action="error"):
        read(make_dicom(RAMP, PixelSpacing=b"0.5mm\\0.5mm "), tmp_path)


# What was not covered by the kinds above


@pytest.mark.parametrize(
    ("finding", "category", "kind"),
    [
        ("infection", "Morphologically Abnormal Structure", "Lesion"),
        ("hippocampus", "Anatomical Structure", "Hippocampus"),
        ("nuclei", "Anatomical Structure", "Nucleus"),
    ],
)
def test_a_part_of_a_body_is_no_lesion(tmp_path, finding, category, kind):
    scan = read_scan(save_zip(series(), tmp_path / "series.zip"))
    scan.mask_writer.save(np.ones(scan.slices.shape, bool), tmp_path / "mask.dcm", finding)
    [segment] = highdicom.seg.segread(tmp_path / "mask.dcm").SegmentSequence
    assert segment.segmented_property_category.meaning.lower() == category.lower()
    assert segment.segmented_property_type.meaning == kind


@pytest.mark.parametrize("missing", [False, True])
def test_a_segmentation_says_what_it_is_and_how_thick_its_slices_are(tmp_path, missing):
    files = series(step=(0, 0, 3), **({"SliceThickness": None} if missing else {}))
    for name, thickness in (("series.zip", 3), ("one.zip", 0.25)):
        scan = read_scan(save_zip(files if name == "series.zip" else {"a": files["IM0"]}, tmp_path / name))
        scan.mask_writer.save(np.ones(scan.slices.shape, bool), tmp_path / "mask.dcm", "infection")
        written = highdicom.seg.segread(tmp_path / "mask.dcm")
        measures = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert measures.SliceThickness == (thickness if missing else 5) and list(measures.PixelSpacing) == [0.5, 0.25]
        [segment] = written.SegmentSequence
        assert segment.SegmentLabel == "infection" and segment.SegmentAlgorithmType == "AUTOMATIC"
        assert written.ContentLabel == "LVIT" and written.SegmentationType == "BINARY"
        again = read_scan(tmp_path / name)
        assert again.mask_writer.headers[0].FrameOfReferenceUID == written.FrameOfReferenceUID


@pytest.mark.parametrize("maximum", [200, 255])
def test_a_segmentation_of_fractions_is_foreground_above_half(tmp_path, maximum):
    scan = read_scan(save_zip(series(Modality="CT"), tmp_path / "series.zip"))
    fractions = np.random.default_rng(0).choice([0, 0.3, 0.45, 0.55, 1], scan.slices.shape)
    scan.mask_writer.save(np.ones(fractions.shape, bool), tmp_path / "mask.dcm", "infection")
    description = highdicom.seg.segread(tmp_path / "mask.dcm").get_segment_description(1)
    identity = {"series_number": 1, "instance_number": 1, "manufacturer": "a", "manufacturer_model_name": "b"}
    highdicom.seg.Segmentation(
        scan.mask_writer.headers,
        fractions,
        "FRACTIONAL",
        [description],
        highdicom.UID(),
        sop_instance_uid=highdicom.UID(),
        software_versions="1",
        device_serial_number="0",
        max_fractional_value=maximum,
        transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
        **identity,
    ).save_as(tmp_path / "fractions.dcm")
    np.testing.assert_array_equal(read_mask(tmp_path / "fractions.dcm", scan), fractions > 0.5)


@pytest.mark.parametrize("colours", [False, True])
def test_files_with_labels_are_masks(tmp_path, colours):
    labels = (PIXELS > 600).astype(np.uint8) * np.uint8(3)
    values = np.stack([labels, 0 * labels, 0 * labels], -1) if colours else labels
    files = {f"IM{number}": make_dicom(np.roll(values, number, 0), (0, 0, -number)) for number in range(3)}
    expected = np.stack([np.roll(labels > 0, number, 0) for number in (2, 1, 0)])
    np.testing.assert_array_equal(read_mask(save_zip(files, tmp_path / "masks.zip")), expected)
    np.testing.assert_array_equal(read_mask(save_dicom(files["IM0"], tmp_path / "mask.dcm")), expected[2:])


@pytest.mark.parametrize(
    "syntax, kind, options, is_lossy",
    [
        (JPEGBaseline8Bit, "jpeg", {"quality": 90}, True),
        (JPEG2000, "jpeg2000", {"irreversible": True, "no_jp2": True}, True),
        (JPEG2000, "jpeg2000", {"no_jp2": True}, False),
        (JPEG2000Lossless, "jpeg2000", {"no_jp2": True}, False),
    ],
)
def test_labels_that_were_compressed_with_loss_are_refused_and_white_is_read(
    tmp_path, syntax, kind, options, is_lossy
):
    labels = np.zeros((64, 64), np.uint8)
    labels[16:48, 16:48] = 1
    for value in (255, 3):
        files = {}
        for number in range(2):
            content = io.BytesIO()
            Image.fromarray(labels * np.uint8(value)).save(content, kind, **options)
            files[f"{number}.dcm"] = dataset = make_dicom(labels, (0, 0, number))
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.PixelData = pydicom.encaps.encapsulate([content.getvalue()])
            dataset["PixelData"].is_undefined_length = True
        for path in (save_zip(files, tmp_path / "masks.zip"), save_dicom(files["0.dcm"], tmp_path / "mask.dcm")):
            if is_lossy and value == 3:
                with pytest.raises(ValueError, match="DICOM mask is .*compression does not keep labels"):
                    read_mask(path)
            else:
                assert all((mask == labels).all() for mask in read_mask(path))


@pytest.mark.parametrize("step", [2, -2, 0.5])
def test_frames_that_lie_at_offsets_from_the_first_are_ordered(tmp_path, step):
    """As in a radiotherapy dose."""
    dataset = frames([0, 1, 2])
    del dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-10, -20, 30], list(CORONAL)
    dataset.PixelSpacing = [0.5, 0.25]
    dataset.add_new("GridFrameOffsetVector", "DS", [7, 7 + step, 7 + 2 * step])
    scan = read(dataset, tmp_path)
    assert scan.slice_spacing == pytest.approx(abs(step)) and scan.spacing == (0.5, 0.25)
    assert (np.diff(scan.slices.mean(axis=(1, 2))) > 0).all() == (step > 0)
    first = 0 if step > 0 else 2
    np.testing.assert_allclose(scan.mask_writer.slices_affine @ [first, 0, 0, 1], [10, 20, 30, 1])
    np.testing.assert_allclose(scan.mask_writer.slices_affine @ [2 - first, 0, 0, 1], [10, 20 - 2 * step, 30, 1])


def test_frames_without_a_place_can_have_a_distance(tmp_path):
    dataset = frames([0, 1, 2])
    del dataset.PerFrameFunctionalGroupsSequence
    assert read(dataset, tmp_path).slice_spacing is None
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 4
    scan = read(dataset, tmp_path)
    assert len(scan) == 3 and scan.slice_spacing == 4 and scan.spacing == (0.5, 0.25)
    assert scan.mask_writer.slices_affine is None


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("depths", [[5, 8], [14]])
def test_of_several_stacks_the_one_with_the_most_slices_is_taken(tmp_path, first, depths):
    slice_beside = make_dicom(PIXELS, (-10, -20, 14))
    short = {"short.dcm": frames(depths) if len(depths) > 1 else slice_beside}
    longest = [5, 8, 11][: len(depths) + 1]
    long = {"long.dcm": frames(longest)}
    scan = read_scan(save_zip(short | long if first else long | short, tmp_path / "series.zip"))
    np.testing.assert_array_equal(scan.slices, read(frames(longest), tmp_path).slices)
    [note] = scan.notes
    assert "short.dcm" in note and "a stack of its own" in note


@pytest.mark.parametrize("first", [True, False])
def test_of_single_images_the_largest_is_taken(tmp_path, first):
    small, large = {"small": make_dicom(PIXELS[:8])}, {"large": make_dicom(PIXELS)}
    scan = read_scan(save_zip(small | large if first else large | small, tmp_path / "series.zip"))
    assert scan.slices.shape == (1, 16, 12) and "small" in scan.notes[0] and "another size" in scan.notes[0]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_measured_values_are_those_of_the_slices(tmp_path, photometric):
    """Rescaled, in the order of the slices, white the largest, and padding no number."""
    pixels = PIXELS.copy()
    pixels[0] = -2000
    elements = {"RescaleSlope": 2, "RescaleIntercept": -7, "PhotometricInterpretation": photometric}
    files = {f"IM{n}": make_dicom(pixels + 0 * n, (0, 0, -n), PixelPaddingValue=-2000, **elements) for n in range(3)}
    for number, file in enumerate(files.values()):
        file.PixelData = np.where(pixels == -2000, pixels, pixels + number).tobytes()
    scan = read_scan(save_zip(files, tmp_path / "series.zip"), keep_values=True)
    sign = -1 if photometric == "MONOCHROME1" else 1
    expected = [np.where(pixels == -2000, np.nan, sign * (2.0 * (pixels + number) - 7)) for number in (2, 1, 0)]
    np.testing.assert_array_equal(scan.values, expected)
    several = frames([11, 5, 8])
    (tmp_path / "frames.dcm").write_bytes(content_of(several))
    stored = np.frombuffer(several.PixelData, np.int16).reshape(3, *PIXELS.shape)
    np.testing.assert_array_equal(read_scan(tmp_path / "frames.dcm", keep_values=True).values, stored[[1, 2, 0]])
    colours = save_dicom(make_dicom(np.zeros((8, 8, 3), np.uint8)), tmp_path / "colours.dcm")
    assert read_scan(colours, keep_values=True).values is None and read_scan(colours).modality is None
    assert read(make_dicom(PIXELS, Modality="CT"), tmp_path).modality == "CT"


ONE_FILE = {
    "cut off": (content_of(make_dicom(PIXELS))[:-50], "a.dcm is a DICOM file that cannot be read"),
    "a report": (content_of(make_dicom(PIXELS, PixelData=None)), "a.dcm is a DICOM file without an image"),
    "huge": (content_of(make_dicom(PIXELS, Rows=60000, Columns=60000)), "a.dcm has 3,600,000,000 voxels"),
    "flat": (content_of(make_dicom(PIXELS, Rows=0)), "a.dcm has no pixels"),
    "no pixels": (content_of(make_dicom(PIXELS, PixelData=b"")), "a.dcm has no pixels"),
}


@pytest.mark.parametrize("name", ONE_FILE)
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path, name):
    content, sentence = ONE_FILE[name]
    (tmp_path / "a.dcm").write_bytes(content)
    for read_file in (read_scan, read_mask):
        with pytest.raises(ValueError, match=f"^[^ ]*{sentence}"):
            read_file(tmp_path / "a.dcm")


def test_a_table_of_contents_is_no_image(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(content_of(make_dicom(PIXELS, PixelData=None)))
    for read_file in (read_scan, read_mask):
        with pytest.raises(ValueError, match="DICOMDIR is a table of contents"):
            read_file(tmp_path / "DICOMDIR")
    directory = {name: (tmp_path / "DICOMDIR").read_bytes() for name in ("DICOMDIR", "a/DICOMDIR")}
    with pytest.raises(ValueError, match=r"series.zip has no DICOM image in it\.$"):
        read_scan(save_zip(directory, tmp_path / "series.zip"))
    report = {"sr": make_dicom(PIXELS, PixelData=None)}
    with pytest.raises(ValueError, match="no DICOM image in it: sr is a DICOM file without an image"):
        read_scan(save_zip(directory | report, tmp_path / "series.zip"))


# The arithmetic of greys

FORMULAS = {
    "LINEAR": lambda x, center, width: (x - (center - 0.5)) / (width - 1) + 0.5,
    "LINEAR_EXACT": lambda x, center, width: (x - center) / width + 0.5,
    "SIGMOID": lambda x, center, width: 1 / (1 + np.exp(-4 * (x - center) / width)),
}


@pytest.mark.parametrize("function", FORMULAS)
@pytest.mark.parametrize("center, width, slope, intercept", [(40, 400, 1, 0), (-100, 30, 2, -500), (7, 900, 0.5, 3)])
def test_windows_have_the_formulas_of_the_standard(tmp_path, function, center, width, slope, intercept):
    elements = {"RescaleSlope": slope, "RescaleIntercept": intercept, "VOILUTFunction": function}
    scan = read(make_dicom(RAMP, WindowCenter=center, WindowWidth=width, **elements), tmp_path)
    expected = FORMULAS[function](RAMP * slope + intercept, center, width).clip(0, 1) * 255
    np.testing.assert_allclose(scan.slices[0], expected, atol=0.51)


def test_a_window_of_one_value_is_a_step(tmp_path):
    dataset = make_dicom((RAMP > 0).astype(np.uint8) * np.uint8(9), WindowCenter=5.5, WindowWidth=1)
    scan = read(dataset, tmp_path)
    np.testing.assert_array_equal(scan.slices[0], (RAMP > 0) * 255)
    assert not scan.notes
    many = read(make_dicom(RAMP, WindowCenter=5.5, WindowWidth=1), tmp_path)
    assert "shows nothing" in many.notes[0] and len(np.unique(many.slices)) > 200


def table(entries: list[int], first: int, bits: int, kind: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", kind, np.array(entries, np.uint16).tobytes() if kind == "OW" else entries)
    item.ModalityLUTType = "US"
    return Sequence([item])


TABLES = [(100, 1000, 12, "US"), (256, 1000, 8, "US"), (50, 1100, 16, "OW"), (90, 990, 10, "OW"), (65536, 0, 16, "OW")]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian])
@pytest.mark.parametrize("length, first, bits, kind", TABLES)
def test_a_table_of_greys_begins_at_its_first_value_and_ends_with_its_last(
    tmp_path, length, first, bits, kind, syntax
):
    entries = np.random.default_rng(0).integers(0, 2**bits, length)
    pixels = np.arange(950, 1350).reshape(20, 20).astype(np.uint16)
    dataset = make_dicom(pixels, VOILUTSequence=table(entries.tolist(), first, bits, kind))
    dataset.file_meta.TransferSyntaxUID = syntax
    scan = read(dataset, tmp_path)
    expected = entries[(pixels.astype(int) - first).clip(0, length - 1)] / (2**bits - 1) * 255
    np.testing.assert_allclose(scan.slices[0], expected, atol=0.51)
    assert not scan.notes


def test_a_table_that_cannot_be_is_not_used(tmp_path):
    for sequence, element in ((table([1] * 9, 0, 7), "VOILUTSequence"), (table([1], 0, 40), "VOILUTSequence")):
        scan = read(make_dicom(RAMP, VOILUTSequence=sequence), tmp_path)
        np.testing.assert_array_equal(scan.slices, read(make_dicom(RAMP), tmp_path).slices)
        assert element in scan.notes[0]


def test_a_table_of_values_comes_before_the_window(tmp_path):
    entries = np.random.default_rng(0).integers(0, 4096, 256)
    dataset = make_dicom(EIGHT_BITS, ModalityLUTSequence=table(entries.tolist(), 0, 16), PixelPaddingValue=3)
    mapped = make_dicom(entries[EIGHT_BITS].astype(np.uint16))
    np.testing.assert_array_equal(read(dataset, tmp_path).slices, read(mapped, tmp_path).slices)
    save_dicom(dataset, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.dcm", keep_values=True).values[0], entries[EIGHT_BITS])
    dataset.ModalityLUTSequence = Sequence([Dataset()])
    broken = read(dataset, tmp_path)
    np.testing.assert_array_equal(broken.slices[0], EIGHT_BITS * (EIGHT_BITS != 3))
    assert "ModalityLUTSequence" in broken.notes[0]


@pytest.mark.parametrize("value, limit", [(-2000, -1990), (-1990, -2000)])
def test_padding_can_be_a_range_and_is_not_all_there_is(tmp_path, value, limit):
    pixels = RAMP.copy()
    pixels[:20] = np.random.default_rng(0).integers(-2000, -1989, (20, 64))
    scan = read(make_dicom(pixels, PixelPaddingValue=value, PixelPaddingRangeLimit=limit), tmp_path)
    assert not scan.slices[0, :20].any() and not scan.notes
    np.testing.assert_array_equal(scan.slices[0, 20:], read(make_dicom(RAMP[20:]), tmp_path).slices[0])
    everything = read(make_dicom(pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=2000), tmp_path)
    np.testing.assert_array_equal(everything.slices, read(make_dicom(pixels), tmp_path).slices)
    assert "All pixels are padding" in everything.notes[0]


def test_windows_and_scales_of_frames_come_before_those_of_all(tmp_path):
    dataset = frames([5, 8])
    stored = np.frombuffer(dataset.PixelData, np.int16).reshape(2, *PIXELS.shape)
    window, shared, own = Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 30, 200
    shared.RescaleSlope, shared.RescaleIntercept, shared.RescaleType = 2, -100, "HU"
    own.RescaleSlope, own.RescaleIntercept, own.RescaleType = 0.5, 10, "HU"
    dataset.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence = [window]
    dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence = [own]
    scan = read_scan(save_dicom(dataset, tmp_path / "a.dcm"), keep_values=True)
    values = np.stack([stored[0] * 2.0 - 100, stored[1] * 0.5 + 10])
    np.testing.assert_allclose(scan.values, values)
    np.testing.assert_allclose(scan.slices, FORMULAS["LINEAR"](values, 30, 200).clip(0, 1) * 255, atol=0.51)
    del dataset.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence
    without = read(dataset, tmp_path).slices
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(without, ((values - low) / (high - low)).clip(0, 1) * 255, atol=0.51)


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_of_a_palette(tmp_path, bits):
    colors = np.random.default_rng(0).integers(0, 2**bits, (256, 3))
    colors[0] = 2**bits - 1
    dataset = make_dicom(EIGHT_BITS, PhotometricInterpretation="PALETTE COLOR")
    for number, name in enumerate(("Red", "Green", "Blue")):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        data = colors[:, number].astype(np.uint8 if bits == 8 else np.uint16).tobytes()
        setattr(dataset, f"{name}PaletteColorLookupTableData", data)
    scan = read(dataset, tmp_path)
    np.testing.assert_allclose(scan.slices[0], colors[EIGHT_BITS] / (2**bits - 1) * 255, atol=0.51)


@pytest.mark.parametrize("bits", [4, 12])
def test_colours_of_other_than_8_bits(tmp_path, bits):
    dtype = np.uint8 if bits < 8 else np.uint16
    pixels = np.random.default_rng(0).integers(0, 2**bits, (40, 30, 3)).astype(dtype)
    shown = read(make_dicom(pixels, BitsStored=bits, HighBit=bits - 1), tmp_path).slices[0]
    np.testing.assert_allclose(shown, pixels / (2**bits - 1) * 255, atol=4)
    assert shown.max() == 255


@pytest.mark.parametrize(
    "element",
    ["VOILUTSequence", "ModalityLUTSequence", "VOILUTFunction", "PixelPaddingValue"]
    + ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PresentationLUTShape"],
)
def test_an_element_of_another_kind_is_as_if_it_were_not_there(tmp_path, element):
    scan = read(make_dicom(RAMP, **{element: b"junk"}), tmp_path)
    np.testing.assert_array_equal(scan.slices, read(make_dicom(RAMP), tmp_path).slices)
    assert scan.spacing == (0.5, 0.25)
    scan.mask_writer.save(scan.slices > 99, tmp_path / "mask.dcm", "infection")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.dcm"), scan.slices > 99)
