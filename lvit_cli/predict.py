"""`lvit predict`: masks, overlays and measurements of images and volumes."""

import itertools
import sys
from collections.abc import Sequence
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
    from lvit_hf.inference.files import Item

Bits = StrEnum("Bits", {"eight": "8", "sixteen": "16"})


def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="Images and volumes (pictures, DICOM, NIfTI, a zip of a series), folders of them, or tables (CSV, "
            "TSV, XLSX) with the columns image (relative to the table) and text.",
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
):
    """Segment images and volumes: NAME_mask and NAME_overlay.png of each, and a report with measurements.

    Masks of pictures are PNG. Those of DICOM and NIfTI files are DICOM SEG and NIfTI, in the file's own geometry.
    """
    from tqdm import tqdm

    with errors_as_sentences(WRONG_USAGE, extra="results"):
        keep_libraries_quiet()
        from lvit_hf.inference.files import Outputs, describe_result, save_results, segment_items, time_results
        from lvit_hf.inference.report import check_report, describe_run, write_report
        from lvit_hf.inference.segmenter import Segmenter
        from lvit_hf.io.hub import hash_weights

        if geojson:
            import lvit_hf.inference.geojson  # noqa: F401 (says at once what is not installed)
        items = list_items(inputs, text)
        taken = {_key(path) for item in items for path in item.series or [item.path]}
        if report is not None:
            check_report(report)
            taken.add(_key(report))
        segmenter = Segmenter.from_pretrained(model, backend)
        if segmenter.is_volumetric and (tile_size is not None or views is not None):
            raise ValueError("--tile-size and --views are for images, and the checkpoint segments volumes as a whole.")
        run = describe_run(
            model=model,
            weights_sha256=hash_weights(model),
            threshold=threshold,
            tile_size=tile_size,
            views=views,
            side=side,
            on_unknown=on_unknown,
        )
        output_dir.mkdir(parents=True, exist_ok=True)
    outputs = Outputs(threshold, labels, None if probabilities is None else int(probabilities), geojson)
    suffixes = [*outputs.suffixes, *(f"_{label}_mask.png" for label in segmenter.model.config.id2label.values())]
    if report is None:
        report = output_dir / f"{free_name('predictions', ['.json'], output_dir, taken)}.json"
    entries: list[dict[str, Any]] = []
    with errors_as_sentences(), tqdm(total=len(items), unit="image", disable=None) as bar:

        def segment(images: Sequence[Any], texts: Sequence[str | None]) -> list:
            return segmenter.segment(
                images,
                texts,
                tile_size=tile_size,
                progress=lambda done, total: bar.set_postfix_str(f"tile {done} of {total}"),
                views=views,
                side=side,
                on_unknown=on_unknown,
                batch_size=batch_size,
            )

        def segment_whole(scan: Any, caption: str | None) -> Any:
            from lvit_hf.inference.volumes3d import segment_scan

            return segment_scan(
                segmenter,
                scan,
                caption,
                side=side,
                on_unknown=on_unknown,
                batch_size=batch_size,
                progress=lambda done, total: bar.set_postfix_str(f"window {done} of {total}"),
            )

        whole = segment_whole if segmenter.is_volumetric else None
        for row, seconds in time_results(segment_items(segment, items, batch_size, whole)):
            entry = describe_result(row, threshold) | {"seconds": round(seconds, 3)}
            if row.error is None:
                name = free_name(_stem(row.item), suffixes, output_dir, taken)
                entry |= save_results(row, outputs, output_dir, name)
            entries.append(entry)
            bar.write(write_line(entry), file=sys.stderr if row.error else sys.stdout)
            bar.update()
        write_report(report, run, entries)
    typer.echo(f"Masks, overlays and measurements: {report}")
    if any("error" in entry for entry in entries):
        raise typer.Exit(FAILED)


def list_items(inputs: list[Path], text: str | None) -> "list[Item]":
    """Files and captions that the arguments name: CSV files and folders are opened, anything else is an image.

    Raises:
        ValueError: If a CSV cannot be used, or there is no image at all.
    """
    from lvit_hf.inference.files import Item
    from lvit_hf.io.readers import group_files, list_files
    from lvit_hf.io.tables import is_table_name, read_captions

    items: list[Item] = []
    for path in inputs:
        if path.is_dir():
            for files in group_files(list_files(path)):
                name, series = (str(files[0]), ()) if len(files) == 1 else (f"{files[0].parent}", files)
                items.append(Item(name, text, files[0], series=series))
        elif is_table_name(path):
            rows = [(path.parent / name, caption or text) for name, caption in read_captions(path)]
            items += [Item(str(file), caption, file) for file, caption in rows]
        else:
            items.append(Item(str(path), text, path))
    if not items:
        raise ValueError(f"There is no image in {', '.join(map(str, inputs))}.")
    return items


def free_name(stem: str, suffixes: Sequence[str], folder: Path, taken: set[str]) -> str:
    """A name under which no file that is read or written in this run lies yet; it and its files become taken."""
    for number in itertools.count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        files = {_key(folder / f"{name}{suffix}") for suffix in suffixes}
        if taken.isdisjoint(files):
            break
    taken |= files
    return name


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


def _stem(item: "Item") -> str:
    path = item.path.parent if item.series else item.path
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def _key(path: Path) -> str:
    """The same for every way to write a file's path, also where case does not matter."""
    return str(path.resolve()).casefold()
