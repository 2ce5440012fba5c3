"""Overlap of masks, in both averages that the field uses."""

from dataclasses import dataclass, field

import torch
from transformers import EvalPrediction


@dataclass
class OverlapMetrics:
    """Dice and IoU over images added one batch after the other.

    *Per image* is the mean over images of each image's value; *pooled* is one value over all pixels of all images.
    Two empty masks agree (1); one empty mask does not (0).
    """

    intersections: list[torch.Tensor] = field(default_factory=list)
    totals: list[torch.Tensor] = field(default_factory=list)

    def update(self, predictions: torch.Tensor, labels: torch.Tensor):
        """Adds boolean masks of shape `(batch_size, height, width)`."""
        self.intersections.append((predictions & labels).sum((-2, -1)).double().cpu())
        self.totals.append((predictions.sum((-2, -1)) + labels.sum((-2, -1))).double().cpu())

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
