import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_lvit import tiny_model, tiny_processor

from lvit_hf.inference.flipping import VIEWS, FlippingSegmenter
from lvit_hf.model.captions_lvit import rewrite_caption
from lvit_hf.training.augmentation import apply_flips, undo_flips


CAPTION = "Unilateral pulmonary infection, one infected area, upper left lung."


@pytest.fixture(scope="module")
def segmenter() -> FlippingSegmenter:
    return FlippingSegmenter(tiny_model(), tiny_processor())


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("flips", VIEWS["all"])
def test_flips_are_undone(flips):
    array = np.arange(12).reshape(1, 3, 4)
    assert not np.array_equal(apply_flips(array, **flips), array)
    np.testing.assert_array_equal(undo_flips(apply_flips(array, **flips), **flips), array)


@pytest.mark.parametrize("tile_size", [None, 32])
def test_an_image_and_its_mirror_image_get_the_same_mask(segmenter, image, tile_size):
    [result] = segmenter.segment([image], [CAPTION], tile_size)
    mirrored_caption = rewrite_caption(CAPTION, flip_horizontal=True)
    [mirrored] = segmenter.segment([ImageOps.mirror(image)], [mirrored_caption], tile_size)
    assert mirrored_caption != CAPTION and result.text == CAPTION and result.image.size == image.size
    np.testing.assert_allclose(mirrored.probabilities[:, ::-1], result.probabilities, atol=1e-5)
    assert np.ptp(result.probabilities) > 1e-3
