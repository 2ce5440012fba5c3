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

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.image_utils import ChannelDimension
from transformers.pipelines import Pipeline
from transformers.utils import ModelOutput

from .captions_lvit import Caption, CaptionCheck, Finding


TASK = "text-guided-image-segmentation"

IMAGE_TYPES = (str, os.PathLike, Image.Image, np.ndarray, torch.Tensor)


# Captions over which the mask of an image without one is averaged: better than the likeliest alone (docs/text.md).
NUM_CAPTIONS = 5

# Agreement below which an attribute is named as one that does not fit.
AGREEMENT = 0.5

# Probabilities are kept this far from 0, so that their logarithms stay finite.
TINY = 1e-6

# What speaks for or against a caption: the caption head, and three ways in which a mask moves with it.
EVIDENCE = ("caption", "shift", "support", "doubt")

# Weights with which the caption head alone decides whether a caption fits.
HEAD_ALONE = {"bias": 0.0, "caption": 1.0}


def list_captions(config: Any) -> list[Caption]:
    """What each of `config.captions` states."""
    keys = [
        (attribute["family"], attribute["name"], value)
        for attribute in config.caption_attributes
        for value in attribute["values"]
    ]
    captions = []
    for caption in config.captions:
        stated = [keys[number] for number in caption["values"]]
        finding: dict[str, str | tuple[str, ...]] = {}
        for attribute in config.caption_attributes:
            values = tuple(value for *owner, value in stated if owner == [attribute["family"], attribute["name"]])
            if attribute["multiple"] and attribute["family"] == stated[0][0]:
                finding[attribute["name"]] = values
            elif values:
                finding[attribute["name"]] = values[0]
        captions.append(Caption(stated[0][0], (finding,)))
    return captions


def find_caption(text: str, config: Any) -> Caption | None:
    """The one of `config.captions` that reads like a text but for case, space and punctuation."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    for caption, stated in zip(config.captions, list_captions(config)):
        if re.findall(r"[a-z0-9]+", caption["text"].lower()) == words:
            return stated
    return None


def match_captions(caption: Caption, config: Any) -> torch.Tensor:
    """Which of `config.captions` state all that a caption states of one of its objects.

    Returns:
        Booleans of shape `(len(config.captions),)`.
    """
    return torch.tensor(
        [caption.family == other.family and caption.agrees_with(other.findings[0]) for other in list_captions(config)]
    )


def check_caption(
    caption: Caption | None,
    described: dict[str, Any],
    config: Any,
    masks: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> CaptionCheck:
    """Compares a caption with what its image shows.

    The score is the probability that the logistic regression of `config.consistency_weights` gives. Without masks, or
    for a family that has no weights, it is what the caption head alone says.

    Args:
        caption: What the caption states; `None` if nothing is understood of it.
        described: What the image shows, as [`LViTCaptionHead.decode`] returns it.
        config: The model's configuration.
        masks: Probabilities of foreground with the caption and with the null text, if the caption was read.
    """
    agreement = None if masks is None else soft_dice(*masks)
    if caption is None or not caption.findings or caption.family not in described["families"]:
        return CaptionCheck(False, None, (), () if caption is None else tuple(caption.unknown_words), agreement)
    evidence = {"caption": weigh_caption(caption, described, config)}
    weights = None
    if masks is not None:
        evidence |= compare_masks(*masks)
        weights = config.consistency_weights.get(caption.family)
    # Of several objects the one that fits best: the head speaks of one.
    _, disagreements = max(
        (_compare(caption.family, finding, described) for finding in caption.findings), key=lambda pair: pair[0]
    )
    return CaptionCheck(
        understood=True,
        score=score_evidence(evidence, weights or HEAD_ALONE),
        disagreements=disagreements,
        unknown_words=tuple(caption.unknown_words),
        mask_agreement=agreement,
        evidence=evidence,
    )


def weigh_caption(caption: Caption, described: dict[str, Any], config: Any) -> float:
    """Logarithm of how much likelier what a caption states is for its image than for any of the training images.

    Args:
        caption: What the caption states.
        described: What the image shows, as [`LViTCaptionHead.decode`] returns it.
        config: The model's configuration.

    Returns:
        0 where the image says no more than the share of captions. The logarithm of `TINY`, the least, where no caption
        that the model knows states as much.
    """
    matches = match_captions(caption, config)
    probability = float(described["probabilities"][matches].sum())
    share = sum(other["share"] for other, matched in zip(config.captions, matches.tolist()) if matched)
    return math.log(max(probability, TINY) / (share or 1.0))


def compare_masks(with_text: torch.Tensor, without: torch.Tensor) -> dict[str, float]:
    """What a caption did to the mask, by the probabilities of foreground with it and with the null text.

    Returns:
        - **shift** -- Kullback-Leibler divergence of the two, in nats per pixel, at least 0.
        - **support** -- the mean probability without text where the mask with text lies, in [0, 1].
        - **doubt** -- entropy that the text added, in nats per pixel; below 0 where it made the network surer.
    """
    after, before = (maps.float().clamp(TINY, 1 - TINY) for maps in (with_text, without))
    cross_entropy, entropy_after, entropy_before = (
        -(first * second.log() + (1 - first) * (1 - second).log()).mean().item()
        for first, second in ((after, before), (after, after), (before, before))
    )
    return {
        "shift": cross_entropy - entropy_after,
        "support": ((after * before).sum() / after.sum()).item(),
        "doubt": entropy_after - entropy_before,
    }


def score_evidence(evidence: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The probability in [0, 1] by a logistic regression with a `bias` and a weight for each kind of evidence."""
    logit = weights["bias"] + sum(weight * evidence[name] for name, weight in weights.items() if name != "bias")
    return 1 / (1 + math.exp(-logit))


