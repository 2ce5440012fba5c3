"""How well a checkpoint does without captions: those that it writes, the masks it draws with them, and wrong ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from tqdm import tqdm

from .caption_prediction import CaptioningSegmenter, check_caption
from .caption_training import measure_captions
from .evaluation import EvaluationSettings, evaluate, make_results, shuffle_captions
from .modeling_lvit import LViTCaptionPredictionOutput


def evaluate_captions(
    segmenter: CaptioningSegmenter, data, settings: EvaluationSettings, num_captions: int = 5
) -> dict[str, Any]:
    """Measures predicted captions on a split.

    Args:
        segmenter: A checkpoint with a caption head.
        data: Rows with `image`, `mask` and `text`, as `load_data` returns.
        settings: How masks are measured.
        num_captions: Number of captions over which masks are averaged.

    Returns:
        The figures of [`measure_captions`]; `consistency_auroc`, how well the score of [`check_caption`] tells the
        true captions from those of other images; and `overlap`, for each way of giving captions (`correct`, `null`,
        `predicted`, `marginal`) what [`make_results`] returns of it.
    """
    logits, value_probabilities = predict_rows(segmenter, data, settings.batch_size)
    texts = list(data["text"])
    outputs = LViTCaptionPredictionOutput(logits=logits, value_probabilities=value_probabilities)
    figures = measure_captions(logits, value_probabilities, texts, segmenter.model.config)
    figures["consistency_auroc"] = measure_consistency(segmenter.model.caption_head.decode(outputs), texts)
    figures["overlap"] = {
        way: measure_overlap(segmenter, data, settings, mode, count)
        for way, mode, count in (
            ("correct", "correct", 0),
            ("null", "none", 0),
            ("predicted", "none", 1),
            ("marginal", "none", num_captions),
        )
    }
    return figures


@torch.inference_mode()
def predict_rows(segmenter: CaptioningSegmenter, data, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The caption head's `logits` and `value_probabilities` for the images of a split."""
    outputs = []
    for start in tqdm(range(0, len(data), batch_size), desc="captions", unit="batch", disable=None):
        images = [segmenter.to_rgb(image) for image in data[start : start + batch_size]["image"]]
        outputs.append(segmenter.predict_captions(images).to_tuple())
    logits, value_probabilities = (torch.cat(parts).cpu() for parts in zip(*outputs))
    return logits, value_probabilities


def measure_consistency(described: Sequence[dict[str, Any]], texts: Sequence[str]) -> float:
    """Area under the ROC curve with which scores tell true captions from other images', where the two differ.

    A caption that is not understood scores 0.
    """
    scores, is_true = [], []
    for row, text, other in zip(described, texts, shuffle_captions(list(texts))):
        if text != other:
            scores += [check_caption(caption, row).score or 0.0 for caption in (text, other)]
            is_true += [1.0, 0.0]
    return float(np.asarray(compute_roc_auc(torch.tensor(scores), torch.tensor(is_true))))


def measure_overlap(
    segmenter: CaptioningSegmenter, data, settings: EvaluationSettings, mode: str, num_captions: int
) -> dict[str, Any]:
    """Figures of the masks with captions given in a text mode, or with `num_captions` predicted ones."""
    segmenter.num_captions = num_captions
    [result] = make_results(evaluate(segmenter, data, [mode], settings), {}, settings)
    return result


def render_figures(figures: dict[str, Any]) -> str:
    """The figures of [`evaluate_captions`] or [`measure_captions`] as Markdown."""
    lines = [
        f"{figures['images']} images. Exact caption {figures['exact']:.3f}, always the most frequent one "
        f"{figures['exact_majority']:.3f}.",
        "",
        "| value | share of images | AUROC | F1 |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {value} | {row['share']:.3f} | {row['auroc']:.3f} | {row['f1']:.3f} |"
        for value, row in figures["values"].items()
    ]
    if "overlap" in figures:
        lines += ["", f"True captions told from other images': AUROC {figures['consistency_auroc']:.3f}.", ""]
        lines += ["| caption | Dice per image | Dice pooled |", "|---|---|---|"]
        lines += [
            f"| {way} | {100 * row['dice']:.2f} | {100 * row['pooled_dice']:.2f} |"
            for way, row in figures["overlap"].items()
        ]
    return "\n".join(lines)
