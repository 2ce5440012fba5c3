"""The shipped checkpoints: their files, and what they find on real validation images, where the data is at hand."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lvit_hf.data.load import load_data, take_evenly
from lvit_hf.evaluation.evaluate import EvaluationSettings, evaluate, make_results
from lvit_hf.inference.segmenter import Segmenter
from lvit_hf.io.checkpoints import DEFAULT_CHECKPOINT
from lvit_hf.publishing.model_card import TEMPLATE, render_card
from lvit_hf.publishing.publish import find_problems


DATA = Path(os.environ.get("LVIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
NUM_IMAGES = 12
SLIDES_CHECKPOINT = DEFAULT_CHECKPOINT.with_name("lvit-small-monuseg")
CHECKPOINTS = [DEFAULT_CHECKPOINT, SLIDES_CHECKPOINT]

needs_data = pytest.mark.skipif(
    not DATA.is_dir(),
    reason="needs QaTa-COV19, Kvasir-SEG, BUSI and MoNuSeg; LVIT_DATA names the folder that holds them",
)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_pretrained(DEFAULT_CHECKPOINT)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_it_can_be_published(checkpoint):
    assert find_problems(checkpoint) == []


@needs_data
@pytest.mark.parametrize(
    ("name", "num_images", "tile_size", "lowest_dice"),
    [
        ("qata_cov19", NUM_IMAGES, None, 0.6),
        ("kvasir_seg", NUM_IMAGES, None, 0.6),
        ("busi", NUM_IMAGES, None, 0.6),
        ("MoNuSeg", 1, 175, 0.65),
    ],
)
def test_it_finds_what_it_was_trained_for(segmenter, name, num_images, tile_size, lowest_dice):
    rows = take_evenly(load_data(str(DATA / name), "valid"), num_images)
    settings = EvaluationSettings(tile_size=tile_size)
    result = make_results(evaluate(segmenter, rows, ["correct"], settings), {}, settings)[0]
    assert result["dice"] > lowest_dice


@needs_data
def test_healthy_breasts_show_nothing_without_a_caption_that_says_so(segmenter):
    rows = load_data(str(DATA / "busi"), "valid")
    healthy = [row["image"] for row in rows if not np.asarray(row["mask"]).any()]
    empty = [not result.mask().any() for result in segmenter.segment(healthy, describe=False)]
    assert len(healthy) == 13 and sum(empty) >= 10


@needs_data
def test_the_one_for_slides_finds_nuclei():
    rows = take_evenly(load_data(str(DATA / "MoNuSeg"), "valid"), 1)
    settings = EvaluationSettings(tile_size=128)
    [result] = make_results(
        evaluate(Segmenter.from_pretrained(SLIDES_CHECKPOINT), rows, ["correct"], settings), {}, settings
    )
    assert result["dice"] > 0.7


@needs_data
def test_a_wrong_caption_makes_chest_masks_worse(segmenter):
    rows = take_evenly(load_data(str(DATA / "qata_cov19"), "valid"), 4 * NUM_IMAGES)
    settings = EvaluationSettings()
    right, wrong = make_results(evaluate(segmenter, rows, ["correct", "shuffled"], settings), {}, settings)
    assert wrong["dice"] < right["dice"] - 0.03


def test_half_precision_says_the_same(segmenter):
    image = Image.open(DEFAULT_CHECKPOINT.parents[1] / "examples" / "chest-xray.jpg")
    half = Segmenter(copy.deepcopy(segmenter.model).to(torch.bfloat16), segmenter.processor)
    [expected], [result] = segmenter.segment([image], [""]), half.segment([image], [""])
    assert result.written_caption  # of the rounded features, not always the same
    assert result.scope.scores == pytest.approx(expected.scope.scores, rel=0.02)
    assert np.mean(result.mask(0.5) != expected.mask(0.5)) < 0.01


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_its_card_is_the_one_that_is_rendered(checkpoint):
    assert (checkpoint / "README.md").read_text(encoding="utf-8") == str(render_card(checkpoint, TEMPLATE))


def test_the_card_at_the_top_is_that_of_the_default_checkpoint_with_its_picture():
    """A picture's link begins at the folder in which a card lies."""
    root, picture = DEFAULT_CHECKPOINT.parents[1], "checkpoints/lvit-small/result.jpg"
    card = (DEFAULT_CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert "](result.jpg)" in card and (root / picture).is_file()
    assert (root / "model_card.md").read_text(encoding="utf-8") == card.replace("](result.jpg)", f"]({picture})")
