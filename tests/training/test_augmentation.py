"""An image and its mask stay in step, whatever happens to both."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy import ndimage
from tiny_lvit import tiny_processor
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from lvit_hf.inference.drawing import draw_overlay
from lvit_hf.training.augmentation import Augmentation, AugmentationConfig, apply_changes, finish, random_box
from lvit_hf.training.batches import Collator, TrainingDataset, augment
from lvit_hf.training.sheet import CELL, DRAWS, GAP, TEXT_HEIGHT, draw_augmentations


SIZE = 24
MOVES = st.fixed_dictionaries(
    {
        "crop": st.sampled_from([None, (12, 20), (30, 40)]),
        "flip_horizontal": st.sampled_from([0.0, 0.5, 1.0]),
        "flip_vertical": st.sampled_from([0.0, 0.5, 1.0]),
        "transpose": st.sampled_from([0.0, 0.5, 1.0]),
        "rotate": st.floats(0, 45),
        "scale": st.floats(0, 0.3),
        "translate": st.floats(0, 0.3),
    }
)
STILL = {"gamma": (1, 1), "intensity": 0, "blur": 0, "text_dropout": 0}
POLYP = "One small,smooth colonic polyp on the {}."


def picture(seed: int, width: int = 40, height: int = 32) -> np.ndarray:
    """Random grey squares, `(height, width)` of 0 to 255, none of which is like another part."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4), dtype=np.uint8)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)


@settings(max_examples=60, deadline=None)
@given(MOVES, st.integers(0, 2**31 - 1))
def test_an_image_that_is_its_own_mask_still_is_after_any_move(moves, seed):
    grey = Image.fromarray(picture(seed))
    augment = Augmentation(AugmentationConfig(**moves, **STILL, soft_edges=True), SIZE, soft_masks=True)
    sample = augment(grey.convert("RGB"), grey, "", seed)
    assert sample["image"].shape == (3, SIZE, SIZE) and sample["mask"].shape == (SIZE, SIZE)
    for channel in sample["image"]:
        np.testing.assert_allclose(channel, sample["mask"], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(MOVES, st.integers(0, 2**31 - 1), st.booleans())
def test_a_mask_with_cut_edges_lies_where_its_object_is(moves, seed, soft_edges):
    mask = np.zeros((32, 40), np.uint8)
    mask[8:28, 12:30] = 255
    mask[8:16, 12:20] = 0  # has no symmetry
    image = Image.fromarray(mask)
    augment = Augmentation(AugmentationConfig(**moves, **STILL, soft_edges=soft_edges), SIZE)
    sample = augment(image.convert("RGB"), image, "", seed)
    seen = sample["image"][0] > 0.5
    # Edges may be off by the rounding to a neighbouring pixel.
    inside, outside = sample["image"][0] > 0.999, sample["image"][0] < 0.001
    assert (sample["mask"][inside] > 0.5).mean() > 0.9 if inside.any() else True
    assert (sample["mask"][outside] < 0.5).mean() > 0.9 if outside.any() else True
    assert ((sample["mask"] > 0.5) == seen).mean() > 0.9
    if not soft_edges:
        assert set(np.unique(sample["mask"])) <= {0, 1}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(["left", "right"]), st.sampled_from(["top", "bottom"]))
def test_a_caption_says_where_the_object_went(seed, side, height):
    mask = np.zeros((30, 30), np.uint8)
    rows, columns = {"top": slice(10), "bottom": slice(20, 30)}, {"left": slice(10), "right": slice(20, 30)}
    mask[rows[height], columns[side]] = 255
    flips = {"flip_horizontal": 0.5, "flip_vertical": 0.5, "transpose": 0.5, "rotate": 5, "translate": 0.05}
    sample = Augmentation(AugmentationConfig(**flips, **STILL), 30)(
        Image.fromarray(mask).convert("RGB"), Image.fromarray(mask), POLYP.format(f"{height} {side}"), seed
    )
    row, column = (places.mean() > 15 for places in np.nonzero(sample["mask"]))
    assert f"{'bottom' if row else 'top'} {'right' if column else 'left'}" in sample["text"]


def test_moves_are_as_large_as_they_may_be_and_no_larger():
    mask = Image.fromarray(np.pad(np.full((10, 4), 255, np.uint8), ((15, 15), (18, 18))))
    angles = []
    for seed in range(60):
        augment = Augmentation(AugmentationConfig(**STILL, rotate=20, soft_edges=True), 40)
        rows, columns = np.nonzero(augment(mask.convert("RGB"), mask, "", seed)["mask"] > 0.5)
        slope = np.polyfit(rows, columns, 1)[0]
        angles.append(np.degrees(np.arctan(slope)))
    assert 12 < max(angles) < 26 and -26 < min(angles) < -12


