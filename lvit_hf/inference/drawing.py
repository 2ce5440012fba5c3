"""Masks drawn over their images."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries


if TYPE_CHECKING:
    from matplotlib.axes import Axes

OVERLAY_COLOR = "#00e0b8"
OVERLAY_OPACITY = 0.4
CAPTION_WIDTH = 44


def draw_overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """An image with a mask tinted and outlined, RGB of the image's size.

    Args:
        image: RGB or grey.
        mask: Booleans of shape `(height, width)`.
    """
    image = image.convert("RGB")
    color = Image.new("RGB", image.size, OVERLAY_COLOR)
    tinted = Image.blend(image, color, OVERLAY_OPACITY)
    overlay = Image.composite(tinted, image, Image.fromarray(mask))
    overlay.paste(color, mask=Image.fromarray(find_boundaries(mask, mode="inner")))
    return overlay


def draw_outlines(axes: "Axes", image: Image.Image, masks: Sequence[tuple[np.ndarray, str]], text: str | None = None):
    """Shows an image with the outlines of masks, given with their colours, and its caption below."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    for mask, color in masks:
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[color], linewidths=0.8)
    axes.set_xlabel(textwrap.fill(text or "", CAPTION_WIDTH), fontsize="xx-small", parse_math=False)
