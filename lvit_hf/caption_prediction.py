"""Images without a caption, and captions that do not fit their image."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .captions import parse_caption
from .inference import Segmentation, Segmenter
from .modeling_lvit import LViTCaptionPredictionOutput
from .pipeline_lvit import CaptionCheck, check_caption, soft_dice


class CaptioningSegmenter(Segmenter):
    """A segmenter that writes captions, and may segment images without one with those that it writes.

    With `num_captions`, the mask of a whole image that has no caption is the mean of the masks of its likeliest captions,
    weighted by their probability; without, it is that of the null text. Tiles are segmented without a caption, which
    would speak of the whole image.
    """

    num_captions = 0

    @torch.inference_mode()
    def predict_captions(self, images: Sequence[Image.Image]) -> LViTCaptionPredictionOutput:
        """What the caption head returns for RGB images.

        Raises:
            ValueError: If the checkpoint has no caption head.
        """
        inputs = self.processor(images=list(images), return_tensors="pt")  # type: ignore[call-arg]
        return self.model.predict_captions(inputs["pixel_values"].to(self.device))

    def describe(self, images: Sequence[Image.Image], num_captions: int = 1) -> list[dict[str, Any]]:
        """What the images show, as [`LViTCaptionHead.decode`] returns it.

        Args:
            images: RGB images.
            num_captions: How many captions to name.

        Raises:
            ValueError: If the checkpoint has no caption head.
        """
        return self.model.caption_head.decode(self.predict_captions(images), num_captions)

    def _segment_whole(
        self, images: list[Image.Image], texts: list[str | None], batch_size: int
    ) -> list[Segmentation]:
        results: list[Segmentation] = []
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            results += self._segment_batch(images[batch], texts[batch])
        return results

    def _segment_batch(self, images: list[Image.Image], texts: list[str | None]) -> list[Segmentation]:
        captions: list[list[dict[str, Any]]] = [[{"text": text, "probability": 1.0}] for text in texts]
        missing = [index for index, text in enumerate(texts) if text is None]
        if missing and self.num_captions:
            for index, described in zip(missing, self.describe([images[i] for i in missing], self.num_captions)):
                captions[index] = described["captions"]
        pairs = [(image, caption["text"]) for image, several in zip(images, captions) for caption in several]
        maps = iter(self._predict(*map(list, zip(*pairs))))
        results = []
        for image, several in zip(images, captions):
            weights = np.array([caption["probability"] for caption in several])
            stack = np.stack([next(maps).numpy() for _ in several])
            probabilities = np.tensordot(weights / weights.sum(), stack, axes=1).astype(np.float32)
            text = several[0]["text"]
            results.append(Segmentation(image, probabilities, text, text is not None))
        return results

    def check(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[CaptionCheck]:
        """Compares captions with what their images show, and the masks that they make with those of the null text.

        Args:
            images: RGB images.
            texts: One caption for each.

        Raises:
            ValueError: If the checkpoint has no caption head.
        """
        config = self.model.config
        with_text, without = (self._predict(list(images), list(given)) for given in (texts, [None] * len(texts)))
        return [
            replace(check_caption(parse_caption(text), described, config), mask_agreement=soft_dice(*maps))
            for text, described, *maps in zip(texts, self.describe(images), with_text, without)
        ]
