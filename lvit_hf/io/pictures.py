"""Pictures: what Pillow reads, HEIC, and TIFF files of several pages."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from PIL import Image

from ..model.image_processing_lvit import (
    find_foreground,
    find_labels,
    find_lossy,
    frame_to_array,
    open_image,
    pil_to_array,
    window_to_uint8,
)
from .errors import FileError, file_errors
from .scan import Scan, check_size, window_slices


try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()

# What it finds odd about a file is not for the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
# What tifffile decodes by itself and Pillow only in part: deep colour, stacks, 64 bits. (Colours of JPEG, palettes and
# print, and turned pages, are Pillow's.)
PLAIN_COMPRESSIONS = {1, 8, 32773, 32946}
PLAIN_COLORS = {0, 1, 2}  # white is zero, black is zero, RGB
WHITE_IS_ZERO = 0
LOSSY_COMPRESSIONS = {6, 7, 34892}  # JPEG
MAX_PAGES = 5000
# Of EXIF.
ORIENTATION = 0x0112
PAGE_AXES = set("ZTQIR")


def read_picture(path: Path) -> Scan:
    """Reads a picture: 8-bit values stay, deeper ones are windowed; of an animation the first frame is taken.

    Raises:
        ValueError: If it cannot be read; the message says why.
    """
    with file_errors(str(path), "is a broken image file"):
        image = _open(path)
        notes = tuple(_describe(path, image))
        return Scan(_to_8_bits(pil_to_array(image)[np.newaxis]), notes=notes)


def _describe(path: Path, image: Image.Image) -> Iterator[str]:
    """What is odd about a picture."""
    if (frames := getattr(image, "n_frames", 1)) > 1:
        yield f"{path.name} has {frames} frames; the first one is used."
    try:
        image.getexif().get(ORIENTATION)
    except Exception:  # a damaged block can make Pillow raise anything
        yield f"{path.name} has a damaged EXIF block: the picture is taken as it is stored."


def read_picture_mask(path: Path) -> tuple[np.ndarray, str]:
    """The foreground of a picture as `(1, height, width)`, and what was taken for it; see `find_foreground`."""
    with file_errors(str(path), "cannot be used as a mask"):
        foreground, rule = find_foreground(_open(path))
        return foreground[np.newaxis], rule


def _open(path: Path) -> Image.Image:
    _refuse_heif_without_library(path)
    image = open_image(path)
    check_size(str(path), (image.height, image.width))
    return image


def _refuse_heif_without_library(path: Path):
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS and ".heic" not in Image.registered_extensions():
        raise FileError(f"{path} is a HEIC picture; reading it needs pip install pillow-heif.")


def read_tiff(path: Path) -> Scan:
    """Reads a TIFF file. Pages of one size and kind are slices.

    Raises:
        ValueError: If it cannot be read; the message says why.
    """
    with file_errors(str(path), "is a broken TIFF file"):
        pages, notes = _read_pages(path)
        finite = np.isfinite(pages) if pages.dtype.kind == "f" else np.True_
        if not finite.any():
            raise FileError(f"{path} has no value that is a number.")
        if not finite.all():
            notes += ("Values that are no numbers are shown black.",)
            pages = np.where(finite, pages, np.nan)  # infinity too
        return Scan(_to_8_bits(pages), notes=notes)


def read_tiff_mask(path: Path) -> tuple[np.ndarray, str]:
    """The foreground of a TIFF file as `(pages, height, width)`, and what was taken for it."""
    with file_errors(str(path), "cannot be used as a mask"):
        pages, _ = _read_pages(path)
        with tifffile.TiffFile(path) as tiff:
            page = tiff.series[0].keyframe
            plain, lossy = _can_decode(page), page.compression in LOSSY_COMPRESSIONS
        if len(pages) == 1 and not plain:
            return read_picture_mask(path)
        if lossy:
            return find_lossy(pages if pages.ndim == 3 else pages.max(axis=-1), "TIFF", pages)
        if pages.ndim == 3:
            return find_labels(pages)
        masks, rules = zip(*map(find_foreground, pages))
        return np.stack(masks), "; ".join(dict.fromkeys(rules))


def _to_8_bits(pages: np.ndarray) -> np.ndarray:
    """`(pages, height, width)` or `(pages, height, width, 3)`, windowed together."""
    if pages.dtype.kind not in "buif":
        raise ValueError(f"its values are {pages.dtype}")
    if len(pages) > 1 and pages.dtype.kind != "b" and pages.dtype != np.uint8:
        return window_slices(pages)
    if pages.dtype.kind == "f" and not np.isfinite(pages).all():
        return window_slices(pages)
    return np.ascontiguousarray(window_to_uint8(pages))


def _can_decode(page: tifffile.TiffPage) -> bool:
    """Whether tifffile, by itself, gives what a viewer shows."""
    turned = page.tags.valueof("Orientation", 1) not in (0, 1)
    alpha = bool(page.extrasamples)
    plain = page.compression in PLAIN_COMPRESSIONS and page.photometric in PLAIN_COLORS
    return plain and not turned and not alpha and page.bitspersample >= 8


def _check_pages(path: Path):
    """Refuses a file whose pages lead to each other in a circle, or are too many; tifffile goes on for minutes."""
    with path.open("rb") as file:
        head = file.read(16)
        order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
        big = 43 in (head[2], head[3])
        entry, count_bytes, offset_bytes = (20, 8, 8) if big else (12, 2, 4)
        offset = int.from_bytes(head[8:16] if big else head[4:8], order)
        seen: set[int] = set()
        while offset:
            if offset in seen or len(seen) == MAX_PAGES:
                raise FileError(f"{path} is a broken TIFF file: its pages never end, or are more than {MAX_PAGES:,}.")
            seen.add(offset)
            file.seek(offset)
            file.seek(entry * int.from_bytes(file.read(count_bytes), order), os.SEEK_CUR)
            offset = int.from_bytes(file.read(offset_bytes), order)


def _read_pages(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    _check_pages(path)
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        check_size(str(path), series.shape)
        notes = []
        if len(tiff.series) > 1:
            notes.append(
                f"{path.name} has {len(tiff.series) - 1} more images of another size or kind, which are left out."
            )
        if not _can_decode(page):
            pages = _read_with_pillow(path, [page.index for page in series.pages if page])
            return pages, tuple(notes)
        pages = _arrange(path, series.asarray(), series.axes)
        if page.photometric == WHITE_IS_ZERO:
            pages = np.iinfo(pages.dtype).max - pages if pages.dtype.kind == "u" else -pages
    return pages, tuple(notes)


def _read_with_pillow(path: Path, numbers: list[int]) -> np.ndarray:
    """Pages by their numbers, from 0."""
    if len(numbers) == 1:
        return pil_to_array(open_image(path))[np.newaxis]
    with Image.open(path) as image:
        orientations, pages = zip(*_pages(image, numbers))
    if len(set(orientations)) > 1:
        raise FileError(f"{path} has pages that are turned in different ways; save all of them upright.")
    shapes = {page.shape for page in pages}
    if len(shapes) > 1:
        raise FileError(f"{path} has pages of several sizes: {sorted(shapes)}.")
    return np.stack(pages)


def _pages(image: Image.Image, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """The orientation and the upright pixels of each page."""
    for number in numbers:
        image.seek(number)
        orientation = image.tag_v2.get(ORIENTATION, 1)  # type: ignore[attr-defined]
        yield orientation, frame_to_array(image)


def _arrange(path: Path, array: np.ndarray, axes: str) -> np.ndarray:
    """Pages first, then rows and columns, then colours, if there are any."""
    named = [(axis, size) for axis, size in zip(axes, array.shape) if size > 1 or axis in "YX"]
    array = array.reshape([size for _, size in named])
    names = "".join(axis for axis, _ in named)
    if "Y" not in names or "X" not in names:
        raise FileError(f"{path} has the axes {axes}, and not rows and columns.")
    pages = [name for name in names if name in PAGE_AXES]
    rest = [name for name in names if name not in "YXS" and name not in PAGE_AXES]
    samples = array.shape[names.index("S")] if "S" in names else 1
    if rest or len(pages) > 1 or samples not in (1, 3):
        sizes = " x ".join(f"{size} ({axis})" for axis, size in named)
        raise FileError(f"{path} has the axes {sizes}; save one channel and one stack as a file.")
    array = np.moveaxis(array, [names.index(name) for name in (*pages, "Y", "X")], range(len(pages) + 2))
    return array if pages else array[np.newaxis]
