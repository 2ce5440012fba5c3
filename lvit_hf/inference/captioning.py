"""Images without a caption, and captions that do not fit their image."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from PIL import Image

from ..model.captions_lvit import parse_caption
from ..model.modeling_lvit import LViTCaptionPredictionOutput, LViTImageSegmentationOutput
from ..model.pipeline_lvit import CaptionCheck, check_caption, mean_over_captions
from .segmenter import Segmentation, Segmenter


NAMED_CAPTIONS = 5


class CaptioningSegmenter(Segmenter):
    """A segmenter that writes captions, and may segment images without one with those that it writes.

    With `num_captions`, the mask of a whole image that has no caption is the mean of the masks of its likeliest
    captions, weighted by their probability, and of that of the null text, which stands for all others; without, it is
    that of the null text alone. Tiles are segmented without a caption, which would speak of the whole image.
    """

    num_captions = 0

    def predict_captions(self, images: Sequence[Image.Image]) -> LViTCaptionPredictionOutput:
        """What the caption head returns for RGB images.

        Raises:
            ValueError: If the checkpoint has no caption head.
        """
        outputs = self._run_network(list(images), [None] * len(images), output_captions=True)
        return outputs.captions  # type: ignore[return-value]

    def describe(self, images: Sequence[Image.Image], num_captions: int = 1) -> list[dict[str, Any]]:
        """What the images show, as [`LViTCaptionHead.decode`] returns it.

        Args:
            images: RGB images.
            num_captions: How many captions to name.

        Raises:
            ValueError: If the checkpoint has no caption head.
        """
        return self.model.caption_head.decode(self.predict_captions(images), num_captions)

    def _segment_batch(self, images: list[Image.Image], texts: list[str | None]) -> list[Segmentation]:
        if self.model.caption_head is None or all(texts):
            return super()._segment_batch(images, texts)
        outputs = self._run_network(images, texts, output_captions=True)
        described = self._decode(outputs)
        results = [
            Segmentation(image, probabilities, text, text is not None, None if text else row)
            for image, probabilities, text, row in zip(images, self._make_maps(outputs, images), texts, described)
        ]
        return self._with_predicted_captions(results) if self.num_captions else results

    def _decode(self, outputs: LViTImageSegmentationOutput) -> list[dict[str, Any]]:
        count = max(self.num_captions, min(NAMED_CAPTIONS, len(self.model.config.captions)))
        return self.model.caption_head.decode(outputs.captions, count)

    def _with_predicted_captions(self, results: list[Segmentation]) -> list[Segmentation]:
        captions = [row.described["captions"][: self.num_captions] if row.described else [] for row in results]
        pairs = [(row.image, caption["text"]) for row, several in zip(results, captions) for caption in several]
        images, texts = map(list, zip(*pairs))
        maps = iter(self._predict(images, texts))
        return [
            replace(
                result,
                probabilities=mean_over_captions(list(islice(maps, len(several))), result.probabilities, several),
                text=several[0]["text"],
                text_used=True,
            )
            if several
            else result
            for result, several in zip(results, captions)
        ]

    def check(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[CaptionCheck]:
        """Compares captions with what their images show, and the masks that they make with those of the null text.

        Args:
            images: RGB images, of which some may be the same object.
            texts: One caption for each.

        Raises:
            ValueError: If the checkpoint has no caption head.
        """
        # Several captions of one image share the pass without text.
        distinct = {id(image): image for image in images}
        outputs = self._run_network(list(distinct.values()), [None] * len(distinct), output_captions=True)
        described = dict(zip(distinct, self._decode(outputs)))
        without = dict(zip(distinct, self._make_maps(outputs, list(distinct.values()))))
        with_text = self._predict(list(images), list(texts))
        return [
            check_caption(
                parse_caption(text),
                described[id(image)],
                self.model.config,
                (torch.from_numpy(after), torch.from_numpy(without[id(image)])),
            )
            for image, text, after in zip(images, texts, with_text)
        ]
