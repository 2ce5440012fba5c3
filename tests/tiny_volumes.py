"""A network of three dimensions and its processor that are made in no time."""

import torch
from tiny_lvit import VOCABULARY, tiny_config
from transformers import BertTokenizer

from lvit_hf import LViTForImageSegmentation, LViTProcessor, LViTVolumeProcessor


PATCH = [8, 16, 8]


@torch.no_grad()
def tiny_volume_model(**kwargs) -> LViTForImageSegmentation:
    """A model in evaluation mode whose masks of noise are neither empty nor full and depend on the text."""
    torch.manual_seed(0)
    settings = {"spatial_dims": 3, "num_channels": 1, "image_size": PATCH, "hidden_dropout_prob": 0.0}
    model = LViTForImageSegmentation(tiny_config(**{**settings, **kwargs})).eval()
    model.lvit.null_text.normal_()
    if model.lvit.sentence_map is not None:
        for tensor in (model.lvit.sentence_map.whitening, model.lvit.sentence_map.pixel_projection.weight):
            tensor.normal_()
    logits = model(pixel_values=torch.randn(4, model.config.num_channels, *model.config.image_shape)).logits
    model.classifier.weight.mul_(2 / logits.std())
    model.classifier.bias.sub_(model.classifier.bias + 2 * (logits.mean() - model.classifier.bias) / logits.std())
    return model


def tiny_volume_processor(**kwargs) -> LViTProcessor:
    processor = LViTVolumeProcessor(**{"patch_size": PATCH, "size_divisors": [4, 4, 4], **kwargs})
    return LViTProcessor(processor, BertTokenizer(vocab=VOCABULARY))
