"""`lvit evaluate` and `lvit calibrate`: how good a checkpoint is on a data set, and scores that mean what they say."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    DATA_HELP,
    SMALLEST_TILE,
    Backend,
    BackendOption,
    ThresholdOption,
    ViewsOption,
    errors_as_sentences,
    keep_libraries_quiet,
)


if TYPE_CHECKING:
    from lvit_hf.inference.segmenter import Segmenter

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint: a folder, or USER/NAME[@REVISION] on the Hub.")
]


def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help=f"Data set: {DATA_HELP}; of volumes a folder.")],
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--out", file_okay=False, help="Folder for the figures: JSON, Markdown and pictures, of volumes JSON."
        ),
    ] = None,
    structures: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG.yaml", help="Of volumes: the training configuration that says what captions ask for."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "valid",
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="Captions: correct, paraphrase, none, shuffled (another image's), swapped (left and right) or absent "
            "(of another kind of image). Give it several times for several; by default all that the data set has.",
        ),
    ] = None,
    tile_size: Annotated[
        int | None, typer.Option(min=SMALLEST_TILE, help="Segment in tiles of this many pixels.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Compare at this size instead of each image's own.")] = None,
    official_masks: Annotated[
        bool, typer.Option("--official-masks", help="With --size: resample ground truth as the reference does.")
    ] = False,
    threshold: ThresholdOption = 0.5,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Distance up to which outlines agree, for the surface Dice: in pixels, by default 2, and of volumes "
            "in mm, by default 1.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure this many images only, spread evenly over the split.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set in the figures; by default DATA's.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Also put the figures in the checkpoint's folder, for the model card.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images, tiles or windows that are segmented together.")] = 16,
    views: ViewsOption = None,
    backend: BackendOption = Backend.auto,
):
    """Measure overlap, boundaries, calibration and use of the captions, and print them as a table."""
    with errors_as_sentences(extra="evaluate"):
        keep_libraries_quiet()
        from lvit_hf.data.load import load_data, take_evenly
        from lvit_hf.evaluation import evaluate as evaluation
        from lvit_hf.evaluation import report
        from lvit_hf.inference.segmenter import Segmenter

        if record and (limit is not None or not Path(model).is_dir()):
            raise ValueError("--record needs all images of the split, and a checkpoint in a folder.")
        segmenter = Segmenter.from_pretrained(model, backend)
        if segmenter.is_volumetric:
            of_images = {"text": texts, "tile-size": tile_size, "size": size, "official-masks": official_masks}
            _refuse_options({**of_images, "name": name, "views": views}, "images, and the checkpoint segments volumes")
            options = {"threshold": threshold, "split": split, "limit": limit, "batch_size": batch_size}
            options |= {} if tolerance is None else {"tolerance": tolerance}
            report_volumes(segmenter, data, structures, output_dir, Path(model) if record else None, **options)
            return
        _refuse_options({"structures": structures}, "volumes, and the checkpoint segments images")
        settings = evaluation.EvaluationSettings(
            tile_size,
            size,
            official_masks,
            threshold,
            evaluation.DEFAULT_TOLERANCE if tolerance is None else tolerance,
            batch_size,
            views,
        )
        rows = take_evenly(load_data(data, split), limit)
        measured = evaluation.evaluate(segmenter, rows, texts or evaluation.available_text_modes(rows), settings)
        origin = {"model": _short_name(model), "data": name or _short_name(data), "split": split}
        results = evaluation.make_results(measured, origin, settings)
        if record:
            evaluation.record_results(Path(model), results)
        if output_dir is not None:
            report.write_evaluation(output_dir, results, measured, segmenter, rows, settings)
        typer.echo(report.render_evaluation(results))


def report_volumes(segmenter: "Segmenter", data: str, structures: Path | None, *folders: Path | None, **options: Any):
    """Measures a checkpoint of volumes, prints the figures and writes them to these folders.

    Raises:
        ValueError: If nothing says what captions ask for.
    """
    from tqdm import tqdm

    from lvit_hf.data.volumes import read_structures
    from lvit_hf.evaluation.volumes import evaluate_volumes, render_volume_evaluation, write_volume_evaluation

    if structures is None:
        raise ValueError(
            "Volumes need --structures CONFIG.yaml, the training configuration that says what captions ask for."
        )
    with tqdm(unit="volume", disable=None) as bar:

        def show(finished: int, total: int):
            bar.total = total
            bar.update()

        asked = read_structures(structures)
        report = evaluate_volumes(segmenter, data, asked, progress=show, **options)
    for folder in filter(None, folders):
        write_volume_evaluation(folder, report)
    typer.echo(render_volume_evaluation(report))


def _refuse_options(options: dict[str, Any], others: str):
    """Refuses options that were given and have no meaning here."""
    for name, value in options.items():
        if value:
            raise ValueError(f"--{name} is for {others}.")


def calibrate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", exists=True, file_okay=False, help="Folder of the checkpoint.")
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA[:TILE]...",
            help=f"Data sets, which all count the same: {DATA_HELP}; with the size of the tiles in pixels if its "
            "images are segmented in tiles.",
        ),
    ],
    split: Annotated[str, typer.Option(help="Split to fit on; not the one that results are reported on.")] = "valid",
    bias: Annotated[
        bool,
        typer.Option(
            help="Fit a bias too. It moves masks at a given threshold; without it they stay as they are at 0.5."
        ),
    ] = True,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Use this many images of each data set only, spread evenly over it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or tiles that are segmented together.")] = 16,
):
    """Fit the temperature and the bias of a checkpoint's scores, and save them in its processor."""
    with errors_as_sentences(extra="evaluate"):
        keep_libraries_quiet()
        from lvit_hf.data.load import load_data, take_evenly
        from lvit_hf.evaluation import temperature as calibration
        from lvit_hf.inference.segmenter import Segmenter

        sources = []
        for argument in data:
            path, tile_size = _split_tile_size(argument)
            rows = take_evenly(load_data(path, split), limit)
            sources.append(calibration.CalibrationSource(_short_name(path), rows, tile_size))
        segmenter = Segmenter.from_pretrained(model)
        fitted, figures = calibration.calibrate(segmenter, sources, bias, batch_size)
        segmenter.processor.save_pretrained(model)
        typer.echo(calibration.render_calibration(fitted, figures))


def _split_tile_size(argument: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+):(\d+)", argument)
    return (match[1], int(match[2])) if match else (argument, None)


def _short_name(name: str) -> str:
    """The last part of a path, which says nothing about the machine; the id of something on the Hub as it is."""
    path = Path(name).resolve()
    return name if not path.exists() else path.name if path.is_dir() else path.stem
