"""NIfTI volumes: axial slices as radiologists look at them, and masks with the volume's own affine."""

import gzip
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.volumeutils import apply_read_scaling

from ..model.image_processing_lvit import find_labels
from .errors import FileError, file_errors
from .kinds import GZIP_MAGIC, is_nifti
from .scan import Scan, can_be_distance, check_size, window_slices


# Axes that grow to the patient's left, back and head: their slices are axial, seen from the feet.
SLICE_ORIENTATION = axcodes2ornt(("L", "P", "S"))

HEADERS = {348: Nifti1Header, 540: Nifti2Header}
PAIR_SUFFIXES = (".hdr", ".img")
UNITS_IN_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


@dataclass(frozen=True)
class NiftiMaskWriter:
    """Writes masks as a NIfTI file on the grid of another.

    Args:
        shape: The grid's shape.
        affine: From its indices to mm.
        codes: The kinds of space of its qform and its sform.
        orientation: From the axes of slices, `(column, row, slice)`, to those of the grid.
        unit: Of the affine.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    codes: tuple[int, int]
    orientation: np.ndarray
    unit: str = "mm"
    suffix: str = ".nii.gz"

    @property
    def slices_affine(self) -> np.ndarray:
        """See `MaskWriter`."""
        to_slices = ornt_transform(io_orientation(self.affine), SLICE_ORIENTATION)
        columns_first = self.affine @ inv_ornt_aff(to_slices, (*self.shape, 1)[:3])
        return columns_first[:, [2, 1, 0, 3]]

    def save(self, masks: np.ndarray, path: Path, finding: str):
        """See `MaskWriter`. NIfTI has no place for the finding's name."""
        self.save_values(masks.astype(np.uint8), path)

    def save_values(self, values: np.ndarray, path: Path, dtype: np.dtype | None = None):
        """Writes numbers of shape `(slices, height, width)`, in the order of the scan's slices.

        Args:
            values: Any numbers that NIfTI has.
            path: Where to write them.
            dtype: How they are stored; floats in integers get a slope. By default as they are.
        """
        grid = apply_orientation(values.T, self.orientation).reshape(self.shape)
        image = nibabel.Nifti1Image(grid, self.affine, dtype=values.dtype)
        image.set_data_dtype(dtype or values.dtype)
        image.header.set_xyzt_units(self.unit)
        image.set_qform(self.affine, self.codes[0])
        image.set_sform(self.affine, self.codes[1])
        nibabel.save(image, path)


def read_nifti(path: Path, keep_values: bool = False) -> Scan:
    """Reads a NIfTI file of 2 or 3 axes, of grey or RGB voxels, or a pair of .hdr and .img.

    Args:
        path: The file.
        keep_values: Whether the scan has the measured values of grey voxels too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is broken or has values or axes that make no slices.
    """
    with file_errors(str(path), "is a broken NIfTI file"):
        file = _read(path)
        affine, codes, notes = _find_affine(file)
        to_slices = ornt_transform(io_orientation(affine), SLICE_ORIENTATION)
        to_grid = ornt_transform(SLICE_ORIENTATION, io_orientation(affine))
        stored = _orient(file.values, to_slices)
        slices, value_notes = _to_8_bits(file, stored)
        spacing, spacing_notes = _find_spacing(file, affine @ inv_ornt_aff(to_slices, file.grid), any(codes))
        return Scan(
            slices,
            spacing and (spacing[1], spacing[0]),
            spacing and spacing[2],
            NiftiMaskWriter(file.shape, affine, codes, to_grid, file.unit),
            (*notes, *spacing_notes, *value_notes),
            values=apply_read_scaling(stored, *file.scaling) if keep_values and stored.ndim == 3 else None,
        )


def read_nifti_mask(path: Path) -> tuple[np.ndarray, str]:
    """The foreground of a NIfTI file as `(slices, height, width)`: every label but 0. And what was taken for it."""
    with file_errors(str(path), "cannot be used as a mask"):
        file = _read(path)
        affine, _, _ = _find_affine(file)
        values = _orient(file.values, ornt_transform(io_orientation(affine), SLICE_ORIENTATION))
        if values.ndim == 4:
            return np.asarray(values.any(axis=-1)), "every colour but black"
        slope, intercept = file.scaling
        return find_labels(values if (slope, intercept) == (1, 0) else values * slope + intercept, are_labels=True)


@dataclass(frozen=True)
class NiftiFile:
    """A file as it is stored: `values` of shape `grid`, three axes, or with three colours after them."""

    path: Path
    header: Nifti1Header
    coded: bool  # whether the header has codes of spaces, which Analyze's has not
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.get_data_shape()

    @property
    def grid(self) -> tuple[int, ...]:
        return self.values.shape[:3]

    @property
    def unit(self) -> str:
        try:
            unit = self.header.get_xyzt_units()[0]
        except KeyError:
            return "mm"
        return unit if self.coded and unit in UNITS_IN_MM else "mm"

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept, where they can be."""
        slope, intercept = float(self.header["scl_slope"]), float(self.header["scl_inter"])
        valid = self.coded and np.isfinite(slope) and slope != 0 and np.isfinite(intercept)
        return (slope, intercept) if valid else (1.0, 0.0)


def _read(path: Path) -> NiftiFile:
    header_path = path.with_suffix(".hdr") if path.suffix.lower() == ".img" and not _is_whole(path) else path
    with ExitStack() as stack:
        file = stack.enter_context(_open(header_path))
        head = file.read(540)
        is_pair = header_path.suffix.lower() in PAIR_SUFFIXES and len(head) >= 348
        if not (is_nifti(head) or is_pair):
            raise FileError(f"{path} is not a NIfTI file, or a broken one.")
        kind = HEADERS[540 if head[4:7] in (b"n+2", b"ni2") else 348]
        header = kind(head[: 540 if kind is Nifti2Header else 348], check=False)
        shape = header.get_data_shape()
        check_size(path.name, _grid_shape(path, shape))
        dtype = header.get_data_dtype()
        if not dtype.fields and dtype.kind not in "buif":
            raise FileError(f"{path.name} holds {dtype}; each voxel must be one number, or RGB.")
        offset = int(header.get_data_offset())
        if is_nifti(head) and b"n+" in (head[344:346], head[4:6]):
            offset = max(offset, len(header.binaryblock) + 4)
        else:
            file = stack.enter_context(_open(_find_voxels(header_path)))
        values = np.asarray(ArrayProxy(file, (shape, dtype, offset), mmap=False).get_unscaled())
    if dtype.fields:
        values = np.stack([values[name] for name in "RGB"], axis=-1)
    return NiftiFile(
        path, header, is_nifti(head), values.reshape(*_grid_shape(path, shape), *values.shape[len(shape) :])
    )


def _is_whole(path: Path) -> bool:
    with _open(path) as file:
        return is_nifti(file.read(348))


def _open(path: Path):
    """The file, unpacked if it is packed, whatever its name ends with."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return gzip.open(path) if packed else path.open("rb")


