"""A model and a processor that are made in no time, for tests of everything around the network."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import BertTokenizer

from lvit_hf import LViTConfig, LViTForImageSegmentation, LViTImageProcessor, LViTProcessor


WORDS = ["one", "two", "infected", "area", "areas", ",", "upper", "lower", "left", "right", "lung", "and", "all"]
VOCABULARY = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"])}
SIZE = 32
WITH_BACKBONE = {"hidden_sizes": [8, 16, 32, 64], "patch_sizes": [16, 8, 4, 2], "image_backbone": "efficientnet_lite2"}


def tiny_config(**kwargs) -> LViTConfig:
    text_config = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    settings = {"image_size": SIZE, "hidden_sizes": [8, 16], "patch_sizes": [4, 2], "num_attention_heads": 2}
    return LViTConfig(**{"text_config": text_config, **settings, **kwargs})


@torch.no_grad()
def tiny_model(**kwargs) -> LViTForImageSegmentation:
    """A model in evaluation mode, whose masks of noise are neither empty nor full and depend on the text."""
    torch.manual_seed(0)
    model = LViTForImageSegmentation(tiny_config(**kwargs)).eval()
    model.lvit.null_text.normal_()
    if model.lvit.sentence_map is not None:
        sentence_map = model.lvit.sentence_map
        for tensor in (sentence_map.whitening, *(layer.weight for layer in sentence_map.projections)):
            tensor.normal_()
        sentence_map.pixel_projection.weight.normal_()
    if model.lvit.conv_encoder.backbone is not None:
        for projection in model.lvit.conv_encoder.backbone.projections:
            projection.weight.normal_()
    logits = model(pixel_values=torch.rand(8, 3, SIZE, SIZE) * 2 - 1).logits - model.classifier.bias[:, None, None]
    std, mean = torch.std_mean(logits, dim=(0, 2, 3))
    model.classifier.weight.mul_(2 / std[:, None, None, None])
    model.classifier.bias.copy_(-2 * mean / std)
    if model.presence_head is not None:
        model.presence_head.weight.normal_(std=0.1)
        model.presence_head.bias.zero_()
    return model


def tiny_processor(**kwargs) -> LViTProcessor:
    image_processor = LViTImageProcessor(**{"size": {"height": SIZE, "width": SIZE}, **kwargs})
    return LViTProcessor(image_processor, BertTokenizer(vocab=VOCABULARY))


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint in as many files as it has."""
    return {name: tensor for path in folder.glob("model*.safetensors") for name, tensor in load_file(path).items()}
