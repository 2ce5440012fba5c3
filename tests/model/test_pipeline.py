import itertools

import numpy as np
import pandas
import pytest
import torch
from captioning import captioning_model
from datasets import Dataset as HubDataset
from PIL import Image
from tiny_lvit import tiny_model, tiny_processor
from torch.utils.data import Dataset
from transformers import pipeline

from lvit_hf import LViTPipeline
from lvit_hf.model.segmenter_lvit import LViTSegmenter


TASK = "text-guided-image-segmentation"
SHORT = "left lung"
LONG = "two infected areas, upper left lung and lower right lung"


def make_segmenter(**kwargs) -> LViTPipeline:
    return pipeline(TASK, model=tiny_model(**kwargs), processor=tiny_processor(), device="cpu")


@pytest.fixture(scope="module")
def segmenter() -> LViTPipeline:
    return make_segmenter()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Three images of different sizes."""
    noise = np.random.default_rng(0)
    shapes = [(40, 60, 3), (52, 44, 3), (64, 48, 3)]
    return [Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def assert_same(results: list, expected: list):
    """Same segments, up to the rounding in which batches differ."""
    assert len(results) == len(expected)
    for segments, expected_segments in zip(results, expected):
        assert [segment["label"] for segment in segments] == [segment["label"] for segment in expected_segments]
        assert [segment["text"] for segment in segments] == [segment["text"] for segment in expected_segments]
        for segment, expected_segment in zip(segments, expected_segments):
            assert segment["score"] == pytest.approx(expected_segment["score"], abs=1e-5)
            assert np.array_equal(segment["mask"], expected_segment["mask"])


def test_mask_and_score_are_those_of_model_and_processor(segmenter, images):
    [segment] = segmenter(images[0], text=SHORT)
    with torch.no_grad():
        outputs = segmenter.model(**segmenter.processor(images=images[0], text=SHORT, return_tensors="pt"))
    probabilities = segmenter.processor.post_process_semantic_segmentation(
        outputs, target_sizes=[(40, 60)], return_segmentation_scores=True
    )[0].segmentation_scores[0]
    inside = probabilities > 0.5
    assert segment["label"] == "foreground"
    assert segment["text"] == SHORT
    assert segment["mask"].mode == "L"
    assert segment["mask"].size == (60, 40)
    assert np.array_equal(segment["mask"], inside.numpy() * 255)
    assert segment["score"] == pytest.approx(probabilities[inside].mean().item())


def test_text_changes_the_mask(segmenter, images):
    masks = [np.asarray(segmenter(images[0], text=text)[0]["mask"]) for text in (SHORT, LONG, None)]
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


@pytest.mark.parametrize("text", ["", "  "])
def test_blank_text_is_no_text(segmenter, images, text):
    segments = segmenter(images[0], text=text)
    assert segments[0]["text"] is None
    assert_same([segments], [segmenter(images[0])])


def test_no_text_is_the_model_without_text(segmenter, images):
    inputs = segmenter.image_processor(images[0], return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.model(**inputs)
    [mask] = segmenter.processor.post_process_semantic_segmentation(outputs, target_sizes=[(40, 60)])
    assert np.array_equal(segmenter(images[0])[0]["mask"], mask.numpy() * 255)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_of_different_captions_and_sizes_equal_single_calls(segmenter, images, batch_size):
    texts = [SHORT, LONG, None]
    alone = [segmenter(image, text=text) for image, text in zip(images, texts)]
    assert_same(segmenter(images, text=texts, batch_size=batch_size), alone)
    assert_same(segmenter(images[::-1], text=texts[::-1], batch_size=batch_size), alone[::-1])


def test_settings_hold_for_every_image_of_a_batch(images):
    segmenter = make_segmenter(caption_families=["lung infection"])
    settings = {"text": LONG, "side": "patient"}
    alone = [segmenter(image, **settings) for image in images]
    assert_same(segmenter(images, batch_size=3, **settings), alone)
    assert not np.array_equal(alone[0][0]["mask"], segmenter(images[0], text=LONG)[0]["mask"])


class TorchDataset(Dataset):
    def __init__(self, items: list):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def test_all_collections_give_the_same(segmenter, images):
    texts = [SHORT, LONG, None]
    expected = segmenter(images, text=texts)
    items = [{"image": image, "text": text} for image, text in zip(images, texts)]
    assert_same(segmenter(items), expected)
    assert_same(segmenter(tuple(images), text=tuple(texts)), expected)
    assert_same([segmenter(item) for item in items], expected)
    for collection in (
        (item for item in items),
        iter(items),
        TorchDataset(items),
        HubDataset.from_dict({"image": images, "text": texts}),
    ):
        assert_same(list(segmenter(collection, batch_size=2)), expected)


def test_columns_and_arrays_of_images_go_with_those_of_texts(segmenter, images, tmp_path):
    texts = [SHORT, LONG, None]
    expected = segmenter(images, text=texts)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, images):
        image.save(path)
    names = [str(path) for path in paths]
    objects = np.empty(3, dtype=object)
    objects[:] = images
    rows = HubDataset.from_dict({"image": images, "text": texts, "id": names})
    for collection in (pandas.Series(images), pandas.Series(names, index=[7, 5, 3]), np.array(names), objects):
        assert_same(segmenter(collection, text=pandas.Series(texts)), expected)
        assert_same(segmenter(collection), segmenter(images))
    assert_same(list(segmenter(rows["image"], text=rows["text"])), expected)
    assert_same(list(segmenter(rows)), expected)  # with a column more
    with pytest.raises(ValueError, match="got 3 texts for 2 images"):
        segmenter(pandas.Series(images[:2]), text=pandas.Series(texts))


@pytest.mark.parametrize("word", ["nan", "None", "NaT"])
def test_a_word_like_a_missing_value_is_a_caption_at_every_door(segmenter, images, word):
    [[first], [second]] = [segmenter(images[0], text=word), *segmenter(images[:1], text=[word])]
    assert first["text"] == second["text"] == word
    for missing in (None, float("nan"), pandas.NA, pandas.NaT):
        [[first], [second]] = [segmenter(images[0], text=missing), *segmenter(images[:1], text=[missing])]
        assert first["text"] is second["text"] is None


def test_iterators_are_read_as_the_results_are_taken(segmenter, images):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield images[0]

    results = segmenter(itertools.chain(endless()), text=SHORT)
    next(iter(results))
    assert len(taken) < 3


def test_one_text_serves_every_image_without_its_own(segmenter, images):
    expected = segmenter(images, text=[SHORT] * 3)
    assert_same(segmenter(images, text=SHORT), expected)
    assert_same(list(segmenter(iter(images), text=SHORT, batch_size=2)), expected)
    mixed = [images[0], {"image": images[1]}, {"image": images[2], "text": None}]
    assert_same(segmenter(mixed, text=SHORT), segmenter(images, text=[SHORT, SHORT, None]))


def test_no_images_give_no_results(segmenter):
    assert segmenter([]) == []
    assert segmenter([], text=[]) == []


def test_all_kinds_of_images_give_the_same(segmenter, images, tmp_path):
    image = images[0]
    image.save(tmp_path / "image.png")
    pixels = np.asarray(image)
    expected = segmenter([image], text=SHORT)
    same = [
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        pixels,
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        (pixels / 255).astype(np.float32),
    ]
    assert_same(segmenter(same, text=SHORT, batch_size=4), expected * len(same))
    with (tmp_path / "image.png").open("rb") as file:
        for alone in (file, (tmp_path / "image.png").read_bytes(), tmp_path / "image.png"):
            assert_same([segmenter(alone, text=SHORT)], expected)
    assert_same(segmenter(np.stack([pixels, pixels]), text=SHORT), expected * 2)
    grey = pixels[..., 0]
    assert_same([segmenter(grey, text=SHORT)], [segmenter(Image.fromarray(grey), text=SHORT)])


def test_an_image_is_decoded_once(segmenter, images, tmp_path, monkeypatch):
    images[0].save(tmp_path / "image.png")
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *args, **kwargs: opened.append(path) or open_image(path))
    segmenter(tmp_path / "image.png", text=SHORT)
    assert opened == [tmp_path / "image.png"]


def test_mask_has_the_size_of_the_upright_image(segmenter, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    images[0].save(tmp_path / "turned.png", exif=exif)
    [segment] = segmenter(tmp_path / "turned.png", text=SHORT)
    assert segment["mask"].size == (40, 60)
    assert_same([[segment]], [segmenter(images[0].transpose(Image.Transpose.ROTATE_270), text=SHORT)])


@pytest.mark.parametrize("size", [(50, 1), (1, 50), (1, 1)])
def test_a_mask_of_an_image_one_pixel_wide_or_high_has_its_size(segmenter, size):
    for image in (Image.new("L", size, 90), Image.new("RGB", size, 90)):
        [segment] = segmenter(image, text=SHORT)
        assert segment["mask"].size == size
        for views in (None, "mirror", "all"):
            [result] = segmenter.segmenter.segment([image], views=views)
            assert result.image.size == size and result.mask().shape == size[::-1]
        grey = LViTSegmenter(segmenter.model, tiny_processor(do_convert_rgb=False)).to_image(image)
        assert (grey.size, grey.mode) == (size, image.mode)


def test_images_that_are_only_padded_keep_their_pixels(images):
    segmenter = pipeline(TASK, model=tiny_model(), processor=tiny_processor(do_resize=False), device="cpu")
    assert [segments[0]["mask"].size for segments in segmenter(images, text=SHORT)] == [(60, 40), (44, 52), (48, 64)]


def test_threshold_shrinks_the_mask_until_it_is_empty(segmenter, images):
    areas = [np.count_nonzero(segmenter(images[0], threshold=threshold)[0]["mask"]) for threshold in (0, 0.3, 0.6)]
    assert areas[0] == 40 * 60 > areas[1] > areas[2] > 0
    assert_same([segmenter(images[0], threshold=torch.tensor(0.3))], [segmenter(images[0], threshold=0.3)])
    [empty] = segmenter(images[0], threshold=1)
    assert empty["score"] == 0.0
    assert not np.any(empty["mask"])
    strict = pipeline(TASK, model=segmenter.model, processor=segmenter.processor, device="cpu", threshold=1)
    assert_same([strict(images[0])], [[empty]])


def test_several_labels_give_a_segment_for_each_that_is_present(images):
    names = {0: "background", 1: "left lung", 2: "right lung"}
    segmenter = make_segmenter(id2label=names)
    segments = segmenter(images[0], text=SHORT)
    assert [segment["label"] for segment in segments] == list(names.values())
    assert np.array_equal(sum(np.asarray(segment["mask"], dtype=int) for segment in segments), np.full((40, 60), 255))
    assert all(1 / 3 < segment["score"] <= 1 for segment in segments)
    with torch.no_grad():
        segmenter.model.classifier.bias[1] += 1000
    assert [segment["label"] for segment in segmenter(images[0], text=SHORT)] == ["left lung"]


def test_labels_have_the_names_of_the_configuration(images):
    assert make_segmenter(id2label={0: "polyp"})(images[0])[0]["label"] == "polyp"


def test_half_precision_computes_on_request(images, segmenter):
    half = pipeline(TASK, model=tiny_model().to(torch.bfloat16), processor=tiny_processor(), device="cpu")
    [segment], [expected] = half(images[0], text=SHORT), segmenter(images[0], text=SHORT)
    assert half.model.dtype == torch.bfloat16
    assert segment["score"] == pytest.approx(expected["score"], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ["left lung"]}, "list of texts needs a list of images"),
        ({"text": 3}, "caption must be a string"),
        ({"image": "list", "text": ["left lung"]}, "got 1 texts for 3 images"),
        ({"image": "list", "text": ["left lung", "all", 3]}, "caption must be a string"),
        ({"image": None}, "image must be a PIL image"),
        ({"image": 3}, "image must be a PIL image"),
        ({"image": [["a.png", "b.png"]]}, "image must be a PIL image"),
        ({"image": {"picture": "a.png"}}, 'must have "image" and may have "text", got the keys .\'picture\''),
        ({"image": {"image": "a.png", "caption": "all"}}, "got the keys .'image', 'caption'"),
        ({"image": {"image": "a.png", "text": ["all"]}}, "caption must be a string"),
        ({"threshold": 1.5}, "between 0 and 1, got 1.5"),
        ({"threshold": float("nan")}, "between 0 and 1, got nan"),
        ({"threshold": "0.5"}, "between 0 and 1, got '0.5'"),
        ({"treshold": 0.5, "sides": "patient"}, "no setting sides, treshold of this pipeline"),
    ],
)
def test_bad_input_gets_a_sentence(segmenter, images, arguments, message):
    arguments = {"image": images[0], **arguments}
    if arguments["image"] == "list":
        arguments["image"] = images
    with pytest.raises(ValueError, match=message):
        segmenter(**arguments)


def test_saved_pipeline_is_complete(segmenter, images, tmp_path):
    segmenter.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=tmp_path, device="cpu")
    assert type(loaded) is LViTPipeline
    assert_same([loaded(images[0], text=LONG)], [segmenter(images[0], text=LONG)])


# A model that writes captions


@pytest.fixture(scope="module")
def writer() -> LViTPipeline:
    model = captioning_model("lung infection", "polyp")
    return pipeline(TASK, model=model, processor=tiny_processor(), device="cpu")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_captions_are_written_and_given_ones_are_judged(writer, images, batch_size):
    given = "one infected area, upper left lung"
    [[judged], [silent], [refused]] = writer(images, text=[given, None, "a photo of a dog"], batch_size=batch_size)
    core = LViTSegmenter(writer.model, writer.processor)
    expected = core.segment(images, [given, None, "a photo of a dog"])
    for segment, result in zip((judged, silent, refused), expected):
        assert segment["predicted"]["captions"][0]["text"] == result.written_caption
        assert np.array_equal(np.asarray(segment["mask"]) > 0, result.mask()) and (segment["label"],) == result.labels
    assert judged["text"] == given and judged["text_used"] and judged["label"] == "infection"
    assert judged["consistency"]["score"] == pytest.approx(expected[0].check.score, abs=1e-4)
    assert silent["text"] is None and "consistency" not in silent and "reading" not in silent
    assert not refused["text_used"] and not refused["reading"]["understood"]
    [unchecked] = writer(images[0], text=given, describe=False)
    assert "consistency" not in unchecked and unchecked["mask"] == judged["mask"]
    with pytest.raises(ValueError):
        writer(images[0], text="a photo of a dog", on_unknown="error")
