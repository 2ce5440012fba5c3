"""A volume that is segmented slice by slice, against the probabilities themselves."""

import numpy as np
import pytest

from lvit_hf.inference import slices
from lvit_hf.inference.measurements import measure_mask
from lvit_hf.inference.slices import VolumeSegmentation, segment_slices
from lvit_hf.io.scan import Scan
from lvit_hf.model.segmenter_lvit import Segmentation


SLICES = np.arange(19, dtype=np.uint8)[:, None, None].repeat(9, 1).repeat(7, 2)
PROBABILITIES = np.random.default_rng(0).beta(0.4, 0.6, SLICES.shape).astype(np.float32)
PROBABILITIES[4] *= 0.01
PROBABILITIES[12, :5] = 0.97
CALLS: list[list] = []


def segment(images, texts):
    """What a network would say of each slice, which it knows by its grey value."""
    CALLS.append([(np.asarray(image)[0, 0], text) for image, text in zip(images, texts)])
    return [Segmentation(image, PROBABILITIES[np.asarray(image)[0, 0]][None], ("object",)) for image in images]


def run(scan: Scan, text: str | None = None) -> tuple[VolumeSegmentation, list[tuple[int, int]]]:
    CALLS.clear()
    steps, progress = [], segment_slices(segment, scan, text)
    while True:
        try:
            steps.append(next(progress))
        except StopIteration as stop:
            return stop.value, steps


@pytest.mark.parametrize("pixels, step", [(16_000_000, 8), (63 * 3, 3), (1, 1)])
def test_every_slice_is_segmented_once_with_the_caption(monkeypatch, pixels, step):
    monkeypatch.setattr(slices, "BATCH_PIXELS", pixels)
    result, steps = run(Scan(SLICES), "all")
    assert steps == [(start, 19) for start in (*range(0, 19, step), 19)]
    assert [part for call in CALLS for part in call] == [(number, "all") for number in range(19)]
    assert max(map(len, CALLS)) == step
    assert np.asarray(result.middle.image)[0, 0] == 9
    np.testing.assert_allclose(result.probabilities, PROBABILITIES, atol=0.00501)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_slice_in_the_middle_stands_for_all(count):
    result, _ = run(Scan(SLICES[:count]))
    assert np.asarray(result.middle.image)[0, 0] == count // 2 and result.counts.shape == (count, 9, 7)


@pytest.mark.parametrize("threshold", [0, 0.01, 0.29, 0.5, 0.57, 0.96, 0.99, 1])
def test_measures_are_those_of_the_mask_at_every_threshold(threshold):
    scan = Scan(SLICES, (0.5, 2), 3)
    result, _ = run(scan)
    mask = np.float32(threshold) < PROBABILITIES
    np.testing.assert_array_equal(result.mask(threshold), mask)
    np.testing.assert_array_equal(result.mask(threshold, 12), mask[12])
    areas = mask.sum((1, 2))
    np.testing.assert_array_equal(result.areas(threshold), areas)
    measured, largest = result.measure(threshold, scan), int(areas.argmax())
    assert measured["voxels"] == mask.sum() and measured["percent"] == pytest.approx(100 * mask.mean())
    assert measured["volume_ml"] == pytest.approx(mask.sum() * 0.5 * 2 * 3 / 1000)
    assert measured["slices_with_findings"] == (areas > 0).sum() and measured["area_pixels_by_slice"] == areas.tolist()
    assert measured["largest_slice"] == (largest if mask.any() else None)
    if mask.any():
        assert measured["mean_probability"] == pytest.approx(PROBABILITIES[mask].mean(), abs=0.0051)
    else:
        assert measured["mean_probability"] is None
    for name, value in measure_mask(mask[largest], PROBABILITIES[largest], scan.spacing).items():
        close = value if value is None or isinstance(value, str) else pytest.approx(value, abs=0.0051)
        assert measured[f"largest_slice_{name}"] == close


@pytest.mark.parametrize("spacing, between", [(None, 3), ((0.5, 2), None)])
def test_no_volume_without_all_three_distances(spacing, between):
    scan = Scan(SLICES, spacing, between)
    assert run(scan)[0].measure(0.5, scan)["volume_ml"] is None


def test_maps_are_kept_in_a_byte_a_voxel():
    assert run(Scan(SLICES))[0].counts.dtype == np.uint8
