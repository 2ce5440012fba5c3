"""Objects of masks are counted, separated and measured one by one."""

import numpy as np
import pytest
from skimage.draw import disk

from lvit_hf.inference.instances import choose_unit, label_instances, measure_instances


def draw_disks(*circles: tuple[int, int, int], shape=(200, 200)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for row, column, radius in circles:
        mask[disk((row, column), radius, shape=shape)] = True
    return mask


TOUCHING = draw_disks((50, 40, 15), (50, 67, 15), (75, 53, 14), (150, 150, 20))


@pytest.mark.parametrize("scale", [1, 2])  # as at 20x and at 40x
def test_touching_nuclei_are_separated(scale):
    instances = label_instances(TOUCHING.repeat(scale, 0).repeat(scale, 1), "nuclei")
    assert instances.max() == 4
    centres = [instances[row * scale, column * scale] for row, column in ((50, 40), (50, 67), (75, 53), (150, 150))]
    assert sorted(centres) == [1, 2, 3, 4]
    np.testing.assert_array_equal(instances > 0, TOUCHING.repeat(scale, 0).repeat(scale, 1))
    assert np.bincount(instances.ravel())[1:].min() > 0.8 * 3.1 * (14 * scale) ** 2


def test_lesions_are_connected_parts():
    assert label_instances(TOUCHING, "infection").max() == 2
    corner = np.eye(2, dtype=bool)
    assert label_instances(corner, "polyp").max() == 1
    assert label_instances(np.stack([corner, corner[::-1]]), "nuclei").max() == 1  # a volume


def test_specks_and_empty_masks():
    specks = np.zeros((9, 9), bool)
    specks[1, 1] = specks[4, 4:6] = specks[7, 7] = True
    assert label_instances(specks, "nuclei").max() == 3
    mixed = label_instances(TOUCHING | np.pad(specks, (0, 191)), "nuclei")
    assert np.unique(mixed).tolist() == list(range(8))  # one number after the other
    empty = label_instances(np.zeros((9, 9), bool), "nuclei")
    assert empty.max() == 0 and measure_instances(empty, np.zeros((9, 9))) == []


def test_no_pixel_of_a_ragged_mask_is_lost():
    mask = np.random.default_rng(0).random((80, 90)) > 0.6  # parts that hang together by corners
    instances = label_instances(mask, "nuclei")
    np.testing.assert_array_equal(instances > 0, mask)
    assert np.unique(instances).tolist() == list(range(instances.max() + 1))


def test_one_round_nucleus_is_one():
    for radius in (3, 5, 9, 14, 30):
        assert label_instances(draw_disks((99, 101, radius)), "nuclei").max() == 1


def test_measurements_in_every_unit():
    mask = np.zeros((20, 30), bool)
    mask[2:6, 10:20] = True
    probabilities = np.where(mask, 0.75, 0.1)
    for finding, spacing, unit, size in (
        ("nuclei", (0.0005, 0.00025), "µm", 40 * 0.5 * 0.25),
        ("infection", (0.5, 0.2), "mm", 40 * 0.5 * 0.2),
        ("infection", None, "px", 40),
    ):
        found, scaled = choose_unit(finding, spacing)
        [entry] = measure_instances(label_instances(mask, finding), probabilities, scaled)
        assert found == unit and entry["id"] == 1 and entry["pixels"] == 40
        assert entry["size"] == pytest.approx(size)
        assert entry["diameter"] == pytest.approx(2 * (size / np.pi) ** 0.5)
        assert entry["centroid"] == pytest.approx([3.5, 14.5])
        assert entry["mean_probability"] == pytest.approx(0.75)


def test_volumes_are_measured_in_three_dimensions():
    mask = np.zeros((4, 6, 8), bool)
    mask[1:3, 2:4, 3:6] = True
    [entry] = measure_instances(label_instances(mask, "polyp"), mask.astype(float), (3.0, 1.0, 0.5))
    assert entry["size"] == pytest.approx(12 * 1.5) and entry["centroid"] == pytest.approx([1.5, 2.5, 4])


def test_parts_that_meet_at_a_corner_are_one_object():
    mask = np.zeros((12, 12), bool)
    mask[1:4, 1:4] = mask[4:7, 4:7] = True
    assert label_instances(mask, "polyp").max() == 1
    assert label_instances(np.stack([np.pad(np.eye(2, dtype=bool), 2)] * 2), "polyp").max() == 1
    assert (
        label_instances(np.pad(np.eye(2, dtype=bool), 2), "nuclei").max() == 1
    )  # too small for a middle of their own


@pytest.mark.parametrize("spacing", [None, (0.5, 2.0), (3.0, 0.5, 2.0)])
def test_each_object_has_the_measures_of_its_own_pixels(spacing):
    axes = len(spacing or (1, 1))
    rng = np.random.default_rng(0)
    instances = rng.integers(0, 5, (5, 6, 7)[:axes])
    probabilities = rng.random(instances.shape)
    measured = measure_instances(instances, probabilities, spacing)
    assert [entry["id"] for entry in measured] == [1, 2, 3, 4]
    for entry in measured:
        inside = instances == entry["id"]
        size = inside.sum() * np.prod(spacing or 1)
        radius = (size / np.pi) ** (1 / 2) if axes == 2 else (3 * size / (4 * np.pi)) ** (1 / 3)
        assert entry["pixels"] == inside.sum() and entry["size"] == pytest.approx(size)
        assert entry["diameter"] == pytest.approx(2 * radius)
        assert entry["centroid"] == pytest.approx(np.argwhere(inside).mean(0).tolist())
        assert entry["mean_probability"] == pytest.approx(probabilities[inside].mean())


@pytest.mark.parametrize("neck, count", [(3, 2), (10, 2), (15, 2), (25, 2), (29, 1)])
def test_nuclei_are_cut_where_they_are_narrow(neck, count):
    """Two disks of 29 pixels with a bridge between them, however they lie."""
    mask = draw_disks((50, 40, 15), (50, 72, 15))
    mask[50 - neck // 2 : 51 + neck // 2, 40:73] = True
    for turned in (mask, mask.T, mask[::-1], mask[:, ::-1]):
        instances = label_instances(turned, "nuclei")
        assert instances.max() == count
        np.testing.assert_array_equal(instances > 0, turned)
    if count == 2:
        left, right = (np.argwhere(label_instances(mask, "nuclei") == number)[:, 1].mean() for number in (1, 2))
        assert abs(left - right) > 25
    assert label_instances(mask, "polyp").max() == 1


def test_specks_that_touch_at_a_corner_are_one():
    specks = np.zeros((40, 40), bool)
    specks[2, 2] = specks[3, 3] = specks[3, 5] = True
    for mask in (specks, specks | draw_disks((25, 25, 9), shape=(40, 40))):
        instances = label_instances(mask, "nuclei")
        assert instances[2, 2] == instances[3, 3] != instances[3, 5]
        assert np.unique(instances).tolist() == list(range(3 + bool(mask[25, 25])))
