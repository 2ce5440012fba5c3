"""The service behind the page: its named endpoints."""

import gradio as gr

from .engine import BATCH_SIZE, Engine, Request, stem_of
from .files import check_upload, clean_caption, errors_shown, save_mask, save_picture
from .results import Component, measure


def make_request(
    engine: Engine, model: str, path: str | None, slice_number: int, text: str | None = "", tile_size: int = 0
) -> Request:
    """What a visitor asks for.

    Args:
        engine: What will segment it.
        model: Name of the checkpoint; blank for the first.
        path: The uploaded file.
        slice_number: Number of the slice, from 1.
        text: The caption, or blank.
        tile_size: Side of the tiles in pixels; 0 for none.

    Raises:
        OSError, ValueError: If that cannot be done.
    """
    slices = len(engine.read(check_upload(path)))
    if not 1 <= slice_number <= slices:
        raise ValueError(f"There is no slice {slice_number:g}: the file has {slices}, counted from 1.")
    return Request(model or engine.default_model, str(path), int(slice_number) - 1, clean_caption(text), tile_size)


def any_tile_size() -> gr.Number:
    """The service takes any size of tiles, not only those that the page lists."""
    return gr.Number(0, precision=0, minimum=0, visible=False, label="tile size")


def add_endpoints(engine: Engine, image: Component, text: Component, threshold: Component, model: Component):
    """Adds `/segment` and `/caption`, whose inputs are those of the page and some of their own."""

    def segment(
        image: str,
        text: str = "",
        threshold: float = 0.5,
        tile_size: int = 0,
        model: str = engine.default_model,
        slice_number: int = 1,
        progress: gr.Progress = gr.Progress(),
    ) -> tuple[str, str, dict]:
        """Segments a medical image with the help of a caption.

        Args:
            image: A chest X-ray, a colonoscopy frame or an H&E slide: PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI.
            text: What to find and where, for example "one small polyp on the top left"; may be empty.
            threshold: Probability in [0, 1] above which a pixel belongs to the mask.
            tile_size: 0 for the image as a whole; for slides the side of tiles in pixels: 176 at 40x, 96 at 20x.
            model: The checkpoint.
            slice_number: Which slice of a file with several, counted from 1.

        Returns:
            The mask and the overlay as PNG files, and the measurements.
        """
        with errors_shown(image):
            request = make_request(engine, model, image, slice_number, text, tile_size)
            result = engine.segment(request, progress)
            measures = measure(engine, request, threshold)
        name = stem_of(image)
        mask, overlay = result.mask(threshold), result.overlay(threshold)
        return save_mask(mask, f"{name}_mask"), save_picture(overlay, f"{name}_overlay"), measures

    def caption(image: str, model: str = engine.default_model, slice_number: int = 1) -> dict:
        """Writes captions for a medical image, if the checkpoint has a caption head.

        Args:
            image: A chest X-ray, a colonoscopy frame or an H&E slide: PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI.
            model: The checkpoint.
            slice_number: Which slice of a file with several, counted from 1.

        Returns:
            The likeliest captions, the kinds of finding and the attributes, each with its probability.
        """
        with errors_shown(image):
            described = engine.describe_image(make_request(engine, model, image, slice_number))
        return {name: described[name] for name in ("captions", "families", "attributes")}

    slice_number = gr.Number(1, precision=0, visible=False)
    mask, overlay = (gr.File(visible=False, label=name) for name in ("mask", "overlay"))
    measurements, captions = (gr.JSON(visible=False, label=name) for name in ("measurements", "captions"))
    tile_size = any_tile_size()
    trigger = gr.Button(visible=False)
    trigger.click(
        segment,
        [image, text, threshold, tile_size, model, slice_number],
        [mask, overlay, measurements],
        api_name="segment",
        concurrency_limit=BATCH_SIZE,
    )
    trigger.click(caption, [image, model, slice_number], captions, api_name="caption", concurrency_limit=BATCH_SIZE)
