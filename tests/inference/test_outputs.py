"""What is written of a file: every number lies where its pixel lies. Here brightness is the probability."""

import csv
import json
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from dicom_files import SAGITTAL, make_dicom, save_zip
from PIL import Image
from scipy import ndimage

from lvit_hf.inference.files import (
    Item,
    Outputs,
    describe_result,
    save_labels,
    save_nifti,
    save_results,
    segment_items,
    time_results,
)
from lvit_hf.io.scan import Scan
from lvit_hf.model.segmenter_lvit import Segmentation


THRESHOLD = 0.45
BLOBS = ndimage.gaussian_filter(np.random.default_rng(0).random((6, 24, 20)), (0, 2, 2))
BLOBS = np.rint((BLOBS - BLOBS.min()) / np.ptp(BLOBS) * 255).astype(np.uint8)
ROTATED = nibabel.affines.from_matvec(np.array([[0, 0, -4.0], [-2, 0, 0], [0, 3, 0]]), [1, 2, 3])


def segment(images, texts):
    if "refused" in texts:
        raise ValueError("This caption may not be used.")
    probabilities = [np.asarray(image.convert("L"), np.float32) / 255 for image in images]
    return [Segmentation(image, values[None], ("polyp",)) for image, values in zip(images, probabilities)]


def write_picture(path: Path):
    Image.fromarray(BLOBS[0]).save(path)


def write_nifti(path: Path, values=BLOBS):
    nibabel.save(nibabel.Nifti1Image(values, ROTATED, dtype=values.dtype), path)


def write_series(path: Path):
    save_zip({f"IM{n}": make_dicom(part, (3 * n, 5, 7), SAGITTAL) for n, part in enumerate(BLOBS)}, path)


FILES = {
    "picture.png": write_picture,
    "slice.nii.gz": lambda path: write_nifti(path, BLOBS[:1]),
    "volume.nii.gz": write_nifti,
    "series.zip": write_series,
    "pages.tif": lambda path: tifffile.imwrite(path, BLOBS, photometric="minisblack"),
}


MASKS = {
    "picture.png": ["x_mask.png"],
    "slice.nii.gz": ["x_mask.nii.gz"],
    "volume.nii.gz": ["x_mask.nii.gz"],
    "series.zip": ["x_mask.dcm"],
    "pages.tif": ["x_mask.nii.gz"],
}


def read_numbers(path: Path) -> np.ndarray:
    """The numbers of a file, those of volumes in the order of their voxels in space."""
    if path.name.endswith(".nii.gz"):
        image = nibabel.as_closest_canonical(nibabel.load(path))
        return image.get_fdata()
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", FILES)
def test_masks_labels_maps_and_tables_of_a_file_agree(tmp_path, name, bits):
    FILES[name](tmp_path / name)
    outputs = Outputs(THRESHOLD, labels=True, probabilities=bits, geojson=True)
    [row] = [row for rows in segment_items(segment, [Item(name, None, tmp_path / name)]) for row in rows]
    written = save_results(row, outputs, tmp_path, "x")
    assert written["masks"] == MASKS[name]
    names = [*written["masks"], *(value for value in written.values() if isinstance(value, str))]
    assert all(each.removeprefix("x") in outputs.suffixes and (tmp_path / each).is_file() for each in names)
    is_volume = len(row.scan) > 1
    mask, labels = row.result.mask(THRESHOLD), read_numbers(tmp_path / written["label_map"])
    assert mask.any() and labels.max() == written["instances"] > 1
    assert np.count_nonzero(labels) == mask.sum()
    maps = read_numbers(tmp_path / written["probabilities"])
    if maps.dtype.kind != "f":
        assert maps.dtype == (np.uint8 if bits == 8 else np.uint16)
        maps = maps / np.iinfo(maps.dtype).max
    np.testing.assert_array_equal(
        (maps > THRESHOLD)[np.abs(maps - THRESHOLD) > 0.006], (labels > 0)[np.abs(maps - THRESHOLD) > 0.006]
    )
    assert np.abs(np.sort(maps, None) - np.sort(row.result.probabilities, None)).max() < 1 / 250
    for each in written["masks"]:
        if each.endswith(".nii.gz"):
            np.testing.assert_array_equal(read_numbers(tmp_path / each) > 0, labels > 0)
    if row.scan.mask_writer is not None:
        affine = nibabel.load(tmp_path / written["label_map"]).affine
        places = np.argwhere(mask.reshape(row.scan.slices.shape)) @ row.scan.mask_writer.slices_affine[:3, :3].T
        own = np.argwhere(np.asarray(nibabel.load(tmp_path / written["label_map"]).dataobj)) @ affine[:3, :3].T
        corner = row.scan.mask_writer.slices_affine[:3, 3]
        np.testing.assert_allclose(
            np.sort((places + corner).round(3), 0), np.sort((own + affine[:3, 3]).round(3), 0), atol=2e-3
        )
    with (tmp_path / written["instance_table"]).open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(entry["id"]) for entry in table] == list(range(1, written["instances"] + 1))
    assert sum(int(entry["pixels"]) for entry in table) == mask.sum()
    known = row.scan.known_spacing(mask.ndim)
    assert {entry["unit"] for entry in table} == {"px" if known is None else "mm"}
    assert sum(float(entry["size"]) for entry in table) == pytest.approx(mask.sum() * np.prod(known or 1))
    centre = [
        np.average(
            [float(entry[f"centroid_{axis}"]) for entry in table], weights=[int(entry["pixels"]) for entry in table]
        )
        for axis in ("x", "y", "slice")[: mask.ndim]
    ]
    assert centre == pytest.approx(np.argwhere(mask).mean(0)[::-1].tolist())
    assert ("geojson" in written) == (not is_volume)


