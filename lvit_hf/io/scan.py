"""What is read from an image file: a picture, a frame or a whole volume, ready to be segmented slice by slice."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..model.image_processing_lvit import apply_window, find_window
from .errors import FileError


# More would not fit into memory beside the probabilities: 512 x 512 x 600 is less.
MAX_VOXELS = 200_000_000
# Distances in mm beyond which there is no image of a patient, an animal or a slide.
DISTANCES = (1e-6, 1e4)


class MaskWriter(Protocol):
    """Writes masks in the format and the geometry of the file that was segmented."""

    @property
    def suffix(self) -> str:
        """Ending of its files' names."""

    @property
    def slices_affine(self) -> np.ndarray | None:
        """From `(slice, row, column)` to mm in RAS+ space, of shape `(4, 4)`; `None` where the file does not say."""

    def save(self, masks: np.ndarray, path: Path, finding: str):
        """Writes masks of a finding, booleans of shape `(slices, height, width)`, ordered as the scan's slices."""


@dataclass(frozen=True)
class Scan:
    """An image file as it was read. It holds nothing that names a patient.

    Args:
        slices: 8-bit pixels of shape `(slices, height, width)`, or `(slices, height, width, 3)` where they are RGB.
        spacing: Distance in mm between the centres of rows and of columns; `None` where the file does not say.
        slice_spacing: Distance in mm between slices; `None` where the file does not say.
        mask_writer: Writes masks in the file's own format; `None` where they have none but pictures.
        notes: What was odd about the file, left out or not believed: sentences for the user.
        modality: What made the image, as DICOM abbreviates it, such as `"CT"`; `None` where the file does not say.
        values: The measured values of grey slices, in the file's own unit; `None` where they were not to be kept.
    """

    slices: np.ndarray
    spacing: tuple[float, float] | None = None
    slice_spacing: float | None = None
    mask_writer: MaskWriter | None = None
    notes: tuple[str, ...] = ()
    modality: str | None = None
    values: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.slices)

    def known_spacing(self, axes: int) -> tuple[float, ...] | None:
        """Distances in mm along the last so many axes of `(slice, row, column)`; `None` where one is not known."""
        distances = (self.slice_spacing, *(self.spacing or (None, None)))[-axes:]
        return None if None in distances else distances  # type: ignore[return-value]

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
    voxels = int(np.prod([float(size) for size in shape]))
    if min(shape, default=0) < 1:
        raise FileError(f"{name} has no pixels: its shape is {tuple(shape)}.")
    if voxels > MAX_VOXELS:
        raise FileError(f"{name} has {voxels:,} voxels, more than the {MAX_VOXELS:,} that are read.")


def can_be_distance(number: float) -> bool:
    """Whether pixels or slices can be so many mm apart."""
    return DISTANCES[0] <= number <= DISTANCES[1]


def window_slices(slices: np.ndarray, black_and_white: tuple[float, float] | None = None) -> np.ndarray:
    """Maps measured values of a whole scan, in any unit, to 8 bits by one window: `find_window` of all of them.

    It goes slice by slice, since a copy of a long scan in floats takes gigabytes.
    """
    low, high = find_window(slices) if black_and_white is None else black_and_white
    windowed = np.empty(slices.shape, np.uint8)
    for part, values in zip(windowed, slices):
        part[...] = apply_window(values, low, high)
    return windowed


def name_some(names: list[str], shown: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(map(show_name, names[:shown]))}{more}"


def describe_left_out(left_out: list[tuple[str, str]]) -> list[str]:
    """A sentence for each reason, about names and why each was left out."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out:
        reasons.setdefault(reason, []).append(name)
    return [f"Left out: {name_some(names)} ({reason})." for reason, names in reasons.items()]


def show_name(path: str | os.PathLike) -> str:
    """A file's name as it can be shown and written: without what is no text, in names that are not in UTF-8."""
    return os.fsencode(path).decode(errors="replace")
