"""A picture of what augmentation makes of images, masks and captions, to look at before a long training."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..inference.drawing import CAPTION_WIDTH, draw_overlay
from ..model.image_processing_lvit import binarize_map, pil_to_array, window_to_uint8
from .augmentation import finish
from .batches import TrainingDataset


IMAGES, DRAWS = 4, 5
CELL, TEXT_HEIGHT, FONT_SIZE, GAP = 224, 52, 11, 8  # pixels


def draw_augmentations(dataset: TrainingDataset) -> Image.Image:
    """Some images of every source with their masks and captions, and beside each what is drawn for it.

    Args:
        dataset: The training images, and what may happen to them.
    """
    share = max(1, IMAGES // len(dataset.sources))
    chosen = [
        (source, number)
        for source, rows in enumerate(dataset.sources)
        for number in range(0, len(rows), max(1, -(-len(rows) // share)))
    ]
    sheet = Image.new("RGB", ((DRAWS + 1) * (CELL + GAP) + GAP, len(chosen) * (CELL + TEXT_HEIGHT) + GAP), "white")
    for line, (source, number) in enumerate(chosen):
        row = dataset.sources[source][number]
        pixels = window_to_uint8(pil_to_array(row["image"]))
        cells = [(Image.fromarray(pixels), binarize_map(row["mask"]), row["text"])]
        for seed in range(DRAWS * line, DRAWS * (line + 1)):
            item = finish(dataset[source, number, seed])
            drawn = np.rint(255 * np.moveaxis(item["image"], 0, -1)).astype(np.uint8)
            cells.append((Image.fromarray(drawn), item["mask"] > 0.5, item["text"]))
        for column, cell in enumerate(cells):
            _draw_cell(sheet, GAP + column * (CELL + GAP), GAP + line * (CELL + TEXT_HEIGHT), *cell)
    return sheet


def _draw_cell(sheet: Image.Image, left: int, top: int, image: Image.Image, mask: np.ndarray, text: str):
    sheet.paste(ImageOps.contain(draw_overlay(image, mask), (CELL, CELL)), (left, top))
    words = textwrap.fill(text or "(no caption)", CAPTION_WIDTH)
    ImageDraw.Draw(sheet).text((left, top + CELL + 2), words, fill="black", font=ImageFont.load_default(FONT_SIZE))
