"""`lvit slide`: slides that do not fit into memory."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    DEFAULT_MODEL,
    SMALLEST_TILE,
    Backend,
    BackendOption,
    ModelOption,
    ThresholdOption,
    errors_as_sentences,
    keep_libraries_quiet,
)


def slide(
    path: Annotated[Path, typer.Argument(metavar="SLIDE", help="Tiled TIFF, SVS, NDPI or what else OpenSlide reads.")],
    output: Annotated[Path, typer.Option("--out", dir_okay=False, help="File for the mask, an OME-TIFF.")],
    text: Annotated[str | None, typer.Option(help="Caption; one that names a place is not true of a tile.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    tile_size: Annotated[
        int, typer.Option(min=SMALLEST_TILE, help="Side of a tile in pixels: about 175 at 40x for nuclei.")
    ] = 175,
    threshold: ThresholdOption = 0.5,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles that are segmented together.")] = 8,
    geojson: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="File for the objects one by one, GeoJSON that QuPath opens."),
    ] = None,
    backend: BackendOption = Backend.auto,
):
    """Segment a slide of any size block by block, and print what was measured as JSON.

    Glass and what was not scanned are no foreground. The same command again goes on where the last one was stopped.
    """
    with errors_as_sentences(extra="slides"):
        keep_libraries_quiet()
        from lvit_hf.inference.report import describe_run
        from lvit_hf.inference.segmenter import Segmenter
        from lvit_hf.inference.slide import segment_slide
        from lvit_hf.io.hub import hash_weights

        if geojson is not None and geojson.resolve() == output.resolve():
            raise ValueError(f"{output} is named for the mask and for the objects; give --geojson another name.")
        segmenter = Segmenter.from_pretrained(model, backend)
        run = describe_run(
            model=model,
            backend=segmenter.backend,
            device=str(segmenter.model.device),
            weights_sha256=hash_weights(model),
            threshold=threshold,
            tile_size=tile_size,
        )
        measured = segment_slide(segmenter, path, output, tile_size, text, threshold, batch_size, geojson)
        files = {"masks": [str(output)], "geojson": geojson and str(geojson)}
        typer.echo(json.dumps({"image": str(path), "text": text, **measured, **files, **run}, ensure_ascii=False))
