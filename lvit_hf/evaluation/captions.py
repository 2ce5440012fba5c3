"""How well a checkpoint does without captions: those that it writes, the masks it draws with them, and wrong ones."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics import compute_roc_auc
from tqdm import tqdm

from ..inference.segmenter import Segmenter
from ..model.captions_lvit import parse_caption, render_caption
from ..model.modeling_lvit import LViTCaptionHead
from .evaluate import EvaluationSettings, evaluate, make_results, shuffle_captions


class CaptionPair(NamedTuple):
    """An image, by its row, with its own caption or with another image's."""

    row: int
    text: str
    is_true: bool


class CaptionLabels:
    """Which of a head's captions are true of an image, by the caption that the image has.

    Args:
        head: The caption head.
    """

    def __init__(self, head: LViTCaptionHead):
        self.head = head
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, text: str) -> torch.Tensor:
        """Booleans of shape `(number of captions,)`; all `False` where the caption is not understood."""
        if text not in self.known:
            caption = parse_caption(text)
            nothing = torch.zeros(len(self.head.states), dtype=torch.bool)
            self.known[text] = nothing if caption is None else self.head.match(caption)
        return self.known[text]


def evaluate_captions(segmenter: Segmenter, data, settings: EvaluationSettings) -> dict[str, Any]:
    """Measures written captions on a split.

    Args:
        segmenter: A checkpoint with a caption head.
        data: Rows with `image`, `mask` and `text`, as `load_data` returns.
        settings: How masks are measured.

    Returns:
        The figures of [`measure_captions`]; `consistency_auroc`, what [`measure_consistency`] returns; and `overlap`,
        for each way of giving captions (`correct`, `none`, `written`) what [`make_results`] returns.
    """
    outputs = run_caption_head(segmenter, data, settings.batch_size)
    head = segmenter.head
    figures = measure_captions(*outputs, list(data["text"]), head)
    figures["consistency_auroc"] = measure_consistency(segmenter, data, settings.batch_size)
    likeliest = [render_caption(head.captions[index]) for index in outputs[0].argmax(-1).tolist()]
    written = data.remove_columns("text").add_column("text", likeliest)
    figures["overlap"] = {
        way: make_results(evaluate(segmenter, rows, [mode], settings), {}, settings)[0]
        for way, rows, mode in (("correct", data, "correct"), ("none", data, "none"), ("written", written, "correct"))
    }
    return figures


@torch.inference_mode()
def run_caption_head(segmenter: Segmenter, data, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The caption head's `logits` and `value_probabilities` for the images of a split."""
    outputs = []
    for start in tqdm(range(0, len(data), batch_size), desc="captions", unit="batch", disable=None):
        images = [segmenter.to_image(image) for image in data[start : start + batch_size]["image"]]
        said = segmenter.run_network(segmenter.encode(images), [None] * len(images), output_captions=True)
        outputs.append(said.captions.to_tuple())  # type: ignore[union-attr]
    logits, value_probabilities = (torch.cat(parts).cpu() for parts in zip(*outputs))
    return logits, value_probabilities


def measure_captions(
    logits: torch.Tensor, value_probabilities: torch.Tensor, texts: Sequence[str], head: LViTCaptionHead
) -> dict[str, Any]:
    """Compares written captions with those that images have.

    Args:
        logits, value_probabilities: Outputs of the caption head.
        texts: The images' own captions.
        head: The caption head.

    Returns:
        The number of `images` whose caption is understood; `exact`, the share whose likeliest caption is true, and
        `exact_majority`, the share of which the most frequent caption is true (both `None` where no caption is
        understood); and `values`, for each value that some images' captions state and others' do not, its `auroc`, its
        `f1` in the likeliest captions, and the share of images that state it.
    """
    labels = CaptionLabels(head)
    truth = torch.stack([labels(text) for text in texts])
    known = truth.any(-1)
    if not known.any():
        return {"images": 0, "exact": None, "exact_majority": None, "values": {}}
    truth, choice = truth[known], logits[known].argmax(-1)
    majority = Counter(text for text in texts if labels(text).any()).most_common(1)[0][0]
    states = head.states.cpu()
    # A value is stated by an image's caption where all captions that are true of the image state it.
    stated = truth.float() @ (~states).float() == 0
    names = [f"{a['family']}: {a['name']} {value}" for a in head.attributes for value in a["values"]]
    probabilities, predicted = value_probabilities[known], states[choice]
    values = {}
    for index, name in enumerate(names):
        is_stated = stated[:, index]
        if 0 < is_stated.sum() < len(is_stated):
            both = (is_stated & predicted[:, index]).sum() * 2
            values[name] = {
                "auroc": area_under_roc(probabilities[:, index], is_stated),
                "f1": float(both / (is_stated.sum() + predicted[:, index].sum())),
                "share": float(is_stated.float().mean()),
            }
    return {
        "images": int(known.sum()),
        "exact": float(truth.gather(1, choice[:, None]).float().mean()),
        "exact_majority": float((truth & labels(majority)).any(-1).float().mean()),
        "values": values,
    }


def area_under_roc(scores: torch.Tensor, is_true: torch.Tensor) -> float:
    """Share of pairs of a true and a false one of which the true one has the higher score."""
    return float(np.asarray(compute_roc_auc(scores, is_true.float())))


def pair_captions(texts: Sequence[str]) -> list[CaptionPair]:
    """Each image with its own caption and with another's, but for images for which the two read the same."""
    return [
        CaptionPair(row, text, is_true)
        for row, (own, other) in enumerate(zip(texts, shuffle_captions(list(texts))))
        for text, is_true in ((own, True), (other, False))
        if own != other
    ]


def measure_consistency(segmenter: Segmenter, data, batch_size: int) -> dict[str, float]:
    """How well true captions are told from other images', where the two differ.

    Returns:
        Areas under the ROC curve: of `score`, 0 for a caption that is not understood, and of `masks`, the agreement of
        the masks with and without the caption.
    """
    pairs = pair_captions(list(data["text"]))
    checks = []
    for start in tqdm(range(0, len(pairs), batch_size), desc="consistency", unit="batch", disable=None):
        batch = pairs[start : start + batch_size]
        images = [data[pair.row]["image"] for pair in batch]
        results = segmenter.segment(images, [pair.text for pair in batch], batch_size=batch_size)
        checks += [result.check for result in results]
    is_true = torch.tensor([pair.is_true for pair in pairs])
    values = {
        "score": [check.score if check else 0.0 for check in checks],
        "masks": [(check.mask_agreement if check else None) or 0.0 for check in checks],
    }
    return {name: area_under_roc(torch.tensor(value), is_true) for name, value in values.items()}


def render_figures(figures: dict[str, Any]) -> str:
    """The figures of [`evaluate_captions`] or [`measure_captions`] as Markdown."""
    if not figures["images"]:
        return "None of the captions is understood, so there is nothing to compare with."
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
