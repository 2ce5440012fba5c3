"""Augmentation of an image, its mask and its caption together.

Everything random is drawn as numbers, image by image, and the costly part is done for a whole batch on the device that
trains: see `Augmentation` and `apply_changes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np
import torch
from numpy.polynomial import legendre
from PIL import Image
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch.nn import functional
from torch.utils.data import default_collate

from ..model.captions_lvit import names_a_place, rewrite_caption
from ..model.image_processing_lvit import binarize_map
from ..model.segmenter_lvit import flip


BLUR_SIGMAS, BLUR_RADIUS = (0.4, 1.0), 3  # pixels
NOISE = 0.05  # largest standard deviation
MAX_HOLES = 4
SHADE_DEGREE, SHADE = 3, 0.2  # of a Legendre polynomial, and its largest coefficient


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
    """Random changes that keep image, mask and caption in step, determined by a seed.

    `prepare` is what is done to an image once, `draw` what is done each time that it is drawn, and `apply_changes`
    what is done to the batch in which it is. Calling an `Augmentation` does all of it to one image.

    Args:
        config: What may happen.
        size: Side in pixels of the square that comes out.
        soft_masks: Whether masks are probabilities, which are not cut at one half.
    """

    def __init__(self, config: AugmentationConfig, size: int, soft_masks: bool = False):
        self.config = config
        self.size = size
        self.soft_masks = soft_masks

    def __call__(self, image: Image.Image, mask: Image.Image, text: str, seed: int) -> dict:
        """Returns `image`, `(3, size, size)` floats in [0, 1], `mask`, `(size, size)` in [0, 1], and `text`."""
        return finish(self.draw(self.prepare({"image": image, "mask": mask, "text": text}), seed))

    def prepare(self, row: Mapping) -> dict:
        """A row with `image`, in colour, and `mask`, of 8 bits, of the size that comes out unless they will be cut."""
        mask = row["mask"] if self.soft_masks else Image.fromarray(binarize_map(row["mask"]))
        image, mask = row["image"].convert("RGB"), mask.convert("L")
        if self.config.crop is None:
            image, mask = self._to_square(image), self._to_square(mask)
        return {"image": image, "mask": mask, "text": row["text"]}

    def draw(self, row: Mapping, seed: int) -> dict:
        """Draws what happens to a prepared row.

        Returns:
            `image` of shape `(3, size, size)` and `mask` of shape `(size, size)`, 8 bits, cut out and flipped; `text`,
            rewritten; and `changes`, the numbers that `apply_changes` takes.
        """
        rng = np.random.default_rng(seed)
        config, image, mask, text = self.config, row["image"], row["mask"], row["text"]
        if config.crop is not None:
            box = random_box(rng, image.size, *config.crop)
            image, mask = self._to_square(image.crop(box)), self._to_square(mask.crop(box))
            text = "" if names_a_place(text) else text
        # In this order, so that a seed means the same in every run.
        horizontal, vertical = rng.random() < config.flip_horizontal, rng.random() < config.flip_vertical
        flips = horizontal, vertical, rng.random() < config.transpose
        changes = self._draw_changes(rng)
        if rng.random() < config.text_dropout:
            text = ""
        return {
            "image": flip(np.moveaxis(np.array(image), -1, 0), flips),
            "mask": flip(np.array(mask), flips),
            "text": rewrite_caption(text, *flips),
            "changes": changes,
        }

    def _draw_changes(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        config = self.config
        changes = {
            "affine": self._draw_affine(rng),
            "gamma": rng.uniform(*config.gamma),
            "factors": 1 + rng.uniform(-config.intensity, config.intensity, 3),
            "blur": (rng.random() < config.blur) * rng.uniform(*BLUR_SIGMAS, 2),
            "shade": (rng.random() < config.shade) * rng.uniform(-SHADE, SHADE, len(SHADE_TERMS)),
            "noise": (rng.random() < config.noise) * rng.uniform(0, NOISE),
            "holes": (rng.random() < config.holes) * self._draw_holes(rng),
            "cut": 0.0 if self.soft_masks or config.soft_edges else 1.0,
        }
        return {name: np.asarray(values, np.float32) for name, values in changes.items()}

    def _draw_affine(self, rng: np.random.Generator) -> np.ndarray:
        """Where each place of the outcome comes from, a matrix `(2, 3)` for coordinates `(x, y)` in [-1, 1]."""
        config = self.config
        angle = np.deg2rad(rng.uniform(-config.rotate, config.rotate))
        scales = 1 + rng.uniform(-config.scale, config.scale, 2)
        shifts = 2 * rng.uniform(-config.translate, config.translate, 2)
        cosine, sine = np.cos(angle), np.sin(angle)
        return np.column_stack([np.array([[cosine, -sine], [sine, cosine]]) * scales, shifts])

    def _draw_holes(self, rng: np.random.Generator) -> np.ndarray:
        """First and last row, first and last column of each of `MAX_HOLES` rectangles, of which some are empty."""
        sides = rng.integers(max(1, self.size // 10), max(1, self.size // 4), (MAX_HOLES, 2), endpoint=True)
        sides[rng.integers(1, MAX_HOLES, endpoint=True) :] = 0
        starts = rng.integers(0, self.size - sides, endpoint=True)
        return np.stack([starts, starts + sides], axis=-1).reshape(MAX_HOLES, 4)

    def _to_square(self, image: Image.Image) -> Image.Image:
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR)


def random_box(
    rng: np.random.Generator, size: tuple[int, int], smallest: int, largest: int
) -> tuple[int, int, int, int]:
    """A random square inside an image of `(width, height)`, as `(left, upper, right, lower)`."""
    side = min(int(rng.integers(smallest, largest + 1)), *size)
    left, upper = (int(rng.integers(0, length - side + 1)) for length in size)
    return left, upper, left + side, upper + side


def finish(item: dict) -> dict:
    """Applies the changes that were drawn for one image: see `Augmentation`."""
    images, masks, changes = default_collate([tuple(item[key] for key in ("image", "mask", "changes"))])
    images, masks = apply_changes(images, masks, changes)
    return {"image": images[0].numpy(), "mask": masks[0].numpy(), "text": item["text"]}


@torch.no_grad()
def apply_changes(
    images: torch.Tensor, masks: torch.Tensor, changes: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies to a batch, on its device, what was drawn for each image.

    Args:
        images: 8 bits, of shape `(batch_size, 3, size, size)`.
        masks: 8 bits, of shape `(batch_size, size, size)`.
        changes: As `Augmentation.draw` returns them, stacked. The noise itself is drawn here.

    Returns:
        Images, `(batch_size, 3, size, size)`, and masks, `(batch_size, size, size)`, floats in [0, 1].
    """
    both = torch.cat([images, masks.unsqueeze(1)], dim=1).float() / 255
    grid = functional.affine_grid(changes["affine"], list(both.shape), align_corners=False)
    both = functional.grid_sample(both, grid, padding_mode="zeros", align_corners=False)
    images, masks = both[:, :3], both[:, 3]
    masks = torch.where(_per_image(changes["cut"], masks) > 0, (masks > 0.5).float(), masks)
    images = images.clamp(min=0) ** _per_image(changes["gamma"], images)
    images = images * _per_image(changes["factors"], images)
    for axis, sigmas in zip((-2, -1), changes["blur"].unbind(1)):
        images = _blur(images, sigmas, axis)
    images = images * _shades(changes["shade"], images.shape[-1])
    images = images + torch.randn_like(images) * _per_image(changes["noise"], images)
    return images.masked_fill(_holes(changes["holes"], images.shape[-1]), 0).clamp(0, 1), masks


