"""Captions written from masks by rule, in the schema of their family.

Such a caption carries the label. It may serve to train, never to test.
"""

from collections.abc import Callable

import numpy as np
from skimage.measure import label, regionprops

from ..model.captions_lvit import TOP_MIDDLE_BOTTOM, UPPER_LOWER, Caption, Finding, lung_finding


# Chosen on training images by their agreement with the captions that people wrote; docs/text.md measures it.

# Where the middle zone begins and ends, as a share of the image's height, and the area that counts, as a share of it.
MIDDLE_ZONE = (0.32, 0.36)
SMALLEST_ZONE_AREA = 0.004

# A polyp is medium from the first, large from the second share of the image's area.
POLYP_SIZES = (0.12, 0.23)
SMALLEST_POLYP_AREA = 0.005
# Where the central row and column begin, as a share of the side; they end as far from the other edge.
CENTER_BEGIN = 0.39
# Share of the convex hull below which a polyp is irregular, and minor over major axis from which it is circular.
SOLID, ROUND = 0.97, 0.75

# Variation of the density over a 3 x 3 grid, relative to its mean, up to which it is even.
EVEN_VARIATION = 0.16
# Share of the image that nuclei cover below which they are sparse.
SPARSE_AREA = 0.25


def describe_lungs(mask: np.ndarray) -> tuple[Finding, ...]:
    height, width = mask.shape
    begin, end = (round(share * height) for share in MIDDLE_ZONE)
    rows = {"upper": slice(0, begin), "middle": slice(begin, end), "lower": slice(end, height)}

    def zones(lung: np.ndarray) -> list[str]:
        return [zone for zone, span in rows.items() if lung[span].sum() > SMALLEST_ZONE_AREA * mask.size]

    left, right = zones(mask[:, : width // 2]), zones(mask[:, width // 2 :])
    return (lung_finding(left, right),) if left or right else ()


def describe_polyps(mask: np.ndarray) -> tuple[Finding, ...]:
    """Size, shape and place of each polyp; its surface is not in a mask."""
    regions = sorted(regionprops(label(mask)), key=lambda region: region.area, reverse=True)
    return tuple(
        {
            "size": ("small", "medium", "large")[np.searchsorted(POLYP_SIZES, region.area / mask.size, side="right")],
            "shape": _describe_shape(region),
            "place": TOP_MIDDLE_BOTTOM.names[_cell(region.centroid, mask.shape)],
        }
        for region in regions
        if region.area >= SMALLEST_POLYP_AREA * mask.size
    )


def _describe_shape(region) -> str:
    if region.solidity < SOLID:
        return "irregular"
    return "circular" if region.axis_minor_length >= ROUND * region.axis_major_length else "elliptical"


def _cell(point: tuple[float, ...], size: tuple[int, ...]) -> int:
    """The cell of the 3 x 3 grid, row by row, in which a point `(row, column)` lies."""
    edges = (CENTER_BEGIN, 1 - CENTER_BEGIN)
    row, column = (int(np.searchsorted(edges, position / side)) for position, side in zip(point, size))
    return 3 * row + column


def describe_nuclei(mask: np.ndarray) -> tuple[Finding, ...]:
    if not mask.any():
        return ()
    grid = [[cell.mean() for cell in np.array_split(row, 3, axis=1)] for row in np.array_split(mask, 3, axis=0)]
    density = np.array(grid) / np.mean(grid)
    if density.std() > EVEN_VARIATION:
        return ({"place": UPPER_LOWER.names[int(density.argmax())]},)
    return ({"distribution": "sparsely" if mask.mean() < SPARSE_AREA else "evenly"},)


RULES: dict[str, Callable[[np.ndarray], tuple[Finding, ...]]] = {
    "lung infection": describe_lungs,
    "polyp": describe_polyps,
    "nuclei": describe_nuclei,
}


def describe_mask(mask: np.ndarray, family: str) -> Caption:
    """What a mask shows.

    Args:
        mask: Booleans of shape `(height, width)`, of a whole image.
        family: Name of a caption family that has an entry in `RULES`; add one for a family of your own.

    Returns:
        A caption with as many findings as the mask has; none for an empty mask.

    Raises:
        ValueError: If there is no rule for the family.
    """
    if family not in RULES:
        raise ValueError(f"There is no rule to describe masks of {family!r}, only of {', '.join(RULES)}.")
    return Caption(family, RULES[family](mask))
