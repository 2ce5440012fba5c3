"""What is shown of a result: pictures, measurements, comparisons and downloads."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ..inference.measurements import overlap
from ..inference.segmenter import Segmentation
from ..inference.volume import VolumeSegmentation
from ..io.readers import read_mask
from ..model.pipeline_lvit import AGREEMENT, CaptionCheck
from .engine import Engine, Request, stem_of
from .files import check_upload, errors_shown, save_json, save_mask, save_native, save_picture
from .pictures import COLORS, show_mask, show_probabilities, show_text_effect, shrink
from .texts import translated


IMAGE_HEIGHT = 360
# JPEG is written forty times as fast as gradio's WebP, and a slider waits for it. What is downloaded is PNG.
SHOWN: dict[str, Any] = {"height": IMAGE_HEIGHT, "format": "jpeg"}

Component = gr.components.Component


def describe_caption(result: Segmentation | VolumeSegmentation) -> str:
    if result.text is None:
        return "there was none"
    if result.text_used:
        return "read by the network"
    return "not read: it names a place in the whole image, which is not true of a tile"


def describe_check(check: CaptionCheck | None) -> str:
    """The verdict whether caption and image agree, in words."""
    if check is None:
        return ""
    sentences = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in check.disagreements]
    if check.score is None:
        sentences = ["Not understood: the caption states nothing that this checkpoint knows."]
    else:
        agree = "agree in part" if check.disagreements else "agree"
        verdict = "disagree" if check.score < AGREEMENT else agree
        sentences.insert(0, f"They {verdict} (score {check.score:.2f}).")
    if check.unknown_words:
        sentences.append(f"Words that are not known: {', '.join(check.unknown_words)}.")
    if check.mask_agreement is not None:
        sentences.append(f"The masks with and without the text overlap by {check.mask_agreement:.0%}.")
    return " ".join(sentences)


def write_number(value: float | None, digits: int = 3) -> str:
    """A number as the page shows it: nothing where it is not known."""
    return "" if value is None else str(round(value, digits))


def describe_diameter(measures: dict[str, Any]) -> str:
    diameter = measures["largest_diameter"]
    return "none" if diameter is None else f"{diameter:.1f} {measures['diameter_unit']}"


def measure(engine: Engine, request: Request, threshold: float) -> dict[str, Any]:
    """All that is known about a result, as it is downloaded and as the service answers."""
    scan, result, check = engine.read(request.path), engine.segment(request), engine.check(request)
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
        "consistency": check and asdict(check),
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
    def verdict(self) -> gr.Textbox:
        """Whether caption and image agree."""
        return self.readings[-1]

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
        describe_check(engine.check(request)),
        *(write_number(value, digits=4) for value in scores.values()),
        *save_downloads(engine, request, threshold, overlay, {**measures, **scores} if truth else measures),
    ]


def save_downloads(
    engine: Engine, request: Request, threshold: float, overlay: Image.Image, measures: dict[str, Any]
) -> list[gr.DownloadButton]:
    scan, result, name = engine.read(request.path), engine.segment(request), stem_of(request.path)
    mask = result.mask(threshold)
    masks = np.zeros(scan.slices.shape[:3], bool)
    masks[request.slice_index] = mask
    paths = [
        save_mask(mask, f"{name}_mask"),
        save_picture(overlay, f"{name}_overlay"),
        save_json(measures, f"{name}_measurements"),
        save_native(scan, masks, f"{name}_mask"),
    ]
    return [gr.DownloadButton(value=path, interactive=path is not None) for path in paths]


def build_outputs(engine: Engine) -> tuple[gr.Slider, gr.Slider, gr.File, Outputs]:
    with gr.Tabs():
        with gr.Tab(translated("overlay")):
            overlay = gr.AnnotatedImage(label=translated("overlay"), color_map=COLORS, **SHOWN)
        with gr.Tab(translated("slider")):
            slider = gr.ImageSlider(
                label="Image, and its overlay", interactive=False, max_height=IMAGE_HEIGHT, format="jpeg"
            )
        with gr.Tab(translated("heat")):
            heat = gr.Image(
                label=translated("heat"),
                interactive=False,
                alt_text="Heat map of the probability",
                **SHOWN,
            )
        with gr.Tab(translated("effect")):
            effect = gr.AnnotatedImage(label=translated("effect"), color_map=COLORS, **SHOWN)
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
    readings += [
        gr.Textbox(label=translated("use"), interactive=False),
        gr.Textbox(
            label=translated("verdict"),
            info=translated("verdict_info"),
            lines=2,
            interactive=False,
            visible=engine.can_caption(engine.default_model),
        ),
    ]
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
