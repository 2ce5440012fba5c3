"""The core of every way of asking: what it concludes from what the network says."""

import numpy as np
import pytest
from captioning import captioning_model
from PIL import Image
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf.model.segmenter_lvit import VIEWS, LViTSegmenter, Scope, Segmentation, flip, flip_image, soft_dice


@pytest.fixture(scope="module")
def writer() -> LViTSegmenter:
    return LViTSegmenter(captioning_model("lung infection", "polyp", "nuclei"), tiny_processor())


@pytest.mark.parametrize(
    ("family", "finding"), [("lung infection", "infection"), ("polyp", "polyp"), ("nuclei", None)]
)
def test_a_mask_is_named_after_the_likeliest_family(writer, family, finding):
    families = {name: 0.8 if name == family else 0.1 for name in ("lung infection", "nuclei", "polyp")}
    assert writer.name_labels(None, {"families": families}) == (finding or family,)


def test_a_model_of_one_family_names_masks_after_it():
    names = [
        (["polyp"], "polyp"),
        (["polyp", "nuclei"], "foreground"),
        ([], "foreground"),
        (["stripes"], "foreground"),
    ]
    for families, label in names:
        segmenter = LViTSegmenter(tiny_model(caption_families=families), tiny_processor())
        assert segmenter.name_labels(None, None) == (label,)


@pytest.mark.parametrize(
    ("in_scope", "scores", "excluded"),
    [
        (True, {"a": 0.9, "b": 0.1}, {"b"}),
        (True, {"a": 0.9, "b": 0.6}, set()),  # like both
        (False, {"a": 0.3, "b": 0.1}, set()),  # like none
    ],
)
def test_a_kind_is_excluded_by_an_image_that_is_another_for_certain(in_scope, scores, excluded):
    scope = Scope(in_scope, scores["a"], "a", scores)
    assert {kind for kind in ("a", "b", "unknown") if scope.excludes(kind)} == excluded


def test_how_far_two_maps_overlap():
    first, second = np.random.default_rng(0).random((2, 1, 6, 8))
    left = first * (np.arange(8) < 4)
    assert soft_dice(first, first) == soft_dice(0 * first, 0 * first) == 1
    assert soft_dice(left, first - left) == 0
    expected = 2 * (first * second).sum() / ((first**2).sum() + (second**2).sum())
    assert soft_dice(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("flips", VIEWS["all"])
def test_flips_of_images_are_those_of_their_channels(mode, flips):
    image = Image.effect_noise((7, 5), 90).convert(mode)
    flipped = flip_image(image, flips)
    assert flipped.mode == mode
    for channel, expected in zip(flipped.split(), image.split()):
        np.testing.assert_array_equal(channel, flip(np.asarray(expected), flips))


def test_every_turn_and_mirror_image_is_a_view_once():
    assert len(set(VIEWS["all"])) == len(VIEWS["all"]) == 7
    square = np.arange(9).reshape(3, 3)
    views = {flip(square, flips).tobytes() for flips in VIEWS["all"]}
    assert len(views) == 7 and square.tobytes() not in views


def test_the_mask_of_several_labels_is_what_is_likelier_than_the_background():
    scores = np.random.default_rng(0).dirichlet((1, 1, 1), (6, 8)).transpose(2, 0, 1)
    for place, names in enumerate((("background", "a", "b"), ("a", "background", "b"))):
        result = Segmentation(None, scores, names)
        for threshold in (0.1, 0.9):  # read where there is one label
            np.testing.assert_array_equal(result.mask(threshold), scores.argmax(0) != place)
        np.testing.assert_allclose(result.probabilities, 1 - scores[place])
    alone = Segmentation(None, scores[:1], ("background",))  # of a model's only label the name says nothing
    np.testing.assert_array_equal(alone.probabilities, scores[0])
    assert alone.null_probabilities is None and alone.written_caption is None
