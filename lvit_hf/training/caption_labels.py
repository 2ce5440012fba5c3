"""What a caption head is trained on: the captions that it chooses among, and which of them are true of an image."""

import logging
from collections.abc import Sequence

import torch

from ..model.captions_lvit import FAMILIES, candidate_captions, parse_caption
from ..model.configuration_lvit import LViTConfig
from ..model.modeling_lvit import LViTCaptionHead, LViTForImageSegmentation
from ..model.pipeline_lvit import match_captions


logger = logging.getLogger(__name__)

# Fields of a configuration without a caption head: a head is one of certain weights, and others start without it.
NO_CAPTIONS: dict[str, list | dict] = {"captions": [], "caption_attributes": [], "consistency_weights": {}}


def caption_fields(families: Sequence[str]) -> dict[str, list[dict]]:
    """Writes the schemas of families as the fields `caption_attributes` and `captions` of `LViTConfig`."""
    attributes = [(family, attribute) for family in families for attribute in FAMILIES[family].attributes]
    keys = [(family, attribute.name, value) for family, attribute in attributes for value in attribute.values]
    numbers = {key: number for number, key in enumerate(keys)}
    captions = []
    for caption, text in candidate_captions(FAMILIES[family] for family in families):
        stated = [(name, value) for name, values in caption.findings[0].items() for value in _as_tuple(values)]
        values = sorted(numbers[caption.family, *pair] for pair in stated)
        captions.append({"text": text, "values": values, "share": 0.0})
    return {
        "caption_attributes": [
            {
                "family": family,
                "name": attribute.name,
                "values": list(attribute.values),
                "multiple": attribute.multiple,
            }
            for family, attribute in attributes
        ],
        "captions": captions,
    }


def _as_tuple(values: str | tuple[str, ...]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else values


class CaptionLabels:
    """Which of the captions of a configuration are true of an image, by the caption that it has.

    Args:
        config: A configuration with captions that this package can read.
    """

    def __init__(self, config: LViTConfig):
        self.config = config
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, text: str) -> torch.Tensor:
        """Booleans of shape `(number of captions,)`; all `False` where the caption is not understood."""
        if text not in self.known:
            caption = parse_caption(text)
            nothing = torch.zeros(len(self.config.captions), dtype=torch.bool)
            self.known[text] = nothing if caption is None else match_captions(caption, self.config)
        return self.known[text]


def set_shares(config: LViTConfig, labels: torch.Tensor):
    """Sets the share of images of which each caption is true, in place.

    Each caption is counted once more than it was seen, so that none is held to be impossible. An image of which
    several captions may be true, because its own does not state all, counts for each in part.

    Args:
        config: The configuration.
        labels: Booleans of shape `(number of images, number of captions)`.
    """
    weights = labels / labels.sum(-1, keepdim=True).clamp(min=1)
    counts = weights.sum(0) + 1
    for caption, share in zip(config.captions, (counts / counts.sum()).tolist()):
        caption["share"] = share


def used_families(texts: Sequence[str]) -> list[str]:
    """Names of the families of captions, in the order in which they are registered.

    Raises:
        ValueError: If no caption is understood.
    """
    captions = [parse_caption(text) for text in set(texts)]
    used = {caption.family for caption in captions if caption is not None}
    if not used:
        raise ValueError(f"No caption belongs to a family that is known ({', '.join(FAMILIES)}).")
    unread = sorted(text for text, caption in zip(set(texts), captions) if caption is None and text)
    if unread:
        logger.warning(f"{len(unread)} distinct captions are not understood and teach nothing, such as {unread[0]!r}.")
    return [family for family in FAMILIES if family in used]


def add_caption_head(model: LViTForImageSegmentation, families: Sequence[str]):
    """Gives a model a new caption head for families of captions, in place."""
    for name, value in caption_fields(families).items():
        setattr(model.config, name, value)
    model.caption_head = LViTCaptionHead(model.config)
