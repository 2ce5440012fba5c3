"""From a checkpoint and a user's images to probabilities, masks, overlays and measurements."""

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from monai.inferers import sliding_window_inference
from PIL import Image
from safetensors import SafetensorError
from skimage.segmentation import find_boundaries
from transformers.image_utils import ImageInput

from ..io.hub import HTTPError, explain_error, split_revision
from ..model.captions_lvit import names_a_place
from ..model.configuration_lvit import LViTConfig
from ..model.image_processing_lvit import open_image
from ..model.modeling_lvit import LViTForImageSegmentation, LViTImageSegmentationOutput
from ..model.processing_lvit import LViTProcessor
from .measurements import measure_mask


# The checkpoint that comes with the repository, used where the user names no other.
SHIPPED_CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "lvit-small"

TILE_OVERLAP = 0.25
SMALLEST_TILE = 16

OVERLAY_COLOR = "#00e0b8"
OVERLAY_OPACITY = 0.4


@dataclass(frozen=True)
class Segmentation:
    """What the network says about one image.

    Args:
        image: The image as the network saw it: upright, 8-bit RGB, at its own size.
        probabilities: Probability of foreground in [0, 1] of each pixel, float32 of shape `(height, width)`.
        text: The caption that was given.
        text_used: Whether the network read it. Tiles are segmented without a caption that names a place.
        described: What the image shows, as [`LViTCaptionHead.decode`] returns it; only of a whole image without a
            caption, by a network with a caption head.
    """

    image: Image.Image
    probabilities: np.ndarray
    text: str | None
    text_used: bool
    described: dict[str, Any] | None = None

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """Pixels whose probability is above the threshold: booleans of shape `(height, width)`."""
        return self.probabilities > threshold

    def overlay(self, threshold: float = 0.5) -> Image.Image:
        """The image with the mask tinted and outlined, at the image's size."""
        mask = self.mask(threshold)
        color = Image.new("RGB", self.image.size, OVERLAY_COLOR)
        tinted = Image.blend(self.image, color, OVERLAY_OPACITY)
        overlay = Image.composite(tinted, self.image, Image.fromarray(mask))
        overlay.paste(color, mask=Image.fromarray(find_boundaries(mask, mode="inner")))
        return overlay

    def measure(
        self, threshold: float = 0.5, spacing: tuple[float, float] | None = None
    ) -> dict[str, int | float | str | None]:
        """Measures the mask; see `measure_mask`.

        Args:
            threshold: Probability above which a pixel belongs to the mask.
            spacing: Distance in mm between rows and between columns, where it is known.
        """
        return measure_mask(self.mask(threshold), self.probabilities, spacing)


