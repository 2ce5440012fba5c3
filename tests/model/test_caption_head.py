import itertools

import pytest
import torch
from captioning import captioning_model
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_lvit import SIZE, tiny_config
from torch import nn

from lvit_hf import LViTForImageSegmentation
from lvit_hf.captions import FAMILIES, parse_caption, render_caption
from lvit_hf.model.captions_lvit import CaptionCheck
from lvit_hf.model.modeling_lvit import LViTCaptionHead, LViTCaptionPredictionOutput, caption_features
from lvit_hf.training.caption_labels import add_caption_head


ATTRIBUTES = [
    {"family": "polyp", "name": "size", "values": ["small", "large"], "multiple": False},
    {"family": "polyp", "name": "place", "values": ["top left", "top right"], "multiple": False},
    {"family": "nuclei", "name": "distribution", "values": ["evenly", "sparsely"], "multiple": False},
]
STATED = [(size, 2 + side) for size, side in itertools.product((0, 1), (0, 1))] + [(4,), (5,)]


@pytest.fixture
def model() -> LViTForImageSegmentation:
    torch.manual_seed(0)
    model = LViTForImageSegmentation(tiny_config(caption_attributes=ATTRIBUTES, num_captions=len(STATED))).eval()
    nn.init.normal_(model.caption_head.bias)
    for row, values in zip(model.caption_head.states, STATED):
        row[list(values)] = True
    return model


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.manual_seed(0)) * 2 - 1


def predict(model, pixel_values, labels=None) -> LViTCaptionPredictionOutput:
    features = caption_features(model.lvit(pixel_values, output_hidden_states=True), model.config)
    return model.caption_head(features, labels)


@torch.no_grad()
def test_the_probability_of_a_value_is_that_of_the_captions_which_state_it(model, pixel_values):
    outputs = model(pixel_values, output_captions=True).captions
    probabilities = outputs.logits.softmax(-1)
    assert probabilities.shape == (3, 6)
    for value in range(6):
        stated = [index for index, values in enumerate(STATED) if value in values]
        torch.testing.assert_close(outputs.value_probabilities[:, value], probabilities[:, stated].sum(-1))


@torch.no_grad()
def test_a_bias_is_added_to_the_score_of_its_caption(model, pixel_values):
    before = model(pixel_values, output_captions=True).captions.logits
    model.caption_head.bias[2] += 1.5
    after = model(pixel_values, output_captions=True).captions.logits
    torch.testing.assert_close(after - before, torch.eye(6)[2].mul(1.5).expand(3, 6))


@torch.no_grad()
def test_outputs_are_put_into_words(model, pixel_values):
    outputs = model(pixel_values, output_captions=True).captions
    for row, said in enumerate(model.caption_head.decode(outputs, num_captions=2)):
        first, second = said["captions"]
        likeliest = model.caption_head.captions[outputs.logits[row].argmax()]
        assert first["text"] == render_caption(likeliest) and parse_caption(first["text"]) == likeliest
        assert first["probability"] >= second["probability"]
        assert [attribute["name"] for attribute in said["attributes"]] == ["size", "place", "distribution"]
        assert said["attributes"][1]["values"]["top right"] == outputs.value_probabilities[row, 3].item()
        assert sum(said["families"].values()) == pytest.approx(1)


@torch.no_grad()
def test_of_an_image_in_which_nothing_is_found_a_caption_says_so(model, pixel_values):
    outputs = model(pixel_values, output_captions=True).captions
    without = model.caption_head.decode(outputs, num_captions=2)
    empty, doubtful, shown = model.caption_head.decode(outputs, num_captions=2, presences=[0.0, 0.4, 0.9])
    assert empty["captions"][0] == {"text": "No polyp.", "probability": 1.0} and empty["absence"] == 1
    nothing, best = doubtful["captions"]
    assert nothing == {"text": "No polyp.", "probability": pytest.approx(0.6)}
    assert best["text"] == without[1]["captions"][0]["text"]
    assert best["probability"] == pytest.approx(0.4 * without[1]["captions"][0]["probability"])
    assert [caption["text"] for caption in shown["captions"]] == [row["text"] for row in without[2]["captions"]]
    assert shown["absence"] == pytest.approx(0.1) and without[2]["absence"] == 0


