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

"""Pipeline for text-guided image segmentation: images and captions in, masks out."""

import os
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.image_utils import ChannelDimension
from transformers.pipelines import Pipeline
from transformers.utils import ModelOutput


TASK = "text-guided-image-segmentation"

IMAGE_TYPES = (str, os.PathLike, Image.Image, np.ndarray, torch.Tensor)


class LViTPipeline(Pipeline):
    """
    Text-guided image segmentation with an [`LViTForImageSegmentation`] and an [`LViTProcessor`].

    Example:

    ```python
    >>> from transformers import pipeline

    >>> segmenter = pipeline(
    ...     "text-guided-image-segmentation", model="checkpoints/lvit-small-joint", trust_remote_code=True
    ... )
    >>> segments = segmenter("chest-xray.png", text="one infected area, lower left lung")
    >>> segments[0]["mask"].save("mask.png")
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

    def __call__(self, image: Any, text: str | list[str | None] | None = None, **kwargs: Any) -> Any:
        """
        Segments images, each with the help of a caption.

        Args:
            image: An image as [`LViTImageProcessor`] takes it (PIL image, path, URL, array or tensor), a dictionary
                `{"image": ..., "text": ...}`, or a list, iterator or dataset of either.
            text: A caption for every image that is not in a dictionary with its own, or, with a list of images, a list
                of captions, one for each. `None` or an empty string stands for no caption.
            predict_text (`bool`, *optional*, defaults to `True`):
                Whether an image without a caption is segmented with the one that the model's caption head writes;
                without a head, or with `False`, with the learned null text.
            threshold (`float`, *optional*, defaults to 0.5):
                Probability above which a pixel belongs to the mask; read where the model has one label.
            batch_size (`int`, *optional*, defaults to 1):
                Number of images that go through the model together. The image processor must bring them to one size.

        Returns:
            For one image a list of dictionaries, one for the model's only label or, of several labels, one for each
            that is present. For a list of images a list of such lists, for an iterator or dataset an iterator of them:

            - **label** (`str`) -- the name of the label in the model's configuration.
            - **score** (`float`) -- the mean probability of the label over the mask, in [0, 1]; 0.0 for an empty one.
            - **mask** (`PIL.Image.Image`) -- of mode `"L"`, 255 inside and 0 outside, of the upright image's size.
            - **text** (`str` or `None`) -- the caption used.
            - **predicted** (`dict`, only where the model wrote the caption) -- its `captions`, `families` and
              `attributes` with their probabilities, as [`LViTCaptionHead.decode`] returns them.

        Raises:
            ValueError: If texts and images do not fit each other, or an image, a text or the threshold is not valid;
                the message says what was given and what is expected.
        """
        inputs = _as_inputs(image)
        if isinstance(text, (list, tuple)):
            inputs, text = _pair(inputs, text), None
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, text=text, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any):
        """Saves model and processor, with the code that loads them and this pipeline."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self, text: str | None = None, threshold: float | None = None, predict_text: bool | None = None
    ):
        preprocess_params = {} if text is None else {"text": text}
        forward_params = {} if predict_text is None else {"predict_text": predict_text}
        postprocess_params = {} if threshold is None else {"threshold": threshold}
        if threshold is not None and not (isinstance(threshold, Real) and 0 <= threshold <= 1):
            raise ValueError(f"threshold must be a number between 0 and 1, got {threshold!r}.")
        return preprocess_params, forward_params, postprocess_params

    def preprocess(self, inputs: Any, text: str | None = None) -> dict[str, Any]:
        image, text = _unpack(inputs, text)
        image_processor = self.processor.image_processor
        # Decoded and turned upright here, so that the masks get the size of what the model sees.
        pixels = image_processor.process_image(
            image_processor.fetch_images(image), do_convert_rgb=image_processor.do_convert_rgb
        )
        model_inputs = self.processor(
            images=pixels, text=text or "", input_data_format=ChannelDimension.FIRST, return_tensors="pt"
        )
        model_inputs["pixel_values"] = model_inputs["pixel_values"].to(self.dtype)
        return {**model_inputs, "target_size": [pixels.shape[-2:]], "text": text}

    def _forward(self, model_inputs: dict[str, Any], predict_text: bool = True) -> ModelOutput:
        target_size, text = model_inputs.pop("target_size"), model_inputs.pop("text")
        is_batch = isinstance(text, list)
        texts = text if is_batch else [text]
        predicted: list[dict[str, Any] | None] = [None] * len(texts)
        if predict_text and self.model.caption_head is not None and None in texts:
            described = self.model.caption_head.decode(self.model.predict_captions(model_inputs["pixel_values"]))
            predicted = [None if given else row for given, row in zip(texts, described)]
            texts = [row["captions"][0]["text"] if row else given for given, row in zip(texts, predicted)]
            model_inputs |= self.processor(text=texts, return_tensors="pt").to(self.device)
        return ModelOutput(
            logits=self.model(**model_inputs).logits,
            target_size=target_size,
            text=texts if is_batch else texts[0],
            predicted=predicted if is_batch else predicted[0],
        )

    def postprocess(self, model_outputs: ModelOutput, threshold: float = 0.5) -> list[dict[str, Any]]:
        predicted = model_outputs.get("predicted")  # transformers drops a None
        result = self.processor.post_process_semantic_segmentation(
            model_outputs, model_outputs["target_size"], threshold=threshold, return_segmentation_scores=True
        )[0]
        if len(result.segmentation_scores) == 1:
            masks = {0: result.segmentation == 1}
        else:
            masks = {index: result.segmentation == index for index in result.segmentation.unique().tolist()}
        return [
            {
                "label": self.model.config.id2label[index],
                "score": result.segmentation_scores[index][mask].mean().item() if mask.any() else 0.0,
                "mask": Image.fromarray(mask.numpy().astype(np.uint8) * 255),
                "text": model_outputs["text"],
                **({"predicted": predicted} if predicted else {}),
            }
            for index, mask in masks.items()
        ]


def _as_inputs(images: Any) -> Any:
    """Several images as the list or the generator that `Pipeline` expects; one image or a dictionary as it is."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4:
        return list(images)
    if isinstance(images, Iterable) and not isinstance(images, (*IMAGE_TYPES, dict, Dataset)):
        return (item for item in images)
    return images


def _pair(images: Any, texts: list[str | None] | tuple[str | None, ...]) -> list[dict[str, Any]]:
    if not isinstance(images, list):
        raise ValueError(
            'A list of texts needs a list of images. Give one text with one image, and dictionaries with "image" and '
            '"text" in an iterator or a dataset.'
        )
    if len(images) != len(texts):
        raise ValueError(f"There must be one text for each image, got {len(texts)} texts for {len(images)} images.")
    return [{"image": image, "text": text} for image, text in zip(images, texts)]


def _unpack(inputs: Any, text: str | None) -> tuple[Any, str | None]:
    """Image and caption of one input; `text` is the caption of inputs without their own."""
    image = inputs
    if isinstance(inputs, dict):
        if "image" not in inputs or inputs.keys() - {"image", "text"}:
            raise ValueError(f'A dictionary must have "image" and may have "text", got the keys {list(inputs)}.')
        image, text = inputs["image"], inputs.get("text", text)
    if not isinstance(image, IMAGE_TYPES):
        raise ValueError(f"An image must be a PIL image, a path, a URL, an array or a tensor, got {type(image)}.")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"A text must be a string, or None for no text, got {type(text)}.")
    return image, text if text and text.strip() else None


__all__ = ["LViTPipeline"]