class Segmenter:
    """A model and its processor, ready to segment images of any size on the device there is.

    Args:
        model: A model with one label. Its batch norms are folded, in place.
        processor: The processor saved with the model.

    Raises:
        ValueError: If the model has several labels.
    """

    def __init__(self, model: LViTForImageSegmentation, processor: LViTProcessor):
        if model.config.num_labels != 1:
            raise ValueError(f"A checkpoint with one label is needed, this one has {model.config.num_labels}.")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.fold_batch_norms().to(self.device, memory_format=torch.channels_last)
        self.processor = processor

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike) -> Self:
        """Loads a checkpoint.

        Args:
            name: A folder, or a model on the Hub, `USER/NAME` or `USER/NAME@REVISION`.

        Raises:
            ValueError: If there is no complete LViT checkpoint of that name; the message says what is wrong.
        """
        with _explained_errors(name):
            return cls(*_load_checkpoint(*split_revision(name)))

    def to_rgb(self, image: str | os.PathLike | ImageInput) -> Image.Image:
        """Brings an image to upright 8-bit RGB at its own size.

        Args:
            image: A path, a PIL image, or an array or tensor as [`LViTImageProcessor`] takes.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the image is broken, has no pixels or values that are no numbers.
        """
        if isinstance(image, (str, os.PathLike)):
            image = open_image(image)
        pixels = self.processor.image_processor.process_image(image, do_convert_rgb=True)
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))

    def segment(
        self,
        images: Sequence[str | os.PathLike | ImageInput],
        texts: Sequence[str | None] | None = None,
        tile_size: int | None = None,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Segmentation]:
        """Segments images, each with its caption.

        Args:
            images: Images as `to_rgb` takes, of any sizes.
            texts: One caption for each image; `None` and blank ones stand for no caption.
            tile_size: `None` segments every image as a whole, shrunk or enlarged to the network's size. Otherwise the
                side, in pixels of the image, of overlapping square tiles that are segmented one by one and blended:
                for slides, whose objects would vanish in a shrunk image. Images no larger than a tile stay whole.
            batch_size: Number of images or tiles that go through the network together.
            progress: Called with the numbers of finished and of all tiles.

        Raises:
            ValueError: If an image cannot be used, the numbers of images and captions differ, or `tile_size` is too
                small.
        """
        texts = [None] * len(images) if texts is None else [text if text and text.strip() else None for text in texts]
        if len(texts) != len(images):
            raise ValueError(f"There must be one caption for each image, got {len(texts)} for {len(images)} images.")
        if tile_size is not None and tile_size < SMALLEST_TILE:
            raise ValueError(f"A tile must be at least {SMALLEST_TILE} pixels wide, got {tile_size}.")
        rgb_images = [self.to_rgb(image) for image in images]
        if tile_size is None:
            return self._segment_whole(rgb_images, texts, batch_size)
        return [
            self._segment_tiles(image, text, tile_size, batch_size, progress)
            if max(image.size) > tile_size
            else self._segment_whole([image], [text], batch_size)[0]
            for image, text in zip(rgb_images, texts)
        ]

    def _segment_whole(
        self, images: list[Image.Image], texts: list[str | None], batch_size: int
    ) -> list[Segmentation]:
        batches = (slice(start, start + batch_size) for start in range(0, len(images), batch_size))
        return [result for batch in batches for result in self._segment_batch(images[batch], texts[batch])]

    def _segment_batch(self, images: list[Image.Image], texts: list[str | None]) -> list[Segmentation]:
        maps = self._predict(images, texts)
        return [
            Segmentation(image, probabilities, text, text is not None)
            for image, probabilities, text in zip(images, maps, texts)
        ]

    def _segment_tiles(
        self,
        image: Image.Image,
        text: str | None,
        tile_size: int,
        batch_size: int,
        progress: Callable[[int, int], None] | None,
    ) -> Segmentation:
        tile_text = None if text is None or names_a_place(text) else text
        total, finished = count_tiles(image.size, tile_size), 0

        def predict(tiles: torch.Tensor) -> torch.Tensor:
            nonlocal finished
            crops = [Image.fromarray(tile) for tile in tiles.byte().movedim(1, -1).numpy()]
            maps = np.stack(self._predict(crops, [tile_text] * len(crops)))
            finished += len(crops)
            if progress is not None:
                progress(finished, total)
            return torch.from_numpy(maps).unsqueeze(1)

        pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)
        blended = sliding_window_inference(
            pixels.unsqueeze(0).float(),
            roi_size=(tile_size, tile_size),
            sw_batch_size=batch_size,
            predictor=predict,
            overlap=TILE_OVERLAP,
            mode="gaussian",
            padding_mode="replicate",
        )
        probabilities = torch.as_tensor(blended)[0, 0].numpy()
        return Segmentation(image, probabilities, text, tile_text is not None)

    def _predict(self, images: list[Image.Image], texts: list[str | None]) -> list[np.ndarray]:
        return self._make_maps(self._run_network(images, texts), images)

    @torch.inference_mode()
    def _run_network(
        self, images: list[Image.Image], texts: list[str | None], **kwargs: Any
    ) -> LViTImageSegmentationOutput:
        captions = texts if any(texts) else None
        inputs = self.processor(images=images, text=captions, return_tensors="pt")  # type: ignore[call-arg]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.model(**inputs.to(self.device), **kwargs)

    def _make_maps(self, outputs: LViTImageSegmentationOutput, images: list[Image.Image]) -> list[np.ndarray]:
        """Probability maps of shape `(height, width)`, each at the size of its image."""
        results = self.processor.image_processor.post_process_semantic_segmentation(
            outputs, target_sizes=[image.size[::-1] for image in images], return_segmentation_scores=True
        )
        return [result.segmentation_scores[0].cpu().numpy() for result in results]


def count_tiles(size: tuple[int, int], tile_size: int) -> int:
    """Number of overlapping tiles that cover an image of that size."""
    step = max(int(tile_size * (1 - TILE_OVERLAP)), 1)
    return math.prod(math.ceil(max(side - tile_size, 0) / step) + 1 for side in size)


def load_processor(name: str | os.PathLike) -> tuple[LViTConfig, LViTProcessor]:
    """A checkpoint without its weights.

    Args:
        name: As in `Segmenter.from_pretrained`.

    Raises:
        ValueError: As there.
    """
    with _explained_errors(name):
        path, revision = split_revision(name)
        _check_config(path, revision)
        return LViTConfig.from_pretrained(path, revision=revision), LViTProcessor.from_pretrained(
            path, revision=revision
        )


@contextmanager
def _explained_errors(name: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, HTTPError, SafetensorError, StrictDataclassError) as error:
        if sentence := explain_error(error, split_revision(name)[0]):
            raise ValueError(f"{name} cannot be loaded: {sentence}")
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} is not an LViT checkpoint (a folder, or USER/NAME on the Hub): {reason}")


def _load_checkpoint(path: str, revision: str) -> tuple[LViTForImageSegmentation, LViTProcessor]:
    _check_config(path, revision)
    model, report = LViTForImageSegmentation.from_pretrained(
        path, revision=revision, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"{len(report['missing_keys'])} tensors of the network are missing from its weights.")
    return model, LViTProcessor.from_pretrained(path, revision=revision)


def _check_config(path: str, revision: str):
    if not Path(path).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise ValueError("there is no such folder.")
    config, _ = LViTConfig.get_config_dict(path, revision=revision)
    if config.get("model_type") != LViTConfig.model_type:
        raise ValueError(f"it has no config.json with the model type {LViTConfig.model_type!r}.")
