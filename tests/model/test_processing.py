import numpy as np
import pytest
import torch
from PIL import Image
from tiny_lvit import SIZE, VOCABULARY, tiny_processor
from transformers import BertTokenizer

from lvit_hf import LViTImageProcessor, LViTProcessor


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
MASK = np.eye(40, 50) > 0
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "word_ids"}


@pytest.fixture(scope="module")
def processor() -> LViTProcessor:
    return tiny_processor()


def test_image_caption_and_mask(processor):
    inputs = processor(images=IMAGE, text="left lung", segmentation_maps=MASK, return_tensors="pt")
    assert set(inputs) == {"pixel_values", "labels", *TEXT_INPUTS}
    assert set(inputs) - {"labels"} == set(processor.model_input_names)
    assert inputs["pixel_values"].shape == (1, 3, SIZE, SIZE)
    assert inputs["labels"].shape == (1, SIZE, SIZE)
    assert {inputs[name].shape for name in TEXT_INPUTS} == {(1, 4)}


def test_parts_alone(processor):
    assert set(processor(images=IMAGE)) == {"pixel_values"}
    assert set(processor(text="left lung")) == TEXT_INPUTS


def test_words_are_counted_from_one(processor):
    inputs = processor(text=["two areas, left lungs", "lungs"], return_tensors="pt")
    # [CLS] two areas , left lung ##s [SEP]
    assert inputs["word_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 5, 0], [0, 1, 1, 0, 0, 0, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1] * 8, [1] * 4 + [0] * 4]


@pytest.mark.parametrize("caption", [None, "", "  ", "\n"])
def test_captions_without_words(processor, caption):
    images = [IMAGE, IMAGE]
    inputs = processor(images=images, text=[caption, "left lung"], return_tensors="pt")
    assert inputs["word_ids"].tolist() == [[0, 0, 0, 0], [0, 1, 2, 0]]
    assert torch.equal(inputs["input_ids"][1:], processor(text="left lung", return_tensors="pt")["input_ids"])


@pytest.mark.parametrize("container", [tuple, np.array])
def test_captions_in_any_collection(processor, container):
    captions = ["left lung", "right lung"]
    assert processor(text=container(captions))["input_ids"] == processor(text=captions)["input_ids"]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({}, "Give images, text or both"),
        ({"images": [IMAGE, IMAGE], "text": "left lung"}, "one caption for each image, got 1 captions for 2 images"),
        ({"images": IMAGE, "text": ["left lung"] * 2}, "got 2 captions for 1 images"),
        ({"images": IMAGE, "text": 5}, "must be a string, or None for no caption, got 5"),
        ({"images": IMAGE, "text": [float("nan")]}, "got nan"),
        ({"text": "left lung", "segmentation_maps": MASK}, "segmentation_maps come with images"),
        ({"images": [IMAGE, IMAGE], "segmentation_maps": [MASK]}, "one segmentation map for each image"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused(processor, inputs, reason):
    with pytest.raises(ValueError, match=reason):
        processor(**inputs)


def test_long_captions_are_cut_to_what_the_tokenizer_allows():
    tokenizer = BertTokenizer(vocab=VOCABULARY, model_max_length=6)
    inputs = LViTProcessor(LViTImageProcessor(), tokenizer)(text="left lung " * 20, return_tensors="pt")
    assert inputs["word_ids"].tolist() == [[0, 1, 2, 3, 4, 0]]


def test_mode_of_the_reference(processor, tmp_path):
    image_processor = LViTImageProcessor(do_flip_channel_order=True, do_normalize=False, do_resize=False, do_pad=False)
    reference = LViTProcessor(image_processor, processor.tokenizer, pad_short_text=True)
    reference.save_pretrained(tmp_path)
    reference = LViTProcessor.from_pretrained(tmp_path)
    inputs = reference(images=IMAGE, text="left lung", return_tensors="pt")
    np.testing.assert_allclose(
        inputs["pixel_values"][0].movedim(0, -1), np.asarray(IMAGE)[..., ::-1] / 255.0, atol=1e-6
    )
    padded = "left lung" + " EOF XXX" * 7
    assert torch.equal(inputs["input_ids"], processor(text=padded, return_tensors="pt")["input_ids"])
    assert inputs["word_ids"].max() == 16
    nine_words = "one area left lung and one area right lung"
    assert reference(text=nine_words)["input_ids"] == processor(text=nine_words)["input_ids"]
    assert reference(text=[None, "  "])["word_ids"] == [[0, 0], [0, 0]]


def test_processor_survives_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    arguments = {"images": IMAGE, "text": "two areas, left lungs", "segmentation_maps": MASK, "return_tensors": "pt"}
    inputs, expected = LViTProcessor.from_pretrained(tmp_path)(**arguments), processor(**arguments)
    assert set(inputs) == set(expected)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
