import itertools

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from tiny_lvit import SIZE, tiny_config, tiny_model, tiny_processor
from torch import nn
from transformers import pipeline

from lvit_hf import LViTConfig, LViTForCaptionPrediction, LViTForImageSegmentation
from lvit_hf.inference.captioning import CaptioningSegmenter
from lvit_hf.model.captions_lvit import FAMILIES, parse_caption
from lvit_hf.model.modeling_lvit import caption_features
from lvit_hf.model.pipeline_lvit import EVIDENCE, TASK, CaptionCheck, check_caption, find_caption, list_captions
from lvit_hf.training.caption_labels import caption_fields


ATTRIBUTES = [
    {"family": "polyp", "name": "size", "values": ["small", "large"], "multiple": False},
    {"family": "polyp", "name": "place", "values": ["left", "right"], "multiple": False},
    {"family": "nuclei", "name": "distribution", "values": ["evenly", "sparsely"], "multiple": False},
]
CAPTIONS = [
    {"text": f"one {size} polyp, {place}", "values": [index, 2 + side], "share": 0.1}
    for (index, size), (side, place) in itertools.product(enumerate(["small", "large"]), enumerate(["left", "right"]))
] + [
    {"text": f"nuclei {name}", "values": [4 + index], "share": 0.3}
    for index, name in enumerate(["evenly", "sparsely"])
]


def caption_config(**kwargs) -> LViTConfig:
    return tiny_config(caption_attributes=ATTRIBUTES, captions=CAPTIONS, **kwargs)


@pytest.fixture
def model() -> LViTForCaptionPrediction:
    torch.manual_seed(0)
    model = LViTForCaptionPrediction(caption_config()).eval()
    nn.init.normal_(model.caption_head.bias)
    return model


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_the_probability_of_a_value_is_that_of_the_captions_which_state_it(model, pixel_values):
    outputs = model(pixel_values)
    probabilities = outputs.logits.softmax(-1)
    assert probabilities.shape == (3, 6)
    for value in range(6):
        stated = [index for index, caption in enumerate(CAPTIONS) if value in caption["values"]]
        torch.testing.assert_close(outputs.value_probabilities[:, value], probabilities[:, stated].sum(-1))


@torch.no_grad()
def test_outputs_are_put_into_words(model, pixel_values):
    outputs = model(pixel_values)
    for row, said in enumerate(model.caption_head.decode(outputs, num_captions=2)):
        first, second = said["captions"]
        assert first["text"] == CAPTIONS[outputs.logits[row].argmax()]["text"]
        assert first["probability"] >= second["probability"]
        assert [attribute["name"] for attribute in said["attributes"]] == ["size", "place", "distribution"]
        assert said["attributes"][1]["values"]["right"] == outputs.value_probabilities[row, 3].item()


def test_the_loss_is_the_likelihood_of_the_true_captions(model, pixel_values):
    labels = torch.zeros(3, 6)
    labels[0, 2] = 1
    labels[1, [0, 1]] = 1  # of this image the place is not known, and nothing of the last
    outputs = model(pixel_values, labels=labels)
    probabilities = outputs.logits.softmax(-1)
    expected = -(probabilities[0, 2].log() + probabilities[1, :2].sum().log()) / 2
    torch.testing.assert_close(outputs.loss, expected)
    nothing_known = model(pixel_values, labels=torch.zeros(3, 6)).loss
    nothing_known.backward()
    assert nothing_known == 0


