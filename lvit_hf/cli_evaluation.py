"""`lvit evaluate`: how good a checkpoint is on a data set."""

import warnings
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging

from .cli_common import FAILED, errors_as_sentences
from .inference import SMALLEST_TILE, Segmenter


EXTRA = "evaluate"
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint: a folder, or USER/NAME[@REVISION] on the Hub.")
]
DATA_HELP = "a folder, a CSV file, or an id on the Hub"


def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help=f"Data set: {DATA_HELP}.")],
    output_dir: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Folder for the figures, as JSON, Markdown and pictures."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "valid",
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="Captions: correct, paraphrase, none, shuffled (another image's) or swapped (left and right). Give "
            "it several times for several; by default all that the data set has.",
        ),
    ] = None,
    tile_size: Annotated[
        int | None, typer.Option(min=SMALLEST_TILE, help="Segment in tiles of this many pixels.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Compare at this size instead of each image's own.")] = None,
    official_masks: Annotated[
        bool, typer.Option("--official-masks", help="With --size: resample ground truth as the reference does.")
    ] = False,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Probability above which a pixel is foreground.")
    ] = 0.5,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Distance in pixels up to which outlines agree, for the surface Dice.")
    ] = 2.0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure this many images only, spread evenly over the split.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set in the figures; by default DATA's.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Also put the figures in MODEL/evaluation.json, for the model card.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or tiles that are segmented together.")] = 16,
):
    """Measure overlap, boundaries, calibration and use of the captions, and print them as a table."""
    with errors_as_sentences(FAILED, extra=EXTRA):
        from . import evaluation, report
        from .data import load_data, take_evenly

        keep_libraries_quiet()
        if record and (limit is not None or not Path(model).is_dir()):
            raise ValueError("--record needs all images of the split, and a checkpoint in a folder.")
        settings = evaluation.EvaluationSettings(tile_size, size, official_masks, threshold, tolerance, batch_size)
        rows = take_evenly(load_data(data, split), limit)
        segmenter = Segmenter.from_pretrained(model)
        measured = evaluation.evaluate(segmenter, rows, texts or evaluation.available_text_modes(rows), settings)
        origin = {"model": _short_name(model), "data": name or _short_name(data), "split": split}
        results = evaluation.make_results(measured, origin, settings)
        if record:
            evaluation.record_results(Path(model), results)
        if output_dir is not None:
            report.write_report(output_dir, results, measured, segmenter, rows, settings)
        typer.echo(report.render_markdown(results))


def keep_libraries_quiet():
    """Leaves the screen to the one progress bar that matters."""
    import datasets

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")  # of MONAI's calls to itself


def _short_name(name: str) -> str:
    """The last part of a path, which says nothing about the machine; the id of something on the Hub as it is."""
    return Path(name).resolve().stem if Path(name).exists() else name
