"""Masks over images: colours where the mask is, its outline, and nothing else."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image, ImageColor
from scipy import ndimage

from lvit_hf.inference.drawing import CAPTION_WIDTH, OVERLAY_COLOR, OVERLAY_OPACITY, draw_outlines, draw_overlay


RNG = np.random.default_rng(0)
MASK = ndimage.gaussian_filter(RNG.normal(size=(24, 30)), 3) > 0


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("mask", [MASK, ~MASK, MASK & False, MASK | True], ids=["some", "others", "none", "all"])
def test_an_overlay_tints_a_mask_and_draws_its_outline(mode, mask):
    image = Image.fromarray(RNG.integers(0, 256, (*MASK.shape, 3), dtype=np.uint8)).convert(mode)
    pixels, color = np.asarray(image.convert("RGB")).astype(float), np.array(ImageColor.getrgb(OVERLAY_COLOR))
    inner = ndimage.binary_erosion(mask, border_value=1)
    expected = np.where(mask[..., None], (1 - OVERLAY_OPACITY) * pixels + OVERLAY_OPACITY * color, pixels)
    expected[mask & ~inner] = color
    overlay = draw_overlay(image, mask)
    assert (overlay.mode, overlay.size) == ("RGB", image.size) and 0 < OVERLAY_OPACITY < 1
    np.testing.assert_allclose(np.asarray(overlay), expected, atol=1)


def test_outlines_have_their_colours_and_captions_are_no_formulas():
    axes = Figure().subplots()
    image, text = Image.fromarray(RNG.integers(0, 256, MASK.shape, dtype=np.uint8)), "costs $1, or $2, " * 8
    masks = [(MASK, "#ff0000"), (MASK & False, "#00ff00"), (MASK | True, "#00ff00"), (~MASK, "#0000ff")]
    draw_outlines(axes, image, masks, text)
    assert [to_hex(contour.get_edgecolor()[0]) for contour in axes.collections] == ["#ff0000", "#0000ff"]
    for contour in axes.collections:  # between a pixel of the mask and one beside it
        points = np.concatenate([path.vertices for path in contour.get_paths()])
        near = np.stack([MASK[tuple(np.rint(points[:, ::-1] + shift).astype(int).T)] for shift in (-0.49, 0.49)])
        assert (near[0] != near[1]).any() and points.min() >= 0
    assert not len(axes.get_xticks()) and not len(axes.get_yticks())
    lines = axes.get_xlabel().splitlines()
    assert " ".join(lines) == text.strip() and CAPTION_WIDTH / 2 < max(map(len, lines)) <= CAPTION_WIDTH
    assert not axes.xaxis.label.get_parse_math()
    draw_outlines(axes, image, [])
    assert axes.get_xlabel() == ""