def test_the_head_learns_what_the_image_shows(model):
    images = -torch.ones(8, 3, SIZE, SIZE)
    labels = torch.zeros(8, 6)
    for index in range(8):
        is_right = index % 2
        columns = slice(SIZE // 2, None) if is_right else slice(0, SIZE // 2)
        images[index, :, 8 : 12 + index, columns] = 1
        labels[index, [is_right, 2 + is_right]] = 1  # its size is not known
    outputs = model.lvit(images, output_hidden_states=True)
    features = caption_features(outputs, model.config).detach()
    optimizer = torch.optim.AdamW(model.caption_head.train().parameters(), lr=0.01)
    for _ in range(200):  # as many as the running statistics of the norms need
        optimizer.zero_grad()
        model.caption_head(features, labels).loss.backward()
        optimizer.step()
    model.eval()
    said = model.caption_head.decode(model(images))
    places = [max(row["attributes"][1]["values"].items(), key=lambda item: item[1])[0] for row in said]
    assert places == ["left", "right"] * 4


@torch.no_grad()
def test_one_checkpoint_segments_and_captions(tmp_path, pixel_values):
    segmenter = LViTForImageSegmentation(caption_config()).eval()
    nn.init.normal_(segmenter.caption_head.bias)
    segmenter.save_pretrained(tmp_path)
    expected = segmenter(pixel_values, output_captions=True).captions.logits
    loaded, report = LViTForImageSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.captions == CAPTIONS and loaded.config.caption_attributes == ATTRIBUTES
    assert torch.equal(loaded(pixel_values, output_captions=True).captions.logits, expected)
    captioner, report = LViTForCaptionPrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(captioner(pixel_values).logits, expected)


def test_the_head_is_left_alone_when_masks_are_trained():
    model = LViTForImageSegmentation(caption_config())
    assert not any(parameter.requires_grad for parameter in model.caption_head.parameters())
    captioner = LViTForCaptionPrediction(caption_config())
    assert all(parameter.requires_grad for parameter in captioner.caption_head.parameters())


def test_images_of_another_size_have_captions_too(model):
    assert model(torch.rand(1, 3, 2 * SIZE, SIZE)).logits.shape == (1, 6)


def test_without_captions_there_is_no_head(pixel_values):
    with pytest.raises(ValueError, match="captions to choose"):
        LViTForCaptionPrediction(tiny_config())
    with pytest.raises(ValueError, match="no caption head"):
        LViTForImageSegmentation(tiny_config())(pixel_values, output_captions=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"captions": [{"text": "a polyp", "values": [6], "share": 1.0}]}, "from 0 to 5"),
        ({"captions": [{"text": "a polyp"}]}, "a text, values and a share"),
        ({"caption_attributes": [{"name": "size", "values": []}]}, "a family"),
        ({"consistency_weights": {"polyp": {"bias": 0.0}}}, "numbers for bias, caption, shift, support, doubt"),
    ],
)
def test_wrong_captions_are_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**{"caption_attributes": ATTRIBUTES, "captions": CAPTIONS, **fields})


# Images without a caption


@pytest.fixture
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.fixture
def segmenter() -> CaptioningSegmenter:
    fields = caption_fields(["lung infection", "polyp"])
    model = tiny_model(**fields)
    nn.init.normal_(model.caption_head.bias)
    return CaptioningSegmenter(model, tiny_processor())


def test_an_image_without_a_caption_may_be_segmented_with_predicted_ones(segmenter, images):
    assert [result.text for result in segmenter.segment(images)] == [None, None]
    segmenter.num_captions = 1
    predicted = [row["captions"][0]["text"] for row in segmenter.describe(images)]
    assert [result.text for result in segmenter.segment(images)] == predicted
    given, written = segmenter.segment(images, ["one infected area, upper left lung", None])
    assert (given.text, written.text) == ("one infected area, upper left lung", predicted[1])


def test_captions_are_weighed_by_their_probability_and_the_null_text_by_what_is_left(segmenter, images):
    [null] = segmenter.segment(images[:1])
    segmenter.num_captions = 3
    [result] = segmenter.segment(images[:1])
    captions = segmenter.describe(images[:1], 3)[0]["captions"]
    maps = [segmenter.segment(images[:1], [caption["text"]])[0].probabilities for caption in captions]
    weights = [caption["probability"] for caption in captions]
    assert 0.05 < sum(weights) < 0.95
    expected = np.average([*maps, null.probabilities], axis=0, weights=[*weights, 1 - sum(weights)])
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    assert result.text == captions[0]["text"]


def test_tiles_get_no_caption_of_the_whole_image(segmenter, images):
    segmenter.num_captions = 1
    [result] = segmenter.segment(images[:1], tile_size=32)
    assert result.text is None and not result.text_used


# Captions that do not fit

