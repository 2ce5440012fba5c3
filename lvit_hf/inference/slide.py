"""Slides of any size: read block by block, segmented in tiles, and written as they come."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import Image
from tqdm import tqdm

from .segmenter import Segmenter


# Side in pixels of the blocks that are read and written; the memory that is needed goes with its square.
BLOCK_SIZE = 1024


def segment_slide(
    segmenter: Segmenter,
    slide_path: str | Path,
    mask_path: str | Path,
    tile_size: int,
    text: str | None = None,
    threshold: float = 0.5,
    batch_size: int = 8,
) -> dict[str, int | float | bool]:
    """Segments a slide that need not fit into memory.

    Each block is segmented with a margin of half a tile, so that blocks meet without a seam.

    Args:
        segmenter: The checkpoint.
        slide_path: A file that OpenSlide reads: tiled TIFF, SVS, NDPI, DICOM and others.
        mask_path: Where to write the mask, a tiled TIFF of 0 and 255 of the slide's size.
        tile_size: Side of a tile in pixels of the slide, as in [`Segmenter.segment`].
        text: A caption; one that names a place is not true of a tile and is not read.
        threshold: Probability above which a pixel is foreground.
        batch_size: Number of tiles that go through the network together.

    Returns:
        `width` and `height` of the slide, `area_pixels` and `area_percent` of the mask, and whether the caption was
        read, `text_used`.

    Raises:
        FileNotFoundError: If there is no such slide.
        ValueError: If OpenSlide cannot read it.
    """
    slide = open_slide(Path(slide_path))
    width, height = slide.dimensions
    area, text_used = 0, False
    blocks = list(list_blocks(width, height))

    def segment_blocks() -> Iterator[np.ndarray]:
        nonlocal area, text_used
        for block in tqdm(blocks, unit="block", disable=None):
            region, inner = read_with_margin(slide, block, margin=tile_size // 2)
            result = segmenter.segment([region], [text], tile_size=tile_size, batch_size=batch_size)[0]
            mask = result.mask(threshold)[inner]
            area, text_used = area + int(mask.sum()), result.text_used
            missing = [(0, BLOCK_SIZE - side) for side in mask.shape]  # blocks at the edge are written whole
            yield np.pad(mask, missing).astype(np.uint8) * 255

    unfinished = Path(mask_path).with_suffix(".part")
    tifffile.imwrite(
        unfinished,
        segment_blocks(),
        shape=(height, width),
        dtype=np.uint8,
        tile=(BLOCK_SIZE, BLOCK_SIZE),
        compression="zlib",
        photometric="minisblack",
        bigtiff=True,
    )
    unfinished.replace(mask_path)
    return {
        "width": width,
        "height": height,
        "area_pixels": area,
        "area_percent": 100 * area / (width * height),
        "text_used": text_used,
    }


def open_slide(path: Path) -> openslide.OpenSlide:
    """Opens a slide.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If OpenSlide cannot read it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError:
        raise ValueError(f"{path} is no slide that OpenSlide reads; a picture can be saved as a tiled TIFF.")


def list_blocks(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes `(left, upper, right, lower)` that cover a slide row by row without overlap."""
    for upper in range(0, height, BLOCK_SIZE):
        for left in range(0, width, BLOCK_SIZE):
            yield left, upper, min(left + BLOCK_SIZE, width), min(upper + BLOCK_SIZE, height)


def read_with_margin(
    slide: openslide.OpenSlide, block: tuple[int, int, int, int], margin: int
) -> tuple[Image.Image, tuple[slice, slice]]:
    """Reads a block with what surrounds it, and says where in the region the block is."""
    (width, height), (left, upper, right, lower) = slide.dimensions, block
    x, y = max(left - margin, 0), max(upper - margin, 0)
    region = slide.read_region((x, y), 0, (min(right + margin, width) - x, min(lower + margin, height) - y))
    return region.convert("RGB"), (slice(upper - y, lower - y), slice(left - x, right - x))