def _compare(family: str, finding: Finding, described: dict[str, Any]) -> tuple[float, tuple[str, ...]]:
    """Mean agreement over the attributes that a finding states, and sentences about those that do not agree."""
    agreements, sentences = [], []
    for attribute in described["attributes"]:
        if attribute["family"] != family or attribute["name"] not in finding:
            continue
        stated, values = finding[attribute["name"]], attribute["values"]
        if isinstance(stated, str):
            agreement, likeliest = values[stated], max(values, key=values.get)
            probability = values[likeliest]
        else:
            # A value that is not stated is denied, and one that is wrong is enough.
            all_agree = [values[v] if v in stated else described["families"][family] - values[v] for v in values]
            agreement = min(all_agree)
            shown = [value for value in values if values[value] > AGREEMENT]
            likeliest = " and ".join(shown) or "none"
            probability = float(np.prod([max(values[value], 1 - values[value]) for value in values]))
            stated = " and ".join(stated) or "none"
        agreements.append(agreement)
        if agreement < AGREEMENT and likeliest != stated:
            sentences.append(
                f"{attribute['name']}: the caption says {stated}, the image speaks for {likeliest} ({probability:.2f})"
            )
    if described["families"][family] < AGREEMENT:
        other = max(described["families"], key=described["families"].get)
        sentences = [f"the caption speaks of {family}, the image of {other} ({described['families'][other]:.2f})"]
    return float(np.mean(agreements)), tuple(sentences)


