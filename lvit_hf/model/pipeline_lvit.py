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
"""Pipeline for text-guided image segmentation: images or volumes and captions in, masks out."""

import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.pipelines import Pipeline

from .image_processing_lvit import check_kind, check_threshold, holds_several
from .processing_lvit import check_caption, list_captions
from .segmenter_lvit import LViTSegmenter, Segmentation


class LViTPipeline(Pipeline):
    """
    Text-guided image segmentation with an [`LViTForImageSegmentation`] and an [`LViTProcessor`].

    Example:

    ```python
    >>> from transformers import pipeline

    >>> segmenter = pipeline(
    ...     "text-guided-image-segmentation", model="checkpoints/lvit-small", trust_remote_code=True
    ... )
    >>> segments = segmenter("chest-xray.png", text="one infected area, lower left lung")
    >>> segments[0]["mask"].save("mask.png")
    ```

    A model of three dimensions takes volumes of any size:

    ```python
    >>> [segment] = segmenter(nibabel.load("scan.nii.gz"), text="the anterior hippocampus")
    >>> nibabel.save(nibabel.Nifti1Image(segment["mask"], segment["affine"]), "mask.nii.gz")
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.check_model_type(["LViTForImageSegmentation"])
        # `pipeline` loads weights as they are stored, and few CPUs compute in half precision.
        if self.model.device.type == "cpu" and self.model.dtype == torch.float16:
            self.model.float()
        self.segmenter = LViTSegmenter(self.model, self.processor)

    def __call__(self, image: Any, text: str | list[str | None] | None = None, **kwargs: Any) -> Any:
        """
        Segments images, each with the help of a caption.

        Args:
            image: An image as [`LViTImageProcessor`] takes it (PIL image, path, URL, array or tensor), a dictionary
                `{"image": ..., "text": ...}`, or a list, array, column of a table, iterator or dataset of either. What
                else a row of a data set has is left out. Where the model has three dimensions a volume as
                [`LViTVolumeProcessor`] takes it (nibabel image, array or tensor) in its place.
            text: A caption for every image that is not in a dictionary with its own, or, with a list of images, a list
                of captions, one for each. `None` or an empty string stands for no caption: the mask is that of the
                learned null text.
            side (`str`, *optional*, defaults to `"image"`):
                Whose left and right captions name: `"image"`, or `"patient"` for a frontal chest image.
            on_unknown (`str`, *optional*, defaults to `"ignore"`):
                What is done with a caption that is not understood: `"ignore"`, `"use"` or `"error"`.
            describe (`bool`, *optional*, defaults to `True`):
                Whether a model with a caption head writes a caption, and says of a given one if it fits the image.
            threshold (`float`, *optional*, defaults to 0.5):
                Probability above which a pixel belongs to the mask; read where the model has one label.
            batch_size (`int`, *optional*, defaults to 1):
                Number of images that go through the model together.

        Returns:
            For one image a list of dictionaries, one for the model's only label or, of several labels, one for each
            that is present. For a list of images a list of such lists, for an iterator or dataset an iterator of them:

            - **label** (`str`) -- what the mask shows.
            - **score** (`float`) -- the mean probability of the label over the mask, in [0, 1]; 0.0 for an empty one.
            - **mask** (`PIL.Image.Image`) -- of mode `"L"`, 255 inside and 0 outside, of the upright image's size. Of
              a volume a `numpy.ndarray` of `uint8`, 1 inside and 0 outside, of the volume's own shape and order of
              axes.
            - **affine** (`numpy.ndarray`, only of a volume) -- from the indices of the mask to mm in RAS+ space, of
              shape `(4, 4)`.
            - **text** (`str` or `None`) -- the caption that was given.
            - **text_used** (`bool`) -- whether the mask is that of the caption.
            - **reading** (`dict`, only where a caption was given) -- the fields of `Reading`: what was understood.
            - **scope** (`dict`, only where the model has a scope head) -- the fields of `Scope`: whether the image is
              of a kind that the model was trained on.
            - **predicted** (`dict`, only where the model wrote captions) -- its `captions`, the likeliest first, its
              `families` and its `attributes` with their probabilities, as [`LViTCaptionHead.decode`] returns them.
            - **consistency** (`dict`, only where a given caption was checked) -- the fields of `CaptionCheck`.

        Raises:
            ValueError: If texts and images do not fit each other, or an image, a text or a setting is not valid;
                the message says what was given and what is expected.
        """
        if isinstance(text, Iterable) and not isinstance(text, (str, bytes, dict)):
            inputs, text = _pair(image, list_captions(text)), None
        else:
            inputs = _as_inputs(image)
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, text=text, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """Saves model and processor, with the code that loads them and this pipeline."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(self, text: str | None = None, threshold: float | None = None, **settings: Any):
        unknown = settings.keys() - {"side", "on_unknown", "describe"}
        if unknown:
            raise ValueError(f"There is no setting {', '.join(sorted(unknown))} of this pipeline.")
        preprocess_params = {} if text is None else {"text": text}
        return preprocess_params, settings, {} if threshold is None else {"threshold": check_threshold(threshold)}

    def preprocess(self, inputs: Any, text: str | None = None) -> dict[str, Any]:
        image, text = _unpack(inputs, text)
        if self.segmenter.is_volumetric:
            # Tensors would be padded to one shape and joined to a batch.
            return {"image": image.numpy(force=True) if isinstance(image, torch.Tensor) else image, "text": text}
        check_kind(image)
        return {"image": self.segmenter.to_image(image), "text": text}

    def _forward(self, model_inputs: dict[str, Any], **settings: Any) -> dict[str, Any]:
        images, texts = model_inputs["image"], model_inputs["text"]
        is_batch = isinstance(images, list)
        if not is_batch:
            images, texts = [images], [texts]
        if self.segmenter.is_volumetric:
            settings.pop("describe", None)
            results = [self.segmenter.segment_volume(*pair, **settings) for pair in zip(images, texts)]
        else:
            results = self.segmenter.segment(images, texts, batch_size=len(images), **settings)
        return {"result": results if is_batch else results[0]}

    def postprocess(self, model_outputs: dict[str, Any], threshold: float = 0.5) -> list[dict[str, Any]]:
        result: Segmentation = model_outputs["result"]
        notes: dict[str, Any] = {"text": result.text, "text_used": result.text_used}
        if result.reading is not None:
            notes["reading"] = asdict(result.reading)
        if result.scope is not None:
            notes["scope"] = asdict(result.scope)
        if result.described is not None:
            notes["predicted"] = {name: result.described[name] for name in ("captions", "families", "attributes")}
        if result.check is not None:
            notes["consistency"] = asdict(result.check)
        if self.segmenter.is_volumetric:
            notes["affine"] = self.processor.image_processor.read(result.image)[1]
        return [
            {
                "label": label,
                "score": float(scores[mask].mean()) if mask.any() else 0.0,
                "mask": mask.astype(np.uint8) if mask.ndim == 3 else Image.fromarray(mask.astype(np.uint8) * 255),
                **notes,
            }
            for scores, (label, mask) in zip(result.scores, result.masks(threshold).items())
            if mask.any() or len(result.labels) == 1
        ]


