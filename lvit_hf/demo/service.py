"""The service behind the page: its named endpoints."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..inference.archive import ResultArchive
from ..inference.collection import collect
from ..inference.files import FileResult, Item, describe_result, find_mask_problem, save_mask, save_overlay
from ..model.segmenter_lvit import ON_UNKNOWN
from .engine import BATCH_SIZE, Engine, Request, Settings, stem_of
from .uploads import check_slices, clean_caption, errors_shown, results_folder, serve_file


# Of visitors whose long work runs at the same time; single images of others go in between.
CONCURRENT_WORK = 2
SIDES = ("image", "patient")
ARCHIVE_NAME = "segmentations.zip"


def make_item(path: str | Path | None, text: str | None = "") -> Item:
    """An uploaded file with its caption.

    Raises:
        ValueError: If it cannot be used.
    """
    if not path:
        raise ValueError("Add an image first.")
    return Item(Path(path).name, clean_caption(text), Path(path))


def find_slice(engine: Engine, item: Item, number: float) -> int:
    """The number from 0 of a slice that callers count from 1.

    Raises:
        OSError, ValueError: If the file cannot be read, or has no such slice.
    """
    slices = len(engine.read(item))
    if not 1 <= number <= slices:
        raise ValueError(f"slice_number is {number:g}, but {item.name} has {slices:,}, counted from 1.")
    return int(number) - 1


def describe(engine: Engine, row: FileResult, request: Request, threshold: float) -> dict[str, Any]:
    """All that is known about a result, as it is downloaded and as the service answers."""
    measures = {**describe_result(row, threshold), "slice": request.slice_index}
    return measures | name_settings(engine, request.settings)


def add_endpoints(engine: Engine):
    """Adds `/segment`, `/caption`, `/segment_volume` and `/segment_many`, which are tools for agents too."""

    def segment(
        image: str,
        text: str = "",
        threshold: float = 0.5,
        tile_size: int = 0,
        model: str = engine.default_model,
        slice_number: int = 1,
        side: str = "image",
        on_unknown: str = "ignore",
    ) -> tuple[str, str, dict]:
        """Segments a medical image with the help of a caption.

        Args:
            image: A chest X-ray, a colonoscopy frame, an H&E slide or a breast ultrasound: PNG, JPEG, TIFF, BMP,
                WebP, DICOM or NIfTI.
            text: What to find and where, for example "one small polyp on the top left"; may be empty.
            threshold: Probability in [0, 1] above which a pixel belongs to the mask.
            tile_size: 0 for the image as a whole; for slides the side of tiles in pixels: 176 at 40x, 96 at 20x.
            model: The checkpoint.
            slice_number: Which slice of a file with several, counted from 1.
            side: Whose left and right the caption names: "image" or "patient".
            on_unknown: A caption that is not understood: "ignore" it, "use" it as it is, or answer with an "error".

        Returns:
            The mask and the overlay as PNG files, and the measurements.
        """
        with errors_shown(image), results_folder() as folder:
            item = make_item(image, text)
            index = find_slice(engine, item, slice_number)
            request = Request(item, make_settings(model, side, on_unknown, tile_size), index)
            row = engine.segment(request)
            name, mask = stem_of(image), row.result.mask(threshold)  # type: ignore[union-attr]
            Image.fromarray(mask).convert("L").save(folder / f"{name}_mask.png", compress_level=1)
            overlay = save_overlay(row, threshold, folder, name)
            files = [serve_file(folder / file) for file in (f"{name}_mask.png", overlay)]
            return files[0], files[1], describe(engine, row, request, threshold)

    def caption(image: str, model: str = engine.default_model, slice_number: int = 1) -> dict:
        """Writes captions for a medical image, if the checkpoint has a caption head.

        Args:
            image: A chest X-ray, a colonoscopy frame, an H&E slide or a breast ultrasound: PNG, JPEG, TIFF, BMP,
                WebP, DICOM or NIfTI.
            model: The checkpoint.
            slice_number: Which slice of a file with several, counted from 1.

        Returns:
            The likeliest captions, the kinds of finding and the attributes, each with its probability.
        """
        with errors_shown(image):
            if not engine.checkpoint(model).segmenter.can_describe:
                raise ValueError(f"{model or engine.default_model} has no caption head, so it writes no captions.")
            item = make_item(image)
            row = engine.segment(Request(item, make_settings(model), find_slice(engine, item, slice_number)))
            described = row.result.described or {}  # type: ignore[union-attr]
            return {name: described[name] for name in ("captions", "families", "attributes")}

    def segment_volume(
        volume: str,
        text: str = "",
        threshold: float = 0.5,
        tile_size: int = 0,
        model: str = engine.default_model,
        side: str = "image",
        on_unknown: str = "ignore",
        progress: gr.Progress = gr.Progress(),
    ) -> Iterator[tuple[str | None, dict]]:
        """Segments a volume with the help of a caption: as a whole or slice by slice, as the checkpoint does.

        Args:
            volume: A NIfTI file, a DICOM file with several frames, or a zip of the files of one DICOM series.
            text: What to find and where; may be empty.
            threshold: Probability in [0, 1], in steps of 0.01, above which a voxel belongs to the mask.
            tile_size: 0 for slices as a whole; else the side in pixels of the tiles into which slices are cut.
            model: The checkpoint.
            side: Whose left and right the caption names: "image" or "patient".
            on_unknown: A caption that is not understood: "ignore" it, "use" it as it is, or answer with an "error".

        Returns:
            The mask volume, as NIfTI with the volume's affine or as DICOM Segmentation in its frame of reference, and
            the measurements. Until then, in their place, how many slices are `finished` of the `total`.
        """
        with errors_shown(volume), results_folder() as folder:
            request = Request(make_item(volume, text), make_settings(model, side, on_unknown, tile_size), None)
            check_slices(request.item, len(engine.read(request.item)))
            with closing(engine.segment_volume(request)) as steps:
                for step in steps:
                    if isinstance(step, FileResult):
                        row = step
                    else:
                        progress(step, unit="steps")
                        yield None, dict(zip(("finished", "total"), step))
            measures = describe(engine, row, request, threshold)
            names = save_mask(row, threshold, folder, stem_of(volume))
            measures["notes"] += filter(None, [find_mask_problem(row, names)])
            mask = serve_file(folder / names[0])
        yield mask, measures

    def segment_many(
        files: list[str],
        text: str = "",
        threshold: float = 0.5,
        tile_size: int = 0,
        model: str = engine.default_model,
        side: str = "image",
        on_unknown: str = "ignore",
        progress: gr.Progress = gr.Progress(),
    ) -> Iterator[tuple[str | None, dict]]:
        """Segments many medical images, each with the help of a caption.

        Args:
            files: Images as `/segment` takes them, zips of them, and CSV files with the columns `image` and `text`.
            text: What to find and where, in images that no CSV file names; may be empty.
            threshold: Probability in [0, 1] above which a pixel belongs to the mask.
            tile_size: 0 for images as a whole; for slides the side of tiles in pixels: 176 at 40x, 96 at 20x.
            model: The checkpoint.
            side: Whose left and right the captions name: "image" or "patient".
            on_unknown: A caption that is not understood: "ignore" it, "use" it as it is, or fail with an "error".

        Returns:
            A zip with the masks and a table, and the measurements of `images`, with `failures` that say why a file
            could not be used. Until then, in their place, how many images are `finished` of the `total`.
        """
        with errors_shown(*(files or [])), results_folder() as folder:
            settings = make_settings(model, side, on_unknown, tile_size)
            items = collect_uploads(files, text)
            engine.checkpoint(model)
            with ResultArchive(folder / ARCHIVE_NAME, threshold, name_settings(engine, settings)) as archive:
                for number, row in enumerate(engine.segment_many(items, settings, lambda *_: None), 1):
                    archive.add(row)
                    progress((number, len(items)), unit="images")
                    yield None, {"finished": number, "total": len(items)}
            path = serve_file(folder / ARCHIVE_NAME)
        yield path, archive.report

    add_api(engine, segment, caption, segment_volume, segment_many)


def make_settings(model: str, side: str = "image", on_unknown: str = "ignore", tile_size: float = 0) -> Settings:
    return Settings(model or "", side, on_unknown, int(tile_size or 0))


def name_settings(engine: Engine, settings: Settings) -> dict[str, Any]:
    """What a report says of how images were segmented."""
    return {
        "model": settings.model or engine.default_model,
        "tile_size": settings.tile_size or None,
        "side": settings.side,
    }


def collect_uploads(paths: list[str] | None, text: str | None) -> list[Item]:
    """The images of uploaded files, with their captions.

    Raises:
        OSError, ValueError: If there is none, or a CSV file cannot be used.
    """
    if not paths:
        raise ValueError("Add images first: pictures, DICOM or NIfTI files, or zips of them.")
    return [check_caption(item) for item in collect(paths, clean_caption(text))]


def check_caption(item: Item) -> Item:
    """An image of several, with the reason why it cannot be used if its caption is none."""
    try:
        return replace(item, text=clean_caption(item.text))
    except ValueError as error:
        return replace(item, problem=f"{item.name}: {error}")


def add_api(engine: Engine, segment, caption, segment_volume, segment_many):
    """Adds the endpoints with their inputs, which are no part of the page."""

    def file(label: str, **kwargs: Any) -> gr.File:
        return gr.File(visible=False, label=label, **kwargs)

    text = gr.Textbox("", visible=False, label="text")
    threshold = gr.Number(0.5, minimum=0, maximum=1, visible=False, label="threshold")
    tile_size = gr.Number(0, precision=0, minimum=0, visible=False, label="tile size")
    model = gr.Textbox(engine.default_model, visible=False, label="model")
    slice_number = gr.Number(1, precision=0, visible=False, label="slice number")
    side = gr.Dropdown(list(SIDES), value="image", visible=False, label="side")
    on_unknown = gr.Dropdown(list(ON_UNKNOWN), value="ignore", visible=False, label="on unknown")
    image, trigger = file("image"), gr.Button(visible=False)
    settings = [text, threshold, tile_size, model]
    measurements = gr.JSON(visible=False, label="measurements")
    trigger.click(
        segment,
        [image, *settings, slice_number, side, on_unknown],
        [file("mask"), file("overlay"), measurements],
        api_name="segment",
        concurrency_limit=BATCH_SIZE,
    )
    trigger.click(
        caption,
        [image, model, slice_number],
        gr.JSON(visible=False, label="captions"),
        api_name="caption",
        concurrency_limit=BATCH_SIZE,
    )
    for function, source, output in (
        (segment_volume, file("volume"), file("mask volume")),
        (segment_many, file("files", file_count="multiple"), file("zip")),
    ):
        trigger.click(
            function,
            [source, *settings, side, on_unknown],
            [output, measurements],
            api_name=function.__name__,
            concurrency_limit=CONCURRENT_WORK,
            concurrency_id="work",
        )
