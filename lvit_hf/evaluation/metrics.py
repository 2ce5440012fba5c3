"""Overlap, boundaries and calibration of masks, with intervals from resampled images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from transformers import EvalPrediction


CALIBRATION_BINS = 15
RESAMPLES = 1000
RESAMPLING_SEED = 0


@dataclass
class OverlapMetrics:
    """Dice and IoU over images added one batch after the other.

    *Per image* is the mean over images of each image's value; *pooled* is one value over all pixels of all images.
    Two empty masks agree (1); one empty mask does not (0).
    """

    intersections: list[torch.Tensor] = field(default_factory=list)
    totals: list[torch.Tensor] = field(default_factory=list)

    def update(self, predictions: torch.Tensor, labels: torch.Tensor):
        """Adds boolean masks of shape `(batch_size, (depth,) height, width)`."""
        predictions, labels = predictions.flatten(1), labels.flatten(1)
        self.intersections.append((predictions & labels).sum(1).double().cpu())
        self.totals.append((predictions.sum(1) + labels.sum(1)).double().cpu())

    def compute(self) -> dict[str, float]:
        """Returns `dice`, `iou` (per image) and `pooled_dice`, `pooled_iou`, each in [0, 1]."""
        intersection, total = torch.cat(self.intersections), torch.cat(self.totals)
        dice, iou = overlap_scores(intersection, total)
        pooled_dice, pooled_iou = overlap_scores(intersection.sum(), total.sum())
        return {
            "dice": dice.mean().item(),
            "iou": iou.mean().item(),
            "pooled_dice": pooled_dice.item(),
            "pooled_iou": pooled_iou.item(),
        }


def overlap_scores(intersection: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and IoU from the pixels in both masks and the sum of both masks' pixels; 1 where both are empty."""
    empty = total == 0
    dice = torch.where(empty, 1.0, 2 * intersection / total.clamp(min=1))
    iou = torch.where(empty, 1.0, intersection / (total - intersection).clamp(min=1))
    return dice, iou


class TrainerMetrics:
    """`compute_metrics` for a Trainer with `batch_eval_metrics`: no more than one batch of logits is held."""

    def __init__(self, threshold: float = 0.5):
        self.threshold = threshold
        self.overlap = OverlapMetrics()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        self.overlap.update(prediction.predictions[:, 0].sigmoid() > self.threshold, prediction.label_ids > 0.5)
        if not compute_result:
            return {}
        result = self.overlap.compute()
        self.overlap = OverlapMetrics()
        return result


def boundary_scores(
    prediction: torch.Tensor, label: torch.Tensor, tolerance: float, spacing: Sequence[float] | None = None
) -> tuple[float, float]:
    """Distance between the outlines of two masks.

    Args:
        prediction, label: Boolean masks of shape `((depth,) height, width)`.
        tolerance: Distance in pixels, or in mm with `spacing`, up to which outlines agree.
        spacing: Distance in mm between pixels along each axis.

    Returns:
        HD95, the larger of the two directed 95th percentiles, in that unit, and the normalised surface Dice in [0, 1].
        Two empty masks have 0 and 1; where one is empty no distance is defined, and they have the image's diagonal
        and 0.
    """
    if not prediction.any() and not label.any():
        return 0.0, 1.0
    if not prediction.any() or not label.any():
        return math.hypot(*map(math.prod, zip(label.shape, spacing or [1] * label.ndim))), 0.0
    settings = {} if spacing is None else {"spacing": tuple(spacing)}
    _, (there, back), _ = get_edge_surface_distance(prediction, label, symmetric=True, **settings)  # type: ignore
    hd95 = max(there.quantile(0.95).item(), back.quantile(0.95).item())
    return hd95, (torch.cat([there, back]) <= tolerance).double().mean().item()


