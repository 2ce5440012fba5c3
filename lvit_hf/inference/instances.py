"""Single objects of a mask: each lesion, each nucleus, numbered and measured."""

from typing import Any

import numpy as np
from scipy import ndimage
from skimage.filters import gaussian
from skimage.measure import label, regionprops_table
from skimage.morphology import h_maxima
from skimage.segmentation import watershed


NUCLEI = "nuclei"

# Touching nuclei are separated where the mask is narrower than this share of the smaller of the two. Its width is the
# distance to the background, smoothed by this many pixels. Chosen by `benchmarks/nuclei.py`.
NECK = 0.95
SMOOTHING = 1.0

MICRONS = 1000


def label_instances(mask: np.ndarray, finding: str) -> np.ndarray:
    """Numbers the objects of a mask: its connected parts, but nuclei in a picture that touch are separated.

    Args:
        mask: Booleans of shape `(height, width)` or `(slices, height, width)`. Parts are connected over corners too.
        finding: What the mask is of, a label of a `Segmentation`.

    Returns:
        The number of each pixel's object from 1, 0 outside the mask: integers of the same shape.
    """
    parts = label(mask)
    return separate_nuclei(mask, parts) if finding == NUCLEI and mask.ndim == 2 and parts.any() else parts


def separate_nuclei(
    mask: np.ndarray, parts: np.ndarray, neck: float = NECK, smoothing: float = SMOOTHING
) -> np.ndarray:
    """Cuts parts of a mask into convex ones, by a watershed of the distance to the background.

    Args:
        mask: Booleans of shape `(height, width)`.
        parts: The number of each pixel's part, 0 outside, of the same shape.
        neck: In (0, 1): where the mask is narrower than this share of both sides, it is cut.
        smoothing: Of the distance, the standard deviation in pixels.

    Returns:
        The number of each pixel's object from 1, 0 outside the mask: integers of the same shape.
    """
    distance = gaussian(ndimage.distance_transform_edt(mask).astype(np.float32), smoothing)
    # On a logarithmic scale a neck is as deep in a small nucleus as in a large one.
    centres = mask & h_maxima(np.log(distance.clip(min=1)), np.float32(-np.log(neck))).astype(bool)
    markers = label(centres)
    has_centre = np.zeros(parts.max() + 1, bool)
    has_centre[parts[centres]] = True
    whole = mask & ~has_centre[parts]  # too small to have one
    markers[whole] = markers.max() + label(whole)[whole]
    return watershed(-distance, markers, connectivity=2, mask=mask)


def choose_unit(finding: str, spacing: tuple[float, ...] | None) -> tuple[str, tuple[float, ...] | None]:
    """The unit in which objects of that kind are measured, `"µm"`, `"mm"` or `"px"`, and the spacing in it.

    Args:
        finding: What the objects are.
        spacing: Distance in mm between pixels along each axis, where it is known.
    """
    if spacing is None:
        return "px", None
    return ("µm", tuple(MICRONS * step for step in spacing)) if finding == NUCLEI else ("mm", spacing)


def measure_instances(
    instances: np.ndarray, probabilities: np.ndarray, spacing: tuple[float, ...] | None = None
) -> list[dict[str, Any]]:
    """Measures objects.

    Args:
        instances: What `label_instances` returns.
        probabilities: Probability of foreground in [0, 1] of each pixel, of the same shape.
        spacing: Distance between pixels along each axis; the unit of `size` and `diameter` goes with it. `None` for
            pixels.

    Returns:
        Of each object its `id`, the number of its `pixels`, its `size` (area or volume), the `diameter` of the circle
        or sphere of that size, `centroid` in pixels in the order of the axes, and `mean_probability`.
    """
    spacing = spacing or (1.0,) * instances.ndim
    names = ("label", "num_pixels", "area", "equivalent_diameter_area", "centroid", "mean_intensity")
    table = regionprops_table(instances, probabilities, properties=names, spacing=spacing)
    table["centroid"] = np.stack([table[f"centroid-{axis}"] / step for axis, step in enumerate(spacing)], axis=-1)
    columns = zip(*(table[name].tolist() for name in names))
    return [dict(zip(("id", "pixels", "size", "diameter", "centroid", "mean_probability"), row)) for row in columns]