def test_a_turn_keeps_every_angle_and_a_shift_is_a_share_of_the_side():
    bars = np.zeros((40, 40), np.uint8)
    bars[10:30, 19:21] = bars[19:21, 10:30] = 255
    cross = Image.fromarray(bars)
    for seed in range(20):
        augment = Augmentation(AugmentationConfig(**STILL, rotate=30, soft_edges=True), 40)
        turned = augment(cross.convert("RGB"), cross, "", seed)["mask"]
        np.testing.assert_allclose(turned, np.rot90(turned), atol=0.1)  # not sheared
    point = Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 18))
    places = []
    for seed in range(100):
        augment = Augmentation(AugmentationConfig(**STILL, translate=0.25, soft_edges=True), 40)
        places.append(ndimage.center_of_mass(augment(point.convert("RGB"), point, "", seed)["mask"]))
    assert np.abs(np.subtract(places, 19.5)).max(0) == pytest.approx([10, 10], abs=0.7)


def test_sizes_change_along_both_axes_by_as_much_as_they_may():
    square = Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 10))
    augment = Augmentation(AugmentationConfig(**STILL, scale=0.25), 40)
    masks = np.stack([augment(square.convert("RGB"), square, "", seed)["mask"] for seed in range(80)])
    sides = np.stack([masks.any(axis).sum(1) for axis in (1, 2)])
    for lengths in sides:
        assert lengths.min() == pytest.approx(20 / 1.25, abs=1.1)
        assert lengths.max() == pytest.approx(20 / 0.75, abs=1.7)
    assert (sides[0] != sides[1]).mean() > 0.5  # each for itself


def test_what_is_not_asked_for_does_not_happen():
    grey = Image.fromarray(picture(2))
    row = {"image": grey.convert("RGB"), "mask": grey, "text": POLYP.format("left")}
    augment = Augmentation(AugmentationConfig(text_dropout=0), SIZE)
    prepared = augment.prepare(row)
    for seed in range(50):
        drawn = augment.draw(prepared, seed)
        assert np.array_equal(drawn["mask"], np.asarray(prepared["mask"])) and drawn["text"] == row["text"]
        changes = drawn["changes"]
        assert np.array_equal(changes["affine"], [[1, 0, 0], [0, 1, 0]]) and changes["cut"] == 1
        assert not any(changes[name].any() for name in ("shade", "noise", "holes"))


def test_crops_are_of_every_size_and_place_inside_the_image():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, (40, 30), 10, 20) for _ in range(2000)])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert np.array_equal(sides[:, 0], sides[:, 1]) and set(sides[:, 0]) == set(range(10, 21))
    assert boxes.min(0)[:2].tolist() == [0, 0] and boxes.max(0)[2:].tolist() == [40, 30]
    assert random_box(rng, (6, 6), 10, 20) == (0, 0, 6, 6)  # larger is not to be had


@pytest.mark.parametrize("text, kept", [("one polyp", True), (POLYP.format("left"), False)])
def test_a_crop_keeps_captions_that_name_no_place(text, kept):
    grey = Image.fromarray(picture(0))
    sample = Augmentation(AugmentationConfig(crop=(12, 20), **STILL), SIZE)(grey.convert("RGB"), grey, text, 0)
    assert sample["text"] == (text if kept else "")


def test_without_moves_an_image_is_resized_and_nothing_else():
    grey = Image.fromarray(picture(1, SIZE, SIZE))
    sample = Augmentation(AugmentationConfig(**STILL), SIZE, soft_masks=True)(grey.convert("RGB"), grey, "", 0)
    np.testing.assert_allclose(sample["mask"], picture(1, SIZE, SIZE) / 255, atol=1e-6)
    np.testing.assert_allclose(sample["image"][0], sample["mask"], atol=1e-6)


def test_brightness_changes_as_far_as_it_may():
    grey = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    mask = Image.new("L", (SIZE, SIZE))
    config = AugmentationConfig(**{**STILL, "intensity": 0.4})
    means = np.array([Augmentation(config, SIZE)(grey, mask, "", seed)["image"].mean((1, 2)) for seed in range(80)])
    assert means.min() == np.clip(means, 0.5 * 0.6 - 0.01, 0.5).min()  # no darker than by 40 percent
    assert means.min() < 0.5 * 0.7 and means.max() > 0.5 * 1.3
    assert np.ptp(means, axis=1).mean() > 0.05  # each channel for itself


GREY = Image.new("RGB", (40, 40), (128, 128, 128))
NOTHING = Image.new("L", (40, 40))


def draw_images(image: Image.Image, count: int = 60, **changes) -> np.ndarray:
    """An image after some changes, drawn again and again: `(count, 3, 40, 40)`."""
    augment = Augmentation(AugmentationConfig(**{**STILL, **changes}), 40)
    return np.stack([augment(image, NOTHING, "", seed)["image"] for seed in range(count)])