SHOWN = {
    "families": {"lung infection": 0.95, "polyp": 0.05},
    "attributes": [
        {"family": "lung infection", "name": "sides", "values": {"unilateral": 0.9, "bilateral": 0.05}},
        {"family": "lung infection", "name": "left lung", "values": {"upper": 0.02, "middle": 0.03, "lower": 0.04}},
        {"family": "lung infection", "name": "right lung", "values": {"upper": 0.05, "middle": 0.1, "lower": 0.91}},
        {"family": "polyp", "name": "size", "values": {"small": 0.04, "large": 0.01}},
    ],
}


@pytest.fixture
def shown() -> tuple[dict, LViTConfig]:
    """What an image shows, which speaks for one caption, and the configuration with all captions, equally frequent."""
    config = tiny_config(**caption_fields(["lung infection", "polyp"]))
    for caption in config.captions:
        caption["share"] = 1 / len(config.captions)
    texts = [caption["text"] for caption in config.captions]
    probabilities = torch.full((len(texts),), 0.05 / (len(texts) - 1))
    probabilities[texts.index("unilateral pulmonary infection, one infected area, lower right lung.")] = 0.95
    return {**SHOWN, "probabilities": probabilities}, config


def check(text: str, shown: tuple[dict, LViTConfig]) -> CaptionCheck:
    return check_caption(parse_caption(text), *shown)


def test_the_attributes_that_disagree_are_named(shown):
    fits = check("unilateral pulmonary infection, lower right lung", shown)
    differs = check("unilateral pulmonary infection, upper middle lower left lung", shown)
    assert fits.understood and fits.disagreements == ()
    assert fits.score > 0.9 and differs.score < 0.1
    assert differs.disagreements == (
        "left lung: the caption says upper and middle and lower, the image speaks for none (0.91)",
        "right lung: the caption says none, the image speaks for lower (0.78)",
    )


def test_the_score_is_one_half_where_the_image_says_as_much_as_the_share_of_captions(shown):
    described, config = shown
    probabilities = torch.tensor([caption["share"] for caption in config.captions])
    text = "unilateral pulmonary infection, one infected area, lower right lung"
    assert check(text, ({**described, "probabilities": probabilities}, config)).score == pytest.approx(0.5)


def test_a_caption_that_contradicts_itself_does_not_fit(shown):
    contradictory = check("unilateral pulmonary infection, lower left lung and lower right lung", shown)
    assert contradictory.understood and contradictory.score < 1e-5


def test_a_caption_of_another_family_does_not_fit(shown):
    polyp = check("one small polyp", shown)
    assert polyp.understood and polyp.score < 0.1
    assert polyp.disagreements == ("the caption speaks of polyp, the image of lung infection (0.95)",)


@pytest.mark.parametrize("text", ["a photo of a dog", "lung", "The nuclei are evenly distributed.", ""])
def test_nonsense_and_families_that_the_checkpoint_does_not_know_are_not_understood(text, shown):
    nonsense = check(text, shown)
    assert not nonsense.understood and nonsense.score is None


def test_words_that_say_nothing_are_listed(shown):
    assert check("a photo of a lung, lower right lung", shown).unknown_words == ("photo",)


def test_a_schema_reads_its_own_captions_without_the_parser():
    config = tiny_config(**caption_fields(list(FAMILIES)))
    assert list_captions(config) == [parse_caption(caption["text"]) for caption in config.captions]
    assert find_caption("ONE small, circular, smooth colonic polyp on the top left", config) == parse_caption(
        "One small,circular,smooth colonic polyp on the top left."
    )
    assert find_caption("a photo of a dog", config) is None


def test_a_check_says_how_far_the_caption_moved_the_mask(segmenter, images):
    text = "two infected areas, upper left lung and lower right lung"
    [found] = segmenter.check(images[:1], [text])
    with_text, without = (segmenter.segment(images[:1], [given])[0].probabilities for given in (text, None))
    expected = 2 * (with_text * without).sum() / ((with_text**2).sum() + (without**2).sum())
    assert found.mask_agreement == pytest.approx(expected, abs=1e-5) and found.mask_agreement < 1
    shown = segmenter.describe(images[:1])[0], segmenter.model.config
    assert found.understood and found.score == check(text, shown).score


