"""Slides of any size: read block by block, segmented in tiles where there is tissue, and written as they come."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import Image
from tqdm import tqdm

from ..model.captions_lvit import names_a_place
from .segmenter import Segmenter


# Side in pixels of the blocks that are read and written; the memory that is needed goes with its square.
BLOCK_SIZE = 1024

# Glass is bright and colourless, on average over a cell of this side in pixels. Of MoNuSeg's 30 images 0.9 % is glass
# by this rule, with 0.06 % of the pixels of nuclei.
CELL = 32
GLASS_BRIGHTNESS, GLASS_SATURATION = 190, 0.07
DARKNESS = 10  # the mean brightness of what was filled with black

BACKGROUND, TISSUE, FOREGROUND = 0, 1, 2
SOFTWARE = "lvit slide"


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

    Each block is segmented with a margin of half a tile, so that blocks meet without a seam. Outside the tissue
    nothing is foreground, and blocks without tissue are not segmented. Finished blocks wait beside the mask, in a
    hidden folder of their own, and a call with the same arguments goes on from there; the mask appears when it is
    whole.

    Args:
        segmenter: The checkpoint.
        slide_path: A file that OpenSlide reads: tiled TIFF, SVS, NDPI, DICOM and others.
        mask_path: Where to write the mask, a tiled TIFF of 0 and 255 of the slide's size. A mask that this function
            wrote there before is replaced, no other file.
        tile_size: Side of a tile in pixels of the slide, as in [`Segmenter.segment`].
        text: A caption; one that names a place is not true of a tile and is not read.
        threshold: Probability above which a pixel is foreground.
        batch_size: Number of tiles that go through the network together.

    Returns:
        `width` and `height` of the slide, `area_pixels` and `area_percent` of the mask, `tissue_percent` of the slide,
        and whether the caption was read, `text_used`.

    Raises:
        FileExistsError: If there is something at `mask_path` that this function did not write.
        FileNotFoundError: If there is no such slide.
        ValueError: If OpenSlide cannot read it.
    """
    slide_path, mask_path = Path(slide_path), Path(mask_path)
    slide = open_slide(slide_path)
    check_output(slide_path, mask_path)
    text = text if text and text.strip() and not names_a_place(text) else None
    width, height = slide.dimensions
    blocks = list(list_blocks(width, height))
    settings = [str(slide_path.resolve()), slide_path.stat().st_mtime_ns, tile_size, text, threshold]
    parts = mask_path.with_name(f".{mask_path.name}.{fingerprint(segmenter, settings)}.part")
    parts.mkdir(parents=True, exist_ok=True)
    counts = np.zeros(3, np.int64)
    for number, block in enumerate(tqdm(blocks, unit="block", disable=None)):
        part = parts / f"{number}.png"
        if not part.exists():
            classes = segment_block(segmenter, slide, block, tile_size, text, threshold, batch_size)
            Image.fromarray(classes).save(parts / "unfinished.png")
            (parts / "unfinished.png").replace(part)
        counts += np.bincount(np.asarray(Image.open(part)).ravel(), minlength=3)
    write_mask(parts / "mask.tif", (parts / f"{number}.png" for number in range(len(blocks))), (height, width))
    (parts / "mask.tif").replace(mask_path)
    shutil.rmtree(parts)
    area = int(counts[FOREGROUND])
    return {
        "width": width,
        "height": height,
        "area_pixels": area,
        "area_percent": 100 * area / (width * height),
        "tissue_percent": 100 * int(counts[TISSUE:].sum()) / (width * height),
        "text_used": text is not None,
    }


def check_output(slide_path: Path, mask_path: Path):
    """Refuses to replace the slide, one of its files or anything else that is no mask of this module."""
    if not mask_path.exists():
        return
    if mask_path.samefile(slide_path):
        raise FileExistsError(f"{mask_path} is the slide itself; give its mask another name.")
    try:
        with tifffile.TiffFile(mask_path) as file:
            written_here = file.pages.first.software == SOFTWARE
    except Exception:  # whatever a file that is no such TIFF makes of the library
        written_here = False
    if not written_here:
        raise FileExistsError(f"{mask_path} exists and is no mask of lvit slide; give the mask another name.")


def fingerprint(segmenter: Segmenter, settings: list) -> str:
    """Changes with the network, its processor and the settings of a call."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(segmenter.processor.image_processor.to_json_string().encode())
    for tensor in segmenter.model.state_dict().values():
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def segment_block(
    segmenter: Segmenter,
    slide: openslide.OpenSlide,
    block: tuple[int, int, int, int],
    tile_size: int,
    text: str | None,
    threshold: float,
    batch_size: int,
) -> np.ndarray:
    """What each pixel of a block is: `BACKGROUND`, `TISSUE` or `FOREGROUND`, uint8 of the block's shape."""
    region, inner = read_with_margin(slide, block, margin=tile_size // 2)
    tissue = find_tissue(region)
    if not tissue[inner].any():
        return tissue[inner].astype(np.uint8)
    [result] = segmenter.segment(
        [flatten_on_glass(region)], [text], tile_size=tile_size, batch_size=batch_size, describe=False
    )
    return np.where(result.mask(threshold) & tissue, FOREGROUND, tissue)[inner].astype(np.uint8)


def find_tissue(region: Image.Image) -> np.ndarray:
    """Where a region of a slide is neither glass nor left out by the scanner.

    Args:
        region: RGBA, with an origin in the slide that is a multiple of `CELL`, so that neighbours share their cells.

    Returns:
        Booleans of shape `(height, width)`.
    """
    colors = np.asarray(flatten_on_glass(region).reduce(CELL), np.float32)  # means over cells
    brightest, brightness = colors.max(-1), colors.mean(-1)
    saturation = (brightest - colors.min(-1)) / brightest.clip(min=1)
    glass = (brightness > GLASS_BRIGHTNESS) & (saturation < GLASS_SATURATION)
    cells = ~glass & (brightness > DARKNESS)
    scanned = np.asarray(region.getchannel("A")) > 0
    return cells.repeat(CELL, 0).repeat(CELL, 1)[: region.height, : region.width] & scanned


def flatten_on_glass(region: Image.Image) -> Image.Image:
    """An RGB image that is white where the scanner left something out."""
    white = Image.new("RGBA", region.size, "white")
    return Image.alpha_composite(white, region).convert("RGB")


def write_mask(path: Path, parts: Iterator[Path], shape: tuple[int, int]):
    """Writes the foreground of blocks as one tiled TIFF."""

    def read_tiles() -> Iterator[np.ndarray]:
        for part in parts:
            mask = np.asarray(Image.open(part)) == FOREGROUND
            missing = [(0, BLOCK_SIZE - side) for side in mask.shape]  # blocks at the edge are written whole
            yield np.pad(mask, missing).astype(np.uint8) * 255

    tifffile.imwrite(
        path,
        read_tiles(),
        shape=shape,
        dtype=np.uint8,
        tile=(BLOCK_SIZE, BLOCK_SIZE),
        compression="zlib",
        photometric="minisblack",
        bigtiff=True,
        software=SOFTWARE,
    )


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
    """Reads a block, RGBA, with at least that much around it, and says where in the region the block is.

    The region begins at a multiple of `CELL`.
    """
    (width, height), (left, upper, right, lower) = slide.dimensions, block
    margin = -(-margin // CELL) * CELL
    x, y = max(left - margin, 0), max(upper - margin, 0)
    region = slide.read_region((x, y), 0, (min(right + margin, width) - x, min(lower + margin, height) - y))
    return region, (slice(upper - y, lower - y), slice(left - x, right - x))
