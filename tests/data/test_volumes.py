"""Data sets of volumes as they are found and read."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

from lvit_hf.data.load import SplitNotFoundError
from lvit_hf.data.volumes import Structure, VolumeFiles, find_volumes, read_pair, read_structures


LABELS = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
AFFINE = np.diag([2.0, 3, 4, 1])


def save(folder: Path, name: str, labels: np.ndarray = LABELS, affine: np.ndarray = AFFINE) -> VolumeFiles:
    """A volume and its map, both packed where the name says so."""
    for part, image in (("images", nibabel.Nifti1Image(LABELS * 9.0, AFFINE)), ("labels", None)):
        path = folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image or nibabel.Nifti1Image(labels, affine, dtype=labels.dtype), path)
    return VolumeFiles(name.split(".nii")[0], folder / "images" / name, folder / "labels" / name)


def test_volumes_are_found_with_their_maps_by_name(tmp_path):
    names = ["b.nii", "a.1.nii.gz", "c.nii.gz"]
    files = [save(tmp_path / "train", name) for name in names]
    (tmp_path / "train" / "images" / "notes.txt").touch()
    assert find_volumes(tmp_path, "train") == [files[1], files[0], files[2]]
    assert [each.id for each in find_volumes(str(tmp_path), "train")] == ["a.1", "b", "c"]
    with pytest.raises(SplitNotFoundError, match="no NIfTI files .* in .*valid/images"):
        find_volumes(tmp_path, "valid")
    for path in (tmp_path / "train" / "labels").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"labels lacks the maps of labels of 3 volumes: \['a.1.nii.gz', 'b.nii', "):
        find_volumes(tmp_path, "train")


MAPS = {
    "as it is": (LABELS, AFFINE, True),
    "more axes": (LABELS[..., None, None], AFFINE, True),
    "several maps": (np.stack([LABELS, LABELS], axis=-1), AFFINE, False),
    "the largest label": (LABELS * np.uint8(85), AFFINE, True),
    "a label too large": (LABELS.astype(np.int16) * 86, AFFINE, False),
    "a negative label": (LABELS.astype(np.int16) - 1, AFFINE, False),
    "rounded labels": (LABELS + np.float32(5e-4), AFFINE, True),
    "no labels": (LABELS + np.float32(5e-2), AFFINE, False),
    "a place beside": (LABELS, nibabel.affines.from_matvec(AFFINE[:3, :3], [0, 0.005, 0]), True),
    "another place": (LABELS, nibabel.affines.from_matvec(AFFINE[:3, :3], [0, 0.05, 0]), False),
    "other axes": (LABELS[:, ::-1][:, :5], AFFINE, False),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_has_labels_on_the_grid_of_its_volume(tmp_path, name):
    labels, affine, is_one = MAPS[name]
    files = save(tmp_path, "a.nii", labels, affine)
    if is_one:
        image, label_map = read_pair(files)
        np.testing.assert_array_equal(label_map.dataobj, np.rint(labels).reshape(LABELS.shape))
        np.testing.assert_array_equal(label_map.affine, image.affine)
        assert label_map.get_data_dtype() == np.uint8
    else:
        with pytest.raises(ValueError, match=f"{files.label_map} (must have the grid of its|has values that are no)"):
            read_pair(files)


@pytest.mark.parametrize(
    "content", [b"no NIfTI", bytes(600), gzip.compress(bytes(600))[:-20], nibabel.Nifti1Image(LABELS, None).to_bytes()]
)
def test_a_broken_volume_is_named(tmp_path, content):
    files = save(tmp_path, "a.nii.gz")
    files.image.write_bytes(content)
    with pytest.raises(ValueError, match=f"{files.image} cannot be read as a NIfTI file"):
        read_pair(files)


def test_a_structure_is_where_one_of_its_labels_is():
    for chosen in ([], [2], [1, 3], [9]):
        mask = Structure("a", chosen, ["a"]).mask(torch.tensor(LABELS))
        assert mask.dtype == torch.float32
        np.testing.assert_array_equal(mask, np.isin(LABELS, chosen))


def test_structures_are_those_of_the_one_source_that_has_them(tmp_path):
    path, structure = tmp_path / "a.yaml", {"name": "a", "labels": [1], "captions": ["one"]}
    for sources, found in (
        ([{"structures": [structure]}, {"path": "b"}], [Structure("a", [1], ["one"])]),
        ([{"structures": [structure | {"share": 2, "paraphrases": ["x"]}]}], [Structure("a", [1], ["one"], ["x"], 2)]),
        ([{"structures": [structure]}] * 2, None),
        ([{"path": "b"}, {"structures": []}], None),
        ([{"structures": [{"name": "a"}]}], None),
        ("text", None),
    ):
        path.write_text(yaml.safe_dump({"sources": sources}))
        if found is None:
            with pytest.raises(ValueError, match="a.yaml must be a configuration of lvit train with one source that"):
                read_structures(path)
        else:
            assert read_structures(path) == found
