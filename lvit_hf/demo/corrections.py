"""Masks that a visitor corrects, and the data set that they become."""

import base64
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.append import append_row
from ..evaluation.metrics import overlap
from ..inference.files import FileResult
from ..inference.slices import VolumeSegmentation
from ..model.segmenter_lvit import BACKGROUND
from .engine import Request, stem_of


@dataclass(frozen=True)
class Prediction:
    """The mask of one slice, which a visitor may correct.

    Args:
        row: What was said of the file.
        request: What had been asked.
        index: Number of the slice, from 0.
        threshold: Probability above which a pixel is in the mask.
    """

    row: FileResult
    request: Request
    index: int
    threshold: float

    @property
    def mask(self) -> np.ndarray:
        """Booleans of shape `(height, width)`.

        Raises:
            ValueError: If the mask has several labels, which a data set of masks has not.
        """
        result = self.row.result
        assert result is not None
        if isinstance(result, VolumeSegmentation):
            labels, mask = result.middle.labels, result.mask(self.threshold, self.index)
        else:
            labels, mask = result.labels, result.mask(self.threshold)
        if len(set(labels) - {BACKGROUND}) > 1:
            raise ValueError("Masks of several labels cannot be corrected here.")
        return mask

    @property
    def text(self) -> str:
        """The caption as the network was given it, with the image's left and right; as it was typed if it was not."""
        result = self.row.result
        assert result is not None
        said = result.middle if isinstance(result, VolumeSegmentation) else result
        return (said.reading and said.reading.text) or said.text or ""

    def keep(self, folder: Path, split: str, model: str, sent: object) -> dict[str, Any]:
        """Adds the image with its corrected mask to a data set.

        Args:
            folder: The data set, as in `append_row`.
            split: `"train"` or `"valid"`.
            model: Name of the checkpoint.
            sent: The mask as `decode_mask` takes it.

        Returns:
            The `dice` of the two masks, and the number of rows of each split.

        Raises:
            OSError: If it cannot be written.
            ValueError: If the mask or the split cannot be used.
        """
        predicted, scan = self.mask, self.row.scan
        assert scan is not None
        mask = decode_mask(sent, predicted.shape)
        dice = overlap(predicted, mask)["dice"]
        name = stem_of(self.request.item.name) + (f"-slice-{self.index + 1}" if len(scan) > 1 else "")
        said = {"model": model, "threshold": self.threshold, "dice": round(dice, 4)}
        counts = append_row(folder, split, name, scan.image(self.index), mask, self.text, predicted, **said)
        return {"dice": dice, **counts}


def decode_mask(sent: object, shape: tuple[int, ...]) -> np.ndarray:
    """A mask that a browser sends, which may send anything.

    Args:
        sent: A byte for each pixel, 0 or 1, row by row, compressed by zlib, in base64.
        shape: Height and width that it must have.

    Returns:
        Booleans of that shape.

    Raises:
        ValueError: If it is something else.
    """
    height, width = shape
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(str(sent), validate=True), height * width + 1)
    except (ValueError, zlib.error):
        raise ValueError("The corrected mask cannot be read. Load the page again.")
    values = np.frombuffer(content, np.uint8)
    if values.size != height * width or values.max() > 1:
        raise ValueError(f"The corrected mask must have {width} x {height} pixels of 0 or 1. Load the page again.")
    return values.reshape(shape) > 0