def _as_inputs(images: Any) -> Any:
    """Several images as the list or the generator that `Pipeline` expects; one image or a dictionary as it is."""
    is_batch = getattr(images, "ndim", None) == 4 and not hasattr(images, "dataobj")  # and no volume of nibabel
    if isinstance(images, (list, tuple)) or is_batch:
        return list(images)
    if isinstance(images, Dataset) or not holds_several(images):
        return images
    return list(images) if hasattr(images, "tolist") else (item for item in images)  # arrays and columns of tables


def _pair(images: Any, texts: list[str]) -> Any:
    inputs = _as_inputs(images)
    if inputs is images or not hasattr(images, "__len__"):
        raise ValueError(
            'A list of texts needs a list of images. Give one text with one image, and dictionaries with "image" and '
            '"text" in an iterator or a dataset.'
        )
    if len(images) != len(texts):
        raise ValueError(f"There must be one text for each image, got {len(texts)} texts for {len(images)} images.")
    pairs = ({"image": image, "text": text} for image, text in zip(inputs, texts))
    return list(pairs) if isinstance(inputs, list) else pairs


def _unpack(inputs: Any, text: str | None) -> tuple[Any, str | None]:
    """Image and caption of one input; `text` is the caption of inputs without their own."""
    image = inputs
    if isinstance(inputs, dict):
        # What a row of a data set has beside them is none of ours, but a caption by another name would be lost.
        if "image" not in inputs or text is None and "text" not in inputs and len(inputs) > 1:
            raise ValueError(f'A dictionary must have "image" and may have "text", got the keys {list(inputs)}.')
        image, text = inputs["image"], inputs.get("text", text)
    text = check_caption(text)
    return image, text if text.strip() else None


__all__ = ["LViTPipeline"]
