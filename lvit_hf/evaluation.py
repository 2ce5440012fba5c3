"""Overlap of a checkpoint's masks with those of a data set, with its captions, without, and with wrong ones."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from .captions import rewrite_caption
from .image_processing_lvit import binarize_map
from .inference import Segmenter
from .metrics import OverlapMetrics


SHUFFLE_SEED = 0


def shuffle_captions(captions: list[str]) -> list[str]:
    """Gives every image the caption of another image of the split, the same way each time."""
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(captions))
    shuffled = list(captions)
    for position, neighbour in zip(order, np.roll(order, 1)):
        shuffled[position] = captions[neighbour]
    return shuffled


# How the captions of a split are given to the model, and what each way tells about it.
TEXT_MODES: dict[str, Callable[[list[str]], Sequence[str | None]]] = {
    "correct": lambda captions: captions,
    "none": lambda captions: [None] * len(captions),
    "shuffled": shuffle_captions,
    "swapped": lambda captions: [rewrite_caption(caption, flip_horizontal=True) for caption in captions],
}


def resize_probabilities(probabilities: np.ndarray, size: int | None) -> torch.Tensor:
    """Resamples a map `(height, width)` to a square of `size` pixels; as it is without a size."""
    tensor = torch.from_numpy(probabilities)[None, None]
    if size is None:
        return tensor[0]
    return nn.functional.interpolate(tensor, size=(size, size), mode="bilinear", antialias=True)[0]


def resize_mask(mask: Image.Image, size: int | None, official: bool) -> torch.Tensor:
    """Resamples a ground-truth mask, by area and cut at one half, or as the reference implementation does.

    The reference resizes with bilinear interpolation and takes every pixel above zero, which dilates the mask.
    """
    foreground = torch.from_numpy(binarize_map(np.asarray(mask.convert("L"))))[None, None]
    if size is None:
        return foreground[0]
    if official:
        return nn.functional.interpolate(foreground.float(), size=(size, size), mode="bilinear")[0] > 0
    return nn.functional.interpolate(foreground.float(), size=(size, size), mode="area")[0] > 0.5


def evaluate(
    segmenter: Segmenter,
    data,
    text: str = "correct",
    tile_size: int | None = None,
    size: int | None = None,
    official_masks: bool = False,
    threshold: float = 0.5,
    batch_size: int = 16,
) -> dict[str, float]:
    """Measures a checkpoint on a split.

    Args:
        segmenter: The checkpoint.
        data: Rows with `image`, `mask` and `text`, as `load_data` returns.
        text: `"correct"`, `"none"`, `"shuffled"` (another image's caption) or `"swapped"` (left and right).
        tile_size: As in [`Segmenter.segment`].
        size: Side in pixels of the square at which masks are compared; without it each image's own size.
        official_masks: With `size`, whether ground truth is resampled by the reference's rule.
        threshold: Probability above which a pixel is foreground.
        batch_size: Number of images or tiles that go through the network together.

    Returns:
        `dice` and `iou`, the means over images, `pooled_dice` and `pooled_iou`, over all pixels of the split, each in
        [0, 1], and the number of `images`.

    Raises:
        ValueError: If `text` is none of the four, or the reference's rule is asked for without a size.
    """
    if text not in TEXT_MODES:
        raise ValueError(f"text must be one of {', '.join(TEXT_MODES)}, got {text!r}.")
    if official_masks and size is None:
        raise ValueError("The reference's rule for masks is a way to resize them: give a size too, such as 224.")
    captions = TEXT_MODES[text](list(data["text"]))
    metrics = OverlapMetrics()
    with tqdm(total=len(data), unit="image", desc=text, disable=None) as bar:
        for start in range(0, len(data), batch_size):
            rows = data[start : start + batch_size]
            batch = captions[start : start + batch_size]
            results = segmenter.segment(rows["image"], batch, tile_size=tile_size, batch_size=batch_size)
            for result, mask in zip(results, rows["mask"]):
                prediction = resize_probabilities(result.probabilities, size) > threshold
                metrics.update(prediction, resize_mask(mask, size, official_masks))
            bar.update(len(results))
    return {**metrics.compute(), "images": len(data)}
