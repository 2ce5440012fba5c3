"""The demo in the browser: a Gradio app around a `Segmenter`."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import spaces
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from .image_file import ImageFile
from .inference import OVERLAY_COLOR, SHIPPED_CHECKPOINT, Segmentation, Segmenter


EXAMPLES = Path(__file__).parent.parent / "examples" / "examples.csv"

MAX_FILE_SIZE = "30mb"
MAX_PIXELS = 16_000_000
KEEP_SECONDS = 3600
TILE_SIZES = (96, 128, 176, 256, 384, 512)

MASK_LABEL = "foreground"
MASK_OPACITY = 0.5

HEADER = """
# LViT: text-guided medical image segmentation

Give an image and a sentence that says what to find and where. The network that comes with this page was trained on
chest X-rays (COVID-19 infection), colonoscopy frames (polyps) and H&E slides (nuclei).

**For research only.** This is not a medical device; do not use it for diagnosis or treatment. Uploads are deleted
within two hours.
"""

CAPTION_PLACEHOLDER = "one small polyp on the top left"
IMAGE_HEIGHT = 360


@dataclass(frozen=True)
class Result:
    """What the page keeps of a run, so that another threshold needs no other run."""

    segmentation: Segmentation
    image_path: str
    name: str


def describe_area(measures: dict[str, Any]) -> str:
    if not measures["area_pixels"]:
        return "no pixel above the threshold"
    parts = "1 part" if measures["components"] == 1 else f"{measures['components']} parts"
    return f"{measures['area_pixels']:,} pixels ({measures['area_percent']:.2f} % of the image) in {parts}"


def describe_score(measures: dict[str, Any]) -> str:
    return "none" if measures["mean_probability"] is None else f"{measures['mean_probability']:.3f}"


def describe_caption(segmentation: Segmentation) -> str:
    if segmentation.text is None:
        return "there was none"
    if segmentation.text_used:
        return "read by the network"
    return "not read: it names a place in the whole image, which is not true of a tile"


def render(result: Result, threshold: float) -> tuple:
    """The outputs of the page for a result at a threshold: overlay, area, score, caption and mask file."""
    mask = result.segmentation.mask(threshold)
    measures = result.segmentation.measure(threshold)
    overlay = (result.image_path, [(mask * MASK_OPACITY, MASK_LABEL)])
    mask_image = Image.fromarray(mask).convert("L")
    mask_path = save_pil_to_cache(mask_image, get_upload_folder(), name=f"{result.name}_mask", format="png")
    readings = describe_area(measures), describe_score(measures), describe_caption(result.segmentation)
    return overlay, *readings, mask_path


def open_upload(path: str | None, segmenter: Segmenter) -> Image.Image:
    """Opens an uploaded file as RGB.

    Raises:
        gr.Error: If there is no file, or it cannot be used; the message does not tell where the server keeps it.
    """
    if path is None:
        raise gr.Error("Add an image first.", print_exception=False)
    if count_pixels(path) > MAX_PIXELS:
        raise gr.Error(
            f"The image has more than {MAX_PIXELS // 1_000_000} million pixels. Crop it, or use lvit predict, which "
            "takes larger ones.",
            print_exception=False,
        )
    try:
        return segmenter.to_rgb(path)
    except (OSError, ValueError) as error:
        raise gr.Error(str(error).replace(path, Path(path).name), print_exception=False)


def count_pixels(path: str) -> int:
    """Number of pixels that an image file announces, before any is decoded; 0 if it is no image."""
    try:
        with Image.open(path) as header:
            return header.width * header.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except OSError:
        return 0


def read_examples() -> list[list]:
    """Images, captions and tile sizes of the repository's examples; none where only the package is installed."""
    if not EXAMPLES.exists():
        return []
    with EXAMPLES.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [[str(EXAMPLES.parent / row["image"]), row["text"], int(row["tile_size"])] for row in rows]


