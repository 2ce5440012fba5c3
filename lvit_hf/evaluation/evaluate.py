"""How well a checkpoint's masks agree with those of a data set, with its captions, without, and with wrong ones."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from ..inference.segmenter import Segmenter
from ..model.captions_lvit import parse_caption, rewrite_caption
from ..model.image_processing_lvit import binarize_map
from .metrics import (
    CALIBRATION_BINS,
    RESAMPLES,
    MeasureTable,
    interval,
    measure_image,
    resampling_weights,
    summarize,
)


SHUFFLE_SEED = 0
DEFAULT_TOLERANCE = 2.0
RESULTS_FILE = "evaluation.json"

# What tells one entry of a list of results from another of the same checkpoint.
IDENTITY = ("data", "split", "text", "images", "size", "official_masks", "tile_size", "threshold", "views")


def shuffle_captions(captions: list[str]) -> list[str]:
    """Gives every image the caption of another image of the split, the same way each time."""
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(captions))
    shuffled = list(captions)
    for position, neighbour in zip(order, np.roll(order, 1)):
        shuffled[position] = captions[neighbour]
    return shuffled


def swap_sides(captions: list[str]) -> list[str]:
    """Puts "right" for "left" and "left" for "right"."""
    return [rewrite_caption(caption, flip_horizontal=True) for caption in captions]


# A caption of each family, of which images of other families show nothing.
ABSENT_CAPTIONS = {
    "lung infection": "Unilateral pulmonary infection, one infected area, lower left lung.",
    "polyp": "One medium, circular, smooth colonic polyp on the middle.",
    "nuclei": "The nuclei are evenly distributed.",
    "breast lesion": "One medium benign tumor in the breast ultrasound image.",
}


def ask_for_absent(captions: list[str]) -> list[str]:
    """Gives every image a caption of another kind of image, the others by turns."""
    asked = []
    for number, caption in enumerate(map(parse_caption, captions)):
        others = [text for family, text in ABSENT_CAPTIONS.items() if caption is None or family != caption.family]
        asked.append(others[number % len(others)])
    return asked


# How the captions of a split are given to the model.
TEXT_MODES: dict[str, Callable[[Any], Sequence[str | None]]] = {
    "correct": lambda data: list(data["text"]),
    "paraphrase": lambda data: list(data["paraphrase"]),
    "none": lambda data: [None] * len(data),
    "shuffled": lambda data: shuffle_captions(list(data["text"])),
    "swapped": lambda data: swap_sides(list(data["text"])),
    "absent": lambda data: ask_for_absent(list(data["text"])),
}


# The same, as tables and cards call them.
TEXT_LABELS = {
    "correct": "its own",
    "paraphrase": "its own, in other words",
    "none": "none",
    "shuffled": "another image's",
    "swapped": "left and right swapped",
    "absent": "of what is not there",
}


def available_text_modes(data) -> list[str]:
    """The text modes that say something about a data set: paraphrases and sides only where it has them."""
    captions = list(data["text"])
    missing = set()
    if "paraphrase" not in data.column_names:
        missing.add("paraphrase")
    if swap_sides(captions) == captions:
        missing.add("swapped")
    return [mode for mode in TEXT_MODES if mode not in missing]


def resize_probabilities(probabilities: np.ndarray, size: int | None) -> torch.Tensor:
    """Resamples a map `(height, width)` to a square of `size` pixels; as it is without a size."""
    tensor = torch.from_numpy(probabilities)
    if size is None or tensor.shape == (size, size):
        return tensor
    return nn.functional.interpolate(tensor[None, None], size=(size, size), mode="bilinear", antialias=True)[0, 0]


def resize_mask(mask: Image.Image, size: int | None, official: bool) -> torch.Tensor:
    """Resamples a ground-truth mask, by area and cut at one half, or as the reference implementation does.

    The reference resizes with bilinear interpolation and takes every pixel above zero, which dilates the mask.

    Returns:
        A boolean mask of shape `(size, size)`, or of the mask's own shape without a size.
    """
    foreground = torch.from_numpy(binarize_map(mask))
    if size is None:
        return foreground
    mode, lowest = ("bilinear", 0.0) if official else ("area", 0.5)
    return nn.functional.interpolate(foreground[None, None].float(), size=(size, size), mode=mode)[0, 0] > lowest


@dataclass(frozen=True)
class EvaluationSettings:
    """How a checkpoint is measured.

    Args:
        tile_size: As in [`Segmenter.segment`].
        size: Side in pixels of the square at which masks are compared; without it each image's own size.
        official_masks: With `size`, whether ground truth is resampled by the reference's rule.
        threshold: Probability above which a pixel is foreground.
        tolerance: Distance in pixels up to which outlines agree in the normalised surface Dice.
        batch_size: Number of images or tiles that go through the network together.
        views: Test-time augmentation: a key of `VIEWS`, over which masks are averaged; none without it.

    Raises:
        ValueError: If the reference's rule is asked for without a size.
    """

    tile_size: int | None = None
    size: int | None = None
    official_masks: bool = False
    threshold: float = 0.5
    tolerance: float = DEFAULT_TOLERANCE
    batch_size: int = 16
    views: str | None = None

    def __post_init__(self):
        if self.official_masks and self.size is None:
            raise ValueError("The reference's rule for masks is a way to resize them: give a size too, such as 224.")


@dataclass(frozen=True)
class TextModeMeasures:
    """What was measured with one way of giving captions.

    Args:
        texts: The caption given for each image.
        texts_read: How many images the network read a caption of. Tiles get none that names a place.
        measures: Of each image.
    """

    texts: Sequence[str | None]
    texts_read: int
    measures: dict[str, torch.Tensor]


def evaluate(
    segmenter: Segmenter, data, texts: Sequence[str], settings: EvaluationSettings
) -> dict[str, TextModeMeasures]:
    """Measures a checkpoint on every image of a split, once for each way of giving captions.

    Args:
        segmenter: The checkpoint.
        data: Rows with `image`, `mask` and `text`, as `load_data` returns.
        texts: Of `TEXT_MODES`: `"correct"`, `"paraphrase"` (of the column of that name), `"none"`, `"shuffled"`
            (another image's caption), `"swapped"` (left and right) and `"absent"` (a caption of another kind of
            image, whose true mask is empty).
        settings: Sizes and rules.

    Raises:
        ValueError: If a text mode is not known or not available, or a mask has not the size of its image.
    """
    unknown = [mode for mode in texts if mode not in available_text_modes(data)]
    if unknown:
        raise ValueError(
            f"Captions can be {', '.join(available_text_modes(data))} on this data set, not {', '.join(unknown)}."
        )
    captions = {mode: TEXT_MODES[mode](data) for mode in texts}
    texts_read = dict.fromkeys(texts, 0)
    measures = {mode: MeasureTable(len(data)) for mode in texts}
    pending: deque[tuple[str, int, Future]] = deque()
    with ThreadPoolExecutor() as pool, tqdm(total=len(data) * len(texts), unit="image", disable=None) as bar:
        # On a CPU the network has every core, and waits for what else runs there.
        submit = _run_now if segmenter.model.device.type == "cpu" else pool.submit
        for batch, rows in read_batches(data, settings.batch_size, pool):
            labels = [resize_mask(mask, settings.size, settings.official_masks) for mask in rows["mask"]]
            for mode in texts:
                bar.set_description(mode)
                results = segmenter.segment(
                    rows["image"],
                    captions[mode][batch],
                    tile_size=settings.tile_size,
                    batch_size=settings.batch_size,
                    views=settings.views,
                    describe=False,
                )
                texts_read[mode] += sum(result.text_used for result in results)
                true = [torch.zeros_like(label) for label in labels] if mode == "absent" else labels
                for number, result, label, name in zip(range(batch.start, len(data)), results, true, rows["id"]):
                    future = submit(_measure, result.probabilities, label, name, settings)
                    pending.append((mode, number, future))
                _collect(pending, measures, leave=2 * settings.batch_size)
                bar.update(len(results))
        _collect(pending, measures, leave=0)
    return {mode: TextModeMeasures(captions[mode], texts_read[mode], measures[mode]) for mode in texts}


def read_batches(data, batch_size: int, pool: ThreadPoolExecutor) -> Iterator[tuple[slice, dict[str, list]]]:
    """Rows of a data set, batch by batch, each decoded while the one before is used."""
    batches = [slice(start, start + batch_size) for start in range(0, len(data), batch_size)]
    upcoming = pool.submit(data.__getitem__, batches[0])
    for batch, following in zip(batches, [*batches[1:], slice(0)]):
        rows = upcoming.result()
        upcoming = pool.submit(data.__getitem__, following)
        yield batch, rows


def _run_now(work: Callable, *arguments: Any) -> Future:
    future: Future = Future()
    future.set_result(work(*arguments))
    return future


def _measure(
    probabilities: np.ndarray, label: torch.Tensor, name: str, settings: EvaluationSettings
) -> dict[str, torch.Tensor]:
    resized = resize_probabilities(probabilities, settings.size)
    if resized.shape != label.shape:
        raise ValueError(
            f"The mask of {name} has {label.shape[1]} x {label.shape[0]} pixels and its image {resized.shape[1]} x "
            f"{resized.shape[0]}. Compare at one size, such as 224, or mend the mask."
        )
    return measure_image(resized, label, settings.threshold, settings.tolerance)


def _collect(pending: deque[tuple[str, int, Future]], measures: dict[str, MeasureTable], leave: int):
    """Takes finished measures, and waits for more than `leave` to finish, so that maps do not pile up."""
    while len(pending) > leave:
        mode, number, future = pending.popleft()
        measures[mode].put(number, future.result())


def make_results(
    measured: dict[str, TextModeMeasures], origin: dict[str, Any], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Figures as they are stored: one dictionary for each text mode.

    Args:
        measured: As [`evaluate`] returns.
        origin: What was measured on what: `model`, `data` (the name of the data set) and `split`.
        settings: The settings of [`evaluate`].

    Returns:
        Dictionaries with `origin`, the settings, `text`, the number of `images`, the figures of [`summarize`],
        `intervals` of each (the middle 95 percent over bootstrap resamples of the images), beside the correct
        captions `dice_change` and `dice_change_interval` (on the same resamples), and of `healthy_images`, whose true
        mask is empty, the share `healthy_found_empty` and the Dice of the others, `dice_without_healthy`.
    """
    weights = resampling_weights(len(next(iter(measured.values())).texts))
    figures = {mode: summarize(measurement.measures) for mode, measurement in measured.items()}
    resampled = {mode: summarize(measurement.measures, weights) for mode, measurement in measured.items()}
    results = []
    for mode, measurement in measured.items():
        result = {
            **origin,
            "text": mode,
            "images": len(measurement.texts),
            **{name: value.item() for name, value in figures[mode].items()},
            "intervals": {name: interval(values) for name, values in resampled[mode].items()},
        }
        if mode not in ("correct", "absent") and "correct" in measured:
            result["dice_change"] = (figures[mode]["dice"] - figures["correct"]["dice"]).item()
            result["dice_change_interval"] = interval(resampled[mode]["dice"] - resampled["correct"]["dice"])
        result |= {
            "texts_read": measurement.texts_read,
            **_count_healthy(measurement.measures),
            "one_mask_empty": int(measurement.measures["one_empty"].sum()),
            **{name: value for name, value in asdict(settings).items() if name != "batch_size"},
            "calibration_bins": CALIBRATION_BINS,
            "resamples": RESAMPLES,
            "monai": monai.__version__,
        }
        results.append(result)
    return results