def test_what_was_not_asked_for_is_not_written(tmp_path):
    write_picture(tmp_path / "a.png")
    [[row]] = segment_items(segment, [Item("a.png", None, tmp_path / "a.png")])
    written = save_results(row, Outputs(THRESHOLD), tmp_path, "x")
    assert written.keys() == {"masks", "overlay", "instances"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "x_mask.png", "x_overlay.png"]
    assert set(Outputs().suffixes) == {"_mask.png", "_mask.nii.gz", "_mask.dcm", "_overlay.png"}
    assert save_results(row, Outputs(labels=True), tmp_path, "y").keys() >= {"label_map", "instance_table"}
    nothing = save_results(row, Outputs(1.0, labels=True, geojson=True), tmp_path, "z")
    assert nothing["instances"] == 0 and (tmp_path / "z_instances.csv").read_text(encoding="utf-8-sig") == "id\n"


def test_each_label_has_a_mask_and_the_background_is_no_object(tmp_path):
    scores = np.stack([1 - BLOBS[0] / 255, BLOBS[0] / 510, BLOBS[0] / 510 + 0.01]).astype(np.float32)
    result = Segmentation(Image.fromarray(BLOBS[0]), scores, ("background", "left", "right"))
    [[row]] = segment_items(lambda images, texts: [result], [_saved(tmp_path / "a.png")])
    written = save_results(row, Outputs(labels=True, geojson=True), tmp_path, "x")
    features = json.loads((tmp_path / written["geojson"]).read_text(encoding="utf-8"))["features"]
    assert {feature["properties"]["classification"]["name"] for feature in features} == {"left and right"}
    assert written["masks"] == ["x_background_mask.png", "x_left_mask.png", "x_right_mask.png"]
    masks = [read_numbers(tmp_path / name) for name in written["masks"]]
    assert all(set(np.unique(mask)) <= {0, 255} for mask in masks)
    np.testing.assert_array_equal(sum(mask > 0 for mask in masks), 1)
    np.testing.assert_array_equal(read_numbers(tmp_path / written["label_map"]) > 0, masks[0] == 0)


def _saved(path: Path, text: str | None = None) -> Item:
    write_picture(path)
    return Item(path.name, text, path)


def test_a_report_says_of_a_file_what_was_asked_and_what_it_is(tmp_path):
    write_series(tmp_path / "series.zip")
    item = Item("series.zip", "all", tmp_path / "series.zip")
    [row] = [row for rows in segment_items(segment, [item]) for row in rows]
    entry = describe_result(row, THRESHOLD)
    assert (entry["slices"], entry["height"], entry["width"]) == (6, 24, 20)
    assert (entry["spacing_mm"], entry["slice_spacing_mm"]) == ((0.5, 0.25), 3.0)
    assert entry["threshold"] == THRESHOLD and entry["labels"] == ["polyp"] and entry["notes"] == []
    assert entry["voxels"] == row.result.mask(THRESHOLD).sum()
    picture = _saved(tmp_path / "a.png")
    [[row]] = segment_items(segment, [picture])
    entry = describe_result(row, THRESHOLD)
    assert entry["area_pixels"] == np.count_nonzero(BLOBS[0] / 255 > THRESHOLD)
    assert all(entry[name] is None for name in ("reading", "written_captions", "consistency", "scope", "out_of_scope"))


# One file does not keep the others from it


def test_a_caption_that_is_refused_costs_its_own_file_alone(tmp_path):
    items = [_saved(tmp_path / f"{number}.png", text) for number, text in enumerate((None, "refused", "all"))]
    write_nifti(tmp_path / "volume.nii.gz")
    items.append(Item("volume.nii.gz", "refused", tmp_path / "volume.nii.gz"))
    items.append(Item("gone.png", None, tmp_path / "gone.png"))
    items.append(Item("early.png", None, Path(), problem="early.png is none of these."))
    rows = [row for rows in segment_items(segment, items) for row in rows]
    assert [row.item for row in rows] == items
    errors = [row.error for row in rows]
    assert errors[0] is errors[2] is None and rows[0].result is not None and rows[2].result is not None
    assert errors[1] == "1.png: This caption may not be used."
    assert errors[3] == "volume.nii.gz: This caption may not be used." and rows[3].result is None
    assert errors[4] == "gone.png does not exist." and errors[5] == "early.png is none of these."
    assert describe_result(rows[1], 0.5) == {"image": "1.png", "text": "refused", "error": errors[1]}


