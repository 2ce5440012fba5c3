"""Segments volumes with a network of three dimensions: window by window, on the grid of the file."""

from dataclasses import replace
from typing import Any

import nibabel
import numpy as np

from ..io.scan import Scan
from ..model.segmenter_lvit import LViTSegmenter
from .slices import VolumeSegmentation, count_thresholds


def scan_to_image(scan: Scan) -> nibabel.Nifti1Image:
    """The slices of a scan with their place in the patient, in the order `(slice, row, column)`.

    Their values are the measured ones, where `read_scan` kept them.

    Raises:
        ValueError: If the file does not say where its slices lie, or they are in colour.
    """
    affine = None if scan.mask_writer is None else scan.mask_writer.slices_affine
    if affine is None or scan.slices.ndim != 3:
        raise ValueError(
            "A network of three dimensions needs grey slices whose place is known, evenly spaced: a NIfTI file, a "
            "DICOM series or a DICOM file of several frames."
        )
    return nibabel.Nifti1Image(scan.slices if scan.values is None else scan.values, affine)


def segment_scan(segmenter: LViTSegmenter, scan: Scan, text: str | None = None, **kwargs: Any) -> VolumeSegmentation:
    """Segments a file that was read as a scan, as [`LViTSegmenter.segment_volume`] does, in the order of its slices.

    The masks are written by `scan.mask_writer` and measured by `VolumeSegmentation.measure`.

    Args:
        segmenter: A checkpoint of three dimensions.
        scan: What `read_scan` returns. With `keep_values` masks are those of the file's own values.
        text, **kwargs: As there.

    Raises:
        ValueError: As there and in `scan_to_image`.
    """
    result, middle = segmenter.segment_volume(scan_to_image(scan), text, **kwargs), len(scan) // 2
    counts = np.stack([count_thresholds(part) for part in result.probabilities])
    said = replace(result, image=scan.image(middle), scores=result.scores[:, middle].copy())
    return VolumeSegmentation(counts, said)
