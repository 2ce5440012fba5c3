# Copyright 2026 The lvit_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Images and captions in, masks and words out: the one place that every way of asking LViT goes through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ImageInput

from .captions_lvit import FAMILIES, CaptionCheck, Reading, read_caption, rewrite_caption
from .image_processing_volumes_lvit import pad_centered
from .modeling_lvit import LViTCaptionHead, LViTForImageSegmentation, LViTImageSegmentationOutput
from .processing_lvit import LViTProcessor
from .sliding_window_lvit import slide_window


NUM_CAPTIONS = 5

BACKGROUND = "background"

# Left and right, top and bottom, rows and columns.
Flips = tuple[bool, bool, bool]

# Flips of the image over which masks are averaged, beside the image as it is. Chests are mirrored but never turned
# over; slides have no upper side.
VIEWS: dict[str | None, list[Flips]] = {
    None: [],
    "mirror": [(True, False, False)],
    "all": list(product((False, True), (False, True), (False, True)))[1:],
}

# Score from which an image is in scope.
IN_SCOPE = 0.5

ON_UNKNOWN = ("ignore", "use", "error")


@dataclass(frozen=True)
class Scope:
    """Whether an image is of a kind that the model was trained on.

    Args:
        in_scope: Whether it is like those images of its kind.
        score: How like them it is, in [0, 1]; in scope from 0.5 on.
        kind: The kind that it is most like.
        scores: The score of each kind that the model knows.
    """

    in_scope: bool
    score: float
    kind: str
    scores: dict[str, float]

    def excludes(self, kind: str) -> bool:
        """Whether the image is of another kind for certain."""
        return self.in_scope and kind != self.kind and self.scores.get(kind, IN_SCOPE) < IN_SCOPE


@dataclass(frozen=True)
class Segmentation:
    """What the model says about one image or volume. Of a volume, maps have its three axes in place of two.

    Args:
        image: The image as the network saw it: upright, 8 bits, at its own size. A volume as it was given.
        scores: Probability in [0, 1] of each label at each pixel, float32 of shape `(num_labels, height, width)`.
        labels: Names of the labels. That of a model with one label says what was found, such as `"polyp"`.
        text: The caption that was given.
        text_used: Whether the mask is that of the caption. A caption that is not understood is not used, and neither
            is one that names a place where an image is segmented in tiles.
        reading: What was understood of the caption.
        described: What the image shows, as [`LViTCaptionHead.decode`] returns it; `None` if it was not asked for or
            the model has no caption head.
        check: Whether a caption that was understood fits the image; `None` where `described` is.
        null_scores: Scores without the caption, of the shape of `scores`, where a caption was used and the image was
            described too.
        scope: Whether the image is of a kind that the model was trained on; `None` where the model has no scope head.
    """

    image: Any
    scores: np.ndarray
    labels: tuple[str, ...]
    text: str | None = None
    text_used: bool = False
    reading: Reading | None = None
    described: dict[str, Any] | None = None
    check: CaptionCheck | None = None
    null_scores: np.ndarray | None = None
    scope: Scope | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """Probability in [0, 1] that a pixel is not background, float32 of shape `(height, width)`."""
        return join_labels(self.scores, self.labels)

    @property
    def null_probabilities(self) -> np.ndarray | None:
        """`probabilities` without the caption."""
        return None if self.null_scores is None else join_labels(self.null_scores, self.labels)

    @property
    def excluded_family(self) -> str | None:
        """The family of the caption, where the image is of another kind for certain and shows nothing of it."""
        caption = self.reading.caption if self.reading is not None and self.reading.understood else None
        if caption is None or not self.text_used or self.scope is None:
            return None
        return caption.family if self.scope.excludes(caption.family) else None

    @property
    def written_caption(self) -> str | None:
        """The likeliest caption by the model."""
        return self.described["captions"][0]["text"] if self.described else None

    def masks(self, threshold: float = 0.5) -> dict[str, np.ndarray]:
        """A mask for each label, booleans of shape `(height, width)`.

        Args:
            threshold: Probability above which a pixel belongs to the mask of a model's only label. Of several labels
                the likeliest has the pixel.
        """
        if len(self.labels) == 1:
            return {self.labels[0]: self.scores[0] > threshold}
        likeliest = self.scores.argmax(0)
        return {label: likeliest == index for index, label in enumerate(self.labels)}

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """What is not background: booleans of shape `(height, width)`."""
        return np.any([mask for label, mask in self.masks(threshold).items() if label != BACKGROUND], axis=0)


