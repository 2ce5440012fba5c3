"""The way of a volume into the network and of its mask back, for every orientation of the grid."""

import itertools

import nibabel
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.linalg import polar
from transformers.utils import ModelOutput

from lvit_hf import LViTVolumeProcessor
from lvit_hf.model.image_processing_volumes_lvit import axes_to_sar, resample


CODES = ["".join(code) for order in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*order)]
# A rotation about all three axes by less than 45 degrees.
OBLIQUE = np.array([[0.936, -0.275, 0.218], [0.289, 0.956, -0.036], [-0.199, 0.097, 0.975]])


def phantom(code: str, rotation: np.ndarray | None = None) -> nibabel.Nifti1Image:
    """A grid of 10 x 12 x 14 mm in which every voxel differs, with axes of that code."""
    values = np.arange(5 * 12 * 7, dtype=np.float32).reshape(5, 12, 7)
    affine = np.diag([2.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = (-7.5, 11.25, 3)
    if rotation is not None:
        affine[:3, :3] = rotation @ affine[:3, :3]
    image = nibabel.Nifti1Image(values, affine)
    return image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code)))


def small_processor(**kwargs) -> LViTVolumeProcessor:
    return LViTVolumeProcessor(
        **{"spacing": (2, 1, 2), "patch_size": (8, 16, 8), "size_divisors": (4, 4, 4), **kwargs}
    )


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("rotation", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", CODES)
def test_every_orientation_gives_the_same_tensor_and_comes_back_to_its_own_grid(code, rotation):
    processor, image = small_processor(), phantom(code, rotation)
    inputs = processor(image, return_tensors="pt")
    torch.testing.assert_close(
        inputs["pixel_values"], processor(phantom("RAS", rotation), return_tensors="pt")["pixel_values"]
    )

    # One voxel is marked in the network's grid. Where it lies in the patient is known from the phantom.
    values = np.asarray(phantom("RAS", rotation).dataobj)
    marked = (3, 9, 5)  # right, anterior, superior
    logits = torch.full((1, 1, 8, 16, 8), -20.0)
    starts = ((8 - 7) // 2, (16 - 12) // 2, (8 - 5) // 2)
    logits[0, 0, starts[0] + marked[2], starts[1] + marked[1], starts[2] + marked[0]] = 20
    mask, scores = processor.post_process_semantic_segmentation(
        ModelOutput(logits=logits), inputs, return_segmentation_scores=True
    )[0]
    assert mask.shape == image.shape and scores.shape == (1, *image.shape)
    (place,) = np.argwhere(mask.numpy())
    assert np.asarray(image.dataobj)[tuple(place)] == values[marked]
    np.testing.assert_allclose(
        apply_affine(image.affine, place), apply_affine(phantom("RAS", rotation).affine, marked), atol=1e-4
    )


@pytest.mark.parametrize("code", CODES)
def test_orientations_are_those_of_nibabel(code):
    affine = phantom(code, OBLIQUE).affine
    axes, flips = axes_to_sar(affine)
    for row, axis in enumerate(axes):
        world, sign = io_orientation(affine)[axis]
        assert world == 2 - row and (sign < 0) == (row in flips)


def test_orientations_are_those_of_nibabel_whatever_the_spacing():
    """Turned and tilted, where the nearest axes are clear: spacings must not decide."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        directions = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        first, second, _ = rng.permutation(3)
        directions[:, first] += rng.uniform(-0.7, 0.7) * directions[:, second]  # as a gantry is tilted
        directions /= np.linalg.norm(directions, axis=0)
        if abs(polar(directions)[0]).max(0).min() > 0.75:
            affine = np.eye(4)
            affine[:3, :3] = directions * rng.permutation([0.1, 1, 20])
            axes, flips = axes_to_sar(affine)
            expected = io_orientation(affine)
            assert [expected[axis][0] for axis in axes] == [2, 1, 0]
            assert [expected[axis][1] < 0 for axis in axes] == [row in flips for row in range(3)]


def test_spacing_is_changed_and_changed_back():
    """A ball of 24 mm keeps its place and its volume through a grid of another spacing and orientation."""
    affine = np.array([[0, 0, -1.4, 38], [0.8, 0, 0, -20], [0, 3.0, 0, -30], [0, 0, 0, 1]])
    grid = np.stack(np.meshgrid(*map(np.arange, (60, 20, 36)), indexing="ij"), axis=-1)
    ball = np.linalg.norm(apply_affine(affine, grid) - (10, 5, 0), axis=-1) < 12
    image = nibabel.Nifti1Image(ball.astype(np.int16), affine)
    processor = small_processor(spacing=(1, 1, 1), patch_size=(8, 8, 8))
    inputs = processor(image, segmentation_maps=image, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 1, 60, 48, 52)  # 60 x 48 x 50.4 mm
    share = inputs["labels"].sum().item() / (ball.sum() * 0.8 * 3 * 1.4)
    assert share == pytest.approx(1, abs=0.03)
    logits = (inputs["labels"].float() * 40 - 20)[None]
    back = processor.post_process_semantic_segmentation(ModelOutput(logits=logits), inputs)[0].numpy() > 0
    assert back.shape == image.shape
    assert 2 * (back & ball).sum() / (back.sum() + ball.sum()) > 0.96
    centre = apply_affine(affine, np.argwhere(back)).mean(0)
    np.testing.assert_allclose(centre, apply_affine(affine, np.argwhere(ball)).mean(0), atol=0.2)


def test_intensities_do_not_depend_on_the_scanners_unit():
    rng = np.random.default_rng(0)
    values = rng.normal(100, 20, (12, 12, 12))
    other = values * 37 - 900
    small = values / 1000
    values[0, 0, 0], other[0, 0, 0], small[0, 0, 0] = 1e6, 1e9, 1e3  # one voxel of metal
    first, *others = (
        small_processor()(nibabel.Nifti1Image(array, np.eye(4)), return_tensors="pt")
        for array in (values, other, small)
    )
    for second in others:
        torch.testing.assert_close(first["pixel_values"], second["pixel_values"], rtol=1e-3, atol=1e-3)
    assert first["pixel_values"].abs().max() < 4


def test_volumes_of_several_sizes_are_padded_together():
    images = [nibabel.Nifti1Image(np.random.rand(*shape), np.eye(4)) for shape in ((9, 20, 8), (5, 6, 30))]
    inputs = small_processor(spacing=(1, 1, 1))(images, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 1, 32, 20, 12)
    outputs = ModelOutput(logits=torch.zeros(2, 1, 32, 20, 12))
    masks = small_processor(spacing=(1, 1, 1)).post_process_semantic_segmentation(outputs, inputs, threshold=0.4)
    assert [tuple(mask.shape) for mask in masks] == [(9, 20, 8), (5, 6, 30)]


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        (np.zeros((4, 4)), "three axes"),
        (np.zeros((4, 0, 4)), "three axes"),
        (np.full((4, 4, 4), np.nan), "no value that is a number"),
        (nibabel.spatialimages.SpatialImage(np.zeros((4, 4, 4)), np.diag([1.0, 0, 1, 1])), "invertible"),
    ],
)
def test_volumes_that_cannot_be_used(volume, sentence):
    with pytest.raises(ValueError, match=sentence):
        small_processor()(volume)


def test_a_map_on_another_grid_is_refused():
    image = nibabel.Nifti1Image(np.random.rand(8, 8, 8), np.eye(4))
    shifted = nibabel.Nifti1Image(np.zeros((8, 8, 8)), nibabel.affines.from_matvec(np.eye(3), [5, 0, 0]))
    with pytest.raises(ValueError, match="grid"):
        small_processor()(image, segmentation_maps=shifted)
    with pytest.raises(ValueError, match="grid"):
        small_processor()(image, segmentation_maps=nibabel.Nifti1Image(np.zeros((8, 8, 7)), np.eye(4)))
    rounded = nibabel.Nifti1Image(np.ones((8, 8, 8)), nibabel.affines.from_matvec(np.eye(3), [0.005, 0, 0]))
    assert small_processor()(image, segmentation_maps=rounded)["labels"][0].any()  # as other programs write it


def test_an_array_is_a_volume_of_the_processors_spacing_in_the_networks_orientation():
    values = np.random.default_rng(0).random((7, 12, 5), np.float32)
    affine = np.diag([2.0, 1, 3, 1])  # of width, height and depth
    processor = small_processor(spacing=(3, 1, 2))
    of_array, of_tensor, of_image = (
        processor(volume, return_tensors="pt")
        for volume in (values, torch.from_numpy(values), nibabel.Nifti1Image(values.transpose(2, 1, 0), affine))
    )
    torch.testing.assert_close(of_array["pixel_values"], of_image["pixel_values"])
    torch.testing.assert_close(of_array["pixel_values"], of_tensor["pixel_values"])
    outputs = ModelOutput(logits=of_array["pixel_values"])
    masks = [processor.post_process_semantic_segmentation(outputs, each)[0] for each in (of_array, of_image)]
    torch.testing.assert_close(masks[0], masks[1].permute(2, 1, 0))
    assert masks[0].shape == values.shape and 0 < masks[0].float().mean() < 1


def test_channels_are_normalized_one_by_one_and_without_what_is_no_number():
    values = np.random.default_rng(0).normal(50, 9, (8, 16, 8, 2)).astype(np.float32)
    values[..., 1] *= 1000
    processor = small_processor(spacing=(1, 1, 1), window_percentiles=(0, 100))
    pixels = processor(nibabel.Nifti1Image(values, np.eye(4)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 2, 8, 16, 8)
    for channel in range(2):
        alone = processor(nibabel.Nifti1Image(values[..., channel], np.eye(4)), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels[:, channel], alone[:, 0])
        assert alone.mean().item() == pytest.approx(0, abs=1e-4) and alone.std().item() == pytest.approx(1, abs=1e-3)
    holes = values[..., 0].copy()
    holes[0], filled = np.nan, holes.copy()
    filled[0] = holes[1:].min()
    pixels = [processor(nibabel.Nifti1Image(each, np.eye(4)))["pixel_values"][0] for each in (holes, filled)]
    np.testing.assert_allclose(*pixels)
    assert not processor(np.full((8, 16, 8), 7.0))["pixel_values"][0].any()


def test_what_shrinks_is_averaged_and_what_grows_is_interpolated_and_labels_are_kept():
    volume = torch.rand(1, 8, 6, 4)
    blocks = volume.reshape(1, 4, 2, 3, 2, 2, 2).mean((2, 4, 6))
    torch.testing.assert_close(resample(volume, (4, 3, 2)), blocks)
    ramp = torch.arange(4.0).expand(1, 2, 2, 4)
    torch.testing.assert_close(resample(ramp, (2, 2, 8))[0, 0, 0, 1:-1], torch.linspace(0.25, 2.75, 6))
    labels = torch.randint(0, 3, (1, 8, 6, 4)).float()
    grown = resample(labels, (16, 12, 8), "nearest-exact")
    torch.testing.assert_close(grown[:, ::2, 1::2, ::2], labels)


def test_a_thin_volume_has_a_slice():
    pixels = small_processor(spacing=(10, 1, 1), patch_size=(1, 1, 1), size_divisors=(1, 1, 1))(
        nibabel.Nifti1Image(np.random.rand(4, 4, 2), np.eye(4)), return_tensors="pt"
    )["pixel_values"]
    assert pixels.shape == (1, 1, 1, 4, 4)


@pytest.mark.parametrize("labels", [1, 3])
def test_probabilities_are_calibrated_and_decide(labels):
    processor = small_processor(temperature=2.0, logit_bias=0.7)
    inputs = processor([np.random.rand(8, 16, 8)] * 2, return_tensors="pt")
    logits = torch.randn(2, labels, 8, 16, 8)
    results = processor.post_process_semantic_segmentation(
        ModelOutput(logits=logits), inputs, threshold=0.6, return_segmentation_scores=True
    )
    for image, (mask, scores) in zip(logits, results):
        expected = torch.special.expit(image / 2 + 0.7) if labels == 1 else torch.softmax(image / 2, 0)
        torch.testing.assert_close(scores, expected)
        assert torch.equal(mask, (expected[0] > 0.6).long() if labels == 1 else expected.argmax(0))


def test_what_does_not_belong_together_is_a_sentence():
    processor, volume = small_processor(), np.random.rand(8, 16, 8)
    inputs, outputs = processor(volume, return_tensors="pt"), ModelOutput(logits=torch.zeros(1, 1, 8, 16, 8))
    with pytest.raises(ValueError, match="one segmentation map for each volume, got 2/1"):
        processor(volume, segmentation_maps=[volume, volume])
    with pytest.raises(ValueError, match="one output for each volume, got 2/1"):
        processor.post_process_semantic_segmentation(ModelOutput(logits=torch.zeros(2, 1, 8, 16, 8)), inputs)
    for threshold in (-0.1, 1.1):
        with pytest.raises(ValueError, match="threshold is a probability"):
            processor.post_process_semantic_segmentation(outputs, inputs, threshold=threshold)
    for threshold, share in ((0, 1), (1, 0)):
        [mask] = processor.post_process_semantic_segmentation(outputs, inputs, threshold=threshold)
        assert mask.float().mean() == share
    for spacing in ((1, 1), (1, 1, 0), (1, -1, 1)):
        with pytest.raises(ValueError, match="three positive distances"):
            small_processor(spacing=spacing)
    with pytest.raises(ValueError, match=r"nibabel.load\(path\)"):
        processor("scan.nii.gz")
