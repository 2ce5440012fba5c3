"""Training on volumes: structures drawn by their shares, augmentation in three dimensions, batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ResizeWithPadOrCrop,
)
from torch.utils.data import Dataset

from ..data.volumes import Structure, load_volumes
from ..model.captions_lvit import rewrite_caption
from ..model.processing_lvit import LViTProcessor


if TYPE_CHECKING:
    from .config import SourceConfig


BLUR_SIGMAS = (0.4, 0.9)  # in voxels


@dataclass
class VolumeAugmentationConfig:
    """What may happen to a training volume.

    Args:
        flip_left_right: Probability of a mirror image, in whose caption left and right change places.
        rotate: Largest rotation about each axis, in degrees.
        scale: Largest change of size of each axis, as a share.
        translate: Largest shift along each axis, in voxels.
        gamma: Smallest and largest exponent of the intensities.
        intensity: Largest change of contrast, as a share, and of brightness, in standard deviations.
        noise: Probability of Gaussian noise, of up to a tenth of a standard deviation.
        blur: Probability of a Gaussian blur.
    """

    flip_left_right: float = 0.5
    rotate: float = 15.0
    scale: float = 0.15
    translate: float = 4.0
    gamma: tuple[float, float] = (0.7, 1.5)
    intensity: float = 0.2
    noise: float = 0.3
    blur: float = 0.2


class VolumeAugmentation:
    """Random transforms that keep volume, mask and caption in step, determined by a seed.

    Args:
        config: What may happen.
        structures: What captions ask for.
        patch_size: Size in voxels (depth, height, width) of what comes out, around the middle of the volume.
    """

    def __init__(self, config: VolumeAugmentationConfig, structures: list[Structure], patch_size: Sequence[int]):
        self.config = config
        self.structures = structures
        shares = np.array([structure.share for structure in structures])
        self.shares = shares / shares.sum()
        self.transforms = Compose(
            [
                RandAffined(
                    keys=["image", "mask"],
                    prob=1.0,
                    spatial_size=tuple(patch_size),
                    rotate_range=[np.deg2rad(config.rotate)] * 3,
                    scale_range=[config.scale] * 3,
                    translate_range=[config.translate] * 3,
                    mode="bilinear",
                    padding_mode="zeros",
                ),
                RandAdjustContrastd(keys="image", prob=1.0, gamma=config.gamma),
                RandScaleIntensityd(keys="image", prob=1.0, factors=config.intensity),
                RandShiftIntensityd(keys="image", prob=1.0, offsets=config.intensity),
                RandGaussianNoised(keys="image", prob=config.noise, std=0.1),
                RandGaussianSmoothd(
                    keys="image", prob=config.blur, sigma_x=BLUR_SIGMAS, sigma_y=BLUR_SIGMAS, sigma_z=BLUR_SIGMAS
                ),
            ]
        )

    def __call__(self, image: torch.Tensor, label_map: torch.Tensor, seed: int) -> dict:
        """Draws a structure and a caption of it.

        Args:
            image: Of shape `(channels, depth, height, width)`.
            label_map: Labels of shape `(depth, height, width)`.
            seed: Determines all draws.

        Returns:
            `image`, `(channels, *patch_size)`, `mask`, `(*patch_size)` of 0 and 1, and `text`.
        """
        rng = np.random.default_rng(seed)
        structure = self.structures[rng.choice(len(self.structures), p=self.shares)]
        text = structure.captions[rng.integers(len(structure.captions))]
        mask = structure.mask(label_map)[None]
        if rng.random() < self.config.flip_left_right:
            image, mask = image.flip(-1), mask.flip(-1)
            text = rewrite_caption(text, flip_horizontal=True)
        self.transforms.set_random_state(seed=int(rng.integers(2**31)))
        track_meta = get_track_meta()
        set_track_meta(False)  # as for images: copies of metadata that nobody reads take time
        moved = self.transforms({"image": image, "mask": mask})
        set_track_meta(track_meta)
        return {"image": moved["image"], "mask": (moved["mask"][0] > 0.5).float(), "text": text}


class VolumeTrainingDataset(Dataset):
    """Augmented volumes of several sources; an index says source, row and seed.

    Args:
        sources: Rows of each source.
        augmentations: That of each source.
    """

    def __init__(self, sources: Sequence, augmentations: Sequence[VolumeAugmentation]):
        self.sources = sources
        self.augmentations = augmentations

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: tuple[int, int, int]) -> dict:
        source, number, seed = index
        row = self.sources[source][number]
        return self.augmentations[source](row["image"], row["label_map"], seed)


class VolumeValidationDataset(Dataset):
    """The middle of every volume, of the patch's size, with the first caption of a structure."""

    def __init__(self, rows: Sequence[dict], structure: Structure, patch_size: Sequence[int]):
        self.rows = rows
        self.structure = structure
        self.resize = ResizeWithPadOrCrop(tuple(patch_size))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        image, mask = self.resize(row["image"]), self.resize(self.structure.mask(row["label_map"])[None])[0]
        return {"image": image, "mask": mask, "text": self.structure.captions[0]}


class VolumeCollator:
    """Stacks rows with `image`, `mask` and `text`, and encodes the captions."""

    def __init__(self, processor: LViTProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        text = self.processor(text=[row["text"] for row in rows], return_tensors="pt")
        images, masks = (torch.stack([row[key] for row in rows]) for key in ("image", "mask"))
        return {**text, "pixel_values": images, "labels": masks}


def volume_captions(source: "SourceConfig") -> list[str]:
    """All captions of a source that training sees."""
    return [caption for structure in source.structures or [] for caption in structure.captions]


def volume_data(sources: "Sequence[SourceConfig]", processor: LViTProcessor) -> dict[str, Any]:
    """Data sets and collator of a Trainer, for sources of volumes."""
    settings = processor.image_processor
    sets, augmentations, evaluated = [], [], {}
    for source in sources:
        structures = source.structures or []
        unknown = source.augmentation.keys() - get_type_hints(VolumeAugmentationConfig).keys()
        if unknown:
            raise ValueError(f"Volumes are not augmented by {', '.join(sorted(unknown))} (source {source.name}).")
        augmentation = VolumeAugmentationConfig(**source.augmentation)
        sets.append(load_volumes(source.path, "train", settings))
        augmentations.append(VolumeAugmentation(augmentation, structures, settings.patch_size))
        rows = load_volumes(source.path, "valid", settings)[: source.max_validation]
        for structure in structures:
            name = f"{source.name}_{structure.name}"
            evaluated[name] = VolumeValidationDataset(rows, structure, settings.patch_size)
    return {
        "train_dataset": VolumeTrainingDataset(sets, augmentations),
        "eval_dataset": evaluated,
        "data_collator": VolumeCollator(processor),
    }
