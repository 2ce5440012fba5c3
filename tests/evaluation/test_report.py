"""What a reader sees of an evaluation: the numbers that were measured, each beside its name."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from squares import make_rows

from lvit_hf.evaluation.evaluate import (
    TEXT_LABELS,
    EvaluationSettings,
    TextModeMeasures,
    evaluate,
    make_results,
)
from lvit_hf.evaluation.metrics import MeasureTable, measure_image
from lvit_hf.evaluation.report import (
    GALLERY_COLUMNS,
    LABEL_COLOR,
    draw_dice_histogram,
    draw_gallery,
    draw_reliability,
    gallery_rows,
    render_evaluation,
)
from lvit_hf.inference.drawing import OVERLAY_COLOR


ORIGIN = {"model": "tiny", "data": "noise", "split": "test"}
IMAGES = 12


def measure(seed: int, healthy: int = 0) -> TextModeMeasures:
    """Of masks that agree more or less, the first of which are empty on both sides or one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(IMAGES, 16, 16, generator=generator) > 0.6
    maps = (0.6 * labels + torch.rand(labels.shape, generator=generator)) / 1.8
    labels[:healthy], maps[: healthy // 2] = False, 0.1
    table = MeasureTable(IMAGES)
    for number, pair in enumerate(zip(maps, labels)):
        table.put(number, measure_image(*pair, 0.5, 1))
    return TextModeMeasures([None] * IMAGES, IMAGES, table)


def describe(measured: dict[str, TextModeMeasures], **settings) -> tuple[list[dict], str]:
    settings = EvaluationSettings(**settings)
    results = make_results(measured, ORIGIN, settings)
    return results, render_evaluation(results)


def test_each_way_of_captions_has_its_figures_in_a_row():
    results, text = describe({"correct": measure(0), "none": measure(1), "shuffled": measure(2)})
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert text.startswith("# tiny on noise, test\n") and len(rows) == len(results) == 3
    for cells, result in zip(rows, results):
        row = dict(zip(head, cells))
        assert row["captions"] == TEXT_LABELS[result["text"]]
        for title, name in {
            "Dice": "dice",
            "IoU": "iou",
            "pooled Dice": "pooled_dice",
            "pooled IoU": "pooled_iou",
        }.items():
            low, high = (100 * value for value in result["intervals"][name])
            assert row[title] == f"{100 * result[name]:.2f} ({low:.1f} to {high:.1f})"
        numbers = (result["hd95"], 100 * result["nsd"], result["ece"], result["brier"])
        assert [float(row[title]) for title in ("HD95", "NSD", "ECE", "Brier")] == pytest.approx(numbers, abs=0.05)
        assert len(row["ECE"]) == len(row["Brier"]) == len("0.1234")
        if result["text"] == "correct":
            assert "Dice, change" not in row  # the cell is blank
        else:
            low, high = (100 * value for value in result["dice_change_interval"])
            assert row["Dice, change"] == f"{100 * result['dice_change']:+.2f} ({low:+.1f} to {high:+.1f})"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "12 images, compared at each image's own size, threshold 0.5.\n"),
        ({"size": 24}, "compared at 24 x 24 pixels, threshold 0.5. Ground truth resized by area, cut at one half.\n"),
        (
            {"size": 24, "official_masks": True, "threshold": 0.25},
            "threshold 0.25. Ground truth resized by the reference's bilinear rule, above zero.\n",
        ),
        (
            {"tile_size": 32, "views": "all"},
            "threshold 0.5. Segmented in tiles of 32 pixels. Averaged over flips (all).\n",
        ),
        ({"tolerance": 3.5}, "at a tolerance of 3.5 pixels"),
    ],
)
def test_the_rules_of_the_measurement_are_said(settings, sentence):
    assert sentence in describe({"none": measure(0)}, **settings)[1]


@pytest.mark.parametrize(
    ("healthy", "sentence"),
    [
        (0, None),
        (4, "- 4 images have nothing to find (none): 50.0 percent of them have an empty mask, and the others have a"),
        (IMAGES, "- 12 images have nothing to find (none): 50.0 percent of them have an empty mask.\n"),
    ],
)
def test_images_without_findings_are_told_of_by_themselves(healthy, sentence):
    measured = measure(0, healthy)
    [result], text = describe({"none": measured})
    assert ("have nothing to find" in text) == (sentence is not None) and (sentence or "") in text
    if healthy == 4:
        others = measured.measures["dice"][4:].mean().item()
        assert f"the others have a Dice of {100 * others:.2f}.\n" in text
    one_sided = healthy - healthy // 2
    assert f"({one_sided} images, in the order of the table)" in text and result["one_mask_empty"] == one_sided


