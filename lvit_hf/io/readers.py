"""One way to read every kind of image file: pictures, DICOM, NIfTI, and a zip of a DICOM series."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..model.image_processing_lvit import check_pixels, open_image, pil_to_array, window_to_uint8
from .scan import Scan


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SCAN_SUFFIXES = (".dcm", *NIFTI_SUFFIXES)

# Of all files in a zip, unpacked.
MAX_UNPACKED_BYTES = 2 * 1024**3
MAX_FILES = 2000


def read_scan(path: str | os.PathLike) -> Scan:
    """Reads an image file. Its content tells what it is, or else its name.

    Args:
        path: A picture that Pillow reads, a DICOM file, a NIfTI file, or a zip of the files of one DICOM series.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If the library for its format is not installed.
        ValueError: If it cannot be used; the message says why.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(132)
    if not head:
        raise ValueError(f"{path} is empty.")
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    if head[128:] == b"DICM" or path.suffix.lower() == ".dcm":
        from .dicom import read_dicom

        return read_dicom(path)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        from .nifti import read_nifti

        return read_nifti(path)
    return Scan(_read_picture(path)[np.newaxis])


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Reads a mask in any of the formats: booleans of shape `(slices, height, width)`, true where it is not black."""
    slices = read_scan(path).slices
    return np.any(slices.reshape(*slices.shape[:3], -1), axis=-1)


def is_picture_name(path: Path) -> bool:
    """Whether a file's name is that of an image which Pillow reads, and not hidden."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN and not path.name.startswith(".")


def is_scan_name(path: Path) -> bool:
    """Whether a file's name is that of a DICOM or NIfTI file."""
    return path.name.lower().endswith(SCAN_SUFFIXES)


def _read_picture(path: Path) -> np.ndarray:
    """Pixels as `(height, width)` or `(height, width, 3)`, 8 bits."""
    pixels = pil_to_array(open_image(path))
    check_pixels(pixels)
    return window_to_uint8(pixels)


def _read_zip(path: Path) -> Scan:
    from .dicom import read_series

    with open_zip(path) as archive:
        names = [name for name in archive.namelist() if _is_dicom(archive, name)]
        if not names:
            raise ValueError(f"{path.name} has no DICOM file in it.")
        return read_series((name, io.BytesIO(archive.read(name))) for name in names)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip whose files can all be unpacked into memory. Their names are never used as paths.

    Raises:
        ValueError: If it is broken, encrypted or too large.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
        if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise ValueError(f"{path.name} holds more than {MAX_FILES} files or {MAX_UNPACKED_BYTES >> 30} GB.")
        if any(member.flag_bits & 1 for member in members):
            raise ValueError(f"{path.name} is encrypted.")
        broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"{path.name} is a broken zip: {error}")
    if broken:
        raise ValueError(f"{path.name} is a broken zip: {Path(broken).name} is damaged.")
    return archive


def _is_dicom(archive: zipfile.ZipFile, name: str) -> bool:
    with archive.open(name) as file:
        return file.read(132)[128:] == b"DICM" and Path(name).name != "DICOMDIR"
