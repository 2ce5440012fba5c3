"""`lvit caption` and `lvit train-captions`: captions written in the schema, from masks or by a model."""

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from tqdm import tqdm
from transformers.utils import logging

from lvit_hf.captions.from_masks import RULES, describe_mask
from lvit_hf.captions.grammar import render_caption
from lvit_hf.inference.captioning import CaptioningSegmenter
from lvit_hf.inference.segmenter import SHIPPED_CHECKPOINT
from lvit_hf.model.configuration_lvit import LViTConfig
from lvit_hf.model.image_processing_lvit import binarize_map, open_image
from lvit_hf.model.pipeline_lvit import NUM_CAPTIONS

from .common import FAILED, ModelOption, errors_as_sentences


LEAK_WARNING = (
    "Warning: captions written from masks carry the label. Train with them if you like; figures measured with them "
    "as input say nothing about a new image, whose mask nobody has."
)


def caption(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of masks or of images, or a data set.")],
    output: Annotated[Path, typer.Option("--out", dir_okay=False, help="CSV file to write: image, text, source.")],
    from_mask: Annotated[
        bool, typer.Option("--from-mask", help="Write what the masks show. Such text carries the label.")
    ] = False,
    from_image: Annotated[
        bool, typer.Option("--from-image", help="Write what the model, which needs a caption head, sees.")
    ] = False,
    family: Annotated[
        str | None, typer.Option(help=f"With --from-mask: the kind of caption, one of {', '.join(RULES)}.")
    ] = None,
    model: ModelOption = str(SHIPPED_CHECKPOINT),
    split: Annotated[str, typer.Option(help="Of a data set: train, valid or test.")] = "train",
):
    """Write a caption for each image of a data set."""
    with errors_as_sentences(FAILED, extra="train"):
        if from_mask == from_image:
            raise ValueError("Say what the captions are written from: --from-mask or --from-image.")
        logging.disable_progress_bar()
        source = "mask" if from_mask else "image"
        write: Callable[[Image.Image], str]
        if from_image:
            write = partial(write_from_image, load_writer(model))
        elif family is not None and family in RULES:
            write = partial(write_from_mask, family)
        else:
            raise ValueError(f"Say what the masks show: --family with one of {', '.join(RULES)}, got {family}.")
        pictures = tqdm(read_pictures(data, split, source), unit="image", disable=None)
        rows = [(name, write(picture), source) for name, picture in pictures]
        write_csv(output, rows)
        typer.echo(f"{len(rows)} captions, {sum(not text for _, text, _ in rows)} of them empty: {output}")
        if from_mask:
            typer.echo(LEAK_WARNING, err=True)


def write_from_mask(family: str, mask: Image.Image) -> str:
    """The caption of a mask by rule."""
    return render_caption(describe_mask(binarize_map(mask), family))


def load_writer(model: str) -> CaptioningSegmenter:
    """Loads a checkpoint that writes captions.

    Raises:
        ValueError: If it has no caption head.
    """
    segmenter = CaptioningSegmenter.from_pretrained(model)
    if segmenter.model.caption_head is None:
        raise ValueError(f"{model} has no caption head; lvit train-captions adds one.")
    return segmenter


def write_from_image(segmenter: CaptioningSegmenter, image: Image.Image) -> str:
    """The likeliest caption of an image."""
    return segmenter.describe([segmenter.to_rgb(image)])[0]["captions"][0]["text"]


def train_captions(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Training configuration with a checkpoint.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Values that replace those of the file.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="How often each image is seen, the first time as it is.")] = 2,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Images of each split of each source, spread evenly; by default all.")
    ] = None,
):
    """Give a checkpoint a head that writes captions, and print how well it does."""
    with errors_as_sentences(FAILED, extra="train"):
        from lvit_hf.evaluation.captions import render_figures
        from lvit_hf.training.caption_head import FIGURES_FILE
        from lvit_hf.training.caption_head import train_captions as run_training

        logging.disable_progress_bar()
        best = run_training(config, overrides, views, limit)
        for name, figures in json.loads((best / FIGURES_FILE).read_text(encoding="utf-8")).items():
            typer.echo(f"\n## {name}\n\n{render_figures(figures)}")
        typer.echo(f"\nSaved: {best}")


def evaluate_captions(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint with a caption head.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Data set.")],
    output: Annotated[Path | None, typer.Option("--out", dir_okay=False, help="JSON file for the figures.")] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "valid",
    size: Annotated[int | None, typer.Option(min=1, help="Compare at this size instead of each image's own.")] = None,
    num_captions: Annotated[int, typer.Option(min=2, help="Captions over which masks are averaged.")] = NUM_CAPTIONS,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure this many images only, spread evenly over the split.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are segmented together.")] = 16,
):
    """Measure the captions that a checkpoint writes, and its masks with true, no, predicted and several captions."""
    with errors_as_sentences(FAILED, extra="evaluate"):
        from lvit_hf.data.load import load_data, take_evenly
        from lvit_hf.evaluation.captions import evaluate_captions as measure
        from lvit_hf.evaluation.captions import render_figures
        from lvit_hf.evaluation.evaluate import EvaluationSettings

        logging.disable_progress_bar()
        rows = take_evenly(load_data(data, split), limit)
        segmenter = load_writer(model)
        figures = measure(segmenter, rows, EvaluationSettings(size=size, batch_size=batch_size), num_captions)
        if output is not None:
            output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        typer.echo(render_figures(figures))


def calibrate_captions(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", exists=True, file_okay=False, help="Folder of the checkpoint.")
    ],
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Data sets.")],
    split: Annotated[str, typer.Option(help="Split to fit on; not the one that results are reported on.")] = "valid",
    limit: Annotated[
        int | None, typer.Option(min=4, help="Use this many images of each data set only, spread evenly over it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are segmented together.")] = 16,
):
    """Fit with what weights a checkpoint decides whether a caption fits its image, and save them in its configuration.

    Run it after lvit calibrate, whose probabilities it compares.
    """
    with errors_as_sentences(FAILED, extra="evaluate"):
        from lvit_hf.data.load import load_data, take_evenly
        from lvit_hf.evaluation.caption_calibration import calibrate_captions as fit
        from lvit_hf.evaluation.caption_calibration import render_markdown

        logging.disable_progress_bar()
        segmenter = load_writer(str(model))
        weights, figures = fit(segmenter, [take_evenly(load_data(path, split), limit) for path in data], batch_size)
        config = LViTConfig.from_pretrained(model)  # as it is stored: loading a model changes its own
        config.consistency_weights |= weights
        config.save_pretrained(model)
        typer.echo(render_markdown(weights, figures))


def read_pictures(data: str, split: str, column: str) -> Iterator[tuple[str, Image.Image]]:
    """Names and pictures of a folder of files or else of a column, `image` or `mask`, of a data set."""
    formats = Image.registered_extensions()
    folder = Path(data)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in formats) if folder.is_dir() else []
    for path in files:
        yield path.name, open_image(path)
    if not files:
        from lvit_hf.data.load import load_data

        for row in load_data(data, split):
            yield str(row["id"]), row[column]


def write_csv(path: Path, rows: list[tuple[str, str, str]]):
    """Writes names, captions and what each was written from."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "text", "source"))
        writer.writerows(rows)
