"""Masks that are means over an image as it is and flipped, each with its caption rewritten for it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from os import PathLike

import numpy as np
from transformers.image_utils import ImageInput

from ..model.captions_lvit import rewrite_caption
from ..training.augmentation import FLIPS, apply_flips, undo_flips
from .segmenter import Segmentation, Segmenter


# Without the image as it is. Chests are mirrored but never turned over; slides have no upper side.
VIEWS: dict[str, list[dict[str, bool]]] = {
    "mirror": [{"flip_horizontal": True, "flip_vertical": False, "transpose": False}],
    "all": [dict(zip(FLIPS, flips)) for flips in product((False, True), repeat=len(FLIPS)) if any(flips)],
}


class FlippingSegmenter(Segmenter):
    """A segmenter that looks at each image several times (test-time augmentation) and takes as many times as long."""

    views = VIEWS["mirror"]

    def segment(
        self,
        images: Sequence[str | PathLike | ImageInput],
        texts: Sequence[str | None] | None = None,
        tile_size: int | None = None,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Segmentation]:
        """Segments images, each with its caption, as [`Segmenter.segment`] does; `progress` is that of each view."""
        results = super().segment(images, texts, tile_size, batch_size, progress)
        totals = [result.probabilities.copy() for result in results]
        for flips in self.views:
            pixels = [np.moveaxis(np.asarray(result.image), -1, 0) for result in results]
            flipped = [apply_flips(array, **flips) for array in pixels]
            captions = [result.text and rewrite_caption(result.text, **flips) for result in results]
            views = super().segment(flipped, captions, tile_size, batch_size, progress)
            for total, view in zip(totals, views):
                total += undo_flips(view.probabilities, **flips)
        count = len(self.views) + 1
        return [replace(result, probabilities=total / count) for result, total in zip(results, totals)]
