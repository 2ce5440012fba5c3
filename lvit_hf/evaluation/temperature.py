"""Calibration: the temperature and the bias with which a checkpoint's scores are the shares that they say."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..inference.segmenter import Segmenter, tile_boxes
from ..model.captions_lvit import names_a_place
from .metrics import calibration_scores


PIXELS_PER_IMAGE = 2048
SAMPLING_SEED = 0
MAX_STEPS = 100


@dataclass(frozen=True)
class CalibrationSource:
    """A data set on whose validation split scores are calibrated.

    Args:
        name: What it is called in the figures.
        data: Rows with `image`, `mask` and `text`, as `load_data` returns.
        tile_size: Side in pixels of the tiles in which its images are segmented; `None` for whole images.
    """

    name: str
    data: Any
    tile_size: int | None = None


@dataclass(frozen=True)
class PixelSample:
    """Pixels of a data set, as many of each image or tile.

    Args:
        logits: Of shape `(images or tiles, pixels)`.
        labels: Whether each is foreground, of that shape.
        images: The number of the image of each row.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    images: torch.Tensor

    def half(self, parity: int) -> "PixelSample":
        """The rows of every second image, from the first (0) or from the second (1)."""
        rows = self.images % 2 == parity
        return PixelSample(self.logits[rows], self.labels[rows], self.images[rows])


@dataclass(frozen=True)
class Calibration:
    """Scores are `sigmoid(logits / temperature + bias)`."""

    temperature: float = 1.0
    bias: float = 0.0

    @property
    def threshold(self) -> float:
        """The score at which a mask is cut as at 0.5 before."""
        return 1 / (1 + math.exp(-self.bias))

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits / self.temperature + self.bias).sigmoid()


def sample_pixels(segmenter: Segmenter, source: CalibrationSource, batch_size: int = 16) -> PixelSample:
    """Runs a checkpoint on a data set, with its captions, and keeps some pixels of every image or tile."""
    generator = torch.Generator().manual_seed(SAMPLING_SEED)
    logits, labels, images = [], [], []
    crops = list(_list_crops(source))
    with tqdm(total=len(crops), unit="image", desc=source.name, disable=None) as bar:
        for start in range(0, len(crops), batch_size):
            batch = crops[start : start + batch_size]
            maps, masks = _predict(segmenter, source, batch)
            pixels = torch.randint(maps.shape[1], (len(batch), PIXELS_PER_IMAGE), generator=generator)
            logits.append(maps.gather(1, pixels))
            labels.append(masks.gather(1, pixels))
            images += [number for number, _ in batch]
            bar.update(len(batch))
    return PixelSample(torch.cat(logits), torch.cat(labels).bool(), torch.tensor(images))


def _list_crops(source: CalibrationSource) -> Iterator[tuple[int, tuple[int, ...] | None]]:
    """The number of each image with each tile's box, or with `None` for the whole image."""
    if source.tile_size is None:
        yield from ((number, None) for number in range(len(source.data)))
        return
    for number, image in enumerate(source.data["image"]):
        fits = max(image.size) <= source.tile_size
        yield from ((number, box) for box in ([None] if fits else tile_boxes(image.size, source.tile_size)))