def test_the_loss_is_the_likelihood_of_the_true_captions(model, pixel_values):
    labels = torch.zeros(3, 6)
    labels[0, 2] = 1
    labels[1, [0, 1]] = 1  # of this image the place is not known, and nothing of the last
    model.caption_head.requires_grad_()
    outputs = predict(model, pixel_values, labels)
    probabilities = outputs.logits.softmax(-1)
    expected = -(probabilities[0, 2].log() + probabilities[1, :2].sum().log()) / 2
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(predict(model, pixel_values[1:], labels[1:]).loss, -probabilities[1, :2].sum().log())
    nothing_known = predict(model, pixel_values, torch.zeros(3, 6)).loss
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
    features = caption_features(model.lvit(images, output_hidden_states=True), model.config).detach()
    head = model.caption_head.requires_grad_().train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    for _ in range(200):  # as many as the running statistics of the norms need
        optimizer.zero_grad()
        head(features, labels).loss.backward()
        optimizer.step()
    said = head.eval().decode(predict(model, images))
    places = [max(row["attributes"][1]["values"].items(), key=lambda item: item[1])[0] for row in said]
    assert places == ["top left", "top right"] * 4


@torch.no_grad()
def test_one_checkpoint_segments_and_captions(tmp_path, pixel_values):
    model = captioning_model("polyp")
    model.caption_head.shares.uniform_(generator=torch.manual_seed(0))
    model.save_pretrained(tmp_path)
    loaded, report = LViTForImageSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.caption_head.captions == model.caption_head.captions
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    expected = model(pixel_values, output_captions=True)
    found = loaded(pixel_values, output_captions=True)
    assert torch.equal(found.captions.logits, expected.captions.logits) and torch.equal(found.logits, expected.logits)


def test_the_head_is_left_alone_when_masks_are_trained(model):
    assert not any(parameter.requires_grad for parameter in model.caption_head.parameters())


def test_images_of_another_size_have_captions_too(model):
    assert model(torch.rand(1, 3, 2 * SIZE, SIZE), output_captions=True).captions.logits.shape == (1, 6)


def test_without_captions_there_is_no_head(pixel_values):
    with pytest.raises(ValueError, match="no caption head"):
        LViTForImageSegmentation(tiny_config())(pixel_values, output_captions=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_captions": 3}, "captions and attributes"),
        ({"caption_attributes": ATTRIBUTES}, "captions and attributes"),
        ({"caption_attributes": [{"name": "size", "values": []}]}, "a family"),
    ],
)
def test_wrong_captions_are_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize("family", ["lung infection", "polyp", "nuclei"])
def test_every_caption_of_a_head_is_one_of_its_family_and_is_found_by_it(family):
    head = captioning_model(family).caption_head
    texts = [render_caption(caption) for caption in head.captions]
    assert len(set(texts)) == len(texts) > 10 and [parse_caption(text) for text in texts] == head.captions
    assert all(head.match(caption)[index] for index, caption in enumerate(head.captions))
    assert len(texts) == len(list(FAMILIES[family].captions()))


# Captions that do not fit

SHOWN = {
    "families": {"lung infection": 0.95, "polyp": 0.05},
    "attributes": [
        {"family": "lung infection", "name": "sides", "values": {"unilateral": 0.9, "bilateral": 0.05}},
        {"family": "lung infection", "name": "count", "values": {"one": 0.85, "four": 0.04}},
        {"family": "lung infection", "name": "left lung", "values": {"upper": 0.02, "middle": 0.03, "lower": 0.04}},
        {"family": "lung infection", "name": "right lung", "values": {"upper": 0.05, "middle": 0.1, "lower": 0.91}},
        {"family": "polyp", "name": "size", "values": {"small": 0.04, "large": 0.01}},
    ],
}


