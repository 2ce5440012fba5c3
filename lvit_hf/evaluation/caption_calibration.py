"""Weights of the evidence for and against a caption, with which the score of a check is a probability."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from torch import nn
from tqdm import tqdm

from ..inference.captioning import CaptioningSegmenter
from ..model.captions_lvit import parse_caption
from ..model.pipeline_lvit import EVIDENCE, HEAD_ALONE, TINY, CaptionCheck, score_evidence
from .evaluate import shuffle_captions
from .temperature import minimize


class CaptionPair(NamedTuple):
    """An image, by its row, with its own caption or with another image's."""

    row: int
    text: str
    is_true: bool


class Example(NamedTuple):
    """Evidence for a caption; `half` is 0 or 1, by its image."""

    evidence: dict[str, float]
    is_true: bool
    half: int


def pair_captions(texts: Sequence[str]) -> list[CaptionPair]:
    """Each image with its own caption and with another's, but for images for which the two read the same."""
    return [
        CaptionPair(row, text, is_true)
        for row, (own, other) in enumerate(zip(texts, shuffle_captions(list(texts))))
        for text, is_true in ((own, True), (other, False))
        if own != other
    ]


def check_pairs(
    segmenter: CaptioningSegmenter, data, pairs: Sequence[CaptionPair], batch_size: int
) -> list[CaptionCheck]:
    """Compares the captions of pairs with the images of `data`."""
    checks: list[CaptionCheck] = []
    for start in tqdm(range(0, len(pairs), batch_size), desc="consistency", unit="batch", disable=None):
        batch = pairs[start : start + batch_size]
        images = {row: segmenter.to_rgb(data[row]["image"]) for row in {pair.row for pair in batch}}
        checks += segmenter.check([images[pair.row] for pair in batch], [pair.text for pair in batch])
    return checks


def area_under_roc(scores: torch.Tensor, is_true: torch.Tensor) -> float:
    """Share of pairs of a true and a false one of which the true one has the higher score."""
    return float(np.asarray(compute_roc_auc(scores, is_true.float())))


def calibrate_captions(
    segmenter: CaptioningSegmenter, data: Sequence[Any], batch_size: int = 16
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Fits how a checkpoint should weigh the evidence for a caption.

    Each family has weights of its own, since how far a true caption moves the mask depends on the finding.

    Args:
        segmenter: A checkpoint with a caption head.
        data: Validation data, rows with `image` and `text`, as `load_data` returns.
        batch_size: Number of images that go through the network together.

    Returns:
        For each family its weights, as `LViTConfig.consistency_weights` has them; and for each its figures: the number
        of `captions`, and `auroc` and `brier` of telling true ones from other images', `_before` by the caption head
        alone and `_after` by all evidence, each half of the images with weights fitted on the other half.

    Raises:
        ValueError: If no caption is understood, or a family has too few images to be cut in halves.
    """
    examples: dict[str, list[Example]] = {}
    for rows in data:
        pairs = pair_captions(list(rows["text"]))
        for pair, check in zip(pairs, check_pairs(segmenter, rows, pairs, batch_size)):
            if check.understood:
                family = parse_caption(pair.text).family  # type: ignore[union-attr]
                example = Example(dict(check.evidence), pair.is_true, pair.row % 2)
                examples.setdefault(family, []).append(example)
    if not examples:
        raise ValueError("No caption is understood by this checkpoint, so none can be told from another.")
    figures = {family: _measure(family, rows) for family, rows in examples.items()}
    return {family: fit_weights(rows) for family, rows in examples.items()}, figures


def fit_weights(examples: Sequence[Example]) -> dict[str, float]:
    """The logistic regression that gives what is true of examples the highest likelihood: a bias and weights."""
    evidence = torch.tensor([[example.evidence[name] for name in EVIDENCE] for example in examples]).double()
    labels = torch.tensor([float(example.is_true) for example in examples]).double()
    mean, spread = evidence.mean(0), evidence.std(0).clamp(min=TINY)
    inputs = (evidence - mean) / spread
    layer = nn.Linear(len(EVIDENCE), 1, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    minimize(lambda: nn.functional.binary_cross_entropy_with_logits(layer(inputs)[:, 0], labels), layer.parameters())
    weights = layer.weight.detach()[0] / spread
    bias = layer.bias.item() - (weights * mean).sum().item()
    return {"bias": bias, **dict(zip(EVIDENCE, weights.tolist()))}


def _measure(family: str, examples: Sequence[Example]) -> dict[str, float]:
    halves = [[example for example in examples if example.half == half] for half in (0, 1)]
    if any({example.is_true for example in half} != {True, False} for half in halves):
        raise ValueError(f"Too few images have captions of {family} to fit weights on one half and measure the other.")
    fitted = [fit_weights(halves[1]), fit_weights(halves[0])]
    is_true = torch.tensor([example.is_true for half in halves for example in half])
    figures: dict[str, float] = {"captions": len(examples)}
    for name, weights in (("before", [HEAD_ALONE, HEAD_ALONE]), ("after", fitted)):
        scores = torch.tensor(
            [score_evidence(example.evidence, chosen) for half, chosen in zip(halves, weights) for example in half]
        )
        figures[f"auroc_{name}"] = area_under_roc(scores, is_true)
        figures[f"brier_{name}"] = (scores - is_true.float()).square().mean().item()
    return figures


def render_markdown(weights: dict[str, dict[str, float]], figures: dict[str, dict[str, float]]) -> str:
    """The fitted weights, and a table of how well true captions are told from others before and after."""
    lines = [
        f"{family}: " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()) + "."
        for family, row in weights.items()
    ]
    lines += ["", "| family | captions | AUROC before | AUROC after | Brier before | Brier after |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {family} | {row['captions']} | {row['auroc_before']:.3f} | {row['auroc_after']:.3f} | "
        f"{row['brier_before']:.3f} | {row['brier_after']:.3f} |"
        for family, row in figures.items()
    ]
    lines += [
        "",
        "Half of the captions are other images'. Before: the caption head alone. After: each half of the images with "
        "weights fitted on the other half.",
    ]
    return "\n".join(lines)