@torch.inference_mode()
def _predict(segmenter: Segmenter, source: CalibrationSource, batch: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of shape `(batch_size, height * width)`, at the network's size."""
    rows = [source.data[number] for number, _ in batch]
    images, masks = (
        [row[column] if box is None else row[column].crop(box) for row, (_, box) in zip(rows, batch)]
        for column in ("image", "mask")
    )
    texts = [
        None if box is not None and names_a_place(row["text"]) else row["text"] for row, (_, box) in zip(rows, batch)
    ]
    inputs = segmenter.processor(images=images, text=texts, segmentation_maps=masks, return_tensors="pt")
    labels = inputs.pop("labels")
    logits = segmenter.model(**inputs.to(segmenter.model.device)).logits
    return logits.flatten(1).float().cpu(), labels.flatten(1)


def fit_calibration(samples: Sequence[PixelSample], fit_bias: bool = True) -> Calibration:
    """Finds the temperature and the bias that give the labels the highest likelihood.

    Args:
        samples: Pixels of each data set; every data set counts the same, and so does every image or tile of one.
        fit_bias: Whether to fit the bias too; a temperature alone leaves masks at a threshold of 0.5 as they are.

    Raises:
        ValueError: If the samples have no foreground, or nothing else.
    """
    shares = [sample.labels.double().mean().item() for sample in samples]
    if max(shares, default=0) == 0 or min(shares) == 1:
        raise ValueError("Calibration needs masks with foreground and with background.")
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # the temperature's logarithm, the bias
    pairs = [(sample.logits.double(), sample.labels.double()) for sample in samples]

    def loss() -> torch.Tensor:
        bias = parameters[1] if fit_bias else 0.0
        terms = [
            nn.functional.binary_cross_entropy_with_logits(logits * (-parameters[0]).exp() + bias, labels)
            for logits, labels in pairs
        ]
        return torch.stack(terms).mean()

    minimize(loss, [parameters])
    log_temperature, bias = parameters.detach().tolist()
    return Calibration(math.exp(log_temperature), bias if fit_bias else 0.0)


def minimize(loss: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor]):
    """Changes a few parameters, in place, until a smooth loss is as small as they make it."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(step)  # type: ignore[arg-type]


def measure_calibration(sample: PixelSample, halves: Sequence[Calibration]) -> dict[str, float]:
    """ECE and Brier score of a data set before and after.

    Args:
        sample: Pixels of the data set.
        halves: Two calibrations, the first fitted without the images of `sample.half(0)`, the second without the
            others. So no image is measured with numbers that were fitted on it.
    """
    parts = [sample.half(0), sample.half(1)]
    scores = [calibration.scores(part.logits) for calibration, part in zip(halves, parts)]
    ece_before, brier_before = calibration_scores(sample.logits.sigmoid(), sample.labels)
    ece_after, brier_after = calibration_scores(torch.cat(scores), torch.cat([part.labels for part in parts]))
    return {
        "ece_before": ece_before,
        "ece_after": ece_after,
        "brier_before": brier_before,
        "brier_after": brier_after,
    }


def calibrate(
    segmenter: Segmenter, sources: Sequence[CalibrationSource], fit_bias: bool = True, batch_size: int = 16
) -> tuple[Calibration, list[dict[str, Any]]]:
    """Fits a checkpoint's calibration on validation data and sets it in its processor.

    Args:
        segmenter: The checkpoint; a calibration that it has already is replaced.
        sources: The data sets, which all count the same.
        fit_bias: As in [`fit_calibration`].
        batch_size: Number of images or tiles that go through the network together.

    Returns:
        The calibration, and for each data set its name as `data`, the number of `images` and the figures of
        [`measure_calibration`].

    Raises:
        ValueError: If a data set has fewer than two images, or half of the images have no foreground.
    """
    for source in sources:
        if len(source.data) < 2:
            raise ValueError(f"{source.name} has fewer than two images: one half is measured with the other's fit.")
    samples = [sample_pixels(segmenter, source, batch_size) for source in sources]
    halves = [fit_calibration([sample.half(other) for sample in samples], fit_bias) for other in (1, 0)]
    figures = [
        {"data": source.name, "images": len(source.data), **measure_calibration(sample, halves)}
        for source, sample in zip(sources, samples)
    ]
    calibration = fit_calibration(samples, fit_bias)
    image_processor = segmenter.processor.image_processor
    image_processor.temperature, image_processor.logit_bias = calibration.temperature, calibration.bias
    return calibration, figures


def render_calibration(calibration: Calibration, figures: list[dict[str, Any]]) -> str:
    """The fitted numbers and a table of ECE and Brier score before and after."""
    rows = [
        f"| {row['data']} | {row['images']} | {row['ece_before']:.4f} | {row['ece_after']:.4f} | "
        f"{row['brier_before']:.4f} | {row['brier_after']:.4f} |"
        for row in figures
    ]
    lines = [
        f"Temperature {calibration.temperature:.3f}, bias {calibration.bias:.3f}. The threshold "
        f"{calibration.threshold:.3f} gives the masks that 0.5 gave before.",
        "",
        "| data | images | ECE before | ECE after | Brier before | Brier after |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"At the network's size, {PIXELS_PER_IMAGE} pixels of each image or tile. After: each half of the images with "
        "numbers fitted on the other half.",
    ]
    return "\n".join(lines)