def test_captions_that_were_not_read_are_told_of():
    correct, none = replace(measure(0), texts_read=7), replace(measure(1), texts_read=0)
    _, text = describe({"correct": correct, "none": none})
    assert re.findall(r"The network read .* captions \(.*\)", text) == ["The network read 7 of 12 captions (its own)"]


@pytest.mark.parametrize(("change", "is_said"), [(-0.2, False), (0.0, True), (0.2, True)])
@pytest.mark.parametrize("mode", ["shuffled", "swapped"])
def test_captions_of_others_that_do_not_matter_are_told_of(mode, change, is_said):
    correct, other = measure(0), measure(0)
    other.measures["dice"] += change
    _, text = describe({"correct": correct, mode: other})
    assert ("do not show that the model reads the text" in text) == (is_said and mode == "shuffled")
    assert "do not show that the model" not in describe({"shuffled": other})[1]  # beside nothing


def test_reliability_is_the_share_of_foreground_among_pixels_of_a_probability():
    measured = {"correct": measure(0), "none": measure(1)}
    upper, lower = draw_reliability(measured).axes
    (_, *curves), shares = upper.get_lines(), lower.get_lines()
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["its own", "none"]
    for measurement, curve, share in zip(measured.values(), curves, shares, strict=True):
        pixels, probability, foreground = measurement.measures["reliability"].sum(0)
        filled = pixels > 0
        assert not filled.all()  # none is so sure
        np.testing.assert_allclose(curve.get_xdata(), (probability / pixels)[filled])
        np.testing.assert_allclose(curve.get_ydata(), (foreground / pixels)[filled])
        np.testing.assert_allclose(share.get_xdata(), curve.get_xdata())
        np.testing.assert_allclose(share.get_ydata(), (pixels / (IMAGES * 256))[filled])


def test_the_histogram_counts_every_image_once():
    measured = {"correct": measure(0), "none": measure(1)}
    [axes] = draw_dice_histogram(measured).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["its own", "none"]
    heights = np.histogram(measured["correct"].measures["dice"], 20, (0, 1))[0]
    bars = [bar for bar in axes.patches if hasattr(bar, "get_height")]
    assert [bar.get_height() for bar in bars] == heights.tolist() and heights.sum() == IMAGES


@pytest.mark.parametrize("images", [1, 2, 3, 7, 12, 13, 40])
def test_the_gallery_has_the_best_the_middle_and_the_worst(images):
    dice = np.random.default_rng(images).random(images)
    rows, order = gallery_rows(dice), np.argsort(dice).tolist()
    columns = max(1, min(GALLERY_COLUMNS, images // 3))
    assert rows["best"].tolist() == order[::-1][:columns] and rows["worst"].tolist() == order[:columns]
    places = [order.index(index) for index in rows["median"]]
    assert len(places) == columns and abs(np.mean(places) - (images - 1) / 2) <= 0.5
    assert images < 3 or len({*rows["best"], *rows["median"], *rows["worst"]}) == 3 * columns


@pytest.mark.parametrize("tile_size", [None, 20])
def test_a_picture_of_the_gallery_has_its_own_name_caption_and_outlines(segmenter, tile_size):
    data = make_rows(6, seed=0)
    settings = EvaluationSettings(tile_size, threshold=0.4, batch_size=4)
    measurement = evaluate(segmenter, data, ["shuffled"], settings)["shuffled"]
    figure = draw_gallery(measurement, segmenter, data, settings)
    dice = measurement.measures["dice"].numpy()
    assert [axes.get_ylabel() for axes in figure.axes] == ["best", "", "median", "", "worst", ""]
    for axes, index in zip(figure.axes, np.concatenate(list(gallery_rows(dice).values())), strict=True):
        row, caption = data[int(index)], measurement.texts[index]
        assert axes.get_title() == f"{row['id']}\nDice {dice[index]:.3f}"
        assert " ".join(axes.get_xlabel().split()) == caption
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), np.asarray(row["image"].convert("RGB")))
        [result] = segmenter.segment([row["image"]], [caption], tile_size=tile_size)
        expected = [(np.asarray(row["mask"]) > 0, LABEL_COLOR), (result.mask(0.4), OVERLAY_COLOR)]
        drawn = [(mask, color) for mask, color in expected if mask.any() and not mask.all()]
        assert len(axes.collections) == len(drawn)
        for contour, (mask, color) in zip(axes.collections, drawn):
            assert to_hex(contour.get_edgecolor()[0]) == color
            points = np.concatenate([path.vertices for path in contour.get_paths()])
            box = np.argwhere(mask)
            assert points.min(0) == pytest.approx(box.min(0)[::-1], abs=0.51)
            assert points.max(0) == pytest.approx(box.max(0)[::-1], abs=0.51)
