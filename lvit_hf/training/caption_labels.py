"""What a caption head is trained on: the captions that it chooses among, and how frequent they are."""

import logging
from collections.abc import Sequence

import torch

from ..model.captions_lvit import FAMILIES, candidate_captions, parse_caption
from ..model.modeling_lvit import LViTCaptionHead, LViTForImageSegmentation


logger = logging.getLogger(__name__)

# Fields of a configuration without a caption head, and without any: a head is one of certain weights, and others start
# without it.
NO_CAPTIONS: dict[str, list | int] = {"num_captions": 0, "caption_attributes": []}
NO_HEADS = {**NO_CAPTIONS, "scope_kinds": [], "presence_head": False}


def add_caption_head(model: LViTForImageSegmentation, families: Sequence[str]):
    """Gives a model a new caption head for families of captions, in place."""
    attributes = [(family, attribute) for family in families for attribute in FAMILIES[family].attributes]
    stated = [(family, attribute.name, value) for family, attribute in attributes for value in attribute.values]
    captions = [caption for caption, _ in candidate_captions(FAMILIES[family] for family in families)]
    model.config.caption_attributes = [
        {"family": family, "name": attribute.name, "values": list(attribute.values), "multiple": attribute.multiple}
        for family, attribute in attributes
    ]
    model.config.num_captions = len(captions)
    model.config.caption_families = list(dict.fromkeys([*model.config.caption_families, *families]))
    model.caption_head = LViTCaptionHead(model.config)
    for row, caption in zip(model.caption_head.states, captions):
        for name, values in caption.findings[0].items():
            for value in (values,) if isinstance(values, str) else values:
                row[stated.index((caption.family, name, value))] = True


def set_shares(head: LViTCaptionHead, labels: torch.Tensor):
    """Sets the share of images of which each caption is true, in place.

    Each caption is counted once more than it was seen, so that none is held to be impossible. An image of which
    several captions may be true, because its own does not state all, counts for each in part.

    Args:
        head: The caption head.
        labels: Booleans of shape `(number of images, number of captions)`.
    """
    weights = labels / labels.sum(-1, keepdim=True).clamp(min=1)
    counts = weights.sum(0) + 1
    head.shares.copy_(counts / counts.sum())


def used_families(texts: Sequence[str]) -> list[str]:
    """Names of the families of captions, in the order in which they are registered.

    Raises:
        ValueError: If no caption is understood.
    """
    captions = {text: parse_caption(text) for text in set(texts)}
    used = {caption.family for caption in captions.values() if caption is not None}
    if not used:
        raise ValueError(f"No caption belongs to a family that is known ({', '.join(FAMILIES)}).")
    unread = sorted(text for text, caption in captions.items() if caption is None and text)
    if unread:
        logger.warning(f"{len(unread)} distinct captions are not understood and teach nothing, such as {unread[0]!r}.")
    return [family for family in FAMILIES if family in used]
