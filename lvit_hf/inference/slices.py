"""A whole volume: segmented slice by slice, kept in one byte a voxel, measured at any threshold without delay."""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ..io.scan import Scan
from ..model.segmenter_lvit import Segmentation
from .measurements import measure_mask


# Slices that go through the network together, and their pixels.
BATCH_SIZE = 8
BATCH_PIXELS = 16_000_000

STEPS = 100
THRESHOLDS = np.linspace(0, 1, STEPS + 1).astype(np.float32)

SegmentImages = Callable[[Sequence[Image.Image], Sequence[str | None]], Sequence[Segmentation]]


def count_thresholds(probabilities: np.ndarray) -> np.ndarray:
    """How many of the thresholds 0, 0.01, ..., 1 each probability is above: integers in [0, 100] of the same shape.

    A pixel is above the threshold `k / 100` exactly where its count is above `k`, so masks are not rounded.
    """
    return np.searchsorted(THRESHOLDS, probabilities).astype(np.uint8)


@dataclass(frozen=True)
class VolumeSegmentation:
    """What the network says about all slices of a scan.

    Args:
        counts: What `count_thresholds` says of each voxel, of shape `(slices, height, width)`.
        middle: The result of the slice in the middle, which stands for all where words are asked for.
    """

    counts: np.ndarray
    middle: Segmentation

    def mask(self, threshold: float = 0.5, index: int | None = None) -> np.ndarray:
        """Voxels above the threshold, which is rounded to hundredths.

        Args:
            threshold: In [0, 1].
            index: Number of a slice, from 0.

        Returns:
            Booleans of shape `(height, width)`, or `(slices, height, width)` without a number.
        """
        counts = self.counts if index is None else self.counts[index]
        return counts > _step(threshold)

    @property
    def probabilities(self) -> np.ndarray:
        """Of foreground in [0, 1], to within 0.005: float32 of shape `(slices, height, width)`."""
        return _probabilities(np.arange(STEPS + 1)).clip(min=0).astype(np.float32)[self.counts]

    def areas(self, threshold: float = 0.5) -> np.ndarray:
        """Number of voxels of each slice that are above the threshold."""
        return self._histograms[:, _step(threshold) + 1 :].sum(axis=1)

    @cached_property
    def _histograms(self) -> np.ndarray:
        """Number of voxels of each slice with each count, of shape `(slices, 101)`."""
        return np.stack([np.bincount(part.ravel(), minlength=STEPS + 1) for part in self.counts])

    def measure(self, threshold: float, scan: Scan) -> dict[str, Any]:
        """Measures the mask.

        Args:
            threshold: In [0, 1], rounded to hundredths.
            scan: What was segmented.

        Returns:
            `voxels`, `percent` of the volume, `volume_ml`, `slices_with_findings`, the `mean_probability` in [0, 1]
            inside the mask to within 0.005, the `largest_slice` (number, from 0, of the slice with the largest area)
            with what `measure_mask` says of it, and `area_pixels_by_slice`. What is not known, and what an empty mask
            has not, is `None`.
        """
        areas = self.areas(threshold)
        voxels, largest, spacing = int(areas.sum()), int(areas.argmax()), scan.known_spacing(3)
        return {
            "voxels": voxels,
            "percent": 100 * voxels / self.counts.size,
            "volume_ml": spacing and voxels * math.prod(spacing) / 1000,
            "slices_with_findings": int(np.count_nonzero(areas)),
            "mean_probability": self._mean_probability(threshold) if voxels else None,
            "largest_slice": largest if voxels else None,
            **self._measure_slice(largest, threshold, scan.spacing),
            "area_pixels_by_slice": areas.tolist(),
        }

    def _measure_slice(self, index: int, threshold: float, spacing: tuple[float, float] | None) -> dict[str, Any]:
        measures = measure_mask(self.mask(threshold, index), _probabilities(self.counts[index]), spacing)
        return {f"largest_slice_{name}": value for name, value in measures.items()}

    def _mean_probability(self, threshold: float) -> float:
        first = _step(threshold) + 1
        histogram = self._histograms[:, first:].sum(axis=0)
        return float(np.average(_probabilities(np.arange(first, STEPS + 1)), weights=histogram))


def segment_slices(
    segment: SegmentImages, scan: Scan, text: str | None
) -> Generator[tuple[int, int], None, VolumeSegmentation]:
    """Segments all slices of a scan with one caption.

    Args:
        segment: Segments images, each with its caption.
        scan: The volume.
        text: The caption of every slice, or `None`.

    Returns:
        The numbers of finished and of all slices, after every few slices. Whoever takes no more of them stops it. The
        generator's own value (of `yield from`) is the `VolumeSegmentation`.
    """
    counts = np.empty(scan.slices.shape[:3], np.uint8)
    step = max(1, min(BATCH_SIZE, BATCH_PIXELS // counts[0].size))
    said: list[Segmentation] = []
    for start in range(0, len(scan), step):
        yield start, len(scan)
        images = [scan.image(index) for index in range(start, min(start + step, len(scan)))]
        for index, result in enumerate(segment(images, [text] * len(images)), start):
            counts[index] = count_thresholds(result.probabilities)
            if index == len(scan) // 2:
                said.append(result)
    yield len(scan), len(scan)
    return VolumeSegmentation(counts, *said)


def _step(threshold: float) -> int:
    return round(threshold * STEPS)


def _probabilities(counts: np.ndarray) -> np.ndarray:
    """The middle of the probabilities that have a count."""
    return (counts - 0.5) / STEPS
