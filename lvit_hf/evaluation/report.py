"""What a reader gets of an evaluation: a table in Markdown, figures and a gallery."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..inference.drawing import OVERLAY_COLOR, draw_outlines
from ..inference.segmenter import Segmenter
from .evaluate import RESULTS_FILE, TEXT_LABELS, EvaluationSettings, TextModeMeasures, resize_mask, write_results


GALLERY_COLUMNS = 4
LABEL_COLOR = "#ffffff"
DPI = 120


def write_evaluation(
    folder: Path,
    results: list[dict[str, Any]],
    measured: dict[str, TextModeMeasures],
    segmenter: Segmenter,
    data,
    settings: EvaluationSettings,
):
    """Writes `evaluation.json`, `evaluation.md`, `reliability.png`, `dice.png` and `gallery.png`.

    Args:
        folder: Where to; it is made if need be.
        results: As [`make_results`] returns.
        measured: As [`evaluate`] returns. The gallery shows its first text mode.
        segmenter, data, settings: What was measured, and how.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / RESULTS_FILE, results)
    (folder / "evaluation.md").write_text(render_evaluation(results), encoding="utf-8")
    draw_reliability(measured).savefig(folder / "reliability.png", dpi=DPI)
    draw_dice_histogram(measured).savefig(folder / "dice.png", dpi=DPI)
    draw_gallery(next(iter(measured.values())), segmenter, data, settings).savefig(folder / "gallery.png", dpi=DPI)


def render_evaluation(results: list[dict[str, Any]]) -> str:
    """A table with one row for each text mode, and the rules by which it was measured."""
    first = results[0]
    rows = [_render_row(result) for result in results]
    size = "at each image's own size" if first["size"] is None else f"at {first['size']} x {first['size']} pixels"
    rule = "the reference's bilinear rule, above zero" if first["official_masks"] else "area, cut at one half"
    tiles = "" if first["tile_size"] is None else f" Segmented in tiles of {first['tile_size']} pixels."
    views = "" if first["views"] is None else f" Averaged over flips ({first['views']})."
    lines = [
        f"# {first['model']} on {first['data']}, {first['split']}",
        "",
        "| captions | Dice | IoU | pooled Dice | pooled IoU | HD95 | NSD | ECE | Brier | Dice, change |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"{first['images']} images, compared {size}, threshold {first['threshold']:g}.{tiles}{views}"
        + ("" if first["size"] is None else f" Ground truth resized by {rule}."),
        "",
        "- Dice and IoU in percent: the mean over images, and pooled over all pixels of the split. Two empty masks "
        "have 1, one empty mask has 0. In brackets the middle 95 percent of "
        f"{first['resamples']} bootstrap resamples of the images.",
        f"- HD95 in pixels and NSD in percent, at a tolerance of {first['tolerance']:g} pixels, by MONAI "
        f"{first['monai']}, means over images. Where one mask is empty they are the image's diagonal and 0 "
        f"({', '.join(str(result['one_mask_empty']) for result in results)} images, in the order of the table).",
        f"- ECE of the probability of foreground in {first['calibration_bins']} equal bins, and Brier score, over all "
        "pixels.",
        "- Captions name what there is and where, so a figure with captions is not a blind result.",
        *_describe_healthy(results),
        *_describe_text_use(results),
    ]
    return "\n".join(lines) + "\n"


def _render_row(result: dict[str, Any]) -> str:
    def percent(name: str) -> str:
        low, high = result["intervals"][name]
        return f"{100 * result[name]:.2f} ({100 * low:.1f} to {100 * high:.1f})"

    change = ""
    if "dice_change" in result:
        low, high = result["dice_change_interval"]
        change = f"{100 * result['dice_change']:+.2f} ({100 * low:+.1f} to {100 * high:+.1f})"
    cells = [
        TEXT_LABELS[result["text"]],
        *(percent(name) for name in ("dice", "iou", "pooled_dice", "pooled_iou")),
        f"{result['hd95']:.1f}",
        f"{100 * result['nsd']:.1f}",
        f"{result['ece']:.4f}",
        f"{result['brier']:.4f}",
        change,
    ]
    return f"| {' | '.join(cells)} |"


