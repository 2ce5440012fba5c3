"""Captions written from masks by rule, in the schema of their family.

Such a caption carries the label. It may serve to train, never to test.
"""

from collections.abc import Callable

import numpy as np
from skimage.measure import label, regionprops

from ..model.captions_lvit import (
    FAMILIES,
    TOP_BOTTOM,
    TOP_MIDDLE_BOTTOM,
    UPPER_LOWER,
    Caption,
    Finding,
    lung_finding,
)


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

# A breast lesion is medium from the first, large from the second share of the image's area.
LESION_SIZES = (0.08, 0.3)
SMALLEST_LESION_AREA = 0.0005
# Where the middle of its box lies, down and across. The data's captions measure both in heights of the image.
LESION_THIRDS = (1 / 3, 2 / 3)

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
    return tuple(
        {
            "size": _describe_size(region, mask, POLYP_SIZES),
            "shape": _describe_shape(region),
            "place": TOP_MIDDLE_BOTTOM.names[_cell(region.centroid, mask.shape, (CENTER_BEGIN, 1 - CENTER_BEGIN))],
        }
        for region in _find_regions(mask, SMALLEST_POLYP_AREA)
    )


def describe_breast_lesions(mask: np.ndarray) -> tuple[Finding, ...]:
    """Size and place of each lesion; whether it is benign is not in a mask."""
    height = mask.shape[0]
    return tuple(
        {
            "size": _describe_size(region, mask, LESION_SIZES),
            "place": TOP_BOTTOM.names[_cell(_middle(region.bbox), (height, height), LESION_THIRDS)],
        }
        for region in _find_regions(mask, SMALLEST_LESION_AREA)
    )


def _find_regions(mask: np.ndarray, smallest: float) -> list:
    """Connected regions, the largest first, that cover at least a share of the mask."""
    regions = [region for region in regionprops(label(mask)) if region.area >= smallest * mask.size]
    return sorted(regions, key=lambda region: region.area, reverse=True)


def _describe_size(region, mask: np.ndarray, sizes: tuple[float, float]) -> str:
    return ("small", "medium", "large")[np.searchsorted(sizes, region.area / mask.size, side="right")]


def _middle(box: tuple[int, int, int, int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _describe_shape(region) -> str:
    if region.solidity < SOLID:
        return "irregular"
    return "circular" if region.axis_minor_length >= ROUND * region.axis_major_length else "elliptical"


def _cell(point: tuple[float, ...], size: tuple[int, ...], edges: tuple[float, float]) -> int:
    """The cell of a 3 x 3 grid, row by row, in which a point `(row, column)` lies; edges are shares of `size`."""
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
    "breast lesion": describe_breast_lesions,
}


def describe_mask(mask: np.ndarray, family: str) -> Caption:
    """What a mask shows.

    Args:
        mask: Booleans of shape `(height, width)`, of a whole image.
        family: Name of a caption family that has an entry in `RULES`; add one for a family of your own.

    Returns:
        A caption with as many findings as the mask has. That of an empty mask says that nothing is there in a family
        whose data say so, and else states nothing.

    Raises:
        ValueError: If there is no rule for the family.
    """
    if family not in RULES:
        raise ValueError(f"There is no rule to describe masks of {family!r}, only of {', '.join(RULES)}.")
    says_absent = bool(FAMILIES[family].absence) and not mask.any()
    return Caption(family, RULES[family](mask), absent=({},) if says_absent else ())
