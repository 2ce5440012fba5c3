"""Contrastive captions and masks, and the language-vision (LV) loss that is made of them (paper, III-C)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..data.load import read_workbook
from ..io.readers import is_picture_name
from ..model.image_processing_lvit import binarize_map
from ..model.modeling_lvit import LViTForImageSegmentation, mean_of_words
from ..model.processing_lvit import LViTProcessor


BATCH_SIZE = 64


def sentence_embeds(text_embeds: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
    """Mean of a caption's word vectors, of length one: `(batch_size, text_hidden_size)`."""
    return nn.functional.normalize(mean_of_words(text_embeds, text_mask), dim=-1)


class ContrastiveSet:
    """Captions and the masks that go with them (paper, III-C).

    Args:
        captions: Distinct captions.
        masks: Their masks, or means of masks, in [0, 1], of shape `(num_captions, height, width)`.
    """

    def __init__(self, captions: list[str], masks: torch.Tensor):
        self.captions = captions
        self.masks = masks
        self.embeds = torch.empty(0)

    @classmethod
    def from_labelled(cls, rows: Iterable[dict], size: int) -> "ContrastiveSet":
        """The mean mask of each caption of labelled rows."""
        masks: dict[str, list[np.ndarray]] = {}
        for row in rows:
            masks.setdefault(row["text"], []).append(load_mask(row["mask"], size))
        means = np.stack([np.mean(group, axis=0) for group in masks.values()])
        return cls(list(masks), torch.from_numpy(means))

    @classmethod
    def from_folder(cls, folder: Path, size: int) -> "ContrastiveSet":
        """Masks in a folder with a workbook (*.xlsx) of the columns `Image` and `Description`.

        Raises:
            FileNotFoundError: If there is not one workbook.
            ValueError: If it cannot be read, names a mask twice with two captions, or one that is not there.
        """
        captions, problems = read_workbook(folder)
        files = {path.stem: path for path in folder.iterdir() if is_picture_name(path)}
        problems += [f"{name} has no mask." for name in captions if name not in files]
        if problems:
            raise ValueError(f"{folder} cannot be used:\n- " + "\n- ".join(problems))
        masks = [load_mask(Image.open(files[name]), size) for name in captions]
        return cls(list(captions.values()), torch.from_numpy(np.stack(masks)))

    @torch.no_grad()
    def encode(self, model: LViTForImageSegmentation, processor: LViTProcessor):
        """Takes the captions' vectors from the model's text tower."""
        self.embeds = encode_captions(self.captions, model, processor)
        self.masks = self.masks.to(self.embeds.device)

    def nearest(self, embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The most similar contrastive caption of each caption.

        Args:
            embeds: Vectors of captions, `(batch_size, text_hidden_size)`, of length one.

        Returns:
            Their cosine similarities and the masks, `(batch_size,)` and `(batch_size, height, width)`.
        """
        similarity, index = (embeds @ self.embeds.T).max(-1)
        return similarity, self.masks[index]

    def agreement(self, embeds: torch.Tensor, masks: torch.Tensor) -> tuple[float, float]:
        """How well masks agree with the contrastive masks of their captions, and by chance.

        Args:
            embeds: Vectors of captions, `(batch_size, text_hidden_size)`, of length one.
            masks: The masks of their images, `(batch_size, height, width)`.

        Returns:
            The mean cosine with the contrastive mask of the image's own caption and of the next image's.
        """
        _, own = self.nearest(embeds)
        losses = (language_vision_loss(masks, candidates) for candidates in (own, own.roll(1, 0)))
        right, chance = (1 - loss.item() for loss in losses)
        return right, chance


def load_mask(mask: Image.Image, size: int) -> np.ndarray:
    """Share of foreground in each of `size * size` squares, float32 in [0, 1]."""
    foreground = Image.fromarray(binarize_map(mask)).convert("L")
    return np.asarray(foreground.resize((size, size), Image.Resampling.BOX), np.float32) / 255


@torch.no_grad()
def encode_captions(captions: list[str], model: LViTForImageSegmentation, processor: LViTProcessor) -> torch.Tensor:
    """Vectors of captions, `(num_captions, text_hidden_size)`, of length one."""
    embeds = []
    for start in range(0, len(captions), BATCH_SIZE):
        inputs = processor(text=captions[start : start + BATCH_SIZE], return_tensors="pt").to(model.device)
        embeds.append(sentence_embeds(*model.lvit.get_text_embeds(**inputs)))
    return torch.cat(embeds)


def language_vision_loss(probabilities: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between predicted and contrastive masks, averaged (paper, equation 11).

    Args:
        probabilities: Predictions in [0, 1], of shape `(batch_size, height, width)`.
        masks: Contrastive masks in [0, 1], of the same shape.
    """
    return 1 - nn.functional.cosine_similarity(probabilities.flatten(1), masks.flatten(1), dim=-1).mean()
