"""Files in, masks and a report out: each file gets what is its own, whatever becomes of the others."""

import csv
import io
import re
import zipfile

import nibabel
import numpy as np
import pytest
from dicom_files import make_dicom, save_dicom
from PIL import Image

from lvit_hf.inference.archive import NameGiver, ResultArchive
from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.inference.files import (
    Item,
    describe_result,
    save_mask,
    save_nifti,
    save_overlay,
    segment_items,
)
from lvit_hf.inference.slices import VolumeSegmentation, count_thresholds
from lvit_hf.io.scan import Scan


CAPTION = "one infected area, upper left lung"


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[Item]:
    """Pictures, a volume and broken files by turns, the first of them broken."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    names = ["broken-1.png", "a.png", "broken-2.png", "b.png", "scan.nii.gz", "c.png", "broken-3.png", "d.png"]
    for name in names:
        if name.startswith("broken"):
            (folder / name).write_bytes(b"no picture")
        elif name.endswith(".png"):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / name)
        else:
            voxels = rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-0.5, -1, 2, 1])), folder / name)
    return [Item(name, CAPTION if number % 2 else None, folder / name) for number, name in enumerate(names)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_file_has_its_own_result_in_its_own_place(segmenter, items, batch_size):
    rows = [row for rows in segment_items(segmenter.segment, items, batch_size) for row in rows]
    assert [row.item for row in rows] == items
    for row in rows:
        entry = describe_result(row, 0.4)
        assert (entry["image"], "error" in entry) == (row.item.name, row.item.name.startswith("broken"))
        if isinstance(row.result, VolumeSegmentation):
            for index in range(3):
                [expected] = segmenter.segment([row.scan.image(index)], [row.item.text])
                np.testing.assert_array_equal(row.result.mask(0.4, index), expected.mask(0.4))
                if index == 1:
                    np.testing.assert_allclose(row.result.middle.probabilities, expected.probabilities, atol=1e-5)
        elif row.error is None:
            [expected] = segmenter.segment([row.item.path], [row.item.text])
            np.testing.assert_allclose(row.result.probabilities, expected.probabilities, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_masks_overlays_and_numbers_are_cut_at_the_same_threshold(segmenter, items, tmp_path, threshold):
    rows = [row for rows in segment_items(segmenter.segment, items[3:5]) for row in rows]
    for row in rows:
        entry, names = describe_result(row, threshold), save_mask(row, threshold, tmp_path, "x")
        overlay = np.asarray(Image.open(tmp_path / save_overlay(row, threshold, tmp_path, "x")))
        if isinstance(row.result, VolumeSegmentation):
            mask = np.asarray(nibabel.load(tmp_path / names[0]).dataobj) > 0
            assert entry["voxels"] == mask.sum() and entry["volume_ml"] == pytest.approx(mask.sum() / 1000)
            areas, largest = mask.sum((0, 1)), int(mask.sum((0, 1)).argmax())
            assert entry["area_pixels_by_slice"] == areas.tolist() and entry["largest_slice"] == largest
            assert entry["largest_slice_area_pixels"] == areas[largest]
            probabilities = np.stack([segmenter.segment([row.scan.image(i)])[0].probabilities for i in range(3)])
            inside = probabilities[row.result.mask(threshold)].mean()
            assert entry["mean_probability"] == pytest.approx(inside, abs=0.005)
            expected = draw_overlay(row.scan.image(largest), row.result.mask(threshold, largest))
        else:
            mask = np.asarray(Image.open(tmp_path / names[0])) > 0
            assert entry["area_pixels"] == mask.sum() == (row.result.probabilities > threshold).sum()
            expected = draw_overlay(row.result.image, mask)
        np.testing.assert_array_equal(overlay, np.asarray(expected))


@pytest.mark.parametrize("spacing, between, sides", [((0.5, 2), 3, (2, 0.5, 3)), (None, None, (1, 1, 1))])
def test_a_volume_without_a_place_keeps_its_spacing(tmp_path, spacing, between, sides):
    masks = np.zeros((3, 4, 5), bool)
    masks[1, 0, 2:4] = True
    scan = Scan(np.zeros(masks.shape, np.uint8), spacing, between)
    save_nifti(masks.astype(np.uint8), scan, tmp_path / "mask.nii.gz")
    image = nibabel.load(tmp_path / "mask.nii.gz")
    assert image.header.get_zooms() == pytest.approx(sides)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")  # as if axial
    np.testing.assert_array_equal(np.asarray(image.dataobj).T > 0, masks)


def test_a_voxel_at_the_threshold_is_not_above_it():
    probabilities = np.linspace(0, 1, 1001, dtype=np.float32).reshape(7, 11, 13)
    volume = VolumeSegmentation(count_thresholds(probabilities), None)
    for threshold in np.arange(101) / 100:
        mask = probabilities > np.float32(threshold)
        np.testing.assert_array_equal(volume.mask(threshold), mask)
        assert volume.areas(threshold).tolist() == mask.sum((1, 2)).tolist()


def test_a_zip_of_results_is_cut_at_its_threshold_and_names_what_failed(segmenter, items, tmp_path):
    rows = [row for rows in segment_items(segmenter.segment, items[:5]) for row in rows]
    with ResultArchive(tmp_path / "all.zip", 0.3, {"model": "mine"}) as archive:
        entries = [archive.add(row) for row in rows]
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        archive.extractall(tmp_path)
    for row, entry in zip(rows, entries, strict=True):
        if row.error is not None:
            continue
        if isinstance(row.result, VolumeSegmentation):
            mask = np.asarray(nibabel.load(tmp_path / "masks" / entry["masks"][0]).dataobj) > 0
            assert entry["voxels"] == mask.sum()
            index = row.result.areas(0.3).argmax()
            overlay = draw_overlay(row.scan.image(index), row.result.mask(0.3, index))
        else:
            mask = np.asarray(Image.open(tmp_path / "masks" / entry["masks"][0])) > 0
            np.testing.assert_array_equal(mask, row.result.mask(0.3))
            overlay = draw_overlay(row.result.image, mask)
        found = Image.open(tmp_path / "overlays" / entry["overlay"])
        np.testing.assert_array_equal(np.asarray(found), np.asarray(overlay))
    table = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text(encoding="utf-8-sig"))))
    assert [line["image"] for line in table] == ["a.png", "b.png", "scan.nii.gz", "broken-1.png", "broken-2.png"]
    assert [bool(line["error"]) for line in table] == [False] * 3 + [True] * 2


def test_a_zip_names_what_cannot_be_written_and_goes_on(segmenter, tmp_path):
    wide = [Image.new("L", (33_000, 4), grey) for grey in (10, 99)]  # wider than a NIfTI file can be
    wide[0].save(tmp_path / "wide.tif", save_all=True, append_images=wide[1:])
    pixels = np.arange(480, dtype=np.uint16).reshape(24, 20)
    save_dicom(make_dicom(pixels, StudyInstanceUID=None), tmp_path / "nameless.dcm")
    save_dicom(make_dicom(pixels), tmp_path / "whole.dcm")
    items = [Item(name, None, tmp_path / name) for name in ("wide.tif", "nameless.dcm", "whole.dcm")]
    with ResultArchive(tmp_path / "all.zip", 0.5, {}) as archive:
        entries = [archive.add(row) for rows in segment_items(segmenter.segment, items) for row in rows]
    failed, nameless, whole = entries
    assert failed["error"].startswith("wide.tif: The mask has 33,000 pixels") and archive.report["failures"] == [
        failed
    ]
    assert [note for note in nameless["notes"] if "There is no DICOM Segmentation" in note] and not whole["notes"]
    with zipfile.ZipFile(tmp_path / "all.zip") as written:
        masks = [name for name in written.namelist() if name.startswith("masks/")]
    assert masks == ["masks/nameless_mask.png", "masks/whole_mask.dcm", "masks/whole_mask.png"]


def test_names_of_results_are_safe_and_given_once():
    given, giver = ["a b?.png", "A_B_.dcm", "..", "", "/etc/passwd", "C:\\x\\y:z.png", "n" * 300, "ü.png"], NameGiver()
    names = [giver.give(name) for name in given * 2]
    assert all(re.fullmatch(r"[\w-]{1,110}", name) for name in names)
    assert len({name.casefold() for name in names}) == len(names)
    assert names[:5] == ["a_b_", "A_B_-2", "image", "image-2", "passwd"]