def _describe_healthy(results: list[dict[str, Any]]) -> list[str]:
    return [
        f"- {result['healthy_images']} images have nothing to find ({TEXT_LABELS[result['text']]}): "
        f"{100 * result['healthy_found_empty']:.1f} percent of them have an empty mask"
        + (
            f", and the others have a Dice of {100 * result['dice_without_healthy']:.2f}."
            if "dice_without_healthy" in result
            else "."
        )
        for result in results
        if result["healthy_images"]
    ]


def _describe_text_use(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"- The network read {result['texts_read']} of {result['images']} captions "
        f"({TEXT_LABELS[result['text']]}): tiles get none that names a place, and blank ones are none."
        for result in results
        if result["text"] != "none" and result["texts_read"] < result["images"]
    ]
    changes = [r["dice_change_interval"] for r in results if r["text"] == "shuffled" and "dice_change" in r]
    if any(high >= 0 for _, high in changes):
        lines.append(
            "- **Another image's captions are not measurably worse than the correct ones: these images do not show "
            "that the model reads the text.**"
        )
    return lines


def draw_reliability(measured: dict[str, TextModeMeasures]) -> Figure:
    """Share of foreground against the probability of it, and how many pixels have such a probability."""
    figure = Figure(figsize=(5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=[3, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle="dashed")
    for mode, measurement in measured.items():
        pixels, probability, foreground = measurement.measures["reliability"].sum(0).numpy()
        filled = pixels > 0
        mean = probability[filled] / pixels[filled]
        upper.plot(mean, foreground[filled] / pixels[filled], marker="o", markersize=3, label=TEXT_LABELS[mode])
        lower.plot(mean, pixels[filled] / pixels.sum(), marker="o", markersize=3)
    upper.set(ylabel="share of foreground", xlim=(0, 1), ylim=(0, 1))
    upper.legend(title="captions", fontsize="small")
    lower.set(xlabel="probability of foreground", ylabel="share of pixels", yscale="log")
    return figure


def draw_dice_histogram(measured: dict[str, TextModeMeasures]) -> Figure:
    """How many images have which Dice."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (mode, measurement) in enumerate(measured.items()):
        style = {"alpha": 0.3} if number == 0 else {"histtype": "step", "linewidth": 1.5}
        axes.hist(measurement.measures["dice"].numpy(), bins=20, range=(0, 1), label=TEXT_LABELS[mode], **style)
    axes.set(xlabel="Dice of an image", ylabel="images", xlim=(0, 1))
    axes.legend(title="captions", fontsize="small", loc="upper left")
    return figure


def draw_gallery(measurement: TextModeMeasures, segmenter: Segmenter, data, settings: EvaluationSettings) -> Figure:
    """The images with the highest, the middle and the lowest Dice, with both outlines."""
    dice = measurement.measures["dice"].numpy()
    rows = gallery_rows(dice)
    columns = len(rows["best"])
    figure = Figure(figsize=(3 * columns, 11), layout="constrained")
    figure.suptitle("Outlines: white the ground truth, green the prediction")
    for axes_row, (title, indices) in zip(figure.subplots(3, columns, squeeze=False), rows.items()):
        axes_row[0].set_ylabel(title, fontsize="large")
        for axes, index in zip(axes_row, indices):
            row, text = data[int(index)], measurement.texts[index]
            [result] = segmenter.segment(
                [row["image"]], [text], tile_size=settings.tile_size, batch_size=settings.batch_size, describe=False
            )
            label = resize_mask(row["mask"], None, official=False).numpy()
            masks = [(label, LABEL_COLOR), (result.mask(settings.threshold), OVERLAY_COLOR)]
            draw_outlines(axes, result.image, masks, text)
            axes.set_title(f"{row['id']}\nDice {dice[index]:.3f}", fontsize="x-small", parse_math=False)
    return figure


def gallery_rows(dice: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of as many images of each kind, at most `GALLERY_COLUMNS`, none of them twice if there are three."""
    order = np.argsort(dice, kind="stable")
    columns = min(GALLERY_COLUMNS, max(1, len(order) // 3))
    middle = (len(order) - columns) // 2
    return {"best": order[::-1][:columns], "median": order[middle : middle + columns], "worst": order[:columns]}
