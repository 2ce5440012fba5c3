"""The common suites for image processors, on LViT's."""

import unittest

import torch
from transformers_suite.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)

from lvit_hf import LViTImageProcessor


class LViTImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(
            parent, size={"height": 32, "width": 48}, image_mean=[0.4] * 3, image_std=[0.2] * 3, num_labels=1
        )

    def _get_image_processing_classes(self):
        return {"pil": LViTImageProcessor}


class LViTImageProcessingTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_tester_class = LViTImageProcessingTester
    test_cast_dtype = torch.float16

    @unittest.skip(
        "It loads a checkpoint without importing lvit_hf, which the Hub allows with trust_remote_code only."
    )
    def test_pil_can_run_without_torchvision(self):
        pass

    @unittest.skip("PIL alone on purpose: its resampling is what the published results were made with.")
    def test_new_models_require_torchvision_backend(self):
        pass

    @unittest.skip("A fourth channel is opacity, which is no part of the image.")
    def test_call_numpy_4_channels(self):
        pass
