"""How well a checkpoint does without captions: those that it writes, the masks it draws with them, and wrong ones."""

import math
from typing import Any

import torch
from tqdm import tqdm

from ..inference.captioning import CaptioningSegmenter
from ..model.pipeline_lvit import NUM_CAPTIONS
from ..training.caption_head import measure_captions
from .caption_calibration import area_under_roc, check_pairs, pair_captions
from .evaluate import EvaluationSettings, evaluate, make_results


def evaluate_captions(
    segmenter: CaptioningSegmenter, data, settings: EvaluationSettings, num_captions: int = NUM_CAPTIONS
) -> dict[str, Any]:
    """Measures predicted captions on a split.

    Args:
        segmenter: A checkpoint with a caption head.
        data: Rows with `image`, `mask` and `text`, as `load_data` returns.
        settings: How masks are measured.
        num_captions: Number of captions over which masks are averaged.

    Returns:
        The figures of [`measure_captions`]; `consistency_auroc`, what [`measure_consistency`] returns; and `overlap`,
        for each way of giving captions (`correct`, `null`, `predicted`, `marginal`) what [`make_results`] returns.
    """
    config = segmenter.model.config
    logits, value_probabilities = predict_rows(segmenter, data, settings.batch_size)
    figures = measure_captions(logits, value_probabilities, list(data["text"]), config)
    figures["consistency_auroc"] = measure_consistency(segmenter, data, settings.batch_size)
    likeliest = [config.captions[index]["text"] for index in logits.argmax(-1).tolist()]
    predicted = data.remove_columns("text").add_column("text", likeliest)
    figures["overlap"] = {
        way: measure_overlap(segmenter, rows, settings, mode, count)
        for way, rows, mode, count in (
            ("correct", data, "correct", 0),
            ("null", data, "none", 0),
            ("predicted", predicted, "correct", 0),
            ("marginal", data, "none", num_captions),
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


def measure_consistency(segmenter: CaptioningSegmenter, data, batch_size: int) -> dict[str, float]:
    """How well true captions are told from other images', where the two differ.

    Returns:
        Areas under the ROC curve: of `score`, as [`check_caption`] gives it, 0 for a caption that is not understood;
        of `caption`, what the caption head says alone; and of `masks`, the mask agreement.
    """
    pairs = pair_captions(list(data["text"]))
    checks = check_pairs(segmenter, data, pairs, batch_size)
    is_true = torch.tensor([pair.is_true for pair in pairs])
    unread = -math.inf
    values = {
        "score": [check.score or 0.0 for check in checks],
        "caption": [check.evidence.get("caption", unread) for check in checks],
        "masks": [check.mask_agreement for check in checks],
    }
    return {name: area_under_roc(torch.tensor(value), is_true) for name, value in values.items()}


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
        areas = ", ".join(f"{name} {area:.3f}" for name, area in figures["consistency_auroc"].items())
        lines += ["", f"True captions told from other images', AUROC by {areas}.", ""]
        lines += ["| caption | Dice per image | Dice pooled |", "|---|---|---|"]
        lines += [
            f"| {way} | {100 * row['dice']:.2f} | {100 * row['pooled_dice']:.2f} |"
            for way, row in figures["overlap"].items()
        ]
    return "\n".join(lines)