def build_demo(segmenter: Segmenter) -> gr.Blocks:
    """Builds the page for a loaded checkpoint."""

    @spaces.GPU(duration=30)
    def segment(
        image: str, text: str = "", threshold: float = 0.5, tile_size: int = 0, progress: gr.Progress = gr.Progress()
    ) -> tuple:
        """Segments a medical image with the help of a caption.

        Args:
            image: The image file: a chest X-ray, a colonoscopy frame or an H&E slide.
            text: What to find and where, for example "one small polyp on the top left"; may be empty.
            threshold: Probability in [0, 1] above which a pixel belongs to the mask.
            tile_size: 0 segments the image as a whole; otherwise the side in pixels of the tiles that it is cut into,
                for slides: 176 at 40x, 96 at 20x.

        Returns:
            The overlay, the mask's area, the mean probability inside it, whether the caption was read, and the mask
            as a PNG file.
        """
        rgb = open_upload(image, segmenter)
        segmentation = segmenter.segment(
            [rgb], [text], tile_size=tile_size or None, progress=lambda *tiles: progress(tiles, unit="tiles")
        )[0]
        result = Result(segmentation, save_pil_to_cache(rgb, get_upload_folder(), format="jpeg"), Path(image).stem)
        return *render(result, threshold), result

    def change_threshold(result: Result | None, threshold: float) -> tuple | dict:
        return gr.skip() if result is None else render(result, threshold)

    with gr.Blocks(
        title="LViT segmentation", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as demo:
        gr.Markdown(HEADER)
        state = gr.State(time_to_live=KEEP_SECONDS)
        with gr.Row():
            with gr.Column():
                image, text, tile_size, button = build_inputs()
                examples = read_examples()
                chosen = gr.Examples(examples, [image, text, tile_size]).load_input_event if examples else None
            with gr.Column():
                threshold, outputs = build_outputs()
        download = outputs[-1]
        triggers = [button.click, text.submit] + ([chosen.success] if chosen else [])
        for number, trigger in enumerate(triggers):
            trigger(
                segment,
                [image, text, threshold, tile_size],
                [*outputs, state],
                api_name="segment",
                api_visibility="private" if number else "public",
                scroll_to_output=True,
                show_progress_on=outputs[0],
                concurrency_limit=1,
                concurrency_id="network",
            ).success(lambda: gr.DownloadButton(interactive=True), outputs=download, api_visibility="private")
        threshold.change(
            change_threshold,
            [state, threshold],
            outputs,
            trigger_mode="always_last",
            show_progress="hidden",
            api_visibility="private",
        )
        gr.on(
            [image.upload, image.clear],
            lambda: (None, "", "", "", gr.DownloadButton(value=None, interactive=False), None),
            outputs=[*outputs, state],
            show_progress="hidden",
            api_visibility="private",
        )
    return demo.queue(max_size=32)


def build_inputs() -> tuple[gr.Image, gr.Textbox, gr.Dropdown, gr.Button]:
    image = ImageFile(
        label="Image", sources=["upload", "clipboard"], height=IMAGE_HEIGHT, alt_text="The image to segment"
    )
    text = gr.Textbox("", label="Caption", lines=2, max_length=500, placeholder=CAPTION_PLACEHOLDER)
    tile_size = gr.Dropdown(
        [("Whole image", 0), *((f"Tiles of {size} pixels", size) for size in TILE_SIZES)],
        value=0,
        label="Scale",
        info="Cut slides into tiles: 176 pixels at 40x, 96 at 20x.",
    )
    return image, text, tile_size, gr.Button("Segment", variant="primary")


def build_outputs() -> tuple[gr.Slider, list[gr.components.Component]]:
    """The slider of the threshold, and the outputs in the order of `render`."""
    overlay = gr.AnnotatedImage(label="Overlay", color_map={MASK_LABEL: OVERLAY_COLOR}, height=IMAGE_HEIGHT)
    threshold = gr.Slider(0, 1, value=0.5, step=0.01, label="Threshold", info="Higher values make the mask smaller.")
    area = gr.Textbox(label="Area", interactive=False)
    score = gr.Textbox(label="Score: mean probability inside the mask", interactive=False)
    caption = gr.Textbox(label="Use of the caption", interactive=False)
    return threshold, [overlay, area, score, caption, gr.DownloadButton("Download mask", interactive=False)]


def launch(demo: gr.Blocks, **kwargs) -> tuple:
    """Serves the page with the settings that fit medical images: nothing is kept that need not be."""
    return demo.launch(
        max_file_size=MAX_FILE_SIZE,
        run_history=False,
        enable_monitoring=False,
        state_session_capacity=100,
        footer_links=["api"],
        **kwargs,
    )


def serve(model: str | os.PathLike = SHIPPED_CHECKPOINT):
    """Loads a checkpoint and serves the page until it is stopped.

    Raises:
        ValueError: If the checkpoint cannot be loaded.
    """
    launch(build_demo(Segmenter.from_pretrained(model)))
