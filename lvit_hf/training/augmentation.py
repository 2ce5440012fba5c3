"""Augmentation of an image, its mask and its caption together."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from monai.data import get_track_meta, set_track_meta
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandCoarseDropoutd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    ToNumpyd,
)
from PIL import Image
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ..model.captions_lvit import names_a_place, rewrite_caption
from ..model.image_processing_lvit import binarize_map
from ..model.segmenter_lvit import flip


def _in_order(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the smaller number comes first, got {list(pair)}.")
    return pair


InOrder = AfterValidator(_in_order)
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass
class AugmentationConfig:
    """What may happen to a training image.

    Args:
        crop: Smallest and largest side in pixels of random square crops; without it the whole image is taken. A
            caption that names a place is not true of a crop and is left out.
        flip_horizontal, flip_vertical, transpose: Probabilities. The caption is rewritten with the image.
        rotate: Largest rotation in degrees, small enough for the caption to stay true.
        scale: Largest change of size, as a share.
        translate: Largest shift, as a share of the side.
        gamma: Smallest and largest exponent of the intensities.
        intensity: Largest change of each channel's intensities, as a share.
        blur: Probability of a slight Gaussian blur.
        shade: Probability of a brightness that changes smoothly over the image.
        noise: Probability of Gaussian noise.
        holes: Probability of a few rectangles, each up to a quarter of the side, that are blacked out.
        text_dropout: Probability of leaving the caption out, from which the null text is learned.
        soft_edges: Whether the target of a pixel is the share that the foreground covers, or what most of it is.
    """

    crop: Annotated[tuple[PositiveInt, PositiveInt], InOrder] | None = None
    flip_horizontal: Share = 0.0
    flip_vertical: Share = 0.0
    transpose: Share = 0.0
    rotate: NonNegativeFloat = 0.0
    scale: Share = 0.0
    translate: Share = 0.0
    gamma: Annotated[tuple[PositiveFloat, PositiveFloat], InOrder] = (0.75, 1.35)
    intensity: Share = 0.15
    blur: Share = 0.1
    shade: Share = 0.0
    noise: Share = 0.0
    holes: Share = 0.0
    text_dropout: Share = 0.15
    soft_edges: bool = False


class Augmentation:
    """Random transforms that keep image, mask and caption in step, determined by a seed.

    Args:
        config: What may happen.
        size: Side in pixels of the square that comes out.
        soft_masks: Whether masks are probabilities, which are not cut at one half.
    """

    def __init__(self, config: AugmentationConfig, size: int, soft_masks: bool = False):
        self.config = config
        self.size = size
        self.soft_masks = soft_masks
        self.soft_targets = soft_masks or config.soft_edges
        shift = config.translate * size
        moves = RandAffined(
            keys=["image", "mask"],
            prob=1.0,
            rotate_range=np.deg2rad(config.rotate),
            scale_range=(config.scale, config.scale),
            translate_range=(shift, shift),
            mode=("bilinear", "bilinear" if config.soft_edges else "nearest"),
            padding_mode="zeros",
        )
        shade = RandBiasFieldd(keys="image", prob=config.shade, coeff_range=(-0.2, 0.2))
        noise = RandGaussianNoised(keys="image", prob=config.noise, std=0.05)
        holes = RandCoarseDropoutd(
            keys="image",
            prob=config.holes,
            holes=1,
            max_holes=4,
            spatial_size=max(1, size // 10),
            max_spatial_size=max(1, size // 4),
            fill_value=0,
        )
        self.transforms = Compose(
            [
                *([moves] if config.rotate or config.scale or config.translate else []),
                RandAdjustContrastd(keys="image", prob=1.0, gamma=config.gamma),
                RandScaleIntensityd(keys="image", prob=1.0, factors=config.intensity, channel_wise=True),
                RandGaussianSmoothd(keys="image", prob=config.blur, sigma_x=(0.4, 1.0), sigma_y=(0.4, 1.0)),
                *([shade] if config.shade else []),
                *([noise] if config.noise else []),
                *([holes] if config.holes else []),
                ToNumpyd(keys=["image", "mask"]),
            ]
        )

    def __call__(self, image: Image.Image, mask: Image.Image, text: str, seed: int) -> dict:
        """Returns `image`, `(3, size, size)` floats in [0, 1], `mask`, `(size, size)` in [0, 1], and `text`."""
        rng = np.random.default_rng(seed)
        config = self.config
        if not self.soft_masks:
            mask = Image.fromarray(binarize_map(mask))
        if config.crop is not None:
            box = random_box(rng, image.size, *config.crop)
            image, mask = image.crop(box), mask.crop(box)
            text = "" if names_a_place(text) else text
        target = to_square(mask.convert("L"), self.size)
        # In this order, so that a seed means the same in every run.
        horizontal, vertical = rng.random() < config.flip_horizontal, rng.random() < config.flip_vertical
        flips = horizontal, vertical, rng.random() < config.transpose
        arrays = {
            "image": flip(to_square(image.convert("RGB"), self.size), flips),
            "mask": flip(target if self.soft_targets else (target > 0.5).astype(np.float32), flips),
        }
        self.transforms.set_random_state(seed=int(rng.integers(2**31)))
        track_meta = get_track_meta()
        set_track_meta(False)  # or MONAI spends half of its time on copies of metadata that nobody reads
        arrays = self.transforms(arrays)
        set_track_meta(track_meta)
        if rng.random() < config.text_dropout:
            text = ""
        return {
            "image": arrays["image"].clip(0, 1),
            "mask": arrays["mask"][0],
            "text": rewrite_caption(text, *flips),
        }


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """Resizes to `size * size` and returns `(channels, size, size)` floats in [0, 1]."""
    array = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    return np.moveaxis(np.atleast_3d(array), -1, 0)


def random_box(
    rng: np.random.Generator, size: tuple[int, int], smallest: int, largest: int
) -> tuple[int, int, int, int]:
    """A random square inside an image of `(width, height)`, as `(left, upper, right, lower)`."""
    side = min(int(rng.integers(smallest, largest + 1)), *size)
    left, upper = (int(rng.integers(0, length - side + 1)) for length in size)
    return left, upper, left + side, upper + side
