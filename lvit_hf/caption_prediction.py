"""Images without a caption, and captions that do not fit their image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .captions import Finding, parse_caption
from .inference import Segmentation, Segmenter
from .modeling_lvit import LViTCaptionPredictionOutput


# Agreement below which an attribute is named as one that does not fit.
AGREEMENT = 0.5


@dataclass(frozen=True)
class CaptionCheck:
    """Whether a caption fits its image.

    Args:
        understood: Whether a family of captions knows the caption, and states something with it.
        score: Mean agreement in [0, 1] of what the caption states with what the image shows; `None` if not understood.
        disagreements: One sentence for each attribute in which they differ.
        unknown_words: Words of the caption that say nothing to its family.
        mask_agreement: Soft Dice in [0, 1] of the masks with the caption and with the null text; `None` where no mask
            was looked at.
    """

    understood: bool
    score: float | None
    disagreements: tuple[str, ...]
    unknown_words: tuple[str, ...]
    mask_agreement: float | None = None


def check_caption(text: str, described: dict[str, Any]) -> CaptionCheck:
    """Compares a caption with what its image shows.

    Args:
        text: The caption.
        described: What the image shows, as [`LViTCaptionHead.decode`] returns it.
    """
    caption = parse_caption(text)
    if caption is None or not caption.findings or caption.family not in described["families"]:
        return CaptionCheck(False, None, (), () if caption is None else caption.unknown_words)
    # Of several objects the one that fits best: the head speaks of one.
    agreement, disagreements = max(
        (_compare(caption.family, finding, described) for finding in caption.findings), key=lambda pair: pair[0]
    )
    return CaptionCheck(True, agreement, disagreements, caption.unknown_words)


def _compare(family: str, finding: Finding, described: dict[str, Any]) -> tuple[float, tuple[str, ...]]:
    """Mean agreement over the attributes that a finding states, and sentences about those that do not agree."""
    agreements, sentences = [], []
    for attribute in described["attributes"]:
        if attribute["family"] != family or attribute["name"] not in finding:
            continue
        stated, values = finding[attribute["name"]], attribute["values"]
        if isinstance(stated, str):
            agreement, likeliest = values[stated], max(values, key=values.get)
            probability = values[likeliest]
        else:
            # A value that is not stated is denied.
            all_agree = [values[v] if v in stated else described["families"][family] - values[v] for v in values]
            agreement = float(np.mean(all_agree))
            shown = [value for value in values if values[value] > AGREEMENT]
            likeliest = " and ".join(shown) or "none"
            probability = float(np.prod([max(values[value], 1 - values[value]) for value in values]))
            stated = " and ".join(stated) or "none"
        agreements.append(agreement)
        if agreement < AGREEMENT and likeliest != stated:
            sentences.append(
                f"{attribute['name']}: the caption says {stated}, the image speaks for {likeliest} ({probability:.2f})"
            )
    if described["families"][family] < AGREEMENT:
        other = max(described["families"], key=described["families"].get)
        sentences = [f"the caption speaks of {family}, the image of {other} ({described['families'][other]:.2f})"]
    return float(np.mean(agreements)), tuple(sentences)


class CaptioningSegmenter(Segmenter):
    """A segmenter that writes a caption for each whole image that has none, and segments with it.

    A mask is the mean of the masks of the likeliest captions, weighted by their probability; with one caption, its
    mask, with none, that of the null text. Tiles are segmented without a caption, which would speak of the whole image.
    """

    num_captions = 1

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
        with_text, without = (self._predict(list(images), list(given)) for given in (texts, [None] * len(texts)))
        return [
            replace(check_caption(text, described), mask_agreement=soft_dice(*maps))
            for text, described, *maps in zip(texts, self.describe(images), with_text, without)
        ]


def soft_dice(first: torch.Tensor, second: torch.Tensor) -> float:
    """Overlap of two probability maps in [0, 1]: 1 where they are equal, or both 0 everywhere."""
    total = (first.square() + second.square()).sum()
    return float(2 * (first * second).sum() / total) if total else 1.0
