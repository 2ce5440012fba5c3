"""Pictures of results, no larger than a page shows them."""

import numpy as np
from PIL import Image

from ..inference.segmenter import OVERLAY_COLOR, Segmentation


PICTURE_SIZE = 1024

MASK_LABEL = "foreground"
ADDED_LABEL, REMOVED_LABEL, SAME_LABEL = "only with the text", "only without the text", "in both"
COLORS = {MASK_LABEL: OVERLAY_COLOR, SAME_LABEL: OVERLAY_COLOR, ADDED_LABEL: "#2b7bff", REMOVED_LABEL: "#ff8c1a"}

# From violet over red to yellow: the brighter, the likelier.
HEAT_COLORS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))

Annotated = tuple[Image.Image, list[tuple[np.ndarray, str]]]


def shrink(image: Image.Image, resample: Image.Resampling = Image.Resampling.BOX) -> Image.Image:
    """The image, or a smaller one of the same shape if it is larger than the page."""
    factor = max(image.size) / PICTURE_SIZE
    if factor <= 1:
        return image
    return image.resize((round(image.width / factor), round(image.height / factor)), resample)


def annotate(image: Image.Image, regions: list[tuple[np.ndarray, str]], opacity: float) -> Annotated:
    """Regions of an image, with their labels, as `gr.AnnotatedImage` takes them."""
    shares = [
        (np.asarray(shrink(Image.fromarray(mask.astype(np.uint8) * 255))) / 255, label) for mask, label in regions
    ]
    return shrink(image), [(share * opacity, label) for share, label in shares]


def show_mask(result: Segmentation, threshold: float, opacity: float) -> Annotated:
    return annotate(result.image, [(result.mask(threshold), MASK_LABEL)], opacity)


def show_text_effect(with_text: Segmentation, without: Segmentation, threshold: float, opacity: float) -> Annotated:
    """What the text changed in the mask."""
    after, before = with_text.mask(threshold), without.mask(threshold)
    regions = [(after & before, SAME_LABEL), (after & ~before, ADDED_LABEL), (before & ~after, REMOVED_LABEL)]
    return annotate(with_text.image, regions, opacity)


def show_probabilities(probabilities: np.ndarray) -> Image.Image:
    """A heat map of probabilities, `(height, width)` in [0, 1]."""
    shares = np.linspace(0, 1, len(HEAT_COLORS))
    table = np.stack([np.interp(np.linspace(0, 1, 256), shares, channel) for channel in zip(*HEAT_COLORS)], axis=-1)
    return shrink(Image.fromarray(table.astype(np.uint8)[np.rint(probabilities * 255).astype(np.uint8)]))


def make_thumbnail(image: Image.Image, mask: np.ndarray | None, opacity: float, size: int) -> Image.Image:
    """A small RGB picture of an image with its mask tinted, if there is one.

    Args:
        image: An image of any mode.
        mask: Booleans of shape `(height, width)`.
        opacity: Of the tint, in [0, 1].
        size: Its longest side in pixels.
    """
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((size, size), Image.Resampling.BOX)
    if mask is not None:
        alpha = Image.fromarray(mask.astype(np.uint8) * 255).resize(thumbnail.size, Image.Resampling.BOX)
        thumbnail.paste(
            Image.new("RGB", thumbnail.size, OVERLAY_COLOR), mask=alpha.point(lambda value: value * opacity)
        )
    return thumbnail
