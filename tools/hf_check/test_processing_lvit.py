"""The common suite for processors, on LViT's."""

import unittest

from transformers import BertTokenizer
from transformers_suite.test_processing_common import ProcessorTesterMixin

from lvit_hf import LViTImageProcessor, LViTProcessor


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lower", "newer", "upper", "older", "longer", "string"]


class LViTProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = LViTProcessor

    @classmethod
    def setUpClass(cls):
        LViTProcessor._auto_class = None  # as in the library, where a checkpoint does not carry its code
        super().setUpClass()

    @classmethod
    def _setup_image_processor(cls):
        return LViTImageProcessor(size={"height": 32, "width": 32})

    @classmethod
    def _setup_tokenizer(cls):
        return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})

    @staticmethod
    def prepare_processor_dict():
        return {"pad_short_text": False}

    @unittest.skip("A caption without an image is nothing to LViT, which returns a mask for every image.")
    def test_processor_text_has_no_visual(self):
        pass