@pytest.fixture(scope="module")
def head() -> LViTCaptionHead:
    """A head all of whose captions are equally frequent."""
    head = captioning_model("lung infection", "polyp").caption_head
    head.shares.fill_(1 / len(head.captions))
    return head


@pytest.fixture
def shown(head) -> dict:
    """What an image shows, which speaks for one caption."""
    texts = [render_caption(caption) for caption in head.captions]
    probabilities = [0.05 / (len(texts) - 1)] * len(texts)
    probabilities[texts.index("unilateral pulmonary infection, one infected area, lower right lung.")] = 0.95
    return {**SHOWN, "probabilities": probabilities, "absence": 0.0}


def test_the_attributes_that_disagree_are_named(head, shown):
    fits = head.check(parse_caption("unilateral pulmonary infection, lower right lung"), shown)
    differs = head.check(parse_caption("unilateral pulmonary infection, upper middle lower left lung"), shown)
    assert fits.disagreements == ()
    assert fits.score > 0.9 and differs.score < 0.1
    assert differs.disagreements == (
        "left lung: the caption says upper and middle and lower, the image speaks for none (0.91)",
        "right lung: the caption says none, the image speaks for lower (0.78)",
    )


def test_what_follows_from_places_is_compared_only_without_them(head, shown):
    placed = parse_caption("bilateral pulmonary infection, four infected areas, lower right lung")
    assert head.check(placed, shown).disagreements == ()
    counted = head.check(parse_caption("bilateral pulmonary infection, four infected areas"), shown)
    assert [sentence.partition(":")[0] for sentence in counted.disagreements] == ["sides", "count"]


def test_the_score_is_one_half_where_the_image_says_as_much_as_the_share_of_captions(head, shown):
    caption = parse_caption("unilateral pulmonary infection, one infected area, lower right lung")
    described = {**shown, "probabilities": head.shares.tolist()}
    assert head.check(caption, described).score == pytest.approx(0.5)


def test_a_caption_of_absence_fits_where_nothing_is_found(head, shown):
    nothing, something = parse_caption("no infection"), parse_caption("one infected area, lower right lung")
    assert head.check(nothing, shown).score == 0
    assert head.check(nothing, shown).disagreements == (
        "the caption says that there is no lung infection, the image speaks for some (1.00)",
    )
    healthy = {**shown, "absence": 0.9}
    assert head.check(nothing, healthy) == CaptionCheck(0.9, ())
    assert head.check(something, healthy).score <= 0.1
    assert head.check(something, healthy).disagreements == (
        "the caption says that there is lung infection, the image speaks for none (0.90)",
    )


def test_a_caption_that_contradicts_itself_does_not_fit(head, shown):
    contradictory = parse_caption("unilateral pulmonary infection, lower left lung and lower right lung")
    assert head.check(contradictory, shown).score < 1e-5


def test_a_caption_of_another_family_does_not_fit(head, shown):
    polyp = head.check(parse_caption("one small polyp"), shown)
    assert polyp.score < 0.1
    assert polyp.disagreements == ("the caption speaks of polyp, the image of lung infection (0.95)",)


def test_values_that_the_head_has_not_learned_are_passed_over(head, shown):
    older = {**shown, "attributes": [{**row, "values": {"other": 1.0}} for row in shown["attributes"]]}
    found = head.check(parse_caption("unilateral pulmonary infection, lower right lung"), older)
    assert not any("right lung" in sentence or "sides" in sentence for sentence in found.disagreements)


def test_a_head_can_be_added_for_families_one_after_the_other():
    model = captioning_model("polyp")
    add_caption_head(model, ["nuclei"])
    assert {caption.family for caption in model.caption_head.captions} == {"nuclei"}
    assert model.config.caption_families == ["polyp", "nuclei"]
