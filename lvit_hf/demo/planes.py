"""A volume and its probabilities as the page shows them: in three planes of the patient."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.slices import VolumeSegmentation
from ..io.scan import Scan
from ..model.image_processing_volumes_lvit import axes_to_sar, sar_spacing


# More are shown at a size that a browser keeps and draws without delay.
MOST_VOXELS = 16_000_000


def write_planes(path: Path, scan: Scan, result: VolumeSegmentation, most_voxels: int = MOST_VOXELS) -> dict[str, Any]:
    """Writes a volume for the browser: the voxels and then their counts (`count_thresholds`), a byte each, packed.

    Args:
        path: Where to write them.
        scan: The volume, whose slices have a place.
        result: What the network says of it.
        most_voxels: A larger volume is thinned out to so many.

    Returns:
        The `shape` and the `spacing` in mm of the arrays, whose axes grow to the feet, the back and the left.
    """
    affine = None if scan.mask_writer is None else scan.mask_writer.slices_affine
    assert affine is not None  # or it would have no result
    voxels, counts = (_thin_out(_turn(array, affine), most_voxels) for array in (scan.slices, result.counts))
    path.write_bytes(zlib.compress(voxels.tobytes() + counts.tobytes(), 1))
    sides = _turn(scan.slices, affine).shape
    spacing = sar_spacing(affine) * sides / voxels.shape
    return {"shape": voxels.shape, "spacing": spacing.tolist()}


def _turn(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view whose axes grow to the feet, the back and the left, or nearly so where the grid is oblique."""
    axes, flips = axes_to_sar(affine)  # to the head, the front and the right
    return np.flip(array.transpose(axes), tuple(axis for axis in range(3) if axis not in flips))


def _thin_out(array: np.ndarray, most_voxels: int) -> np.ndarray:
    """The nearest of evenly spread places."""
    share = min(1.0, (most_voxels / array.size) ** (1 / 3))
    counts = [max(1, int(side * share)) for side in array.shape]
    places = [((np.arange(count) + 0.5) * side / count).astype(int) for count, side in zip(counts, array.shape)]
    return array[np.ix_(*places)]