def test_one_refused_caption_beside_broken_files_is_told_by_its_own_name(tmp_path):
    """Each of a batch has what is its own, whatever the others are."""
    items = [Item("gone.png", None, tmp_path / "gone.png"), _saved(tmp_path / "a.png", "refused")]
    [[gone, refused]] = segment_items(segment, items)
    assert gone.error == "gone.png does not exist." and refused.error == "a.png: This caption may not be used."
    assert (gone.item, refused.item) == tuple(items) and gone.result is refused.result is None


def test_files_of_too_many_slices_are_refused_before_they_are_segmented(tmp_path):
    write_nifti(tmp_path / "volume.nii.gz")
    items = [Item("volume.nii.gz", None, tmp_path / "volume.nii.gz"), _saved(tmp_path / "a.png", " ")]

    def check_slices(item: Item, slices: int):
        if slices > 1:
            raise ValueError(f"{item.name} has {slices} slices.")

    [[volume, picture]] = segment_items(segment, items, check_slices=check_slices)
    assert (
        volume.error == f"volume.nii.gz has {BLOBS.shape[1]} slices." and volume.scan is None and picture.error is None
    )
    assert describe_result(volume, 0.5)["text"] is None


@pytest.mark.parametrize("bits", [16, 32])
def test_no_number_of_an_object_is_lost(tmp_path, bits):
    [[row]] = segment_items(segment, [_saved(tmp_path / "a.png")])
    instances = np.arange(2**16 + (bits == 32)).reshape(-1, 1)
    labels = tifffile.imread(tmp_path / save_labels(row, instances, tmp_path, "x"))
    assert labels.dtype == f"uint{bits}"
    np.testing.assert_array_equal(labels.reshape(-1, 1), instances)


def test_a_nifti_file_takes_as_many_pixels_in_a_row_as_it_can(tmp_path):
    for shape in ((1, 1, 32_767), (1, 32_767, 1)):
        values = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
        save_nifti(values, Scan(np.zeros(shape, np.uint8)), tmp_path / "long.nii.gz")
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "long.nii.gz").dataobj).T, values)
    with pytest.raises(ValueError, match="has 32,768 pixels along an axis"):
        save_nifti(np.zeros((1, 1, 32_768), np.uint8), Scan(np.zeros((1, 1, 32_768), np.uint8)), tmp_path / "x.nii.gz")


def test_a_file_in_a_zip_is_named_as_its_user_names_it(tmp_path):
    write_nifti(tmp_path / "volume.nii.gz")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("in/broken.png", b"no picture")
        archive.write(tmp_path / "volume.nii.gz", "in/VOLUME.NII.GZ")
    members = zipfile.ZipFile(tmp_path / "all.zip").infolist()
    items = [Item(member.filename, None, tmp_path / "all.zip", member) for member in members]
    broken, volume = [row for rows in segment_items(segment, items) for row in rows]
    assert broken.error.startswith("in/broken.png is not an image") and tempfile.gettempdir() not in broken.error
    assert len(volume.scan) > 1 and volume.error is None
    (tmp_path / "all.zip").write_bytes(b"no zip")
    [[row]] = segment_items(segment, items[:1])
    assert row.error.startswith("in/broken.png: ")


def test_files_that_may_not_be_read_are_refused_and_volumes_can_go_through_at_once(tmp_path):
    write_nifti(tmp_path / "volume.nii.gz")
    items = [Item("volume.nii.gz", "all", tmp_path / "volume.nii.gz"), _saved(tmp_path / "a.png", "all")]
    given = []

    def check(path: Path):
        if path.name == "a.png":
            raise ValueError(f"{path.name} is too large.")

    def segment_whole(scan: Scan, text: str | None):
        given.append((scan.values is not None, text))
        if len(scan) == 1:
            raise ValueError("This is no volume.")
        return "a result"

    [[volume], [picture]] = segment_items(segment, items, segment_whole=segment_whole)
    assert volume.result == "a result" and picture.error == "a.png: This is no volume."
    assert given == [(True, "all"), (False, "all")]
    *_, [picture] = segment_items(segment, items, check=check)
    assert picture.error == "a.png is too large." and picture.scan is None


def test_the_pixels_of_a_batch_are_bounded(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr("lvit_hf.inference.files.BATCH_PIXELS", 2 * BLOBS[0].size)
    items = [_saved(tmp_path / f"{number}.png") for number in range(7)]

    def count(images, texts):
        sizes.append(len(images))
        return segment(images, texts)

    rows = [row for rows in segment_items(count, items, batch_size=5) for row in rows]
    assert sizes == [3, 3, 1] and [row.item for row in rows] == items


def test_results_take_their_share_of_the_time_since_the_last_ones(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 11.0, 13.0, 20.0])
    monkeypatch.setattr("lvit_hf.inference.files.time.perf_counter", lambda: next(clock))
    rows = [object() for _ in range(3)]
    assert list(time_results([rows[:2], [], rows[2:]])) == [(rows[0], 0.5), (rows[1], 0.5), (rows[2], 3.0)]
