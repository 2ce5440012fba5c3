import io
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from tiny_lvit import SIZE, VOCABULARY, tiny_model, tiny_processor
from transformers import BertTokenizer

from lvit_hf import LViTImageProcessor, LViTProcessor


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
MASK = np.eye(40, 50) > 0
IMAGE_INPUTS = {"pixel_values", "original_sizes", "reshaped_input_sizes"}
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "word_ids"}


@pytest.fixture(scope="module")
def processor() -> LViTProcessor:
    return tiny_processor()


def test_image_caption_and_mask(processor):
    inputs = processor(images=IMAGE, text="left lung", segmentation_maps=MASK, return_tensors="pt")
    assert set(inputs) == {"labels", *IMAGE_INPUTS, *TEXT_INPUTS}
    assert set(inputs) - {"labels"} == set(processor.model_input_names)
    assert inputs["pixel_values"].shape == (1, 3, SIZE, SIZE)
    assert inputs["labels"].shape == (1, SIZE, SIZE)
    assert {inputs[name].shape for name in TEXT_INPUTS} == {(1, 4)}


def test_parts_alone(processor):
    assert set(processor(images=IMAGE)) == IMAGE_INPUTS
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


@pytest.mark.parametrize(
    "container",
    [
        tuple,
        np.array,
        iter,
        pandas.Series,
        lambda captions: pandas.Series(captions, index=[7, 3, 5], dtype=object),
        lambda captions: pandas.Series(captions, dtype="string"),
        lambda captions: pandas.DataFrame({"text": captions})["text"],
        lambda captions: datasets.Dataset.from_dict({"text": captions})["text"],
        lambda captions: (np.str_(caption) if caption else float("nan") for caption in captions),
    ],
)
def test_captions_in_any_collection(processor, container):
    captions = ["left lung", "", "right lung"]
    expected = processor(text=captions)["word_ids"]
    assert processor(text=container(captions))["word_ids"] == expected
    if container is not np.array:  # which writes None as a word
        assert processor(text=container([caption or None for caption in captions]))["word_ids"] == expected


def test_one_caption_of_an_array(processor):
    expected = processor(text="left lung")["input_ids"]
    assert processor(text=np.array("left lung"))["input_ids"] == expected
    assert processor(text=np.str_("left lung"))["input_ids"] == expected


@pytest.fixture
def file(tmp_path) -> Path:
    IMAGE.save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.mark.parametrize(
    "give",
    [
        str,
        Path,
        lambda file: file.read_bytes(),
        lambda file: memoryview(bytearray(file.read_bytes())),
        lambda file: io.BytesIO(file.read_bytes()),
        lambda file: file.open("rb"),
        lambda file: (path for path in [file]),
        lambda file: pandas.Series([str(file)]),
        lambda file: np.array([str(file)]),
        lambda file: np.array([file], dtype=object),
        lambda file: datasets.Dataset.from_dict({"i": [str(file)]}).cast_column("i", datasets.Image())["i"],
    ],
)
def test_images_in_any_form(processor, file, give):
    expected = processor(images=IMAGE, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=give(file), return_tensors="pt")["pixel_values"], expected)


def test_a_file_is_read_again_from_its_beginning(processor, file):
    with file.open("rb") as opened:
        first, second = (processor(images=[opened, opened])["pixel_values"][index] for index in (0, 1))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("content", [b"", b"no image", bytearray(9)])
def test_bytes_that_are_no_image_are_a_sentence(processor, content):
    with pytest.raises(ValueError, match="^What was given as bytes is not an image"):
        processor(images=content)


def test_inputs_are_cast_but_for_numbers_of_tokens(processor):
    for arguments in (("cpu", torch.bfloat16), (torch.bfloat16,)):
        inputs = processor(images=IMAGE, text="left lung", segmentation_maps=MASK, return_tensors="pt")
        inputs = inputs.to(*arguments)
        assert {name for name, tensor in inputs.items() if tensor.is_floating_point()} == {"pixel_values"}
        assert inputs["pixel_values"].dtype == torch.bfloat16
        tiny_model().bfloat16()(**inputs)


SETTINGS = [
    {"size": {"height": 64, "width": 64}},
    {"size": {"height": 40, "width": 72}},  # padded to 48 x 80
    {"size": 30},
    {"size": {"height": 48, "width": 80}, "do_pad": False},
    {"size": {"height": 44, "width": 52}, "size_divisor": 4},
    {"do_resize": False},
    {"do_resize": False, "size_divisor": 64},
]


@pytest.mark.parametrize("stored", [{}, {"do_resize": False}], ids=str)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_settings_of_one_call_are_undone_like_stored_ones(setting, stored):
    """Both ways to give a setting end with the same mask, whatever else is stored, for every image of a batch."""
    model = tiny_model()

    def segment(processor: LViTProcessor, **call) -> torch.Tensor:
        inputs = processor(images=[IMAGE, IMAGE.rotate(180)], text=["left lung", None], return_tensors="pt", **call)
        with torch.no_grad():
            outputs = model(**inputs)
        results = processor.post_process_semantic_segmentation(
            outputs, target_sizes=inputs["original_sizes"], return_segmentation_scores=True
        )
        return torch.stack([result.segmentation_scores for result in results])

    # A size that is given for a call comes with the wish to resize.
    call = {"do_resize": True, **setting}
    expected = segment(tiny_processor(**call))
    assert expected.shape == (2, 1, 40, 50)
    torch.testing.assert_close(segment(tiny_processor(**stored), **call), expected)


def test_masks_have_the_size_of_the_upright_image(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    IMAGE.save(tmp_path / "turned.jpg", exif=exif)
    inputs = processor(images=tmp_path / "turned.jpg", return_tensors="pt")
    [mask] = processor.post_process_semantic_segmentation(
        tiny_model()(**inputs), target_sizes=inputs["original_sizes"]
    )
    assert inputs["original_sizes"].tolist() == [[50, 40]] and mask.shape == (50, 40)


def test_masks_are_cut_at_the_threshold(processor):
    outputs = tiny_model()(**processor(images=IMAGE, text="left lung", return_tensors="pt"))
    [result] = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[(40, 50)], return_segmentation_scores=True
    )
    for threshold in (0.3, 0.8):
        [mask] = processor.post_process_semantic_segmentation(outputs, [(40, 50)], threshold)
        assert 0 < mask.sum() < mask.numel() and torch.equal(mask > 0, result.segmentation_scores[0] > threshold)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({}, "Give images, text or both"),
        ({"images": [IMAGE, IMAGE], "text": "left lung"}, "one caption for each image, got 1 captions for 2 images"),
        ({"images": IMAGE, "text": ["left lung"] * 2}, "got 2 captions for 1 images"),
        ({"images": IMAGE, "text": []}, "at least one caption, got an empty list"),
        ({"images": IMAGE, "text": 5}, "must be a string, or None for no caption, got 5"),
        ({"images": IMAGE, "text": [0.5]}, "got 0.5"),
        ({"images": IMAGE, "text": b"left lung"}, "got b'left lung'"),
        ({"images": IMAGE, "text": [["left", "lung"]]}, "got .'left', 'lung'."),
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
