"""Figures of masks against loops that say the same in words."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from lvit_hf.evaluation.metrics import (
    CALIBRATION_BINS,
    MeasureTable,
    OverlapMetrics,
    TrainerMetrics,
    boundary_scores,
    calibration_scores,
    measure_image,
    overlap,
    summarize,
)


def dice_and_iou(mask: set, truth: set) -> tuple[float, float]:
    if not mask | truth:
        return 1.0, 1.0
    return 2 * len(mask & truth) / (len(mask) + len(truth)), len(mask & truth) / len(mask | truth)


def pixels(masks: np.ndarray) -> set:
    return set(map(tuple, np.argwhere(masks)))


@pytest.fixture(scope="module")
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Of five images; in the third and the fourth one mask is empty, in the fifth both."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(5, 9, 7, generator=generator).round(decimals=2)
    labels = torch.rand(5, 9, 7, generator=generator) > 0.5
    probabilities[3:], labels[2], labels[4] = probabilities[3:] / 2, False, False
    probabilities[0, 0, :3] = torch.tensor([0, 1, 0.5])
    return probabilities, labels


def test_the_figures_of_images_are_those_of_sets_of_pixels(maps):
    probabilities, labels = maps
    table = MeasureTable(5)
    for number, pair in enumerate(zip(probabilities, labels)):
        table.put(number, measure_image(*pair, threshold=0.5, tolerance=1))
    figures = {name: value.item() for name, value in summarize(table).items()}
    masks = probabilities.numpy() > 0.5
    each = [dice_and_iou(pixels(mask), pixels(label)) for mask, label in zip(masks, labels.numpy())]
    assert (figures["dice"], figures["iou"]) == pytest.approx(tuple(np.mean(each, axis=0)))
    both = dice_and_iou(pixels(masks), pixels(labels.numpy()))
    assert (figures["pooled_dice"], figures["pooled_iou"]) == pytest.approx(both)
    assert [overlap(*pair)["iou"] for pair in zip(masks, labels.numpy())] == pytest.approx([iou for _, iou in each])
    distances = [boundary_scores(mask, label, 1) for mask, label in zip(torch.from_numpy(masks), labels)]
    assert (figures["hd95"], figures["nsd"]) == pytest.approx(tuple(np.mean(distances, axis=0)))
    assert table["healthy"].tolist() == [False, False, True, False, True]
    assert table["one_empty"].tolist() == [False, False, True, True, False]


def test_calibration_is_the_mean_gap_of_bins_that_are_equally_wide(maps):
    probabilities, labels = (part.flatten().numpy() for part in maps)
    gap, edges = 0.0, np.linspace(0, 1, CALIBRATION_BINS + 1)
    for low, high in zip(edges, edges[1:]):
        inside = (probabilities >= low) & (probabilities < high if high < 1 else probabilities <= 1)
        gap += abs(probabilities[inside].sum() - labels[inside].sum()) / len(labels)
    brier = np.mean((probabilities - labels) ** 2)
    assert calibration_scores(*maps) == pytest.approx((gap, brier), abs=1e-6)
    table = MeasureTable(5)
    for number, pair in enumerate(zip(*maps)):
        table.put(number, measure_image(*pair, threshold=0.5, tolerance=1))
    figures = summarize(table)
    assert (figures["ece"].item(), figures["brier"].item()) == pytest.approx((gap, brier), abs=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_the_trainer_gets_the_figures_of_all_batches_at_the_end(maps, threshold):
    probabilities, labels = maps
    soft = 0.6 * labels + 0.4 * ~labels  # as pseudo-labels are
    expected = OverlapMetrics()
    expected.update(probabilities.double().logit().sigmoid() > threshold, labels)
    metrics = TrainerMetrics(threshold)
    other = torch.ones(5, 1, 9, 7)  # a label that is not looked at
    batch = EvalPrediction(torch.cat([probabilities.double().logit()[:, None], other], 1), soft)
    for _ in range(2):
        first, last = (
            EvalPrediction(batch.predictions[part], batch.label_ids[part]) for part in (slice(0, 3), slice(3, 5))
        )
        assert metrics(first) == {} and metrics(last, compute_result=True) == pytest.approx(expected.compute())


@pytest.mark.parametrize("spacing", [None, (4, 1, 0.5)])
def test_distances_between_outlines_are_in_the_unit_of_the_spacing(spacing):
    """Two boxes of one size, moved along one axis after the other."""
    box = torch.zeros(12, 14, 16, dtype=torch.bool)
    box[3:7, 3:8, 3:9] = True
    for axis, step in enumerate(spacing or (1, 1, 1)):
        moved = box.roll(2, axis)
        hd95, nsd = boundary_scores(box, moved, 2 * step, spacing)
        assert hd95 == pytest.approx(2 * step) and nsd == 1
        assert 0 < boundary_scores(box, moved, 1.9 * step, spacing)[1] < 1
    diagonal = np.linalg.norm(np.multiply(box.shape, spacing or 1))
    assert boundary_scores(box, box & False, 1, spacing) == (pytest.approx(diagonal), 0)
