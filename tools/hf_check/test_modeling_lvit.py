"""The common suites for configurations and models, on LViT."""

import unittest

import torch
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device
from transformers_suite.test_configuration_common import ConfigTester
from transformers_suite.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

from lvit_hf import LViTConfig, LViTForImageSegmentation, LViTModel


# The suite looks up here which models have no loss.
MODEL_MAPPING_NAMES[LViTConfig.model_type] = LViTModel.__name__


class LViTModelTester:
    """Makes a small model and a batch for it."""

    batch_size = 3
    image_size = 16
    patch_sizes = [4, 2]
    hidden_sizes = [8, 16]
    num_hidden_layers = 1
    num_attention_heads = 2
    num_text_vectors = 5
    text_length = 7
    text_config = {
        "model_type": "bert",
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    is_training = True

    # What the suite expects of the first hidden state, and of how many there are.
    hidden_size = hidden_sizes[0]
    expected_num_hidden_layers = 2 * len(hidden_sizes) * num_hidden_layers + 1

    def __init__(self, text_fusion: str, spatial_dims: int):
        self.text_fusion = text_fusion
        self.spatial_dims = spatial_dims
        self.seq_length = (self.image_size // self.patch_sizes[0]) ** spatial_dims

    def get_config(self):
        return LViTConfig(
            text_config=self.text_config,
            image_size=self.image_size,
            patch_sizes=self.patch_sizes,
            hidden_sizes=self.hidden_sizes,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_text_vectors=self.num_text_vectors,
            text_fusion=self.text_fusion,
            spatial_dims=self.spatial_dims,
            scope_kinds=["polyp", "nuclei"],
            presence_head=True,
            freeze_text_model=False,  # the suite trains every layer it finds
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.text_length], self.text_config["vocab_size"])
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, 3, *[self.image_size] * self.spatial_dims]),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }
        return self.get_config(), inputs


class LViTModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LViTModel, LViTForImageSegmentation)
    text_fusion = "patch_map"
    spatial_dims = 2
    _is_composite = True

    def setUp(self):
        self.model_tester = LViTModelTester(self.text_fusion, self.spatial_dims)
        common_properties = ["hidden_sizes", "num_attention_heads", "num_hidden_layers"]
        self.config_tester = ConfigTester(
            self, config_class=LViTConfig, has_text_modality=False, common_properties=common_properties
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is LViTForImageSegmentation:
            inputs_dict["labels"] = (inputs_dict["pixel_values"][:, 0] > 0.5).long()
        return inputs_dict

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_attention_outputs(self):
        """Overridden: there are layers in every level, twice, and not `num_hidden_layers` in all."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        tester = self.model_tester
        shape = (tester.batch_size, tester.num_attention_heads, tester.seq_length, tester.seq_length)
        for model_class in self.all_model_classes:
            model = model_class._from_config(config, attn_implementation="eager").to(torch_device).eval()
            for settings in ({"output_attentions": True}, {"output_attentions": True, "output_hidden_states": True}):
                with torch.no_grad():
                    outputs = model(**self._prepare_for_class(inputs, model_class), **settings)
                self.assertEqual([tuple(weights.shape) for weights in outputs.attentions], [shape] * 4)
                self.assertIs(outputs[-1], outputs.attentions)

    @unittest.skip("The forward pass itself resamples position embeddings to the image.")
    def test_resize_position_vector_embeddings(self):
        pass

    @unittest.skip("LViT is a composite model: see test_sdpa_can_dispatch_composite_models.")
    def test_sdpa_can_dispatch_non_composite_models(self):
        pass

    def test_sdpa_can_dispatch_composite_models(self):
        """Overridden: LViT's own layers are no sub-model beside the text tower."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            for requested, expected in ((None, "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")):
                model = model_class._from_config(config, attn_implementation=requested)
                used = {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}
                self.assertEqual(used, {expected})


class LViTCrossAttentionModelTest(LViTModelTest):
    text_fusion = "cross_attention"


class LViTVolumeModelTest(LViTModelTest):
    spatial_dims = 3
