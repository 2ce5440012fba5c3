"""One image: it and its caption on the left, the mask and all about it on the right."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from ..image_file import ImageFile
from ..inference import Segmentation
from ..measures import overlap
from ..readers import read_mask
from ..volume import VolumeSegmentation
from .captions import build_caption_builder
from .engine import BATCH_SIZE, Engine, Request, stem_of
from .files import (
    FILE_TYPES,
    MAX_CAPTION,
    check_upload,
    clean_caption,
    errors_shown,
    save_json,
    save_mask,
    save_native,
    save_picture,
)
from .pictures import COLORS, show_mask, show_probabilities, show_text_effect, shrink
from .texts import translated


EXAMPLES = Path(__file__).parents[2] / "examples" / "examples.csv"
TILE_SIZES = (96, 128, 176, 256, 384, 512)
IMAGE_HEIGHT = 360

Component = gr.components.Component


def describe_caption(result: Segmentation | VolumeSegmentation) -> str:
    if result.text is None:
        return "there was none"
    if result.text_used:
        return "read by the network"
    return "not read: it names a place in the whole image, which is not true of a tile"


def write_number(value: float | None, digits: int = 3) -> str:
    """A number as the page shows it: nothing where it is not known."""
    return "" if value is None else str(round(value, digits))


def describe_diameter(measures: dict[str, Any]) -> str:
    diameter = measures["largest_diameter"]
    return "none" if diameter is None else f"{diameter:.1f} {measures['diameter_unit']}"


def measure(engine: Engine, request: Request, threshold: float) -> dict[str, Any]:
    """All that is known about a result, as it is downloaded and as the service answers."""
    scan, result = engine.read(request.path), engine.segment(request)
    height, width = result.probabilities.shape
    return {
        "image": Path(request.path).name,
        "slice": request.slice_index,
        "width": width,
        "height": height,
        "model": request.model,
        "text": result.text,
        "text_used": result.text_used,
        "tile_size": request.tile_size or None,
        "threshold": threshold,
        **result.measure(threshold, scan.spacing),
    }


def compare(engine: Engine, request: Request, threshold: float, truth: str) -> dict[str, float]:
    """Dice and IoU with a true mask.

    Raises:
        OSError, ValueError: If the mask cannot be used.
    """
    masks = read_mask(check_upload(truth))
    mask = engine.segment(request).mask(threshold)
    expected = masks[request.slice_index if len(masks) == len(engine.read(request.path)) else 0]
    if expected.shape != mask.shape:
        sizes = [f"{width} x {height}" for height, width in (expected.shape, mask.shape)]
        raise ValueError(f"The true mask has {sizes[0]} pixels and the image {sizes[1]}; they must be of one size.")
    return overlap(mask, expected)


@dataclass(frozen=True)
class Outputs:
    """The right side of the page."""

    overlay: gr.AnnotatedImage
    slider: gr.ImageSlider
    heat: gr.Image
    effect: gr.AnnotatedImage
    readings: list[gr.Textbox]
    scores: list[gr.Textbox]
    downloads: list[gr.DownloadButton]

    @property
    def all(self) -> list[Component]:
        return [self.overlay, self.slider, self.heat, self.effect, *self.readings, *self.scores, *self.downloads]

    def nothing(self) -> list:
        """Values of all before there is a result."""
        empty = [None] * (len(self.all) - len(self.downloads))
        return [*empty, *(gr.DownloadButton(value=None, interactive=False) for _ in self.downloads)]


def draw(
    engine: Engine, request: Request | None, threshold: float, opacity: float, truth: str | None
) -> list | dict[str, Any]:
    """Values of `Outputs.all` for a request. Where its result is known, the network does not run again."""
    if request is None:
        return gr.skip()
    with errors_shown(request.path, truth):
        result = engine.segment(request)
        measures = measure(engine, request, threshold)
        scores = compare(engine, request, threshold, truth) if truth else {"dice": None, "iou": None}
        effect = None
        if result.text_used:
            effect = show_text_effect(result, engine.segment(request.without_text()), threshold, opacity)
    overlay = result.overlay(threshold)
    numbers = ("area_pixels", "area_percent", "area_mm2", "components")
    return [
        show_mask(result, threshold, opacity),
        (shrink(result.image), shrink(overlay)),
        show_probabilities(result.probabilities),
        effect,
        *(write_number(measures[name]) for name in numbers),
        describe_diameter(measures),
        write_number(measures["mean_probability"]),
        describe_caption(result),
        *(write_number(value, digits=4) for value in scores.values()),
        *save_downloads(engine, request, threshold, {**measures, **scores} if truth else measures),
    ]


def save_downloads(
    engine: Engine, request: Request, threshold: float, measures: dict[str, Any]
) -> list[gr.DownloadButton]:
    scan, result, name = engine.read(request.path), engine.segment(request), stem_of(request.path)
    mask = result.mask(threshold)
    masks = np.zeros(scan.slices.shape[:3], bool)
    masks[request.slice_index] = mask
    paths = [
        save_mask(mask, f"{name}_mask"),
        save_picture(result.overlay(threshold), f"{name}_overlay"),
        save_json(measures, f"{name}_measurements"),
        save_native(scan, masks, f"{name}_mask"),
    ]
    return [gr.DownloadButton(value=path, interactive=path is not None) for path in paths]


def build_image_tab(engine: Engine):
    """Adds the inputs, the outputs and what connects them, and the endpoint `/segment`."""
    state = gr.State(time_to_live=3600)
    with gr.Row():
        with gr.Column():
            image, file, slice_index, text = build_inputs()
            button = gr.Button(translated("segment"), variant="primary")
            with gr.Accordion(translated("builder"), open=False):
                build_caption_builder(text)
            model, tile_size = build_settings(engine)
            examples = gr.Dataset(
                label=translated("examples"),
                components=[image, text, tile_size],
                headers=["Image", "Caption", "Tiles"],
                samples=read_examples(),
            )
        with gr.Column():
            threshold, opacity, truth, outputs = build_outputs()

    def run(image, file, slice_index, text, tile_size, model, threshold, opacity, truth, progress=gr.Progress()):
        path = file or image
        with errors_shown(path, truth):
            number = int(slice_index) - 1 if file else 0
            request = Request(model, check_upload(path), number, clean_caption(text), tile_size or 0)
            engine.segment(request, progress)
        return [*draw(engine, request, threshold, opacity, truth), request]

    chosen = examples.click(
        load_example,
        examples,
        [image, text, tile_size, file, slice_index, truth, state],
        show_progress="hidden",
        api_visibility="private",
    )
    triggers: list[Callable] = [button.click, text.submit, chosen.success, slice_index.release]
    for trigger in triggers:
        trigger(
            run,
            [image, file, slice_index, text, tile_size, model, threshold, opacity, truth],
            [*outputs.all, state],
            api_visibility="private",
            scroll_to_output=True,
            show_progress_on=outputs.overlay,
            concurrency_limit=BATCH_SIZE,
        )
    gr.on(
        [threshold.change, opacity.change, truth.change],
        lambda *values: draw(engine, *values),
        [state, threshold, opacity, truth],
        outputs.all,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=BATCH_SIZE,
    )
    connect_files(engine, image, file, slice_index, [*outputs.all, truth, state], outputs.nothing)
    add_endpoint(engine, image, text, threshold, tile_size, model)


def build_inputs() -> tuple[ImageFile, gr.File, gr.Slider, gr.Textbox]:
    image = ImageFile(
        label=translated("image"),
        sources=["upload", "clipboard"],
        height=IMAGE_HEIGHT,
        alt_text="The image to segment",
    )
    file = gr.File(label=translated("file"), file_types=FILE_TYPES, height=150)
    slice_index = gr.Slider(1, 2, value=1, step=1, label=translated("slice"), visible=False)
    text = gr.Textbox(
        "",
        label=translated("caption"),
        lines=2,
        max_length=MAX_CAPTION,
        placeholder=translated("caption_hint"),
        info=translated("caption_info"),
    )
    return image, file, slice_index, text


def build_settings(engine: Engine) -> tuple[gr.Dropdown, gr.Dropdown]:
    with gr.Accordion(translated("settings"), open=False):
        model = gr.Dropdown(
            [engine.default_model],
            value=engine.default_model,
            label=translated("model"),
            info=translated("model_info"),
            allow_custom_value=engine.allows_others,
        )
        device = gr.Textbox(engine.describe(engine.default_model), label=translated("device"), interactive=False)
        tile_size = gr.Dropdown(
            [("Whole image", 0), *((f"Tiles of {size} pixels", size) for size in TILE_SIZES)],
            value=0,
            label=translated("scale"),
            info=translated("scale_info"),
        )

    def describe(name: str) -> str:
        with errors_shown():
            return engine.describe(name)

    model.change(describe, model, device, api_visibility="private")
    return model, tile_size


def build_outputs() -> tuple[gr.Slider, gr.Slider, gr.File, Outputs]:
    with gr.Tabs():
        with gr.Tab(translated("overlay")):
            overlay = gr.AnnotatedImage(label=translated("overlay"), color_map=COLORS, height=IMAGE_HEIGHT)
        with gr.Tab(translated("slider")):
            slider = gr.ImageSlider(label="Image, and its overlay", interactive=False, max_height=IMAGE_HEIGHT)
        with gr.Tab(translated("heat")):
            heat = gr.Image(
                label=translated("heat"),
                interactive=False,
                height=IMAGE_HEIGHT,
                alt_text="Heat map of the probability",
            )
        with gr.Tab(translated("effect")):
            effect = gr.AnnotatedImage(label=translated("effect"), color_map=COLORS, height=IMAGE_HEIGHT)
    with gr.Row():
        threshold = gr.Slider(
            0, 1, value=0.5, step=0.01, label=translated("threshold"), info=translated("threshold_info")
        )
        opacity = gr.Slider(0, 1, value=0.5, step=0.05, label=translated("opacity"))
    with gr.Row():
        readings = [
            gr.Textbox(label=translated(name), interactive=False, min_width=140)
            for name in ("area", "percent", "mm2", "components", "diameter", "confidence")
        ]
    readings.append(gr.Textbox(label=translated("use"), interactive=False))
    with gr.Row():
        names = ("mask", "overlay", "json", "native")
        downloads = [
            gr.DownloadButton(translated(f"download_{name}"), interactive=False, size="sm", min_width=140)
            for name in names
        ]
    with gr.Accordion(translated("truth"), open=False):
        truth = gr.File(label=translated("truth_file"), height=150)
        with gr.Row():
            scores = [gr.Textbox(label=name, interactive=False, min_width=140) for name in ("Dice", "IoU")]
    return threshold, opacity, truth, Outputs(overlay, slider, heat, effect, readings, scores, downloads)


def connect_files(
    engine: Engine,
    image: ImageFile,
    file: gr.File,
    slice_index: gr.Slider,
    of_one_image: list[Component],
    nothing: Callable[[], list],
):
    """Shows a file that a browser cannot show, keeps one input at a time, and clears what is of another image."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    hidden = gr.Slider(visible=False)

    def show(path: str, number: int) -> tuple:
        with errors_shown(path):
            scan = engine.read(check_upload(path))
            number = min(int(number), len(scan))
            slider = gr.Slider(maximum=max(len(scan), 2), value=number, visible=len(scan) > 1)
            return shrink(scan.image(number - 1)), slider

    def route(path: str) -> tuple:
        """A file that came in through the picture input goes to the other if no browser shows it."""
        if not path.lower().endswith((".tif", ".tiff")):
            return gr.skip(), None, hidden
        preview, slider = show(path, 1)
        return preview, path, slider

    image.upload(route, image, [image, file, slice_index], **quiet)
    file.upload(lambda path: show(path, 1), file, [image, slice_index], **quiet)
    slice_index.release(lambda path, number: show(path, number)[0], [file, slice_index], image, **quiet)
    gr.on([image.clear, file.clear], lambda: (None, None, hidden), outputs=[image, file, slice_index], **quiet)
    gr.on(
        [image.upload, image.clear, file.upload, file.clear],
        lambda: [*nothing(), None, None],
        outputs=of_one_image,
        **quiet,
    )


