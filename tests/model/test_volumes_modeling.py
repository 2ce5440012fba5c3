"""The network in three dimensions."""

import nibabel
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_lvit import tiny_config
from tiny_volumes import PATCH, tiny_volume_model, tiny_volume_processor
from torch import nn
from transformers import AutoModelForImageSegmentation, AutoProcessor

from lvit_hf import LViTVolumeProcessor
from lvit_hf.model.modeling_lvit import LViTUpsamplingConvLayer
from lvit_hf.model.saving import save_half_precision


CAPTION = "one infected area, upper left lung"
FUSIONS = ["patch_map", "cross_attention", "sentence_map"]


def tokens(*captions) -> dict[str, torch.Tensor]:
    return dict(tiny_volume_processor()(text=list(captions), return_tensors="pt"))


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.randn(2, 1, *PATCH, generator=torch.manual_seed(0))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_beside_the_text_tower_learns(volumes, fusion):
    model = tiny_volume_model(text_fusion=fusion).train()
    outputs = model(volumes, **tokens(CAPTION, ""), labels=(volumes[:, 0] > 0).float())
    assert outputs.logits.shape == (2, 1, *PATCH)
    outputs.loss.backward()
    still = {n for n, p in model.named_parameters() if "text_model" not in n and (p.grad is None or not p.grad.any())}
    assert {name for name in still if "k_proj.bias" not in name} == set()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("size", [(8, 16, 8), (4, 4, 4), (12, 24, 20)])
def test_any_size_that_the_divisor_allows(fusion, size):
    model = tiny_volume_model(text_fusion=fusion)
    volume = torch.randn(1, 1, *size, generator=torch.manual_seed(1))
    logits = model(volume, **tokens(CAPTION)).logits
    assert logits.shape == (1, 1, *size)
    assert not torch.equal(logits, model(volume).logits)


def test_thick_slices_are_pooled_less_along_their_depth():
    model = tiny_volume_model(pool_strides=[[1, 2, 2], [2, 2, 2]], image_size=[6, 16, 16])
    config = model.config
    assert config.size_divisors == (2, 4, 4)
    assert config.patch_shapes == [(2, 4, 4), (2, 2, 2)]
    assert config.grid == (3, 4, 4)
    volume = torch.randn(1, 1, 10, 8, 12)
    assert [tuple(map_.shape[2:]) for map_ in model.lvit.conv_encoder(volume)] == [(10, 8, 12), (10, 4, 6), (5, 2, 3)]
    assert model(volume).logits.shape == (1, 1, 10, 8, 12)


@pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_the_upsampling_convolution_equals_upsampling_and_convolution(strides):
    torch.manual_seed(0)
    layer = LViTUpsamplingConvLayer(tiny_config(spatial_dims=3, num_channels=1), 6, 4, strides)
    skip, small = torch.randn(2, 3, 4, 6, 8), torch.randn(2, 3, *(side // s for side, s in zip((4, 6, 8), strides)))
    upsampled = nn.functional.interpolate(small, size=skip.shape[2:], mode="nearest")
    joined = torch.cat([skip, upsampled], dim=1)
    expected = nn.functional.conv3d(joined, layer.convolution.weight, layer.convolution.bias, padding=1)
    expected = layer.activation(layer.normalization(expected))
    torch.testing.assert_close(layer(skip, small), expected, rtol=1e-4, atol=1e-5)


def test_slices_are_seen_together(volumes):
    """What lies in one slice changes the mask of others, which no network of slices does."""
    model = tiny_volume_model()
    changed = volumes.clone()
    changed[:, :, 0] += 3
    difference = (model(changed).logits - model(volumes).logits).abs().amax((0, 1, 3, 4))
    assert (difference[4:] > 1e-4).all()


def test_folded_norms_give_the_same_masks(volumes):
    model = tiny_volume_model().train()
    model(volumes, labels=(volumes[:, 0] > 0).float())
    logits = model.eval()(volumes).logits
    torch.testing.assert_close(model.fold_batch_norms()(volumes).logits, logits, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_loaded_by_the_auto_classes(tmp_path, volumes):
    model, processor = tiny_volume_model(), tiny_volume_processor(spacing=(1.5, 1, 2))
    save_half_precision(model, processor, tmp_path)
    assert (tmp_path / "image_processing_volumes_lvit.py").is_file()  # for those who have no package
    loaded, loaded_processor = (
        AutoModelForImageSegmentation.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    )
    assert isinstance(loaded_processor.image_processor, LViTVolumeProcessor)
    assert loaded_processor.image_processor.to_dict() == processor.image_processor.to_dict()
    torch.testing.assert_close(loaded(volumes).logits, model.float()(volumes).logits)


def test_what_the_processor_returns_goes_through_the_network_and_back():
    model, processor = tiny_volume_model(), tiny_volume_processor()
    scan = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(7, 15, 9)), np.diag([-1.0, 1, 1, 1]))
    inputs = processor(images=scan, text=CAPTION, return_tensors="pt")
    mask = processor.post_process_semantic_segmentation(model(**inputs), inputs)[0]
    assert mask.shape == scan.shape and 0 < mask.sum() < mask.numel()


def test_errors_say_what_is_expected(volumes):
    with pytest.raises(ValueError, match=r"\(batch_size, 1, depth, height, width\)"):
        tiny_volume_model()(volumes[:, :, 0])
    with pytest.raises(ValueError, match="Height must be a positive multiple of 4, got 6"):
        tiny_volume_model()(volumes[:, :, :, :6])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
        ({"image_size": [16, 16]}, "image_size"),
        ({"image_size": [16, 18, 16]}, "multiple of 4"),
        ({"pool_strides": [[2, 2, 2]]}, "2 entries"),
        ({"pool_strides": [[2, 2, 3], [2, 2, 2]]}, "1 or 2"),
        ({"image_backbone": "efficientnet_lite2"}, "two dimensions"),
    ],
)
def test_fields_that_do_not_fit(fields, sentence):
    with pytest.raises(StrictDataclassClassValidationError, match=sentence):
        tiny_config(**{"spatial_dims": 3, "num_channels": 1, "image_size": 16, **fields})
