import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from lvit_hf.inference.measurements import measure_mask


@pytest.mark.parametrize("spacing", [None, (1, 1), (0.5, 2), (3, 0.25)])
@pytest.mark.parametrize("seed", range(6))
def test_measures_are_those_of_all_pairs_of_edges(seed, spacing):
    """One box or ellipse or several, which do not touch."""
    rng = np.random.default_rng(seed)
    mask, expected, blobs = np.zeros((20, 60), bool), [], 1 + seed % 3
    for blob in range(blobs):
        part, (top, left, bottom, right) = np.zeros_like(mask), rng.integers(1, 9, 4)
        part[top : 10 + bottom, 20 * blob + left : 20 * blob + 10 + right] = True
        if seed % 2:
            rows, columns = (np.linspace(-1, 1, side) for side in (10 + bottom - top, 10 + right - left))
            part[part] = (np.hypot(rows[:, None], columns) <= 1).ravel()
        mask |= part
        middles = np.argwhere(part)[:, None] + [(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)]
        expected.append(pdist(middles.reshape(-1, 2) * (spacing or 1)).max())
    probabilities = rng.random(mask.shape)
    measured = measure_mask(mask, probabilities, spacing)
    assert measured["largest_diameter"] == pytest.approx(max(expected))
    assert measured["components"] == blobs
    assert measured["area_pixels"] == np.count_nonzero(mask)
    assert measured["area_percent"] == pytest.approx(100 * mask.mean())
    area = None if spacing is None else pytest.approx(np.count_nonzero(mask) * np.prod(spacing))
    assert measured["area_mm2"] == area
    assert measured["diameter_unit"] == ("pixels" if spacing is None else "mm")
    assert measured["mean_probability"] == pytest.approx(np.average(probabilities, weights=mask))


def test_the_component_that_is_longest_in_mm_counts_whatever_its_place():
    mask = np.zeros((40, 90), bool)
    mask[2:12, 2:5] = True  # 10 rows high, of 4 mm each
    mask[30:33, 20:50] = True  # 30 columns wide, of 0.5 mm each
    mask[20, 80] = True
    measured = measure_mask(mask, mask.astype(float), (4, 0.5))
    assert measured["largest_diameter"] == pytest.approx(np.hypot(10 * 4, 2 * 0.5), rel=0.02)
    assert measure_mask(mask, mask.astype(float), None)["largest_diameter"] == pytest.approx(30, rel=0.02)
    assert measure_mask(mask[::-1, ::-1], mask.astype(float), (4, 0.5))["largest_diameter"] == pytest.approx(
        measured["largest_diameter"]
    )


@pytest.mark.parametrize("shape", [(8, 40_000), (40_000, 8), (2500, 3000)])
def test_a_large_mask_is_measured_at_once_and_in_little_memory(shape):
    mask = np.ones(shape, bool)
    tracemalloc.start()
    measured = measure_mask(mask, mask.astype(np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert measured["largest_diameter"] == pytest.approx(np.hypot(*shape), rel=1e-3)
    assert peak < 40 * mask.size + 50 * 1024**2
