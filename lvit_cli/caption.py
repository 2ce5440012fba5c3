"""`lvit caption` and `lvit train-captions`: captions written in the schema, from masks or by a model."""

import csv
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    DEFAULT_MODEL,
    FAILED,
    ConfigArgument,
    ModelOption,
    OverridesArgument,
    errors_as_sentences,
    keep_libraries_quiet,
)


if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

    from lvit_hf.inference.segmenter import Segmenter

COLUMNS = ("image", "text", "source")
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
        str | None, typer.Option(help="With --from-mask: the kind of caption, such as polyp or lung infection.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="Of a data set: train, valid or test.")] = "train",
):
    """Write a caption for each image of a data set."""
    with errors_as_sentences(extra="train"):
        if from_mask == from_image:
            raise ValueError("Say what the captions are written from: --from-mask or --from-image.")
        if from_mask:
            check_family(family)
        keep_libraries_quiet()
        from lvit_hf.io.writing import check_replaceable

        check_replaceable(output, f"{','.join(COLUMNS)}\r\n")
        from tqdm import tqdm

        from lvit_hf.io.errors import FileError, file_errors

        source = "mask" if from_mask else "image"
        write = partial(write_from_mask, family or "") if from_mask else partial(write_from_image, load_writer(model))
        pictures = list_pictures(data, split, source)
        rows = []
        with tqdm(pictures, unit="image", disable=None) as bar:
            for name, open_picture in bar:
                try:
                    with file_errors(name, f"has a{'n' * from_image} {source} that cannot be used"):
                        rows.append((name, write(open_picture()), source))
                except FileError as error:
                    bar.write(f"Error: {error}", file=sys.stderr)
        write_csv(output, rows)
        typer.echo(f"{len(rows)} captions, {sum(not text for _, text, _ in rows)} of them empty: {output}")
        if from_mask:
            typer.echo(LEAK_WARNING, err=True)
    if len(rows) < len(pictures):
        raise typer.Exit(FAILED)


def check_family(family: str | None):
    """Refuses a kind of caption for which there is no rule, before any mask is read."""
    from lvit_hf.captions.from_masks import RULES

    if family not in RULES:
        raise ValueError(f"Say what the masks show: --family with one of {', '.join(RULES)}, got {family}.")


def write_from_mask(family: str, mask: "Image.Image") -> str:
    """The caption of a mask by rule."""
    from lvit_hf.captions import render_caption
    from lvit_hf.captions.from_masks import describe_mask
    from lvit_hf.model.image_processing_lvit import binarize_map

    return render_caption(describe_mask(binarize_map(mask), family))


def load_writer(model: str) -> "Segmenter":
    """Loads a checkpoint that writes captions.

    Raises:
        ValueError: If it has no caption head.
    """
    from lvit_hf.inference.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(model)
    if not segmenter.can_describe:
        raise ValueError(f"{model} has no caption head; lvit train-captions adds one.")
    return segmenter


def write_from_image(segmenter: "Segmenter", image: "Image.Image") -> str:
    """The likeliest caption of an image."""
    return segmenter.segment([image])[0].written_caption or ""


def train_captions(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    views: Annotated[int, typer.Option(min=1, help="How often each image is seen, the first time as it is.")] = 2,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Images of each split of each source, spread evenly; by default all.")
    ] = None,
):
    """Give a checkpoint a head that writes captions, and print how well it does."""
    with errors_as_sentences(extra="train"):
        keep_libraries_quiet()
        from lvit_hf.evaluation.captions import render_figures
        from lvit_hf.training.caption_head import FIGURES_FILE
        from lvit_hf.training.caption_head import train_captions as run_training

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
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure this many images only, spread evenly over the split.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are segmented together.")] = 16,
):
    """Measure the captions that a checkpoint writes, and its masks with true, no and written captions."""
    with errors_as_sentences(extra="evaluate"):
        keep_libraries_quiet()
        from lvit_hf.data.load import load_data, take_evenly
        from lvit_hf.evaluation.captions import evaluate_captions as measure
        from lvit_hf.evaluation.captions import render_figures
        from lvit_hf.evaluation.evaluate import EvaluationSettings
        from lvit_hf.io.writing import check_replaceable

        if output is not None:
            check_replaceable(output, '"exact_majority"')
        rows = take_evenly(load_data(data, split), limit)
        segmenter = load_writer(model)
        figures = measure(segmenter, rows, EvaluationSettings(size=size, batch_size=batch_size))
        if output is not None:
            output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        typer.echo(render_figures(figures))


def list_pictures(data: str, split: str, column: str) -> list[tuple[str, Callable[[], "Image.Image"]]]:
    """Names of pictures and what opens them: files of a folder, or a column, `image` or `mask`, of a data set.

    Raises:
        OSError, ValueError: If the data set cannot be read.
    """
    from lvit_hf.data.load import SPELLINGS, load_data
    from lvit_hf.io.readers import is_picture_name
    from lvit_hf.io.tables import is_table_name
    from lvit_hf.model.image_processing_lvit import open_image

    found = sorted(filter(Path.is_file, Path(data).iterdir())) if Path(data).is_dir() else []
    is_data_set = any(is_table_name(path) and path.stem.casefold() in (*SPELLINGS, "metadata") for path in found)
    files = [] if is_data_set else list(filter(is_picture_name, found))
    if files:
        return [(path.name, partial(open_image, path)) for path in files]
    rows = load_data(data, split)
    pictures = rows.select_columns(column)
    return [(str(name), partial(_read_row, pictures, number)) for number, name in enumerate(rows["id"][:])]


def _read_row(pictures: "Dataset", number: int) -> "Image.Image":
    [picture] = pictures[number].values()
    return picture


def write_csv(path: Path, rows: list[tuple[str, str, str]]):
    """Writes names, captions and what each was written from."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
