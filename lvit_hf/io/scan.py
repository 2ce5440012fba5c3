"""What is read from an image file: a picture, a frame or a whole volume, ready to be segmented slice by slice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..model.image_processing_lvit import WINDOW_PERCENTILES


# More would not fit into memory beside the probabilities: 512 x 512 x 600 is less.
MAX_VOXELS = 200_000_000


class MaskWriter(Protocol):
    """Writes masks in the format and the geometry of the file that was segmented."""

    @property
    def suffix(self) -> str:
        """Ending of its files' names."""

    def save(self, masks: np.ndarray, path: Path):
        """Writes masks, booleans of shape `(slices, height, width)`, in the order of the scan's slices."""


@dataclass(frozen=True)
class Scan:
    """An image file as it was read. It holds nothing that names a patient.

    Args:
        slices: 8-bit pixels of shape `(slices, height, width)`, or `(slices, height, width, 3)` where they are RGB.
        spacing: Distance in mm between the centres of rows and of columns; `None` where the file does not say.
        slice_spacing: Distance in mm between slices; `None` where the file does not say.
        mask_writer: Writes masks in the file's own format; `None` where they have none but pictures.
        modality: What made the image, as DICOM abbreviates it, such as `"CT"`; `None` where the file does not say.
    """

    slices: np.ndarray
    spacing: tuple[float, float] | None = None
    slice_spacing: float | None = None
    mask_writer: MaskWriter | None = None
    modality: str | None = None

    def __len__(self) -> int:
        return len(self.slices)

    def image(self, index: int = 0) -> Image.Image:
        """A slice as a PIL image of mode L or RGB.

        Raises:
            ValueError: If there is no such slice.
        """
        if not 0 <= index < len(self):
            raise ValueError(f"There is no slice {index}: the file has {len(self)}, counted from 0.")
        return Image.fromarray(self.slices[index])


def check_size(name: str, shape: tuple[int, ...]):
    """Refuses, before anything is decoded, what would not fit into memory, and what has no pixels."""
    voxels = int(np.prod(shape, dtype=np.int64))
    if min(shape, default=0) < 1:
        raise ValueError(f"{name} has no pixels: its shape is {shape}.")
    if voxels > MAX_VOXELS:
        raise ValueError(f"{name} has {voxels:,} voxels, more than the {MAX_VOXELS:,} that are read.")


def window_volume(values: np.ndarray) -> np.ndarray:
    """Maps measured values of a whole scan, in any unit, to 8 bits by one window between percentiles.

    It goes slice by slice, since a copy of a long scan in floats takes gigabytes.
    """
    low, high = float(values.min()), float(values.max())
    scale = np.float32(65535 / max(high - low, 1e-6))
    levels = np.empty(values.shape, np.uint16)
    for part, of_slice in zip(levels, values):
        part[...] = (of_slice - np.float32(low)) * scale
    black, white = np.percentile(levels, WINDOW_PERCENTILES)
    shares = (np.arange(65536) - black) / max(white - black, 1e-6)
    table = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    windowed = np.empty(values.shape, np.uint8)
    for part, of_slice in zip(windowed, levels):
        part[...] = table[of_slice]
    return windowed