def test_a_family_with_weights_is_scored_by_the_masks_too(shown):
    described, config = shown
    text = "unilateral pulmonary infection, lower right lung"
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    config.consistency_weights = {"lung infection": dict.fromkeys(("bias", *EVIDENCE), 0.0) | {"shift": -2.0}}
    moved = check_caption(parse_caption(text), described, config, tuple(maps))
    assert moved.score == pytest.approx(1 / (1 + np.exp(2 * moved.evidence["shift"])))
    unmoved = check_caption(parse_caption(text), described, config, (maps[0], maps[0]))
    assert unmoved.score == pytest.approx(0.5) and unmoved.mask_agreement == pytest.approx(1)
    assert check_caption(parse_caption(text), described, config).score > 0.9  # no masks: the head alone
    polyp = parse_caption("one small polyp")
    assert check_caption(polyp, described, config, tuple(maps)).score == check("one small polyp", shown).score


# The pipeline


def test_the_pipeline_writes_the_captions_that_are_missing(segmenter, images):
    pipe = pipeline(TASK, model=segmenter.model, processor=segmenter.processor, device="cpu")
    given = "one infected area, upper left lung"
    expected = segmenter.describe(images)
    for batch_size in (1, 2):
        [[with_text], [without]] = pipe(images, text=[given, None], batch_size=batch_size)
        assert with_text["text"] == given and "predicted" not in with_text
        assert without["text"] == without["predicted"]["captions"][0]["text"] == expected[1]["captions"][0]["text"]
        assert without["predicted"]["families"].keys() == {"lung infection", "polyp"}
        probabilities = [caption["probability"] for caption in without["predicted"]["captions"]]
        assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
    [null] = pipe(images[1], num_captions=0)
    assert null["text"] is None and null["predicted"]["captions"][0]["text"] == without["text"]
    [quiet] = pipe(images[1], describe=False, num_captions=0)
    assert quiet["mask"] == null["mask"] and "predicted" not in quiet
    with pytest.raises(ValueError, match="num_captions must be"):
        pipe(images[1], num_captions=-1)


def test_the_pipeline_averages_the_masks_of_several_captions(segmenter, images):
    image_processor = segmenter.processor.image_processor
    image_processor.temperature, image_processor.logit_bias = 0.1, 0.5
    pipe = pipeline(TASK, model=segmenter.model, processor=segmenter.processor, device="cpu")
    images = [image.resize((SIZE, SIZE)) for image in images]
    segmenter.num_captions = 3
    expected = segmenter.segment(images)
    scores = [result.probabilities[result.mask()].mean() for result in expected]
    for batch_size in (1, 2):
        found = pipe(images, num_captions=3, batch_size=batch_size)
        for [segment], result, score in zip(found, expected, scores):
            np.testing.assert_array_equal(np.asarray(segment["mask"]) > 0, result.mask())
            assert segment["score"] == pytest.approx(score, abs=1e-5) and segment["text"] == result.text


def test_the_pipeline_says_whether_a_given_caption_fits(segmenter, images):
    segmenter.processor.image_processor.temperature = 0.1
    # As large as the network's maps: the pipeline compares those, a segmenter the images' own size.
    images = [image.resize((SIZE, SIZE)) for image in images]
    pipe = pipeline(TASK, model=segmenter.model, processor=segmenter.processor, device="cpu")
    texts = ["one infected area, upper left lung", "a photo of a dog"]
    for batch_size in (1, 2):
        [[known], [unknown]] = pipe(images, text=texts, batch_size=batch_size)
        [expected, _] = segmenter.check(images, texts)
        assert known["consistency"]["score"] == pytest.approx(expected.score, abs=1e-4)
        assert known["consistency"]["disagreements"] == expected.disagreements
        assert known["consistency"]["mask_agreement"] == pytest.approx(expected.mask_agreement, abs=1e-4)
        assert expected.mask_agreement < 1
        assert not unknown["consistency"]["understood"] and 0 < unknown["consistency"]["mask_agreement"] < 1
    [unchecked] = pipe(images[0], text=texts[0], describe=False)
    assert "consistency" not in unchecked