def test_dark_becomes_darker_or_brighter_and_black_and_white_stay():
    images = draw_images(GREY, gamma=(0.5, 2.0))
    assert (128 / 255) ** 2 - 1e-4 < images.min() < 0.3 and 0.65 < images.max() < (128 / 255) ** 0.5 + 1e-4
    assert np.ptp(images, axis=(1, 2, 3)).max() < 1e-4
    both = Image.fromarray(np.tile(np.uint8([0, 255]), (40, 20))).convert("RGB")
    np.testing.assert_allclose(draw_images(both, 5, gamma=(0.5, 2.0)), draw_images(both, 5), atol=1e-5)


def test_a_blur_spreads_a_point_evenly_and_leaves_what_is_even():
    np.testing.assert_allclose(draw_images(GREY, 5, blur=1.0), 128 / 255, atol=1e-5)  # at the edges too
    point = np.zeros((40, 40), np.uint8)
    point[20, 12] = 255
    for [spread, *others] in draw_images(Image.fromarray(point).convert("RGB"), 20, blur=1.0):
        assert all(np.array_equal(spread, other) for other in others)
        np.testing.assert_allclose(spread.sum(), 1, atol=1e-4)
        assert 0.1 < spread[20, 12] == spread.max() < 0.999
        np.testing.assert_allclose(spread[17:24, 9:16], spread[17:24, 9:16][::-1, ::-1], atol=1e-6)
        assert spread[17, 12] < spread[18, 12] < spread[19, 12] and spread[20, 9] < spread[20, 10] < spread[20, 11]


def test_a_shade_is_smooth_and_differs_over_the_image():
    images = draw_images(GREY, 20, shade=1.0)
    assert np.array_equal(images[:, 0], images[:, 1])
    assert np.ptp(images, axis=(1, 2, 3)).min() > 0.05
    assert np.abs(np.diff(images, axis=-1)).max() < 0.1 and np.abs(np.diff(images, axis=-2)).max() < 0.1


def test_noise_is_of_every_strength_up_to_its_largest_and_has_no_side():
    torch.manual_seed(0)
    images = draw_images(GREY, noise=1.0)
    strengths = images.std(axis=(1, 2, 3))
    assert strengths.max() < 0.053 and strengths.max() > 0.04 and strengths.min() < 0.01
    assert abs(images.mean() - 128 / 255) < 1e-3
    assert draw_images(Image.new("RGB", (40, 40), "white"), noise=1.0).max() == 1


def test_holes_are_one_to_four_rectangles_of_a_tenth_to_a_quarter_of_the_side():
    counts, sides, reached = [], [], np.zeros((40, 40), bool)
    for image in draw_images(GREY, 200, holes=1.0):
        black = image[0] == 0
        assert np.array_equal(black, image[2] == 0) and (image[0][~black] > 0.5).all()
        parts, count = ndimage.label(black)
        counts.append(count)
        reached |= black
        if count == 4:  # none of which overlap
            sides += [axis.stop - axis.start for part in ndimage.find_objects(parts) for axis in part]
            assert all(black[part].all() for part in ndimage.find_objects(parts))
    assert set(counts) == {1, 2, 3, 4}
    assert min(sides) == 4 and max(sides) == 10
    assert reached[0].any() and reached[-1].any() and reached[:, 0].any() and reached[:, -1].any()


@pytest.mark.parametrize("name", ["blur", "shade", "noise", "holes"])
def test_a_change_happens_as_often_as_it_should(name):
    noise = Image.fromarray(picture(3, 40, 40)).convert("RGB")
    changed = (draw_images(noise, 200, **{name: 0.4}) != draw_images(noise, 1)).any(axis=(1, 2, 3))
    assert 0.28 < changed.mean() < 0.52


def test_captions_are_left_out_as_often_as_they_should():
    grey, mask = Image.new("RGB", (8, 8)), Image.new("L", (8, 8))
    augment = Augmentation(AugmentationConfig(**{**STILL, "text_dropout": 0.3}), 8)
    texts = [augment(grey, mask, "one polyp", seed)["text"] for seed in range(400)]
    assert set(texts) == {"one polyp", ""}
    assert 0.22 < texts.count("") / len(texts) < 0.38


def rows(count: int) -> list[dict]:
    """Images without symmetry, each its own mask."""
    pictures = [Image.fromarray(picture(number)) for number in range(count)]
    return [{"image": grey.convert("RGB"), "mask": grey, "text": "one polyp"} for grey in pictures]