def add_endpoint(engine: Engine, *inputs: Component):
    """Adds `/segment`, whose inputs are those of the page and the number of a slice."""

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
            index = int(slice_number) - 1
            request = Request(model, check_upload(image), index, clean_caption(text), int(tile_size or 0))
            result = engine.segment(request, progress)
            measures = measure(engine, request, threshold)
        name = stem_of(image)
        mask, overlay = result.mask(threshold), result.overlay(threshold)
        return save_mask(mask, f"{name}_mask"), save_picture(overlay, f"{name}_overlay"), measures

    measurements = gr.JSON(visible=False, label="measurements")
    gr.Button(visible=False).click(
        segment,
        [*inputs, gr.Number(1, precision=0, label="Slice", visible=False)],
        [gr.File(visible=False, label="mask"), gr.File(visible=False, label="overlay"), measurements],
        api_name="segment",
        concurrency_limit=BATCH_SIZE,
    )


def load_example(example: list) -> tuple:
    """Inputs of an example, with no true mask and no result; the picture goes to where a server may show files from."""
    path, text, tile_size = example
    return save_file_to_cache(path, get_upload_folder()), text, tile_size, None, gr.Slider(visible=False), None, None


def read_examples() -> list[list]:
    """Images, captions and tile sizes of the repository's examples; none where only the package is installed."""
    if not EXAMPLES.exists():
        return []
    with EXAMPLES.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [[str(EXAMPLES.parent / row["image"]), row["text"], int(row["tile_size"])] for row in rows]
