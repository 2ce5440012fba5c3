"""A tiny model that writes captions."""

import torch
from tiny_lvit import tiny_model
from torch import nn

from lvit_hf import LViTForImageSegmentation
from lvit_hf.training.caption_labels import add_caption_head


def captioning_model(*families: str, **kwargs) -> LViTForImageSegmentation:
    """A model in evaluation mode whose captions of noise differ from image to image."""
    model = tiny_model(**kwargs)
    torch.manual_seed(0)
    add_caption_head(model, families)
    nn.init.normal_(model.caption_head.bias)
    return model.eval()
