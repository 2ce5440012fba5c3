"""Slides of any size: read block by block, segmented in tiles where there is tissue, and written as they come."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from PIL import Image
from tqdm import tqdm

from ..model.captions_lvit import names_a_place
from .geojson import GeoJsonFile, check_geojson
from .instances import NUCLEI, choose_unit, label_instances, measure_instances
from .segmenter import Segmenter


# Side in pixels of the blocks that are read and written; the memory that is needed goes with its square.
BLOCK_SIZE = 1024

# Glass is bright and colourless, on average over a cell of this side in pixels. Of MoNuSeg's 30 images 0.9 % is glass
# by this rule, with 0.06 % of the pixels of nuclei.
CELL = 32
GLASS_BRIGHTNESS, GLASS_SATURATION = 190, 0.07
DARKNESS = 10  # the mean brightness of what was filled with black

# What a pixel of a finished block is: from FOREGROUND on it is foreground, of a probability in so many levels.
BACKGROUND, TISSUE, FOREGROUND = 0, 1, 2
LEVELS = 255 - FOREGROUND
SOFTWARE = "lvit slide"

# Share of a block that is looked at around it for the objects on its seams.
MARGIN = 1 / 8

# Each level of a mask's pyramid is smaller by this factor.
PYRAMID_STEP = 4


def segment_slide(
    segmenter: Segmenter,
    slide_path: str | Path,
    mask_path: str | Path,
    tile_size: int,
    text: str | None = None,
    threshold: float = 0.5,
    batch_size: int = 8,
    geojson_path: Path | None = None,
) -> dict[str, Any]:
    """Segments a slide that need not fit into memory.

    Each block is segmented with a margin of half a tile, so that blocks meet without a seam. Outside the tissue
    nothing is foreground, and blocks without tissue are not segmented. Finished blocks wait beside the mask, in a
    hidden folder of their own, and a call with the same arguments goes on from there; the mask appears when it is
    whole.

    Args:
        segmenter: The checkpoint.
        slide_path: A file that OpenSlide reads: tiled TIFF, SVS, NDPI, DICOM and others.
        mask_path: Where to write the mask, an OME-TIFF pyramid of 0 and 255 of the slide's size. A mask that this
            function wrote there before is replaced, no other file.
        tile_size: Side of a tile in pixels of the slide, as in [`Segmenter.segment`].
        text: A caption; one that names a place is not true of a tile and is not read.
        threshold: Probability above which a pixel is foreground.
        batch_size: Number of tiles that go through the network together.
        geojson_path: Where to write the objects as GeoJSON, if anywhere. GeoJSON of this package is replaced, no other
            file.

    Returns:
        `width` and `height` of the slide, `area_pixels` and `area_percent` of the mask, `tissue_percent` of the slide,
        whether the caption was read, `text_used`, and the number of objects, `instances`: `nuclei` or what else
        `finding` says. Where the slide says how large its pixels are, `pixel_size_um` (of columns and of rows),
        `area_mm2` and `tissue_mm2`, and `instances_per_mm2` of tissue; else they are `None`.

    Raises:
        FileExistsError: If there is something at one of the paths that is not to be replaced.
        FileNotFoundError: If there is no such slide.
        ValueError: If OpenSlide cannot read it.
    """
    slide_path, mask_path = Path(slide_path), Path(mask_path)
    slide = open_slide(slide_path)
    check_mask_path(slide_path, mask_path)
    if geojson_path is not None:
        check_geojson(geojson_path)
    text = text if text and text.strip() and not names_a_place(text) else None
    size, blocks = slide.dimensions, list(list_blocks(*slide.dimensions))
    settings = [str(slide_path.resolve()), slide_path.stat().st_mtime_ns, tile_size, text, threshold, LEVELS]
    parts = mask_path.with_name(f".{mask_path.name}.{fingerprint(segmenter, settings)}.part")
    parts.mkdir(parents=True, exist_ok=True)
    counts = np.zeros(256, np.int64)
    for number, block in enumerate(tqdm(blocks, unit="block", disable=None)):
        part = parts / f"{number}.png"
        if not part.exists():
            levels = segment_block(segmenter, slide, block, tile_size, text, threshold, batch_size)
            Image.fromarray(levels).save(parts / "unfinished.png")
            (parts / "unfinished.png").replace(part)
        counts += np.bincount(np.asarray(Image.open(part)).ravel(), minlength=256)
    finding, pixel_size = name_slide_finding(segmenter, text), read_pixel_size(slide)
    instances = find_instances(parts, size, finding, pixel_size, geojson_path)
    write_mask(parts / "mask.tif", parts, size, pixel_size)
    (parts / "mask.tif").replace(mask_path)
    shutil.rmtree(parts)
    pixels, area, tissue = math.prod(size), int(counts[FOREGROUND:].sum()), int(counts[TISSUE:].sum())
    pixel_mm2 = None if pixel_size is None else math.prod(pixel_size) / 1e6
    return {
        "width": size[0],
        "height": size[1],
        "area_pixels": area,
        "area_percent": 100 * area / pixels,
        "tissue_percent": 100 * tissue / pixels,
        "text_used": text is not None,
        "finding": finding,
        "instances": instances,
        "pixel_size_um": pixel_size,
        "area_mm2": pixel_mm2 and area * pixel_mm2,
        "tissue_mm2": pixel_mm2 and tissue * pixel_mm2,
        "instances_per_mm2": instances / (tissue * pixel_mm2) if pixel_mm2 and tissue else None,
    }


def name_slide_finding(segmenter: Segmenter, text: str | None) -> str:
    """What is found in a slide: what its caption speaks of, or else nuclei where the checkpoint knows them."""
    if text is None and NUCLEI in segmenter.model.config.caption_families:
        return NUCLEI
    return segmenter.name_labels(segmenter.read_text(text), None)[0]


def read_pixel_size(slide: openslide.OpenSlide) -> tuple[float, float] | None:
    """Distance in µm between columns and between rows; `None` where the slide does not say."""
    names = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    x, y = (float(slide.properties.get(name, "nan")) for name in names)
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def check_mask_path(slide_path: Path, mask_path: Path):
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
    """Changes with the network, what runs it, its processor and the settings of a call."""
    digest = hashlib.sha256(json.dumps([*settings, segmenter.backend]).encode())
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
    """What each pixel of a block is: `BACKGROUND`, `TISSUE` or from `FOREGROUND` on, uint8 of the block's shape."""
    region, inner = read_with_margin(slide, block, margin=tile_size // 2)
    tissue = find_tissue(region)
    if not tissue[inner].any():
        return tissue[inner].astype(np.uint8)
    [result] = segmenter.segment(
        [flatten_on_glass(region)], [text], tile_size=tile_size, batch_size=batch_size, describe=False
    )
    levels = FOREGROUND + np.rint(result.probabilities * LEVELS)
    return np.where(result.mask(threshold) & tissue, levels, tissue)[inner].astype(np.uint8)


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


def find_instances(
    parts: Path,
    size: tuple[int, int],
    finding: str,
    pixel_size: tuple[float, float] | None,
    geojson_path: Path | None = None,
) -> int:
    """Counts the objects of a slide, block by block, and writes them as GeoJSON.

    Args:
        parts: Folder of the finished blocks.
        size: `(width, height)` of the slide.
        finding: What the objects are.
        pixel_size: Distance in µm between columns and between rows, where it is known.
        geojson_path: Where to write them, if anywhere.
    """
    unit, spacing = choose_unit(finding, pixel_size and (pixel_size[1] / 1000, pixel_size[0] / 1000))
    count = 0
    with nullcontext() if geojson_path is None else GeoJsonFile(geojson_path, finding, unit) as file:
        for block in list_blocks(*size):
            if (read_blocks(parts, size, block) < FOREGROUND).all():
                continue
            instances, probabilities, origin = label_block(parts, size, block, finding)
            count += int(np.count_nonzero(np.bincount(instances.ravel())[1:]))
            if file is not None:
                file.add(instances, measure_instances(instances, probabilities, spacing), origin)
    return count


def label_block(
    parts: Path, size: tuple[int, int], block: tuple[int, int, int, int], finding: str
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The objects whose first pixel, from above and then from the left, is in a block.

    A margin around it is looked at too, so that an object on a seam is one object; one that is wider or higher than
    the margin may be cut.

    Args:
        parts, size, finding: As in `find_instances`.
        block: `(left, upper, right, lower)`.

    Returns:
        The number of each pixel's object, 0 outside, of the block with its margin; the probabilities; and `(left,
        upper)` of both in the slide.
    """
    left, upper, right, lower = block
    margin = int(BLOCK_SIZE * MARGIN)
    x, y = max(left - margin, 0), max(upper - margin, 0)
    levels = read_blocks(parts, size, (x, y, min(right + margin, size[0]), min(lower + margin, size[1])))
    instances = label_instances(levels >= FOREGROUND, finding)
    pixels = np.flatnonzero(instances)
    first = np.zeros(instances.max() + 1, np.int64)
    first[instances.ravel()[pixels[::-1]]] = pixels[::-1]  # the last one that is set stays
    is_inside = np.zeros(instances.shape, bool)
    is_inside[upper - y : lower - y, left - x : right - x] = True
    belongs = is_inside.ravel()[first]
    return np.where(belongs[instances], instances, 0), (levels - float(FOREGROUND)) / LEVELS, (x, y)


def read_blocks(parts: Path, size: tuple[int, int], box: tuple[int, int, int, int], step: int = 1) -> np.ndarray:
    """Reads a box `(left, upper, right, lower)` of a slide from its finished blocks, every `step`-th pixel of it."""
    left, upper, right, lower = box
    columns = -(-size[0] // BLOCK_SIZE)
    region = np.zeros((-(-(lower - upper) // step), -(-(right - left) // step)), np.uint8)
    for y in range(upper // BLOCK_SIZE * BLOCK_SIZE, lower, BLOCK_SIZE):
        for x in range(left // BLOCK_SIZE * BLOCK_SIZE, right, BLOCK_SIZE):
            block = np.asarray(Image.open(parts / f"{y // BLOCK_SIZE * columns + x // BLOCK_SIZE}.png"))
            block = block[max(upper - y, 0) : lower - y : step, max(left - x, 0) : right - x : step]
            top, start = max(y - upper, 0) // step, max(x - left, 0) // step
            region[top : top + block.shape[0], start : start + block.shape[1]] = block
    return region


def write_mask(path: Path, parts: Path, size: tuple[int, int], pixel_size: tuple[float, float] | None):
    """Writes the foreground of blocks as an OME-TIFF pyramid of tiles.

    Args:
        path: Where to write it.
        parts, size, pixel_size: As in `find_instances`.
    """
    scales = [1]
    while max(size) > BLOCK_SIZE * scales[-1]:
        scales.append(PYRAMID_STEP * scales[-1])

    def read_tiles(scale: int) -> Iterator[np.ndarray]:
        side = BLOCK_SIZE * scale
        for upper in range(0, size[1], side):
            for left in range(0, size[0], side):
                box = (left, upper, min(left + side, size[0]), min(upper + side, size[1]))
                mask = read_blocks(parts, size, box, scale) >= FOREGROUND
                missing = [(0, BLOCK_SIZE - side) for side in mask.shape]  # tiles at the edge are written whole
                yield np.pad(mask, missing).astype(np.uint8) * 255

    metadata: dict[str, Any] = {"axes": "YX"}
    if pixel_size is not None:
        metadata |= {f"PhysicalSize{axis}": length for axis, length in zip("XY", pixel_size)}
        metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tiff:
        for scale in scales:
            tiff.write(
                read_tiles(scale),
                shape=(-(-size[1] // scale), -(-size[0] // scale)),
                dtype=np.uint8,
                tile=(BLOCK_SIZE, BLOCK_SIZE),
                compression="zlib",
                photometric="minisblack",
                subifds=len(scales) - 1 if scale == 1 else None,
                subfiletype=int(scale > 1),
                resolution=pixel_size and (1e4 / pixel_size[0] / scale, 1e4 / pixel_size[1] / scale),
                resolutionunit="CENTIMETER" if pixel_size else None,
                metadata=metadata if scale == 1 else None,
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
