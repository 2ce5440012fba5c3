"""From data sets to the batches of training and of validation."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate

from ..inference.segmenter import tile_boxes
from ..model.captions_lvit import names_a_place
from ..model.processing_lvit import LViTProcessor
from .augmentation import Augmentation, apply_changes


class TrainingDataset(Dataset):
    """Images of several sources and what happens to them; an index says source, row and seed.

    Args:
        sources: Rows of each source.
        augmentations: That of each source.
        absent: Share of the images that are given a caption of another source, and an empty mask.
        in_memory: For each source, whether its images are kept in memory, decoded; none without it.
        taught: For each source, whether a teacher is asked about its images; without it there is none.
    """

    def __init__(
        self,
        sources: Sequence,
        augmentations: Sequence[Augmentation],
        absent: float = 0.0,
        in_memory: Sequence[bool] | None = None,
        taught: Sequence[bool] | None = None,
    ):
        self.sources = sources
        self.augmentations = augmentations
        self.absent = absent
        self.taught = taught
        with ThreadPoolExecutor() as pool:
            self.kept = [
                list(pool.map(partial(self._prepare, source), range(len(sources[source])))) if is_kept else None
                for source, is_kept in enumerate(in_memory or [False] * len(sources))
            ]

    def _prepare(self, source: int, number: int) -> dict:
        return self.augmentations[source].prepare(self.sources[source][number])

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: tuple[int, int, int]) -> dict:
        """What is drawn: see `Augmentation.draw`. Every draw can be repeated."""
        source, number, seed = index
        kept = self.kept[source]
        item = self.augmentations[source].draw(kept[number] if kept else self._prepare(source, number), seed)
        rng = np.random.default_rng((seed, 1))
        text = self._draw_caption_not_of(source, rng) if rng.random() < self.absent else ""
        if self.taught is not None:
            item["taught"] = self.taught[source] and not text  # what is not there is learned from the empty mask
        # An image without a caption has its own mask.
        return {**item, "mask": np.zeros_like(item["mask"]), "text": text} if text else item

    def _draw_caption_not_of(self, source: int, rng: np.random.Generator) -> str:
        other = self.sources[rng.choice([index for index in range(len(self.sources)) if index != source])]
        return other[int(rng.integers(len(other)))]["text"]


class MixtureSampler(Sampler):
    """Draws images of several sources by weight, each source in shuffled rounds, the same for the same seed.

    Args:
        lengths: Number of images of each source.
        weights: Share of each source, relative to the others.
        seed: With the epoch, determines all draws.
        num_samples: Number of draws of an epoch; as many as there are images without it.
    """

    def __init__(self, lengths: list[int], weights: list[float], seed: int, num_samples: int | None = None):
        self.lengths = lengths
        self.num_samples = sum(lengths) if num_samples is None else num_samples
        self.shares = np.array(weights) / sum(weights)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        rounds: list[list[int]] = [[] for _ in self.lengths]
        for source in rng.choice(len(self.lengths), size=len(self), p=self.shares):
            if not rounds[source]:
                rounds[source] = rng.permutation(self.lengths[source]).tolist()
            yield int(source), rounds[source].pop(), int(rng.integers(2**31))


class ValidationDataset(Dataset):
    """Images of one source as they are, whole or cut into tiles."""

    def __init__(self, rows: Sequence[dict], tile: int | None = None, limit: int | None = None):
        self.rows = rows
        boxes: list[Sequence] = [tile_boxes(row["image"].size, tile) for row in rows] if tile else [[None]] * len(rows)
        items = [(number, box) for number, row_boxes in enumerate(boxes) for box in row_boxes]
        # Evenly spread, so that a limit does not show the first subjects alone.
        self.items = items if limit is None else items[:: max(1, len(items) // limit)][:limit]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        number, box = self.items[index]
        row = self.rows[number]
        if box is None:
            return {key: row[key] for key in ("image", "mask", "text")}
        # As in inference, a caption that names a place is not true of a tile.
        text = "" if names_a_place(row["text"]) else row["text"]
        return {"image": row["image"].crop(box), "mask": row["mask"].crop(box), "text": text}


class Collator:
    """Turns rows with `image`, `mask` and `text` into a batch, through the processor that users have too.

    Rows of a `TrainingDataset` stay 8 bits until `augment` has them.
    """

    def __init__(self, processor: LViTProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        images, masks, text = ([row[key] for row in rows] for key in ("image", "mask", "text"))
        if "changes" not in rows[0]:
            return dict(self.processor(images=images, text=text, segmentation_maps=masks, return_tensors="pt"))
        images, masks, changes = default_collate(
            [tuple(row[key] for key in ("image", "mask", "changes")) for row in rows]
        )
        batch = {
            **self.processor(text=text, return_tensors="pt"),
            **{"pixel_values": images, "labels": masks, "changes": changes},
        }
        if "taught" in rows[0]:
            batch["taught"] = torch.tensor([row["taught"] for row in rows])
        return batch


def augment(batch: dict[str, Any], processor: LViTProcessor) -> dict[str, Any]:
    """Puts the changes of a batch into effect, on its device, and brings its images to the network's range."""
    settings = processor.image_processor
    others = {name: values for name, values in batch.items() if name != "changes"}
    images, masks = apply_changes(batch["pixel_values"], batch["labels"], batch["changes"])
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (settings.image_mean, settings.image_std))
    return {**others, "pixel_values": (images - mean) / std, "labels": masks}
