"""`lvit predict`: masks, overlays and measurements of images and volumes."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    DEFAULT_MODEL,
    FAILED,
    SMALLEST_TILE,
    WRONG_USAGE,
    Backend,
    BackendOption,
    ModelOption,
    OnUnknown,
    OnUnknownOption,
    Side,
    SideOption,
    ThresholdOption,
    ViewsOption,
    errors_as_sentences,
    keep_libraries_quiet,
)


if TYPE_CHECKING:
    from lvit_hf.inference.predictor import PredictorConfig

Bits = StrEnum("Bits", {"eight": "8", "sixteen": "16"})
Engine = StrEnum("Engine", ["ray"])


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Images and volumes (pictures, DICOM, NIfTI), zips and folders of them, or tables (CSV, TSV, XLSX) "
            "with the columns image (relative to the table) and text. With --engine also Parquet files, tars, and "
            "URLs.",
        ),
    ],
    output_dir: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the results.")] = Path(
        "results"
    ),
    text: Annotated[str | None, typer.Option(help="Caption of every image that no CSV captions.")] = None,
    side: SideOption = Side.image,
    on_unknown: OnUnknownOption = OnUnknown.ignore,
    model: ModelOption = DEFAULT_MODEL,
    threshold: ThresholdOption = 0.5,
    tile_size: Annotated[
        int | None,
        typer.Option(min=SMALLEST_TILE, help="Segment in tiles of this many pixels, for slides: about 175 at 40x."),
    ] = None,
    views: ViewsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images, tiles or windows that are segmented together.")] = 8,
    labels: Annotated[
        bool, typer.Option("--labels", help="Write the objects one by one too: NAME_labels and NAME_instances.csv.")
    ] = False,
    probabilities: Annotated[
        Bits | None, typer.Option(help="Write the probabilities too, NAME_probabilities, in this many bits.")
    ] = None,
    geojson: Annotated[
        bool, typer.Option("--geojson", help="Write the objects of pictures as NAME.geojson too, for QuPath.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The report: .json, .jsonl, .csv or .parquet.", show_default="OUT/predictions.json"
        ),
    ] = None,
    backend: BackendOption = Backend.auto,
    engine: Annotated[
        Engine | None, typer.Option(help="Spread the images over a machine or a cluster; what is finished stays.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster that runs, with --engine; local starts one here.", show_default="RAY_ADDRESS, or local"
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Number of copies of the model, with --engine.", show_default="one a GPU, or a CPU"),
    ] = None,
):
    """Segment images and volumes: NAME_mask and NAME_overlay.png of each, and a report with measurements.

    Masks of pictures are PNG. Those of DICOM and NIfTI files are DICOM SEG and NIfTI, in the file's own geometry.
    """
    from tqdm import tqdm

    with errors_as_sentences(WRONG_USAGE, extra="results"):
        keep_libraries_quiet()
        from lvit_hf.inference.files import Outputs
        from lvit_hf.inference.predictor import Predictor, PredictorConfig, choose_report, list_items, path_key
        from lvit_hf.inference.report import check_report, write_report

        if engine is None and (actors, address) != (None, None):
            raise ValueError("--actors and --address need --engine ray.")
        if engine is not None and report is not None:
            raise ValueError("With --engine the report is OUT/predictions.jsonl; leave out --report.")
        if geojson:
            import lvit_hf.inference.geojson  # noqa: F401 (says at once what is not installed)
        outputs = Outputs(threshold, labels, None if probabilities is None else int(probabilities), geojson)
        settings = {"tile_size": tile_size, "views": views, "side": side, "on_unknown": on_unknown}
        config = PredictorConfig(model, backend, outputs, batch_size, settings)
        if engine is not None:
            address = address or os.environ.get("RAY_ADDRESS", "local")
            return predict_with_ray(config, inputs, text, output_dir, address, actors)
        paths = list(map(Path, inputs))
        items = list_items(paths, text)
        taken = {path_key(path) for item in items for path in item.series or [item.path]} | set(map(path_key, paths))
        if report is not None:
            check_report(report)
            taken.add(path_key(report))
        predictor = Predictor(config)
        output_dir.mkdir(parents=True, exist_ok=True)
        report = report or choose_report(output_dir, taken)
    entries: list[dict[str, Any]] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is ended says what was done, as with Ctrl-C
    with errors_as_sentences(), tqdm(total=len(items), unit="image", disable=None) as bar:

        def show_parts(done: int, total: int):
            bar.set_postfix_str(f"part {done} of {total}")

        try:
            for entry in predictor.predict(items, output_dir, taken, show_parts):
                entries.append(entry)
                bar.write(write_line(entry), file=sys.stderr if "error" in entry else sys.stdout)
                bar.update()
        finally:
            if entries:
                write_report(report, predictor.run, entries)
    typer.echo(f"Masks, overlays and measurements: {report}")
    if any("error" in entry for entry in entries):
        raise typer.Exit(FAILED)


def predict_with_ray(
    config: "PredictorConfig",
    sources: Sequence[str],
    text: str | None,
    output_dir: Path,
    address: str,
    actors: int | None,
):
    """The same over a machine or a cluster, shard by shard; a second run does what is left."""
    from tqdm import tqdm

    with errors_as_sentences(WRONG_USAGE, extra="scale"):
        from lvit_hf.inference.predictor import Predictor
        from lvit_hf.inference.scale import ShardFolder, predict_shards
        from lvit_hf.inference.shards import list_shards

        if Path(config.model).exists():
            config = replace(config, model=str(Path(config.model).absolute()))
        shards, folder = list_shards(sources, text), ShardFolder(output_dir)
        folder.prepare(config, Predictor(config).run, shards)
    failed = False
    finished = sum(number in folder for number in range(len(shards)))
    with errors_as_sentences(), tqdm(total=len(shards), initial=finished, unit="shard", disable=None) as bar:
        for errors in predict_shards(config, shards, folder, address, actors):
            for error in errors:
                bar.write(f"Error: {error}", file=sys.stderr)
            failed |= bool(errors)
            bar.update()
        report = folder.join(len(shards))
        with report.open(encoding="utf-8") as rows:  # with those of earlier runs
            failed |= any("error" in json.loads(row) for row in rows if '"error"' in row)
    typer.echo(f"Masks, overlays and measurements: {report}")
    if failed:
        raise typer.Exit(FAILED)


def write_line(entry: dict[str, Any]) -> str:
    """What was found in a file, or why it could not be used, in a line."""
    if "error" in entry:
        return f"Error: {entry['error']}"
    share = entry.get("percent", entry.get("area_percent"))
    line = f"{entry['image']}: {', '.join(entry['labels'])} {share:.1f} %, {', '.join(entry['masks'])}"
    reading = entry["reading"]
    said = [] if entry["text_used"] or reading is None else [reading["message"]]
    scope = [entry["out_of_scope"]] if entry["out_of_scope"] else []
    return " ".join([*scope, f"{line}.", *said, *entry["notes"]])
