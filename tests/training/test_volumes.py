"""Volumes from a folder to a trained and measured network."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.data import get_track_meta
from scipy import ndimage
from tiny_volumes import PATCH, tiny_volume_model, tiny_volume_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.data.load import SplitNotFoundError
from lvit_hf.data.volumes import Structure, find_volumes, load_volumes, read_pair
from lvit_hf.evaluation.metrics import boundary_scores
from lvit_hf.evaluation.volumes import RESULTS_FILE
from lvit_hf.training.config import SourceConfig
from lvit_hf.training.run import train
from lvit_hf.training.volumes import VolumeAugmentation, VolumeAugmentationConfig, volume_data


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
        assert get_track_meta()  # a setting of MONAI, for all that use it
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


def test_volumes_are_turned_and_shifted_as_far_as_they_may_be_and_nothing_comes_in():
    image = torch.zeros(1, 24, 24, 24)
    image[0, 11:13, 11:13, 11:13] = 1
    places = [ndimage.center_of_mass(mask.numpy()) for mask in draw_volumes(image, 60, translate=5.0)[:, 0]]
    assert np.abs(np.subtract(places, 11.5)).max(0) == pytest.approx([5, 5, 5], abs=0.6)
    moved = draw_volumes(torch.ones(1, 24, 24, 24), 5, translate=5.0)
    assert (moved.sum((2, 3, 4)) < 24**3).all()
    # A rod along each axis, after turns about all three: no more than about the two others together.
    for axis in range(3):
        rod = torch.zeros(1, 24, 24, 24)
        rod[0].movedim(axis, 0)[2:22, 11:13, 11:13] = 1
        angles = []
        for turned in draw_volumes(rod, 25, rotate=20.0)[:, 0]:
            _, vectors = np.linalg.eigh(np.cov(np.argwhere(turned.numpy() > 0.3).T))
            angles.append(np.degrees(np.arccos(min(1.0, abs(vectors[axis, -1])))))
        assert 15 < max(angles) < 20 * 2**0.5 + 1


def test_dark_voxels_become_darker_or_brighter():
    image = torch.linspace(0, 1, 8).expand(1, 8, 8, 8)
    values = draw_volumes(image, 60, gamma=(0.5, 2.0))[:, 0, 4, 4]
    assert torch.allclose(values[:, [0, -1]], torch.tensor([0.0, 1.0]), atol=1e-5)
    third = values[:, 2]
    assert (2 / 7) ** 2 - 1e-3 < third.min() < 0.12 and 0.45 < third.max() < (2 / 7) ** 0.5 + 1e-3


def test_noise_and_blur_of_volumes_are_slight():
    image = torch.zeros(1, 16, 16, 16)
    strengths = draw_volumes(image, 60, noise=1.0)[:, 0].flatten(1).std(1)
    assert strengths.max() < 0.105 and strengths.max() > 0.08 and strengths.min() < 0.02
    image[0, 8, 8, 8] = 1
    blurred = draw_volumes(image, 60, blur=1.0)[:, 0]
    for axis in range(3):
        profile = blurred.movedim(axis + 1, 1).flatten(2).sum(-1)  # of a Gaussian over voxels, which are a box wide
        variances = (profile * (torch.arange(16) - 8) ** 2).sum(1)
        assert variances.min() < 0.35 and 0.7 < variances.max() < 0.9**2 + 1 / 12 + 0.02


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


def test_every_source_of_volumes_has_its_own_settings(folder):
    structures = [Structure(**structure) for structure in STRUCTURES]
    still, mirrored = vars(STILL), {**vars(STILL), "flip_left_right": 1.0}
    sources = [
        SourceConfig("one", str(folder), structures=structures[:1], augmentation=mirrored),
        SourceConfig("two", str(folder), structures=structures, augmentation=still, max_validation=1),
    ]
    processor = tiny_volume_processor()
    data = volume_data(sources, processor)
    train_rows, valid_rows = (load_volumes(folder, split, processor.image_processor) for split in ("train", "valid"))
    assert len(data["train_dataset"]) == 2 * len(train_rows) == 8
    names = {f"two_{structure.name}": 1 for structure in structures}
    assert {name: len(rows) for name, rows in data["eval_dataset"].items()} == {"one_left": 2, **names}
    texts = [{data["train_dataset"][source, 1, seed]["text"] for seed in range(30)} for source in range(2)]
    assert texts == [{"the right area"}, {"the left area", "the right area", "lung"}]
    items = [data["eval_dataset"]["one_left"][number] for number in range(2)]
    for item, valid in zip(items, valid_rows):
        assert item["text"] == "the left area" and valid["label_map"].shape == (10, 14, 12)
        assert torch.equal(item["image"][0, :, 1:15], valid["image"][0, 1:9, :, 2:10])  # to 8, 16 and 8 voxels
        assert torch.equal(item["mask"][:, 1:15], (valid["label_map"][1:9, :, 2:10] == 1).float())
        assert not item["image"][0, :, [0, 15]].any() and not item["mask"][:, [0, 15]].any()
    batch = data["data_collator"](items)
    assert batch["pixel_values"].shape == (2, 1, *PATCH) and batch["labels"].shape == (2, *PATCH)
    assert len(batch["input_ids"]) == 2
    sources[0].augmentation = {"crop": None}
    with pytest.raises(ValueError, match=r"Volumes are not augmented by crop \(source one\)"):
        volume_data(sources, processor)


def test_a_network_is_trained_resumed_and_measured(folder, tmp_path):
    for part in (tiny_volume_model(text_fusion="sentence_map"), tiny_volume_processor()):
        part.save_pretrained(tmp_path / "start")
    config = {
        "model": {"checkpoint": str(tmp_path / "start")},
        "sources": [{"name": "boxes", "path": str(folder), "structures": STRUCTURES}],
        "average_decay": 0.5,
        "images_per_epoch": 6,  # of four
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
    state = json.loads((best.parent / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["epoch"] == pytest.approx(4 * 2 / 6)
    result = CliRunner().invoke(app, ["evaluate", str(best), str(folder), "--structures", str(path), "--record"])
    assert result.exit_code == 0, result.output
    report = json.loads((best / RESULTS_FILE).read_text(encoding="utf-8"))
    assert report["left"].keys() == {"dice", "hd95", "nsd", "volume_error", "volumes"}
    assert report["left"]["volumes"] == 2 and 0 <= report["left, paraphrased"]["dice"] <= 1
    assert 0 <= report["absent"]["empty"] <= 1 and "left, captioned right" in report