def _find_voxels(header_path: Path) -> Path:
    """The other file of a pair."""
    for suffix in (".img", ".IMG", ".img.gz"):
        if (voxels := header_path.with_suffix(suffix)).is_file():
            return voxels
    name = header_path.with_suffix(".img").name
    raise FileError(f"{header_path} is the header of a pair, and {name} is not beside it. Save both as one .nii file.")


def _grid_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as three axes."""
    if len(shape) < 2 or any(size > 1 for size in shape[3:]):
        raise FileError(
            f"{path.name} has {len(shape)} axes of sizes {shape}; 3 are needed. Save one of its volumes as a file."
        )
    return (*shape, 1)[:3]


def _orient(values: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """From axes as they are stored to `(slice, row, column)`."""
    return np.moveaxis(apply_orientation(values, orientation), (0, 1, 2), (2, 1, 0))


def _find_affine(file: NiftiFile) -> tuple[np.ndarray, tuple[int, int], list[str]]:
    """From indices to space: of sform, qform or the voxels' sizes, the first that can be."""
    notes = []
    forms = {"sform": file.header.get_sform, "qform": file.header.get_qform} if file.coded else {}
    found: dict[str, np.ndarray] = {}
    for name, get in forms.items():
        if not 0 < int(file.header[f"{name}_code"]) <= 5:
            continue
        try:
            affine = _complete(np.asarray(get(coded=False), float), file.grid)
        except Exception:  # a quaternion that is none
            affine = np.full((4, 4), np.nan)
        if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > np.finfo(np.float32).tiny:
            found[name] = affine
        else:
            notes.append(f"{file.path.name} has an {name} that cannot be (zeros, or no numbers); it is not used.")
    if found:
        codes = {name: int(file.header[f"{name}_code"]) for name in found}
        return next(iter(found.values())), (codes.get("qform", 0), codes.get("sform", 0)), notes
    sizes = [size if can_be_distance(size) else 1.0 for size in _stored_sizes(file)]
    affine = np.diag([-sizes[0], *sizes[1:], 1.0])  # as nibabel takes it
    affine[:3, 3] = -affine[:3, :3] @ (np.array(file.grid) - 1) / 2
    return affine, (0, 0), [*notes, f"{file.path.name} does not say how it lies: its left and right are not known."]


def _complete(affine: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """With a step along the normal in place of none, across a single slice."""
    if grid[2] == 1 and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / max(np.linalg.norm(normal), np.finfo(float).tiny)
    return affine


def _stored_sizes(file: NiftiFile) -> list[float]:
    return [abs(float(size)) for size in file.header["pixdim"][1:4]]


def _find_spacing(
    file: NiftiFile, affine: np.ndarray, known: bool
) -> tuple[tuple[float, float, float | None] | None, list[str]]:
    """Of columns, rows and slices in mm: of an affine that is `known`, or else of the voxels' sizes."""
    sizes = [float(size) * UNITS_IN_MM[file.unit] for size in voxel_sizes(affine)]
    stored = _stored_sizes(file)
    needed = stored[: 2 if file.grid[2] == 1 else 3]
    if not all(map(can_be_distance, sizes)) or not known and not all(map(can_be_distance, needed)):
        return None, [
            f"{file.path.name} has sizes of voxels that cannot be: {', '.join(f'{size:g}' for size in stored)}."
        ]
    return (sizes[0], sizes[1], sizes[2] if known or can_be_distance(stored[2]) else None), []


def _to_8_bits(file: NiftiFile, slices: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """As it is stored, whatever the slope: only its sign matters to a window between percentiles."""
    notes = []
    raw_slope = float(file.header["scl_slope"])
    if file.coded and not np.isfinite([raw_slope, float(file.header["scl_inter"])]).all() and not np.isnan(raw_slope):
        notes.append(f"{file.path.name} has a slope or intercept that cannot be; they are not used.")
    if slices.dtype.kind == "f":
        finite = np.isfinite(slices)
        if not finite.any():
            raise FileError(f"{file.path.name} has no value that is a number.")
        if not finite.all():
            notes.append(
                f"{file.path.name} has {np.count_nonzero(~finite):,} values that are no numbers, shown black."
            )
            slices = np.where(finite, slices, np.nan)
    windowed = np.ascontiguousarray(slices) if slices.dtype == np.uint8 else window_slices(slices)
    return (255 - windowed if file.scaling[0] < 0 and slices.ndim == 3 else windowed), notes
