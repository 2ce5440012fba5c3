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

"""Processor for LViT: an image and its caption, to the tensors the model takes."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs, Unpack
from transformers.tokenization_utils_base import TextInput
from transformers.utils import TensorType

from .image_processing_lvit import LViTImageProcessorKwargs


# The reference implementation fills captions of fewer words with these (its `read_text`).
REFERENCE_MIN_WORDS = 9
REFERENCE_FILLER = "EOF XXX"

# How tables write that a value is missing: Python, numpy and two of pandas.
MISSING = ("None", "nan", "<NA>", "NaT")


class LViTProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    images_kwargs: LViTImageProcessorKwargs
    text_kwargs: TextKwargs


class LViTProcessor(ProcessorMixin):
    r"""
    Wraps an [`LViTImageProcessor`] and the tokenizer of the text tower.

    Args:
        image_processor ([`LViTImageProcessor`]): The image processor.
        tokenizer ([`PreTrainedTokenizerFast`]): The tokenizer of the text tower.
        pad_short_text (`bool`, *optional*, defaults to `False`):
            Whether captions of fewer than nine words are filled up as the reference implementation does, for
            checkpoints converted from it.
    """

    valid_processor_kwargs = LViTProcessorKwargs
    text_kwargs: dict = {"padding": True, "truncation": True}

    def __init__(self, image_processor=None, tokenizer=None, pad_short_text: bool = False, **kwargs):
        self.pad_short_text = pad_short_text
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput | None] | None = None,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[LViTProcessorKwargs],
    ) -> BatchFeature:
        """Prepares images, captions and masks for the model.

        Args:
            images: One image or several, as [`LViTImageProcessor`] takes.
            text: One caption, or one for each image: a list, an array, a column of a table or anything else that can
                be iterated over. `None`, a missing value of a table or a blank string stands for no caption.
            segmentation_maps: As many masks, which become `labels`.
            **kwargs: Settings of the image processor and the tokenizer for this call, and `return_tensors`.

        Returns:
            What [`LViTImageProcessor`] returns of images and masks, and where `text` is given `input_ids`,
            `attention_mask`, `token_type_ids` and `word_ids` of shape `(batch_size, sequence_length)`. `word_ids`
            counts the words from 1 and is 0 for tokens of no word.

        Raises:
            ValueError: If neither images nor text are given, if their numbers differ, or if a caption is no string.
        """
        if images is None and segmentation_maps is not None:
            raise ValueError("segmentation_maps come with images.")
        if images is None and text is None:
            raise ValueError("Give images, text or both.")
        merged = self._merge_kwargs(LViTProcessorKwargs, self.tokenizer.init_kwargs, **kwargs)
        data = {}
        if text is not None:
            data = self._encode_text(text, **merged["text_kwargs"])
        if images is not None:
            features = self.image_processor(images, segmentation_maps, **merged["images_kwargs"])
            if text is not None and len(features["pixel_values"]) != len(data["input_ids"]):
                raise ValueError(
                    f"There must be one caption for each image, got {len(data['input_ids'])} captions for "
                    f"{len(features['pixel_values'])} images."
                )
            data.update(features)
        return BatchFeature(data)

    def _encode_text(
        self, text: TextInput | Iterable[TextInput | None], return_tensors: str | TensorType | None = None, **kwargs
    ) -> dict:
        captions = [self._fill(caption) if caption.strip() else "" for caption in list_captions(text)]
        if not captions:
            raise ValueError("There must be at least one caption, got an empty list.")
        encoding = self.tokenizer(captions, **kwargs)
        encoding["word_ids"] = [
            [0 if word is None else word + 1 for word in encoding.word_ids(row)] for row in range(len(captions))
        ]
        return dict(encoding.convert_to_tensors(return_tensors))

    def _fill(self, caption: str) -> str:
        if not self.pad_short_text:
            return caption
        return caption + f" {REFERENCE_FILLER}" * max(0, REFERENCE_MIN_WORDS - len(caption.split()))

    def post_process_semantic_segmentation(
        self, outputs, target_sizes=None, threshold: float = 0.5, return_segmentation_scores: bool = False
    ) -> list[torch.Tensor] | list:
        """See [`LViTImageProcessor.post_process_semantic_segmentation`]."""
        return self.image_processor.post_process_semantic_segmentation(
            outputs, target_sizes, threshold, return_segmentation_scores
        )

    @property
    def model_input_names(self) -> list[str]:
        return [*self.image_processor.model_input_names, *self.tokenizer.model_input_names, "word_ids"]


def list_captions(text: Any) -> list[str]:
    """The captions of whatever holds them, empty where one is missing."""
    if hasattr(text, "tolist"):  # arrays and columns, also of one value
        text = text.tolist()
    single = isinstance(text, (str, bytes, Mapping)) or not isinstance(text, Iterable)
    return [check_caption(caption) for caption in ([text] if single else text)]


def check_caption(caption: Any) -> str:
    """A caption, empty where it is missing. A word that looks like a missing value is a word."""
    if isinstance(caption, str):
        return caption
    if str(caption) not in MISSING:
        raise ValueError(f"A caption must be a string, or None for no caption, got {caption!r}.")
    return ""


__all__ = ["LViTProcessor"]
