"""NIfTI volumes: axial slices as radiologists look at them, and masks with the volume's own affine."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError, ImageDataError

from .scan import Scan, check_size, window_volume


# Axes that grow to the patient's left, back and head: their slices are axial, seen from the feet.
SLICE_ORIENTATION = axcodes2ornt(("L", "P", "S"))

BROKEN_FILE_ERRORS = (HeaderDataError, ImageDataError, EOFError, OSError, ValueError, zlib.error)


@dataclass(frozen=True)
class NiftiMaskWriter:
    """Writes masks as a NIfTI file on the grid of another.

    Args:
        shape: The grid's shape.
        affine: From its indices to mm.
        codes: The kinds of space of its qform and its sform.
        orientation: From the axes of slices, `(column, row, slice)`, to those of the grid.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    codes: tuple[int, int]
    orientation: np.ndarray
    suffix: str = ".nii.gz"

    @property
    def slices_affine(self) -> np.ndarray:
        """See `MaskWriter`."""
        to_slices = ornt_transform(io_orientation(self.affine), SLICE_ORIENTATION)
        columns_first = self.affine @ inv_ornt_aff(to_slices, (*self.shape, 1)[:3])
        return columns_first[:, [2, 1, 0, 3]]

    def save(self, masks: np.ndarray, path: Path):
        grid = apply_orientation(masks.T.astype(np.uint8), self.orientation).reshape(self.shape)
        image = nibabel.Nifti1Image(grid, self.affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(self.affine, self.codes[0])
        image.set_sform(self.affine, self.codes[1])
        nibabel.save(image, path)


def read_nifti(path: Path) -> Scan:
    """Reads a NIfTI file of 2 or 3 axes. Values that are no numbers become the smallest that is one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is broken or has values or axes that make no slices.
    """
    try:
        image: Any = nibabel.load(path)
        shape = _grid_shape(path, image.shape)
        check_size(path.name, shape)
        values = np.asanyarray(image.dataobj).reshape(shape)
    except FileNotFoundError:
        raise
    except ImageFileError:
        raise ValueError(f"{path.name} is not a NIfTI file, or a broken one.")
    except (*BROKEN_FILE_ERRORS, gzip.BadGzipFile) as error:
        sentence = str(error).splitlines()[0]
        if sentence.startswith(path.name):
            raise
        raise ValueError(f"{path} is a broken NIfTI file: {sentence}")
    if values.dtype.kind not in "buif":
        raise ValueError(f"{path.name} holds {values.dtype}; each voxel must be one number.")
    to_slices = ornt_transform(io_orientation(image.affine), SLICE_ORIENTATION)
    to_grid = ornt_transform(SLICE_ORIENTATION, io_orientation(image.affine))
    volume = apply_orientation(values, to_slices).T  # (slice, row, column)
    affine = image.affine @ inv_ornt_aff(to_slices, shape)
    columns, rows, slices = (float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))
    codes = int(image.header.get("qform_code", 0)), int(image.header.get("sform_code", 2))
    writer = NiftiMaskWriter(image.shape, image.affine, codes, to_grid)
    return Scan(_to_8_bits(path, volume), (rows, columns), slices, writer)


def _grid_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as three axes."""
    if len(shape) < 2 or any(size > 1 for size in shape[3:]):
        raise ValueError(
            f"{path.name} has {len(shape)} axes of sizes {shape}; 3 are needed. Save one of its volumes as a file."
        )
    return (*shape, 1)[:3]


def _to_8_bits(path: Path, volume: np.ndarray) -> np.ndarray:
    if volume.dtype == np.uint8:
        return np.ascontiguousarray(volume)
    values = volume.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError(f"{path.name} has no value that is a number.")
    return window_volume(np.where(finite, values, values[finite].min()))