EVERYTHING = {
    **{"crop": (12, 20), "flip_horizontal": 0.5, "flip_vertical": 0.5, "transpose": 0.5, "rotate": 20, "scale": 0.2},
    **{"translate": 0.1, "gamma": (0.5, 2), "intensity": 0.3, "blur": 0.5, "shade": 0.5, "holes": 0.5},
    **{"text_dropout": 0.5},
}


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_batch_is_what_each_of_its_images_is(in_memory):
    configs = [AugmentationConfig(**EVERYTHING), AugmentationConfig(rotate=5, soft_edges=True)]
    augmentations = [Augmentation(config, 32) for config in configs]
    data = TrainingDataset([rows(3)] * 2, augmentations, in_memory=[in_memory] * 2)
    items = [data[source, number, seed] for seed, (source, number) in enumerate(product(range(2), range(3)))]
    processor = tiny_processor()
    batch = augment(Collator(processor)(items), processor)
    for pixel_values, label, item in zip(batch["pixel_values"], batch["labels"], map(finish, items)):
        np.testing.assert_allclose(label, item["mask"], atol=1e-5)
        # The processor, which brings validation images to the network's range, rounds to 8 bits.
        same = processor(images=item["image"], return_tensors="pt")["pixel_values"][0]
        np.testing.assert_allclose(pixel_values, same, atol=1.01 / 255)


def test_images_in_memory_are_drawn_as_those_that_are_not():
    augmentations = [Augmentation(AugmentationConfig(**EVERYTHING), SIZE)]
    kept, read = (TrainingDataset([rows(3)], augmentations, in_memory=[flag]) for flag in (True, False))
    for seed in range(20):
        one, other = (finish(data[0, seed % 3, seed]) for data in (kept, read))
        assert one["text"] == other["text"]
        assert np.array_equal(one["image"], other["image"]) and np.array_equal(one["mask"], other["mask"])


@pytest.mark.parametrize("texts", [["a polyp", ""], ["", "one small polyp, top left"]])
def test_captions_stand_below_their_images_in_the_picture_of_what_is_drawn(texts):
    images = [{**row, "text": text} for row, text in zip(rows(2), texts)]
    augmentation = Augmentation(AugmentationConfig(text_dropout=0), SIZE)
    sheet = draw_augmentations(TrainingDataset([images], [augmentation]))
    for column, line in product(range(DRAWS + 1), range(2)):
        left, bottom = GAP + column * (CELL + GAP), (line + 1) * (CELL + TEXT_HEIGHT)
        places = left, bottom - TEXT_HEIGHT + GAP, left + CELL, bottom
        assert np.asarray(sheet.crop(places).convert("L")).min() < 100
        picture = left, line * (CELL + TEXT_HEIGHT) + GAP, left + CELL, line * (CELL + TEXT_HEIGHT) + CELL
        assert np.asarray(sheet.crop(picture)).std() > 1


def test_what_is_not_changed_is_drawn_as_it_is():
    size = CELL // 2
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(9)]
    mask = Image.fromarray(np.pad(np.ones((size // 2, size // 2), np.uint8), ((0, size // 2), (size // 2, 0))))
    sources = [[{"image": image, "mask": mask, "text": "left"} for image in part] for part in (images[:7], images[7:])]
    sheet = draw_augmentations(TrainingDataset(sources, [Augmentation(AugmentationConfig(**STILL), size)] * 2))
    chosen = [images[0], images[4], images[7], images[8]]  # two of each source, spread over it
    for line, image in enumerate(chosen):
        expected = ImageOps.contain(draw_overlay(image, np.asarray(mask) > 0), (CELL, CELL))
        top = GAP + line * (CELL + TEXT_HEIGHT)
        for column in range(DRAWS + 1):
            left = GAP + column * (CELL + GAP)
            cell = sheet.crop((left, top, left + CELL, top + CELL))
            np.testing.assert_allclose(np.asarray(cell, int), np.asarray(expected, int), atol=1)
    assert sheet.size == (left + CELL + GAP, top + CELL + TEXT_HEIGHT)


def test_a_batch_is_changed_on_the_device_where_it_is():
    """A device without values stands for a GPU."""
    image = Image.fromarray(picture(0, SIZE, SIZE))
    row = {"image": image.convert("RGB"), "mask": image, "text": ""}
    drawn = Augmentation(AugmentationConfig(blur=1.0, holes=1.0), SIZE).draw(row, 0)
    batch = default_collate([tuple(drawn[name] for name in ("image", "mask", "changes"))] * 2)
    images, masks = apply_changes(*(tree_map(lambda tensor: tensor.to("meta"), part) for part in batch))
    assert (images.device.type, images.shape) == ("meta", (2, 3, SIZE, SIZE))
    assert (masks.device.type, masks.shape) == ("meta", (2, SIZE, SIZE))
