"""Volumes from a folder to a trained and measured network."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from tiny_volumes import PATCH, tiny_volume_model, tiny_volume_processor

from lvit_hf.data.load import SplitNotFoundError
from lvit_hf.data.volumes import Structure, find_volumes, load_volumes, read_pair
from lvit_hf.evaluation.metrics import boundary_scores
from lvit_hf.evaluation.volumes import evaluate_volumes
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.training.run import train
from lvit_hf.training.volumes import VolumeAugmentation, VolumeAugmentationConfig


STRUCTURES = [
    {"name": "left", "labels": [1], "captions": ["the left area"], "paraphrases": ["left"]},
    {"name": "right", "labels": [2], "captions": ["the right area"]},
    {"name": "absent", "labels": [], "captions": ["lung"], "share": 0.2},
]
STILL = VolumeAugmentationConfig(0.0, 0.0, 0.0, 0.0, (1.0, 1.0), 0.0, 0.0, 0.0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Volumes in which a bright box is on the left and a dark one on the right."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("valid", 2)):
        for number in range(count):
            labels = np.zeros((12, 14, 10), np.uint8)
            labels[2:5, 4:9, 3:7], labels[7:10, 4:9, 3:7] = 1, 2  # the first axis grows to the right
            values = rng.normal(100, 5, labels.shape) + 50.0 * (labels == 1) - 50.0 * (labels == 2)
            for name, array in (("images", values.astype(np.float32)), ("labels", labels)):
                path = tmp_path / split / name / f"case_{number}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return tmp_path


@pytest.fixture
def row(folder) -> dict:
    return load_volumes(str(folder), "train", tiny_volume_processor().image_processor)[0]


def test_a_mirror_image_turns_left_and_right_in_its_caption(row):
    structures = [Structure(**STRUCTURES[0])]
    mirrored = VolumeAugmentationConfig(1.0, 0.0, 0.0, 0.0, (1.0, 1.0), 0.0, 0.0, 0.0)
    still, turned = (
        VolumeAugmentation(c, structures, [8, 16, 12])(row["image"], row["label_map"], 3) for c in (STILL, mirrored)
    )
    assert still["text"] == "the left area" and turned["text"] == "the right area"
    torch.testing.assert_close(turned["mask"], still["mask"].flip(-1))
    torch.testing.assert_close(turned["image"], still["image"].flip(-1), rtol=1e-3, atol=1e-3)


def test_volume_and_mask_move_together_and_a_seed_repeats_them(row):
    augment = VolumeAugmentation(VolumeAugmentationConfig(), [Structure(**STRUCTURES[0])], PATCH)
    for seed in range(5):
        first, again = (augment(row["image"], row["label_map"], seed) for _ in range(2))
        assert first["image"].shape == (1, *PATCH) and first["mask"].shape == tuple(PATCH)
        torch.testing.assert_close(first["image"], again["image"])
        bright, rest = first["mask"] > 0, first["mask"] == 0
        if "left" in first["text"]:  # its mirror image says right, and is as bright
            assert first["image"][0][bright].mean() > first["image"][0][rest].mean() + 1


def draw_volumes(image: torch.Tensor, count: int = 40, **changes) -> torch.Tensor:
    """A volume, which is its own mask too, after some changes: `(count, 2, depth, height, width)`."""
    config = replace(STILL, **changes)
    augment = VolumeAugmentation(config, [Structure("all", [1], ["all"])], image.shape[1:])
    drawn = [augment(image, (image[0] > 0.5).int(), seed) for seed in range(count)]
    return torch.stack([torch.cat([row["image"], row["mask"][None]]) for row in drawn])


def test_sizes_change_along_each_axis_by_as_much_as_they_may():
    image = torch.zeros(1, 20, 20, 20)
    image[:, 5:15, 5:15, 5:15] = 1
    masks = draw_volumes(image, 60, scale=0.4)[:, 1]
    for axes in ((1, 2), (1, 3), (2, 3)):
        sides = masks.amax(axes).sum(1)
        assert 7 <= sides.min() < 9 and 11 < sides.max() <= 17
    assert (masks.amax((1, 2)).sum(1) != masks.amax((1, 3)).sum(1)).any()  # each axis for itself


def test_contrast_and_brightness_change_each_time():
    image = torch.full((1, 8, 8, 8), 2.0)
    values = draw_volumes(image, 60, intensity=0.3)[:, 0, 4, 4, 4]
    assert len(set(values.tolist())) == 60
    assert 2 * 0.7 - 0.3 <= values.min() < 1.4 and 2.6 < values.max() <= 2 * 1.3 + 0.3


def test_of_volumes_so_many_are_blurred_or_noisy_as_should_be():
    image = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    [[still, _]] = draw_volumes(image, 1)
    for name in ("blur", "noise"):
        drawn = draw_volumes(image, 100, **{name: 0.5})[:, 0]
        changed = ((drawn - still).abs() > 1e-4).flatten(1).any(1)
        assert 0.35 < changed.float().mean() < 0.65
        rougher = drawn[changed].std() > still.std()
        assert rougher == (name == "noise")


def test_structures_are_drawn_by_their_shares(row):
    augment = VolumeAugmentation(STILL, [Structure(**structure) for structure in STRUCTURES], PATCH)
    texts = [augment(row["image"], row["label_map"], seed)["text"] for seed in range(300)]
    assert texts.count("lung") / len(texts) == pytest.approx(0.2 / 2.2, abs=0.05)
    assert not augment(row["image"], row["label_map"], texts.index("lung"))["mask"].any()


def test_a_folder_that_is_no_data_set(folder):
    with pytest.raises(SplitNotFoundError, match="no NIfTI files"):
        find_volumes(folder, "test")
    (folder / "valid" / "labels" / "case_1.nii.gz").unlink()
    with pytest.raises(ValueError, match="case_1.nii.gz"):
        find_volumes(folder, "valid")


def scaled(labels: np.ndarray, affine: np.ndarray) -> nibabel.Nifti1Image:
    """Labels as floats that are stored in 16 bits with a slope."""
    image = nibabel.Nifti1Image(labels.astype(np.float64), affine)
    image.set_data_dtype(np.int16)
    return image


@pytest.mark.parametrize(
    "make",
    [
        scaled,
        lambda labels, affine: nibabel.Nifti1Image(labels[..., None], affine),
        lambda labels, affine: nibabel.Nifti1Image((labels * 0.9999).astype(np.float32), affine),
    ],
    ids=["with a slope", "with a fourth axis", "rounded"],
)
def test_labels_are_the_same_however_they_are_stored(folder, make):
    [files, *_] = find_volumes(folder, "valid")
    stored = nibabel.load(files.label_map)
    labels = np.asarray(stored.dataobj)
    nibabel.save(make(labels, stored.affine), files.label_map)
    np.testing.assert_array_equal(read_pair(files)[1].dataobj, labels)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda labels, affine: nibabel.Nifti1Image(labels[:-1], affine), "grid of its volume"),
        (lambda labels, affine: nibabel.Nifti1Image(labels, affine @ np.diag([-1, 1, 1, 1])), "grid of its volume"),
        (lambda labels, affine: nibabel.Nifti1Image(labels.astype(np.int16) - 1, affine), "no labels from 0 to 255"),
        (lambda labels, affine: nibabel.Nifti1Image(labels.astype(np.float32) / 2, affine), "no labels from 0 to 255"),
    ],
)
def test_a_map_of_another_grid_or_without_labels_is_refused(folder, make, sentence):
    [files, *_] = find_volumes(folder, "valid")
    stored = nibabel.load(files.label_map)
    nibabel.save(make(np.asarray(stored.dataobj), stored.affine), files.label_map)
    with pytest.raises(ValueError, match=f"{files.label_map.name}.* {sentence}"):
        read_pair(files)


def test_distances_are_in_millimetres():
    mask, label = torch.zeros(4, 8, 8, dtype=torch.bool), torch.zeros(4, 8, 8, dtype=torch.bool)
    mask[0], label[2] = True, True
    assert boundary_scores(mask, label, 1.0, [2.5, 1, 1])[0] == pytest.approx(5)
    assert boundary_scores(mask, torch.zeros_like(label), 1.0, [3, 0, 0]) == (12, 0)


def test_a_network_is_trained_resumed_and_measured(folder, tmp_path):
    for part in (tiny_volume_model(text_fusion="sentence_map"), tiny_volume_processor()):
        part.save_pretrained(tmp_path / "start")
    config = {
        "model": {"checkpoint": str(tmp_path / "start")},
        "sources": [{"name": "boxes", "path": str(folder), "structures": STRUCTURES}],
        "average_decay": 0.5,
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    train(path, overrides=["training.max_steps=2"])
    best = train(path, resume=True)
    structures = [Structure(**structure) for structure in STRUCTURES]
    report = evaluate_volumes(Segmenter.from_pretrained(best), str(folder), structures)
    assert report["left"].keys() == {"dice", "hd95", "nsd", "volume_error", "volumes"}
    assert report["left"]["volumes"] == 2 and 0 <= report["left, paraphrased"]["dice"] <= 1
    assert 0 <= report["absent"]["empty"] <= 1 and "left, captioned right" in report