def join_labels(scores: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Probability of all labels but the background, of shape `(height, width)`."""
    if len(labels) == 1:
        return scores[0]
    return scores[[index for index, label in enumerate(labels) if label != BACKGROUND]].sum(0)


class LViTSegmenter:
    """A model and its processor, ready to segment images of any size.

    Args:
        model: A model in evaluation mode.
        processor: The processor saved with it.
        network: What is called in place of the model, with its arguments and results: the same weights on another
            runtime. By default the model itself.
    """

    def __init__(
        self,
        model: LViTForImageSegmentation,
        processor: LViTProcessor,
        network: Callable[..., LViTImageSegmentationOutput] | None = None,
    ):
        self.model = model
        self.processor = processor
        self.network = network or model

    @property
    def is_volumetric(self) -> bool:
        """Whether it takes volumes, by `segment_volume`, rather than images."""
        return self.model.config.spatial_dims == 3

    @property
    def can_describe(self) -> bool:
        """Whether the model writes captions and judges those that are given."""
        return self.model.caption_head is not None

    @property
    def head(self) -> LViTCaptionHead:
        """The model's caption head.

        Raises:
            ValueError: If it has none.
        """
        if self.model.caption_head is None:
            raise ValueError("This checkpoint has no caption head; lvit train-captions adds one.")
        return self.model.caption_head

    def to_image(self, image: ImageInput) -> Image.Image:
        """Brings an image to upright 8 bits at its own size: RGB, unless the processor leaves grey images grey.

        Args:
            image: Whatever [`LViTImageProcessor`] takes.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the image is broken, has no pixels or values that are no numbers, or volumes are needed.
        """
        if self.is_volumetric:
            raise ValueError("This checkpoint has three dimensions: it takes volumes, by segment_volume.")
        image_processor = self.processor.image_processor
        pixels = image_processor.process_image(
            image_processor.fetch_images(image), do_convert_rgb=image_processor.do_convert_rgb
        )
        return from_channels(pixels)

    @staticmethod
    def pair(images: Sequence[ImageInput], texts: Sequence[str | None] | None) -> list[tuple[ImageInput, str | None]]:
        """Images and their captions.

        Raises:
            ValueError: If their numbers differ.
        """
        texts = [None] * len(images) if texts is None else texts
        if len(texts) != len(images):
            raise ValueError(f"There must be one caption for each image, got {len(texts)} for {len(images)} images.")
        return list(zip(images, texts))

    def read_text(self, text: str | None, side: str = "image", on_unknown: str = "ignore") -> Reading | None:
        """What a caption says, and what of it the network is given.

        Args:
            text: A caption; `None` and a blank one stand for no caption.
            side: Whose left and right the caption names: `"image"` or `"patient"`.
            on_unknown: What is done with a caption that is not understood, or that speaks of another kind of image
                than the model knows: `"ignore"` it, `"use"` it as it is, or raise an `"error"`.

        Raises:
            ValueError: If the caption is not understood and `on_unknown` is `"error"`, or a setting is not known.
        """
        if on_unknown not in ON_UNKNOWN:
            raise ValueError(f"on_unknown must be one of {', '.join(ON_UNKNOWN)}, got {on_unknown!r}.")
        if text is None or not text.strip():
            return None
        reading = read_caption(text, self.model.config.caption_families, side)
        if reading.understood or not reading.judged or on_unknown == "ignore":
            return reading
        if on_unknown == "error":
            raise ValueError(reading.message)
        return replace(reading, text=text)

    def segment(
        self,
        images: Sequence[ImageInput],
        texts: Sequence[str | None] | None = None,
        *,
        describe: bool = True,
        num_captions: int = NUM_CAPTIONS,
        side: str = "image",
        on_unknown: str = "ignore",
        views: str | None = None,
        batch_size: int = 8,
    ) -> list[Segmentation]:
        """Segments images, each with its caption or with the learned null text.

        Args:
            images: Images as `to_image` takes, of any sizes.
            texts: One caption for each image; `None` and blank ones stand for no caption.
            describe: Whether a model with a caption head writes captions, and says of given ones whether they fit.
                An image with a caption needs a second pass for it.
            num_captions: How many captions to write.
            side, on_unknown: See `read_text`.
            views: `"mirror"` or `"all"`: the mask is the mean over the image as it is and flipped (test-time
                augmentation), each with its caption rewritten for it.
            batch_size: Number of images that go through the network together.

        Raises:
            ValueError: If an image cannot be used, the numbers of images and captions differ, or a setting is not
                known.
        """
        pairs = self.pair(images, texts)
        if views not in VIEWS:
            raise ValueError(f"views must be one of {', '.join(filter(None, VIEWS))}, got {views!r}.")
        readings = [self.read_text(text, side, on_unknown) for _, text in pairs]
        ready = [self.to_image(image) for image, _ in pairs]
        batches = [slice(start, start + batch_size) for start in range(0, len(ready), batch_size)]
        results = [
            result
            for batch in batches
            for result in self._segment_batch(
                ready[batch], readings[batch], num_captions if describe and self.can_describe else 0, VIEWS[views]
            )
        ]
        return [replace(result, text=text or None) for result, (_, text) in zip(results, pairs)]

    @torch.inference_mode()
    def segment_volume(
        self,
        volume: Any,
        text: str | None = None,
        *,
        side: str = "image",
        on_unknown: str = "ignore",
        batch_size: int = 2,
        progress: Callable[[int, int], None] | None = None,
    ) -> Segmentation:
        """Segments a volume of any size with a network of three dimensions, by a window that slides over it.

        Args:
            volume: A nibabel image, an array or a tensor, as [`LViTVolumeProcessor`] takes it.
            text: The caption; `None` and a blank one stand for no caption.
            side, on_unknown: See `read_text`.
            batch_size: Number of windows that go through the network together.
            progress: Called with the numbers of finished and of all windows; what it raises ends the work.

        Returns:
            The result, whose maps have the volume's own shape and order of axes.

        Raises:
            ValueError: If the model takes images, the volume cannot be used, or a setting is not known.
        """
        if not self.is_volumetric:
            raise ValueError("This checkpoint has two dimensions: it takes images, and of a volume slices.")
        image_processor, reading = self.processor.image_processor, self.read_text(text, side, on_unknown)
        array, affine = image_processor.read(volume)
        prepared = image_processor.prepare_array(array, affine)
        padded = pad_centered(prepared, list(map(max, prepared.shape[1:], image_processor.patch_size)))
        predict = self._read_text_once(None if reading is None else reading.text)
        logits = slide_window(padded, image_processor.patch_size, predict, batch_size=batch_size, progress=progress)
        scores = image_processor.restore(image_processor.calibrate(logits[None])[0], affine, array.shape[1:])
        return replace(self.make_result(volume, scores.numpy(), reading), text=text or None)

    def _read_text_once(self, text: str | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network with a caption: from windows to logits, in bfloat16 where the device is a GPU."""
        device, texts = self.model.device, {}
        if text is not None:
            tokens = self.processor(text=[text], return_tensors="pt").to(device)
            texts = dict(zip(("text_embeds", "text_mask"), self.model.lvit.get_text_embeds(**tokens)))

        def predict(windows: torch.Tensor) -> torch.Tensor:
            expanded = {name: tensor.expand(len(windows), *tensor.shape[1:]) for name, tensor in texts.items()}
            with self._autocast():
                outputs = self.network(pixel_values=windows.to(device, self.model.dtype), **expanded)
            return outputs.logits  # type: ignore[return-value]

        return predict

    def _segment_batch(
        self, images: list[Image.Image], readings: list[Reading | None], num_captions: int, views: list[Flips]
    ) -> list[Segmentation]:
        texts = [None if reading is None else reading.text for reading in readings]
        inputs = self.encode(images)
        nothing: list[Any] = [None] * len(images)
        first_texts = nothing if num_captions else texts
        outputs = self.run_network(inputs, first_texts, output_captions=bool(num_captions))
        scores = self.average_views(self.predict, images, first_texts, views, self.restore(outputs, images))
        described = null = nothing
        if num_captions:
            labels, null = self.name_labels(None, None), list(scores)
            presences = [float(join_labels(maps, labels).max()) for maps in null]
            described = self.head.decode(outputs.captions, num_captions, presences)  # type: ignore[arg-type]
            rows = [row for row, text in enumerate(texts) if text is not None]
            own_images, own_texts = [images[row] for row in rows], [texts[row] for row in rows]
            if rows:
                maps = self.restore(self.run_network(take_rows(inputs, rows), own_texts), own_images)
                for row, own in zip(rows, self.average_views(self.predict, own_images, own_texts, views, maps)):
                    scores[row] = own
        results = [self.make_result(*row) for row in zip(images, scores, readings, described, null)]
        return list(map(self.add_scope, results, self.judge(outputs)))

    def judge(self, outputs: LViTImageSegmentationOutput) -> Sequence[Scope | None]:
        """Whether each image of a pass is of a kind that the model knows; `None` each if it has no scope head."""
        if outputs.scope is None:
            return [None] * len(outputs.logits)  # type: ignore[arg-type]
        rows = (1 / (1 + outputs.scope.square())).tolist()
        scopes = []
        for scores in (dict(zip(self.model.config.scope_kinds, row)) for row in rows):
            kind = max(scores, key=scores.__getitem__)
            scopes.append(Scope(scores[kind] >= IN_SCOPE, scores[kind], kind, scores))
        return scopes

    @staticmethod
    def add_scope(result: Segmentation, scope: Scope | None) -> Segmentation:
        """Says of what kind an image is. A finding of which its kind of image shows nothing is not in it."""
        result = replace(result, scope=scope)
        family, reading = result.excluded_family, result.reading
        if family is None or reading is None or scope is None:
            return result
        finding = FAMILIES[family].finding if family in FAMILIES else family
        message = f"There is nothing of the kind ({finding}) in this image, which is one of {scope.kind}."
        reading = replace(reading, message=f"{reading.message} {message}".strip())
        return replace(result, scores=np.zeros_like(result.scores), reading=reading)

    def make_result(
        self,
        image: Image.Image,
        scores: np.ndarray,
        reading: Reading | None,
        described: dict[str, Any] | None = None,
        null: np.ndarray | None = None,
    ) -> Segmentation:
        """Puts together what is known of an image. A finding that its caption denies is not in it."""
        used = reading is not None and (reading.absent or reading.text is not None)
        if reading is not None and reading.absent:
            scores = np.zeros_like(scores)
        check = None
        if described is not None and reading is not None and reading.understood and reading.caption is not None:
            agreement = soft_dice(scores, null) if used and null is not None else None
            check = self.head.check(reading.caption, described, agreement)
        labels = self.name_labels(reading if used else None, described)
        return Segmentation(image, scores, labels, None, used, reading, described, check, null if used else None)

    def name_labels(self, reading: Reading | None, described: dict[str, Any] | None) -> tuple[str, ...]:
        """The model's labels; where there is one, it is named after what the caption speaks of or the image shows."""
        config = self.model.config
        if config.num_labels > 1:
            return tuple(config.id2label[index] for index in range(config.num_labels))
        families = config.caption_families
        family = families[0] if len(families) == 1 else None
        if described is not None:
            family = max(described["families"], key=described["families"].get)
        if reading is not None and reading.caption is not None:
            family = reading.caption.family
        return (FAMILIES[family].finding if family in FAMILIES else config.id2label[0],)

    def average_views(
        self,
        predict: Callable[[list[Image.Image], list[str | None]], list[np.ndarray]],
        images: list[Image.Image],
        texts: list[str | None],
        views: list[Flips],
        maps: list[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """The mean of what `predict` makes of images as they are, if not given as `maps`, and of them flipped."""
        maps = predict(images, texts) if maps is None else maps
        for flips in views:
            flipped = [flip_image(image, flips) for image in images]
            others = predict(flipped, [text and rewrite_caption(text, *flips) for text in texts])
            maps = [total + unflip(other, flips) for total, other in zip(maps, others)]
        return [total / (1 + len(views)) for total in maps]

    def predict(self, images: list[Image.Image], texts: list[str | None]) -> list[np.ndarray]:
        """Scores of shape `(num_labels, height, width)` of images as `to_image` returns them, by one pass."""
        return self.restore(self.run_network(self.encode(images), texts), images)

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """What the network needs to know of images, whatever their captions, for `run_network`.

        Args:
            images: As `to_image` returns them.
        """
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device, self.model.dtype)
        if self.network is self.model:
            with self._autocast():
                inputs["feature_maps"] = self.model.lvit.get_feature_maps(inputs["pixel_values"])
        return dict(inputs)

    @torch.inference_mode()
    def run_network(
        self, inputs: dict[str, Any], texts: Sequence[str | None], **kwargs: Any
    ) -> LViTImageSegmentationOutput:
        """One pass, in bfloat16 where the device is a GPU.

        Args:
            inputs: What `encode` returned.
            texts: For each image the caption as the network is to read it; `None` for the null text.
            **kwargs: Arguments of [`LViTForImageSegmentation.forward`].
        """
        if any(texts):
            inputs = inputs | self.processor(text=list(texts), return_tensors="pt").to(self.model.device)
        with self._autocast():
            return self.network(**inputs, **kwargs)

    def _autocast(self) -> torch.autocast:
        device = self.model.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")

    def restore(self, outputs: LViTImageSegmentationOutput, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Scores of shape `(num_labels, height, width)`, each at the size of its image."""
        results = self.processor.image_processor.post_process_semantic_segmentation(
            outputs, target_sizes=[image.size[::-1] for image in images], return_segmentation_scores=True
        )
        return [result.segmentation_scores.cpu().numpy() for result in results]


def take_rows(inputs: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Some images of what [`LViTSegmenter.encode`] returned."""
    return {
        name: [part[rows] for part in value] if isinstance(value, list) else value[rows]
        for name, value in inputs.items()
    }


def flip(array: np.ndarray, flips: Flips) -> np.ndarray:
    """Transposes, then flips an array `(..., height, width)`, as `rewrite_caption` does with its caption."""
    horizontal, vertical, transpose = flips
    array = array.swapaxes(-1, -2) if transpose else array
    return np.ascontiguousarray(array[..., :: -1 if vertical else 1, :: -1 if horizontal else 1])


def from_channels(channels: np.ndarray) -> Image.Image:
    """A grey or RGB image of 8-bit values `(1 or 3 channels, height, width)`."""
    return Image.fromarray(channels[0] if len(channels) == 1 else np.ascontiguousarray(np.moveaxis(channels, 0, -1)))


def flip_image(image: Image.Image, flips: Flips) -> Image.Image:
    """`flip` of a grey or RGB image."""
    return from_channels(flip(np.moveaxis(np.atleast_3d(np.asarray(image)), -1, 0), flips))


def unflip(maps: np.ndarray, flips: Flips) -> np.ndarray:
    """Undoes `flip` on the last two axes of maps `(..., height, width)`."""
    horizontal, vertical, transpose = flips
    maps = maps[..., :: -1 if vertical else 1, :: -1 if horizontal else 1]
    return maps.swapaxes(-1, -2) if transpose else maps


def soft_dice(first: np.ndarray, second: np.ndarray) -> float:
    """Overlap of two probability maps in [0, 1]: 1 where they are equal, or both 0 everywhere."""
    total = np.square(first).sum() + np.square(second).sum()
    return float(2 * (first * second).sum() / total) if total else 1.0


__all__ = ["LViTSegmenter", "Scope", "Segmentation"]
