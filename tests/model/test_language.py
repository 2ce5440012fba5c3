"""What words may and may not do inside the network, and what the caption head reads."""

import pytest
import torch
from tiny_lvit import SIZE, tiny_config, tiny_model, tiny_processor
from torch import nn

from lvit_hf import LViTForImageSegmentation, LViTModel
from lvit_hf.model.modeling_lvit import CAPTION_GRID_SIZE, LViTSentenceMap, LViTTextAttention, caption_features


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_patches_attend_to_words_alone_and_not_to_padding(implementation):
    generator = torch.manual_seed(0)
    attention = LViTTextAttention(tiny_config(attn_implementation=implementation), hidden_size=8).eval()
    patches, words = torch.randn(2, 5, 8, generator=generator), torch.randn(2, 7, 8, generator=generator)
    text_mask = torch.arange(7) < torch.tensor([[3], [6]])
    padded = attention(patches, words, text_mask)
    for row, length in enumerate((3, 6)):
        rows = slice(row, row + 1)
        alone = attention(patches[rows], words[rows, :length], text_mask[rows, :length])
        torch.testing.assert_close(padded[rows], alone)
        torch.testing.assert_close(
            attention(patches[rows], words[rows].masked_fill(~text_mask[rows, :, None], 9.0), text_mask[rows]), alone
        )
    assert not torch.allclose(padded, attention(patches, words, torch.ones_like(text_mask)))


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_is_of_training_alone(implementation, pixel_values):
    settings = {"text_fusion": "cross_attention", "attn_implementation": implementation}
    rates = {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.5}
    with_dropout, without = tiny_model(**settings, **rates), tiny_model(**settings, **dict.fromkeys(rates, 0.0))
    without.load_state_dict(with_dropout.state_dict())
    inputs = dict(tiny_processor()(text=["one area", "left lung"], return_tensors="pt"))
    torch.testing.assert_close(
        with_dropout(pixel_values, **inputs).logits, without(pixel_values, **inputs).logits, rtol=0, atol=0
    )


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("rate", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
def test_dropout_is_there_in_training(rate, implementation):
    model = tiny_model(**{"hidden_dropout_prob": 0.0, rate: 0.5}, attn_implementation=implementation)
    layer = model.lvit.vision_transformer.decoder[0].layers[0].train()
    patches = torch.randn(1, 64, 8, generator=torch.manual_seed(0))
    assert not torch.allclose(layer(patches), layer(patches))


@torch.no_grad()
@pytest.mark.parametrize("num_hidden_layers", [1, 2])
def test_the_caption_head_reads_the_encoder_s_last_layer_and_the_pixels(num_hidden_layers, pixel_values):
    model = tiny_model(num_hidden_layers=num_hidden_layers)
    said: list[torch.Tensor] = []
    last_layer = model.lvit.vision_transformer.encoder[-1].layers[-1]
    last_layer.register_forward_hook(lambda module, inputs, output: said.append(output))
    outputs = model.lvit(pixel_values, output_hidden_states=True)
    patches = said[0].mT.unflatten(-1, (8, 8))
    pixels = outputs.last_hidden_state
    expected = [
        nn.functional.adaptive_avg_pool2d(patches, CAPTION_GRID_SIZE),
        nn.functional.adaptive_avg_pool2d(pixels, CAPTION_GRID_SIZE),
        nn.functional.adaptive_max_pool2d(pixels, CAPTION_GRID_SIZE),
    ]
    torch.testing.assert_close(caption_features(outputs, model.config), torch.cat(expected, dim=1))


@torch.no_grad()
def test_a_sentence_map_takes_no_notice_of_what_all_captions_share():
    """Their mean is the origin: it draws what a sentence of zeros draws."""
    generator = torch.manual_seed(0)
    sentence_map = LViTSentenceMap(tiny_config()).double()
    nn.init.normal_(sentence_map.pixel_projection.weight)
    captions = 3 + torch.randn(30, 4, 16, generator=generator, dtype=torch.double)
    sentence_map.fit(captions, torch.ones(30, 4))
    average = captions.mean((0, 1)).expand(1, 1, -1)
    _, drawn = sentence_map(average, torch.ones(1, 1, dtype=torch.bool), (8, 8))
    maps = sentence_map.fc2(sentence_map.activation(sentence_map.fc1(sentence_map.layer_norm.bias)))
    expected = sentence_map.pixel_projection(maps.unflatten(-1, (64, -1)))  # (number of patches, width)
    torch.testing.assert_close(drawn[0].flatten(1).T, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_class", [LViTForImageSegmentation, LViTModel])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_text_tower_that_was_loaded_is_frozen_or_not_as_its_checkpoint_says(model_class, frozen, tmp_path):
    tiny_model(freeze_text_model=frozen).save_pretrained(tmp_path)
    for model in (
        model_class.from_pretrained(tmp_path),
        model_class.from_pretrained(tmp_path, output_loading_info=True)[0],
    ):
        tower = getattr(model.train(), "lvit", model).text_model
        assert {parameter.requires_grad for parameter in tower.parameters()} == {not frozen}
        assert {module.training for module in tower.modules()} == {not frozen}
