"""Kinds of oddities in NIfTI files, each as a table of them."""

import gzip
import itertools
import struct

import nibabel
import numpy as np
import pytest
from dicom_files import list_groups

from lvit_hf.io.readers import explain_mask, read_mask, read_scan


VALUES = np.random.default_rng(0).normal(1000, 200, (8, 9, 10)).astype(np.float32)
AFFINE = np.diag([-2.0, -3, 4, 1])
QFORM_CODE, SFORM_CODE, PIXDIM, SROW, SLOPE, UNITS = 252, 254, 76, 280, 112, 123


def make(values=VALUES, affine=AFFINE, kind=nibabel.Nifti1Image) -> bytes:
    image = kind(values, affine, dtype=values.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image.to_bytes()


def patch(content: bytes, **changes) -> bytes:
    """With numbers at places of the header: `at_76="<f", ...`."""
    changed = bytearray(content)
    for place, (layout, *values) in changes.items():
        struct.pack_into(layout, changed, int(place.removeprefix("at_")), *values)
    return bytes(changed)


def read(content: bytes, tmp_path, name="a.nii"):
    (tmp_path / name).write_bytes(content)
    return read_scan(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.gz", "a", "a.png", "A.NII"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_content_tells_what_a_file_is(tmp_path, name, packed, kind):
    content = make(kind=kind)
    scan = read(gzip.compress(content) if packed else content, tmp_path, name)
    assert scan.slices.shape == (10, 9, 8) and scan.spacing == (3, 2) and scan.slice_spacing == 4


ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("axes, signs", ORIENTATIONS)
def test_every_voxel_stays_where_it_lies_however_the_file_is_stored(tmp_path, axes, signs):
    values = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    affine = nibabel.affines.from_matvec((np.diag([2, 3, 4]) * signs)[:, axes], [10, -20, 30])
    scan = read(make(values, affine), tmp_path)
    to_places = scan.mask_writer.slices_affine
    indices = [np.ones((4, 120)), np.ones((4, 120))]
    for index, volume in zip(indices, (values, scan.slices)):
        index[:3] = np.unravel_index(np.argsort(volume, axis=None), volume.shape)
    np.testing.assert_allclose(affine @ indices[0], to_places @ indices[1])
    to_head, to_back, to_left = to_places[:3, :3].T
    assert to_head[2] > 0 and to_back[1] < 0 and to_left[0] < 0
    assert (scan.slice_spacing, *scan.spacing) == (to_head[2], -to_back[1], -to_left[0])
    scan.mask_writer.save(scan.slices > 60, tmp_path / "mask.nii.gz", "infection")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask.get_fdata(), values > 60)
    np.testing.assert_allclose(mask.affine, affine)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.nii"), scan.slices > 0)


@pytest.mark.parametrize("dtype", [None, np.uint8])
def test_numbers_are_written_as_they_are_or_in_fewer_bytes(tmp_path, dtype):
    writer, values = read(make(), tmp_path).mask_writer, np.random.default_rng(0).random((10, 9, 8)).astype("f4")
    writer.save_values(values, tmp_path / "values.nii", dtype)
    written = nibabel.load(tmp_path / "values.nii")
    assert written.get_data_dtype() == (dtype or values.dtype)
    np.testing.assert_allclose(written.get_fdata().T, values, atol=1 / 255)


SHAPES = [((8, 9), True), ((8, 9, 10), True), ((8, 9, 10, 1), True), ((8, 9, 10, 1, 1), True)]
SHAPES += [((8,), False), ((8, 9, 10, 2), False), ((8, 9, 10, 1, 2), False)]


@pytest.mark.parametrize("shape, is_read", SHAPES)
def test_axes_of_one_volume_are_read_and_more_refused(tmp_path, shape, is_read):
    values = np.resize(VALUES, shape)
    content = nibabel.Nifti1Image(values, AFFINE).to_bytes()
    if is_read:
        scan = read(content, tmp_path)
        assert scan.slices.shape == (*shape, 1)[:3][::-1]
        scan.mask_writer.save(scan.slices > 127, tmp_path / "mask.nii", "infection")
        assert nibabel.load(tmp_path / "mask.nii").shape == shape
    else:
        with pytest.raises(ValueError, match=f"a.nii has {len(shape)} axes"):
            read(content, tmp_path)


@pytest.mark.parametrize(
    "affine", [np.diag([2, 3, -4, 1]), np.array([[0, -2.0, 0, 5], [0, 0, 4, 6], [3, 0, 0, 7], [0, 0, 0, 1]])]
)
def test_one_slice_needs_no_step_to_another(tmp_path, affine):
    flat = np.array(affine, float)
    flat[:3, 2] = 0
    values = VALUES[..., :1]
    whole = read(make(values, affine), tmp_path)
    scan = read(patch(make(values, affine), at_252=("<h", 0), at_280=("<12f", *flat[:3].ravel())), tmp_path)
    np.testing.assert_array_equal(scan.slices, whole.slices)
    distances, expected = ((each.slice_spacing, *each.spacing) for each in (scan, whole))
    assert distances == tuple(1 if distance == 4 else distance for distance in expected) and 4 in expected
    assert not scan.notes
    sizes = patch(make(values), at_252=("<2h", 0, 0), at_80=("<3f", 2, 3, 0))
    assert read(sizes, tmp_path).spacing == (3, 2) and read(sizes, tmp_path).slice_spacing is None


BROKEN = {
    "no NIfTI": (bytes(600), "a.nii is not a NIfTI file"),
    "less than a header": (make()[:300], "a.nii is not a NIfTI file"),
    "no voxels": (make()[:400], "a.nii is a broken NIfTI file: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_sentence(tmp_path, name):
    content, sentence = BROKEN[name]
    with pytest.raises(ValueError, match=sentence):
        read(content, tmp_path)


def test_voxels_begin_behind_the_header_whatever_it_says(tmp_path):
    np.testing.assert_array_equal(
        read(patch(make(), at_108=("<f", 0)), tmp_path).slices, read(make(), tmp_path).slices
    )


ROTATED = nibabel.affines.from_matvec(np.array([[0, 0, -4.0], [-2, 0, 0], [0, 3, 0]]), [1, 2, 3])
FORMS = {
    "a zero sform": ({"at_280": ("<12f", *[0.0] * 12)}, AFFINE, "sform"),
    "an sform of no numbers": ({"at_280": ("<12f", *[np.nan] * 12)}, AFFINE, "sform"),
    "a flat sform": ({"at_280": ("<12f", 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0)}, AFFINE, "sform"),
    "an sform without a code": ({"at_254": ("<h", 0), "at_280": ("<12f", *[9.0] * 12)}, AFFINE, None),
    "the last code": ({"at_254": ("<h", 5), "at_268": ("<f", 99)}, AFFINE, None),
    "a code that is none": ({"at_254": ("<h", 77), "at_280": ("<12f", *[0.0] * 12)}, AFFINE, None),
    "a qform that is none": ({"at_256": ("<3f", 5, 5, 5)}, AFFINE, None),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("affine", [AFFINE, ROTATED], ids=["straight", "rotated"])
def test_the_first_form_that_can_be_is_used(tmp_path, name, affine):
    changes, _, named = FORMS[name]
    plain, odd = read(make(affine=affine), tmp_path), read(patch(make(affine=affine), **changes), tmp_path)
    np.testing.assert_array_equal(odd.slices, plain.slices)
    assert odd.spacing == pytest.approx(plain.spacing) and odd.slice_spacing == pytest.approx(plain.slice_spacing)
    assert any("sform" in note for note in odd.notes) == (named is not None)
    odd.mask_writer.save(odd.slices > 127, tmp_path / "mask.nii.gz", "infection")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    codes = int(mask.header["qform_code"]), int(mask.header["sform_code"])
    assert codes == {"a qform that is none": (0, 1), "the last code": (1, 5)}.get(name, (1, 0))


@pytest.mark.parametrize(
    "sizes, spacing, between",
    [
        ((2, 3, 4), (3, 2), 4),
        ((0, 3, 4), None, None),
        ((np.nan, 3, 4), None, None),
        ((2, np.inf, 4), None, None),
        ((-2, 3, 4), (3, 2), 4),
    ],
)
def test_without_a_form_the_sizes_of_voxels_are_used_if_they_can_be(tmp_path, sizes, spacing, between):
    content = patch(make(), at_252=("<2h", 0, 0), at_80=("<3f", *sizes))
    scan = read(content, tmp_path)
    assert scan.slices.shape == (10, 9, 8) and scan.spacing == spacing and scan.slice_spacing == between
    assert "does not say how it lies" in scan.notes[0]
    scan.mask_writer.save(scan.slices > 127, tmp_path / "mask.nii.gz", "infection")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    known = [abs(size) if np.isfinite(size) and size else 1 for size in sizes]
    image = nibabel.Nifti1Image(VALUES, None)
    image.header.set_zooms(known)
    assert mask.shape == VALUES.shape
    np.testing.assert_allclose(mask.affine, image.header.get_base_affine())
    np.testing.assert_allclose(scan.mask_writer.slices_affine @ [2, 3, 4, 1], mask.affine @ [4, 8 - 3, 2, 1])


@pytest.mark.parametrize("unit, factor", [(0, 1), (1, 1000), (2, 1), (3, 0.001), (7, 1)])
def test_distances_are_in_mm_whatever_the_unit(tmp_path, unit, factor):
    scan = read(patch(make(), at_123=("<B", unit)), tmp_path)
    assert scan.spacing == pytest.approx((3 * factor, 2 * factor))
    scan.mask_writer.save(scan.slices > 127, tmp_path / "mask.nii.gz", "infection")
    again = read_scan(tmp_path / "mask.nii.gz")
    assert again.spacing == scan.spacing and again.slice_spacing == scan.slice_spacing == pytest.approx(4 * factor)


@pytest.mark.parametrize("slope, intercept", [(0, 0), (np.nan, np.nan), (1, 0), (0.001, 0), (16, -1024), (np.inf, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_the_picture_does_not_depend_on_the_scale(tmp_path, slope, intercept, dtype):
    values = (VALUES / 8).clip(0, 255).astype(dtype)
    scan = read(patch(make(values), at_112=("<2f", slope, intercept)), tmp_path)
    np.testing.assert_array_equal(scan.slices, read(make(values), tmp_path, "plain.nii").slices)
    assert any("slope" in note for note in scan.notes) == (slope == np.inf)
    scale, offset = (slope, intercept) if np.isfinite(slope) and slope else (1, 0)
    np.testing.assert_allclose(
        read_scan(tmp_path / "a.nii", keep_values=True).values, values.T * np.float64(scale) + offset
    )


def test_a_negative_slope_makes_a_negative(tmp_path):
    values = (VALUES / 8).clip(0, 255).astype(np.uint8)
    scan = read(patch(make(values), at_112=("<2f", -1, 255)), tmp_path)
    np.testing.assert_array_equal(scan.slices, 255 - read(make(values), tmp_path).slices)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"])
def test_every_type_of_number(tmp_path, dtype):
    values = np.rint(VALUES / 16).clip(0, 120).astype(dtype)
    image = nibabel.Nifti1Image(values, AFFINE, dtype=values.dtype)
    image = nibabel.Nifti1Image(values, AFFINE, image.header.as_byteswapped(">") if ">" in dtype else image.header)
    nibabel.save(image, tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    order = np.argsort(values[:, ::-1].ravel())
    assert scan.slices.shape == (10, 9, 8) and len(np.unique(scan.slices)) > 30 and len(order)


def test_colours(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
    for names in ("RGB", "RGBA"):
        colors = np.zeros((6, 5, 4), [(name, "u1") for name in names])
        for number, name in enumerate("RGB"):
            colors[name] = rgb[..., number]
        scan = read(nibabel.Nifti1Image(colors, np.diag([-1, -1, 1, 1])).to_bytes(), tmp_path)
        np.testing.assert_array_equal(scan.slices, rgb.transpose(2, 1, 0, 3))
        np.testing.assert_array_equal(read_mask(tmp_path / "a.nii"), scan.slices.any(-1))
        assert read_scan(tmp_path / "a.nii", keep_values=True).values is None
        negative = patch((tmp_path / "a.nii").read_bytes(), at_112=("<2f", -1, 255))
        np.testing.assert_array_equal(read(negative, tmp_path, "b.nii").slices, scan.slices)
        lost = read(patch((tmp_path / "a.nii").read_bytes(), at_252=("<2h", 0, 0)), tmp_path)
        np.testing.assert_array_equal(lost.slices, scan.slices[:, ::-1])  # as nibabel takes it


@pytest.mark.parametrize("spike", [1e6, 1e9, 1e30, np.inf, -np.inf, np.nan])
def test_one_odd_value_changes_nothing_else(tmp_path, spike):
    values = np.random.default_rng(0).normal(1000, 200, (40, 30, 20)).astype(np.float32)
    plain = read(make(values), tmp_path).slices.astype(int)
    values[3, 3, 3] = spike
    changed = np.abs(read(make(values), tmp_path).slices - plain)
    assert np.count_nonzero(changed > 2) <= 1
    assert any("no numbers" in note for note in read(make(values), tmp_path).notes) == (not np.isfinite(spike))


def test_pairs_of_files(tmp_path):
    pair = nibabel.Nifti1Pair(VALUES, AFFINE)
    nibabel.save(pair, tmp_path / "pair.img")
    analyze = nibabel.AnalyzeImage(VALUES, AFFINE)
    nibabel.save(analyze, tmp_path / "old.img")
    for name in ("pair.hdr", "pair.img", "old.hdr", "old.img"):
        assert read_scan(tmp_path / name).slices.shape == (10, 9, 8)
    assert read_scan(tmp_path / "pair.img").spacing == (3, 2)
    assert list_groups(tmp_path) == [(tmp_path / "old.hdr",), (tmp_path / "pair.hdr",)]
    (tmp_path / "whole.img").write_bytes(make())
    expected = read_scan(tmp_path / "pair.hdr")
    np.testing.assert_array_equal(read_scan(tmp_path / "whole.img").slices, expected.slices)
    for name, content in {
        "pair.IMG": (tmp_path / "pair.img").read_bytes(),
        "pair.img.gz": gzip.compress((tmp_path / "pair.img").read_bytes()),
    }.items():
        (tmp_path / "other").mkdir(exist_ok=True)
        for path in (tmp_path / "other").iterdir():
            path.unlink()
        (tmp_path / "other" / name).write_bytes(content)
        (tmp_path / "other" / "pair.hdr").write_bytes((tmp_path / "pair.hdr").read_bytes())
        np.testing.assert_array_equal(read_scan(tmp_path / "other" / "pair.hdr").slices, expected.slices)
    (tmp_path / "pair.img").unlink()
    with pytest.raises(ValueError, match="pair.img is not beside it"):
        read_scan(tmp_path / "pair.hdr")


def test_a_packed_file_is_not_unpacked_further_than_its_header_says(tmp_path):
    content = make() + bytes(50_000_000)
    assert len(read(gzip.compress(content, 1), tmp_path, "long.nii.gz")) == 10


LABELS = np.zeros((8, 9, 10), np.int16)
LABELS[2:5], LABELS[6:] = 1, 1000
MASKS = {
    "labels": (LABELS, LABELS > 0),
    "all foreground": (np.ones_like(LABELS), np.ones(LABELS.shape, bool)),
    "labels as floats": (LABELS.astype(np.float64), LABELS > 0),
    "labels above half of 255": ((LABELS > 0) * np.uint8(200) + (LABELS > 1) * np.uint8(50), LABELS > 0),
    "a low label beside 255": (np.where(LABELS > 1, 255, LABELS).astype(np.uint8), LABELS > 0),
    "many labels": (np.arange(720, dtype=np.int32).reshape(8, 9, 10) * 20, np.arange(720).reshape(8, 9, 10) > 0),
    "probabilities": (np.where(LABELS > 1, 0.9, 0.2 * (LABELS > 0)).astype(np.float32), LABELS > 1),
    "no numbers outside": (np.where(LABELS > 0, 1, np.nan).astype(np.float32), LABELS > 0),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_labels(tmp_path, name):
    values, expected = MASKS[name]
    (tmp_path / "mask.nii.gz").write_bytes(gzip.compress(make(values)))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz"), expected.T)


def test_a_mask_says_what_was_taken_for_foreground(tmp_path):
    (tmp_path / "labels.nii").write_bytes(make(LABELS))
    assert explain_mask(tmp_path / "labels.nii")[1] == "every value but 0: 1, 1000"
    (tmp_path / "scan.nii").write_bytes(make((LABELS - 100).astype(np.int16)))
    with pytest.raises(ValueError, match="scan.nii cannot be used as a mask: A mask has no negative values"):
        read_mask(tmp_path / "scan.nii")