def _per_image(values: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Values of shape `(batch_size, ...)` with as many axes as maps that start with the same ones."""
    return values[(..., *[None] * (maps.ndim - values.ndim))]


def _blur(images: torch.Tensor, sigmas: torch.Tensor, axis: int) -> torch.Tensor:
    """Blurs each image along an axis by its own standard deviation in pixels, 0 for none."""
    steps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device)
    weights = torch.exp(-0.5 * (steps / sigmas.clamp(min=1e-3).unsqueeze(1)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # (batch_size, 2 * BLUR_RADIUS + 1)
    padding = [BLUR_RADIUS * (axis == side) for side in (-1, -1, -2, -2)]
    padded = functional.pad(images, padding, mode="replicate")
    length = images.shape[axis]
    blurred = torch.zeros_like(images)
    for start, weight in enumerate(weights.unbind(1)):
        blurred += _per_image(weight, images) * padded.narrow(axis, start, length)
    return blurred


# Of a polynomial of two axes up to its degree: the degrees along both.
SHADE_TERMS = [(row, column) for row in range(SHADE_DEGREE + 1) for column in range(SHADE_DEGREE + 1 - row)]


@cache
def _shade_terms(size: int, device: torch.device) -> torch.Tensor:
    """The polynomial's terms over an image, of shape `(terms, size, size)`."""
    axis = legendre.legvander(np.linspace(-1, 1, size), SHADE_DEGREE)  # (size, degrees)
    terms = np.stack([np.outer(axis[:, row], axis[:, column]) for row, column in SHADE_TERMS])
    return torch.from_numpy(terms.astype(np.float32)).to(device)


def _shades(coefficients: torch.Tensor, size: int) -> torch.Tensor:
    """Factors of brightness of shape `(batch_size, 1, size, size)`, 1 where all coefficients are 0."""
    terms = _shade_terms(size, coefficients.device)
    return torch.einsum("bt,thw->bhw", coefficients, terms).exp().unsqueeze(1)


def _holes(holes: torch.Tensor, size: int) -> torch.Tensor:
    """Whether a pixel is in a rectangle, of shape `(batch_size, 1, size, size)`."""
    places = torch.arange(size, device=holes.device)
    top, bottom, left, right = holes.unsqueeze(-1).unbind(2)  # (batch_size, MAX_HOLES, 1) each
    rows, columns = (top <= places) & (places < bottom), (left <= places) & (places < right)
    return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).any(1, keepdim=True)
