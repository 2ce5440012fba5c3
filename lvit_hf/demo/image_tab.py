"""One image: it and its caption on the left, the mask and all about it on the right."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from ..inference.captioning import NAMED_CAPTIONS
from .captions import build_caption_builder
from .engine import BATCH_SIZE, KEEP_SECONDS, Engine, Request
from .files import FILE_TYPES, MAX_CAPTION, check_upload, errors_shown
from .image_file import ImageFile
from .pictures import shrink
from .results import IMAGE_HEIGHT, Component, Outputs, build_outputs, draw
from .service import add_endpoints, make_request
from .texts import translated


EXAMPLES = Path(__file__).parents[2] / "examples" / "examples.csv"
TILE_SIZES = (96, 128, 176, 256, 384, 512)


def build_image_tab(engine: Engine):
    """Adds the inputs, the outputs and what connects them, and the endpoints of one image."""
    state = gr.State(time_to_live=KEEP_SECONDS)
    with gr.Row():
        with gr.Column():
            image, file, slice_index, text = build_inputs()
            predict, predicted = build_caption_button(engine)
            button = gr.Button(translated("segment"), variant="primary")
            with gr.Accordion(translated("builder"), open=False):
                build_caption_builder(text)
            model, device, tile_size = build_settings(engine)
            examples = gr.Dataset(
                label=translated("examples"),
                components=[image, text, tile_size],
                headers=["Image", "Caption", "Tiles"],
                samples=read_examples(),
            )
        with gr.Column():
            threshold, opacity, truth, outputs = build_outputs(engine)

    def run(image, file, slice_index, text, tile_size, model, threshold, opacity, truth, progress=gr.Progress()):
        path = file or image
        with errors_shown(path, truth):
            request = make_request(engine, model, path, slice_index if file else 1, text, tile_size)
            engine.segment(request, progress)
        return [*draw(engine, request, threshold, opacity, truth), request]

    chosen = examples.click(
        load_example,
        examples,
        [image, text, tile_size, file, slice_index, predicted, truth, state],
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
    connect_caption_button(engine, predict, [image, file, slice_index, model], [text, predicted])
    connect_model(engine, model, device, predict, predicted, outputs)
    connect_files(engine, image, file, slice_index, predicted, outputs, truth, state)
    add_endpoints(engine, image, text, threshold, model)


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


def build_caption_button(engine: Engine) -> tuple[gr.Button, gr.Label]:
    """The button that writes a caption, where the checkpoint can, and the probabilities of what it may write."""
    button = gr.Button(translated("predict"), size="sm", visible=engine.can_caption(engine.default_model))
    return button, gr.Label(
        label=translated("predicted"), num_top_classes=NAMED_CAPTIONS, show_heading=False, visible=False
    )


def build_settings(engine: Engine) -> tuple[gr.Dropdown, gr.Textbox, gr.Dropdown]:
    with gr.Accordion(translated("settings"), open=False):
        model = gr.Dropdown(
            engine.models,
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
    return model, device, tile_size


def connect_device(engine: Engine, model: gr.Dropdown, device: gr.Textbox):
    """Loads the checkpoint that is chosen and shows where it is."""

    def describe(name: str) -> str:
        with errors_shown():
            return engine.describe(name)

    model.change(describe, model, device, api_visibility="private")


def connect_caption_button(engine: Engine, button: gr.Button, inputs: list[Component], outputs: list[Component]):
    """Writes the likeliest caption into the text and shows it beside the next ones."""

    def predict(image, file, slice_index, model):
        path = file or image
        with errors_shown(path):
            described = engine.describe_image(make_request(engine, model, path, slice_index if file else 1))
        captions = {caption["text"]: caption["probability"] for caption in described["captions"]}
        return next(iter(captions)), gr.Label(captions, visible=True)

    button.click(predict, inputs, outputs, api_visibility="private", concurrency_limit=BATCH_SIZE)


def connect_model(
    engine: Engine, model: gr.Dropdown, device: gr.Textbox, predict: gr.Button, predicted: gr.Label, outputs: Outputs
):
    """Loads the checkpoint that is chosen and shows what it can do."""

    def choose(name: str) -> tuple:
        with errors_shown():
            can_caption = engine.can_caption(name)
            nothing = gr.Label(None, visible=False)
            return engine.describe(name), gr.Button(visible=can_caption), nothing, gr.Textbox(visible=can_caption)

    model.change(choose, model, [device, predict, predicted, outputs.verdict], api_visibility="private")


def connect_files(
    engine: Engine,
    image: ImageFile,
    file: gr.File,
    slice_index: gr.Slider,
    predicted: gr.Label,
    outputs: Outputs,
    truth: gr.File,
    state: gr.State,
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

    slice_index.release(
        lambda path, number: (show(path, number)[0], gr.Label(None, visible=False)),
        [file, slice_index],
        [image, predicted],
        **quiet,
    )
    gr.on([image.clear, file.clear], lambda: (None, None, hidden), outputs=[image, file, slice_index], **quiet)

    of_one_image = [predicted, *outputs.all, truth, state]

    def forget(new: str | None = None, request: Request | None = None) -> list:
        """Clears what is of another image than the new one, which may have been segmented meanwhile."""
        if request is not None and request.path == new:
            return [gr.skip()] * len(of_one_image)
        return [gr.Label(None, visible=False), *outputs.nothing(), None, None]

    # One event each: the browser sends a second one after the first is done, when the new result may be there already.
    routed = image.upload(
        lambda path, request: [*route(path), *forget(path, request)],
        [image, state],
        [image, file, slice_index, *of_one_image],
        **quiet,
    )
    shown = file.upload(
        lambda path, request: [*show(path, 1), *forget(path, request)],
        [file, state],
        [image, slice_index, *of_one_image],
        **quiet,
    )
    for event in (routed.failure, shown.failure, image.clear, file.clear):
        event(forget, outputs=of_one_image, **quiet)


def load_example(example: list) -> tuple:
    """Inputs of an example, with no true mask and no result; the picture goes where a server may show files from."""
    path, text, tile_size = example
    picture = save_file_to_cache(path, get_upload_folder())
    return picture, text, tile_size, None, gr.Slider(visible=False), gr.Label(None, visible=False), None, None


def read_examples() -> list[list]:
    """Images, captions and tile sizes of the repository's examples; none where only the package is installed."""
    if not EXAMPLES.exists():
        return []
    with EXAMPLES.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [[str(EXAMPLES.parent / row["image"]), row["text"], int(row["tile_size"])] for row in rows]
