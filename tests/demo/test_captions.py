"""Captions that are written from an image, and judged, on the page and by the service."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from app_page import caption_field, open_page, segment_button, upload, wait_for_mask
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import expect
from tiny_lvit import tiny_model, tiny_processor
from torch import nn

from lvit_hf.demo.engine import Engine, find_shipped_checkpoints
from lvit_hf.demo.results import describe_check
from lvit_hf.inference.captioning import CaptioningSegmenter
from lvit_hf.model.pipeline_lvit import CaptionCheck
from lvit_hf.training.caption_labels import caption_fields


TEXT = "two infected areas, upper left lung and lower right lung"


@pytest.fixture(scope="module")
def segmenter() -> CaptioningSegmenter:
    """A segmenter with a caption head."""
    model = tiny_model(**caption_fields(["lung infection", "polyp"]))
    nn.init.normal_(model.caption_head.bias)
    for caption in model.config.captions:
        caption["share"] = 1 / len(model.config.captions)
    return CaptioningSegmenter(model, tiny_processor())


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def test_the_service_writes_captions(client, segmenter, picture):
    captions = client.predict(handle_file(picture), api_name="/caption")
    [expected] = segmenter.describe([Image.open(picture)], num_captions=5)
    assert [caption["text"] for caption in captions["captions"]] == [
        caption["text"] for caption in expected["captions"]
    ]
    assert captions["families"] == pytest.approx(expected["families"])
    assert captions["attributes"][0]["values"] == pytest.approx(expected["attributes"][0]["values"])


def test_measurements_say_whether_caption_and_image_agree(client, segmenter, picture):
    measures = client.predict(handle_file(picture), TEXT, api_name="/segment")[2]
    [expected] = segmenter.check([Image.open(picture)], [TEXT])
    check = measures["consistency"]
    assert check["understood"] and check["score"] == pytest.approx(expected.score)
    assert check["mask_agreement"] == pytest.approx(expected.mask_agreement, abs=1e-5)
    assert tuple(check["disagreements"]) == expected.disagreements
    nonsense = client.predict(handle_file(picture), "a photo of a dog", api_name="/segment")[2]["consistency"]
    assert nonsense["understood"] is False and nonsense["score"] is None


def test_no_text_means_no_text(client, segmenter, picture):
    mask, _, measures = client.predict(handle_file(picture), "", api_name="/segment")
    assert measures["text"] is None and measures["consistency"] is None
    [expected] = segmenter.segment([picture])
    np.testing.assert_array_equal(np.asarray(Image.open(mask)) > 0, expected.mask())


def test_tiles_that_read_no_caption_are_not_asked_whether_it_moved_the_mask(client, picture):
    check = client.predict(handle_file(picture), TEXT, 0.5, 32, api_name="/segment")[2]["consistency"]
    assert check["understood"] and check["mask_agreement"] is None


def test_the_button_writes_a_caption_that_stays_editable(url, segmenter, picture, browser):
    [described] = segmenter.describe([Image.open(picture)])
    written = described["captions"][0]["text"]
    with open_page(browser, url) as page:
        upload(page, picture)
        page.get_by_role("button", name="Write a caption from the image").click()
        expect(caption_field(page)).to_have_value(written)
        expect(page.get_by_test_id("label-output-value")).to_have_count(0)
        expect(page.get_by_text("%", exact=False).first).to_be_visible()
        caption_field(page).fill(TEXT)
        segment_button(page).click()
        wait_for_mask(page)
        [check] = segmenter.check([Image.open(picture)], [TEXT])
        expect(page.get_by_label("Do caption and image agree?")).to_have_value(describe_check(check))
        page.get_by_role("button", name="Remove Image").click()
        expect(page.get_by_label("Do caption and image agree?")).to_have_value("")
        expect(page.get_by_text("What the image may show")).to_be_hidden()


def test_a_checkpoint_without_a_head_has_no_button(url, checkpoint, browser):
    button = "Write a caption from the image"
    with open_page(browser, url) as page:
        page.get_by_role("button", name="Model and scale").click()
        model = page.get_by_role("combobox", name="Checkpoint")
        model.click()
        for name in find_shipped_checkpoints():
            expect(page.get_by_role("option", name=name, exact=True)).to_be_visible()
        model.fill(str(checkpoint))
        model.press("Enter")
        expect(page.get_by_role("button", name=button)).to_be_hidden()
        expect(page.get_by_label("Device")).to_have_value(
            re.compile(r"^(cpu|cuda\S*), float32, \d+\.\d M parameters$")
        )
        expect(page.get_by_label("Do caption and image agree?")).to_be_hidden()
        model.fill("no/such/model")
        model.press("Enter")
        expect(page.get_by_test_id("toast-body")).to_contain_text("no/such/model is not an LViT checkpoint")


def test_the_service_says_that_a_checkpoint_writes_no_captions(client, checkpoint, picture):
    with pytest.raises(AppError, match="has no caption head"):
        client.predict(handle_file(picture), str(checkpoint), api_name="/caption")
    assert client.predict(handle_file(picture), model=str(checkpoint), api_name="/segment")[2]["consistency"] is None


def test_a_closed_page_serves_what_comes_with_the_repository_alone(segmenter):
    engine = Engine(segmenter, "mine", allows_others=False)
    assert engine.models == ["mine", *find_shipped_checkpoints()]
    assert engine.segmenter("mine") is segmenter
    with pytest.raises(ValueError, match="This page serves only mine, lvit-small, lvit-small-monuseg"):
        engine.segmenter("USER/NAME")


def test_verdicts_are_sentences():
    check = CaptionCheck(True, 0.9, (), (), mask_agreement=0.75)
    assert describe_check(check) == ("They agree (score 0.90). The masks with and without the text overlap by 75%.")
    differs = dataclasses.replace(
        check, score=0.2, disagreements=("sides: the caption says one",), unknown_words=("x",)
    )
    assert describe_check(differs) == (
        "They disagree (score 0.20). Sides: the caption says one. Words that are not known: x. "
        "The masks with and without the text overlap by 75%."
    )
    doubted = dataclasses.replace(differs, score=0.87, unknown_words=(), mask_agreement=None)
    assert describe_check(doubted) == "They agree in part (score 0.87). Sides: the caption says one."
    assert describe_check(CaptionCheck(False, None, (), ("dog",))) == (
        "Not understood: the caption states nothing that this checkpoint knows. Words that are not known: dog."
    )
    assert describe_check(None) == ""