def soft_dice(first: torch.Tensor, second: torch.Tensor) -> float:
    """Overlap of two probability maps in [0, 1]: 1 where they are equal, or both 0 everywhere."""
    total = (first.square() + second.square()).sum()
    return float(2 * (first * second).sum() / total) if total else 1.0


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
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    # Reads what captions state, in more words than those of `config.captions`: the package lvit_hf puts its parser
    # here.
    caption_parser: ClassVar[Callable[[str], Any] | None] = None

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
            describe (`bool`, *optional*, defaults to `True`):
                Whether a model with a caption head writes a caption for an image without one, and says of a given one
                if it fits the image.
            num_captions (`int`, *optional*, defaults to 5):
                The mask of an image without a caption is the mean of those with its likeliest captions, as many as
                this, weighted by their probability; for all others stands the learned null text. With 0, or without a
                caption head, it is that of the null text alone.
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
            - **text** (`str` or `None`) -- the caption used; the likeliest, where the model wrote several.
            - **predicted** (`dict`, only where the model wrote a caption) -- its `captions`, the likeliest first, its
              `families` and its `attributes` with their probabilities, as [`LViTCaptionHead.decode`] returns them.
            - **consistency** (`dict`, only where a given caption was checked) -- the fields of `CaptionCheck`.

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
        self,
        text: str | None = None,
        threshold: float | None = None,
        describe: bool | None = None,
        num_captions: int | None = None,
    ):
        preprocess_params = {} if text is None else {"text": text}
        forward = {"describe": describe, "num_captions": num_captions}
        forward_params = {name: value for name, value in forward.items() if value is not None}
        postprocess_params = {} if threshold is None else {"threshold": threshold}
        if threshold is not None and not (isinstance(threshold, Real) and 0 <= threshold <= 1):
            raise ValueError(f"threshold must be a number between 0 and 1, got {threshold!r}.")
        if num_captions is not None and not (isinstance(num_captions, int) and num_captions >= 0):
            raise ValueError(f"num_captions must be a number of captions, 0 for none, got {num_captions!r}.")
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

    def _forward(
        self, model_inputs: dict[str, Any], describe: bool = True, num_captions: int = NUM_CAPTIONS
    ) -> ModelOutput:
        target_size, text = model_inputs.pop("target_size"), model_inputs.pop("text")
        given = text if isinstance(text, list) else [text]
        head, num_captions = self.model.caption_head, min(num_captions, len(self.model.config.captions))
        asked = [head is not None and (describe or (num_captions > 0 and not caption)) for caption in given]
        # One pass without text says what the images show, and what their masks are without a caption.
        null = self.model(pixel_values=model_inputs["pixel_values"], output_captions=True) if any(asked) else None
        described = [{}] * len(given) if null is None else head.decode(null.captions, max(num_captions, 1))
        used = [
            row["captions"][:num_captions] if num_captions and not caption else [{"text": caption}]
            for caption, row in zip(given, described)
        ]
        texts = [captions[0]["text"] for captions in used]
        logits = self._segment(model_inputs, used, null) if null is None or any(texts) else null.logits
        null_logits = logits if null is None else null.logits
        maps = map(self.processor.image_processor.calibrate, (logits, null_logits))
        rows = zip(given, asked, described, *maps)
        notes = [self._note(caption, row, *maps) if ask else {} for caption, ask, row, *maps in rows]
        return ModelOutput(
            logits=logits,
            target_size=target_size,
            text=texts if isinstance(text, list) else texts[0],
            notes=notes if isinstance(text, list) else notes[0],
        )

    def _segment(
        self, model_inputs: dict[str, Any], used: list[list[dict[str, Any]]], null: ModelOutput | None
    ) -> torch.Tensor:
        """Logits of each image with its caption, or of the mean over the captions that were written for it."""
        if null is None or not any("probability" in captions[0] for captions in used):  # all were given
            return self.model(**model_inputs).logits
        counts = [len(captions) for captions in used]
        texts = [caption["text"] for captions in used for caption in captions]
        pixel_values = model_inputs["pixel_values"]
        inputs = self.processor(text=texts, return_tensors="pt").to(self.device)
        inputs["pixel_values"] = pixel_values.repeat_interleave(
            torch.tensor(counts, device=pixel_values.device), dim=0
        )
        image_processor = self.processor.image_processor
        maps = image_processor.calibrate(self.model(**inputs).logits).split(counts)
        without = image_processor.calibrate(null.logits)
        return image_processor.uncalibrate(torch.stack([mean_over_captions(*row) for row in zip(maps, without, used)]))

    def _note(
        self, caption: str | None, described: dict[str, Any], with_text: torch.Tensor, without: torch.Tensor
    ) -> dict[str, Any]:
        """What the model says of a caption: the one that it wrote itself, or how a given one fits its image."""
        if caption is None:
            return {"predicted": {name: described[name] for name in ("captions", "families", "attributes")}}
        config, parse = self.model.config, type(self).caption_parser
        stated = find_caption(caption, config) if parse is None else parse(caption)
        return {"consistency": asdict(check_caption(stated, described, config, (with_text, without)))}

    def postprocess(self, model_outputs: ModelOutput, threshold: float = 0.5) -> list[dict[str, Any]]:
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
                **model_outputs.get("notes", {}),
            }
            for index, mask in masks.items()
        ]


def mean_over_captions(maps: Iterable[Any], without: Any, captions: list[dict[str, Any]]) -> Any:
    """An image's probabilities when its caption is uncertain: each caption's map, weighted by its probability.

    Args:
        maps: Probabilities with each caption, arrays or tensors of one shape.
        without: Those with the null text, which stands for all captions that are not named.
        captions: One for each map, with its `probability`; a caption that was given has none, and is certain.

    Returns:
        Probabilities of the same shape.
    """
    weights = [caption.get("probability", 1.0) for caption in captions]
    named = sum(weight * probabilities for weight, probabilities in zip(weights, maps))
    return named + max(0.0, 1 - sum(weights)) * without


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