def reliability_bins(probabilities: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Pixels, sum of probabilities and foreground pixels in equal bins of the probability: `(3, bins)`, float64."""
    probabilities, foreground = probabilities.flatten().double(), label.flatten().double()
    bins = (probabilities * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    weights = (None, probabilities, foreground)
    return torch.stack([torch.bincount(bins, weight, CALIBRATION_BINS).double() for weight in weights])


def calibration_scores(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """ECE, as in `summarize`, and Brier score of any pixels with their boolean labels."""
    pixels, probability, foreground = reliability_bins(probabilities, labels)
    brier = (probabilities.double() - labels.double()).square().mean()
    return ((probability - foreground).abs().sum() / pixels.sum()).item(), brier.item()


def measure_image(
    probabilities: torch.Tensor, label: torch.Tensor, threshold: float, tolerance: float
) -> dict[str, torch.Tensor]:
    """What `summarize` needs to know of one image.

    Args:
        probabilities: Probability of foreground in [0, 1], of shape `(height, width)`.
        label: Boolean mask of that shape.
        threshold: Probability above which a pixel is foreground.
        tolerance: As in `boundary_scores`.
    """
    prediction = probabilities > threshold
    intersection, total = (prediction & label).sum(), prediction.sum() + label.sum()
    dice, iou = overlap_scores(intersection.double(), total.double())
    hd95, nsd = boundary_scores(prediction, label, tolerance)
    return {
        "dice": dice,
        "iou": iou,
        "intersection": intersection,
        "total": total,
        "hd95": torch.tensor(hd95),
        "nsd": torch.tensor(nsd),
        "healthy": ~label.any(),
        "one_empty": prediction.any() != label.any(),
        "squared_error": (probabilities.double() - label.double()).square().sum(),
        "reliability": reliability_bins(probabilities, label),
    }


class MeasureTable(dict[str, torch.Tensor]):
    """Measures of images, as float64 tensors whose first dimension is the image.

    The tensors are made once: many small ones that stay among large maps that go would leave holes in the memory.

    Args:
        images: How many images there are.
    """

    def __init__(self, images: int):
        self.images = images

    def put(self, number: int, measured: dict[str, torch.Tensor]):
        """Adds what [`measure_image`] returned for the image of that number."""
        for name, value in measured.items():
            if name not in self:
                self[name] = torch.zeros(self.images, *value.shape, dtype=torch.float64)
            self[name][number] = value


def resampling_weights(images: int) -> torch.Tensor:
    """How often each image occurs in each bootstrap resample, `(resamples, images)`; the same for every call."""
    rng = np.random.default_rng(RESAMPLING_SEED)
    return torch.from_numpy(rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)).double()


def summarize(measures: dict[str, torch.Tensor], weights: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """The figures of a split.

    Args:
        measures: As [`MeasureTable`] holds them.
        weights: How often each image counts, of shape `(resamples, images)`; without it once each.

    Returns:
        Each of shape `(resamples,)`: `dice`, `iou`, `hd95` (pixels) and `nsd`, means over images; `pooled_dice` and
        `pooled_iou`, over all pixels; `ece`, the expected calibration error of the probability of foreground in equal
        bins, and `brier`, both over all pixels.
    """
    if weights is None:
        weights = torch.ones(1, len(measures["dice"]), dtype=torch.float64)
    pooled_dice, pooled_iou = overlap_scores(weights @ measures["intersection"], weights @ measures["total"])
    per_image = {name: weights @ measures[name] / weights.sum(1) for name in ("dice", "iou", "hd95", "nsd")}
    pixels, probability, foreground = torch.einsum("ri,ibk->brk", weights, measures["reliability"])
    return {
        **per_image,
        "pooled_dice": pooled_dice,
        "pooled_iou": pooled_iou,
        "ece": (probability - foreground).abs().sum(-1) / pixels.sum(-1),
        "brier": weights @ measures["squared_error"] / pixels.sum(-1),
    }


def interval(resampled: torch.Tensor) -> tuple[float, float]:
    """The middle 95 percent of a figure over bootstrap resamples."""
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    return low, high


def overlap(mask: np.ndarray | torch.Tensor, truth: np.ndarray | torch.Tensor) -> dict[str, float]:
    """Dice and IoU of two masks of one shape, in [0, 1]; two empty masks agree fully."""
    common, total = float((mask & truth).sum()), float(mask.sum() + truth.sum())
    dice, iou = overlap_scores(*torch.tensor([common, total], dtype=torch.float64))
    return {"dice": dice.item(), "iou": iou.item()}
