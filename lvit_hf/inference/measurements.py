"""What can be measured on a mask."""

import math

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from skimage.measure import label, regionprops


def measure_mask(
    mask: np.ndarray, probabilities: np.ndarray, spacing: tuple[float, float] | None = None
) -> dict[str, int | float | str | None]:
    """Measures a mask.

    Args:
        mask: Booleans of shape `(height, width)`.
        probabilities: Probability of foreground in [0, 1] of each pixel, of the same shape.
        spacing: Distance in mm between rows and between columns, where it is known.

    Returns:
        `area_pixels`, `area_percent` of the image, `area_mm2`, the number of 8-connected `components`, the
        `largest_diameter` of a component between any two of its edges, in the unit that `diameter_unit` names, `"mm"`
        or `"pixels"`, and `mean_probability` in [0, 1] inside the mask. What is not known, and what an empty mask has
        not, is `None`.
    """
    area = int(mask.sum())
    components = label(mask)
    return {
        "area_pixels": area,
        "area_percent": 100 * area / mask.size,
        "area_mm2": None if spacing is None else area * spacing[0] * spacing[1],
        "components": int(components.max()),
        "largest_diameter": largest_diameter(components, spacing or (1, 1)),
        "diameter_unit": "pixels" if spacing is None else "mm",
        "mean_probability": float(probabilities[mask].mean()) if area else None,
    }


def largest_diameter(components: np.ndarray, spacing: tuple[float, float]) -> float | None:
    """The largest distance between two edges of one component (Feret diameter), in the unit of `spacing`.

    Args:
        components: Number of each pixel's component, 0 outside, of shape `(height, width)`.
        spacing: Distance between rows and between columns.
    """

    def diagonal(region) -> float:
        top, left, bottom, right = region.bbox
        return math.hypot((bottom - top) * spacing[0], (right - left) * spacing[1])

    largest = None
    for region in sorted(regionprops(components, spacing=spacing), key=diagonal, reverse=True):
        if largest is not None and diagonal(region) <= largest:
            break  # no component fits more into a smaller box
        edges = _find_outer_edges(region.image)
        # The farthest edges are corners of the hull. There are few; all pairs of edges would fill the memory.
        corners = edges[ConvexHull(edges).vertices]
        largest = max(largest or 0.0, float(pdist(corners * spacing).max()))
    return largest


def _find_outer_edges(component: np.ndarray) -> np.ndarray:
    """The middles of the first and last edges of pixels in each row and column, `(edges, 2)`."""
    edges = []
    for axis in (0, 1):
        size, numbers = component.shape[axis], np.arange(component.shape[1 - axis])
        first, last = component.argmax(axis) - 0.5, size - np.flip(component, axis).argmax(axis) - 0.5
        edges += [np.column_stack([ends, numbers][:: 1 - 2 * axis]) for ends in (first, last)]
    return np.concatenate(edges)