def _count_healthy(measures: dict[str, torch.Tensor]) -> dict[str, int | float]:
    """Of images whose true mask is empty: their number, the share that is found to be, and the others' Dice."""
    healthy = measures["healthy"].bool()
    figures: dict[str, int | float] = {"healthy_images": int(healthy.sum())}
    if healthy.any():
        figures["healthy_found_empty"] = measures["dice"][healthy].mean().item()
        if not healthy.all():
            figures["dice_without_healthy"] = measures["dice"][~healthy].mean().item()
    return figures


def record_results(checkpoint: Path, results: list[dict[str, Any]]):
    """Adds results to the list in a checkpoint's folder, from which its card is rendered.

    A result takes the place of an older one of the same data and settings. Results of other weights, or of another
    calibration, are dropped.

    Raises:
        ValueError: If the file there is no such list.
    """
    path = checkpoint / RESULTS_FILE
    digest = digest_checkpoint(checkpoint)
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if not isinstance(recorded, list) or not all(isinstance(result, dict) for result in recorded):
        raise ValueError(f"{path} must hold a list of results, move it away to begin a new one.")
    replaced = [_identity(result) for result in results]
    kept = [r for r in recorded if r.get("checkpoint_digest") == digest and _identity(r) not in replaced]
    write_results(path, kept + [{**result, "checkpoint_digest": digest} for result in results])


def write_results(path: Path, results: list[dict[str, Any]]):
    """Writes a list of results as JSON."""
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _identity(result: dict[str, Any]) -> list:
    return [result.get(name) for name in IDENTITY]


def digest_checkpoint(checkpoint: Path) -> str:
    """Changes with the weights and with every setting of model and processor."""
    digest = hashlib.sha256()
    for path in sorted([*checkpoint.glob("*.safetensors"), *checkpoint.glob("*config.json")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
