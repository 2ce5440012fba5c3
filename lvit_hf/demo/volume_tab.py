"""A volume: all slices of a NIfTI file or of a DICOM series, segmented with one caption."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import nibabel
import numpy as np
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from ..inference.volume import VolumeSegmentation
from ..io.readers import NIFTI_SUFFIXES
from ..io.scan import Scan
from .captions import build_caption_builder
from .engine import BATCH_SIZE, Engine, Request, stem_of
from .files import MAX_CAPTION, check_upload, clean_caption, errors_shown, save_json, save_native
from .image_tab import build_settings, connect_device
from .pictures import COLORS, MASK_LABEL, Annotated, annotate, make_thumbnail
from .results import IMAGE_HEIGHT, describe_caption, write_number
from .service import any_tile_size
from .texts import translated
from .work import CONCURRENT_WORK, build_work


MAX_SLICES = 1000
MONTAGE_SLICES = 20
MONTAGE_SIZE = 160
VOLUME_TYPES = [*NIFTI_SUFFIXES, ".dcm", ".zip"]
READINGS = ("voxels", "ml", "slices_found", "largest_slice", "largest_diameter", "confidence")
DOWNLOADS = ("download_volume", "download_json")

Component = gr.components.Component


def read_volume(engine: Engine, path: str | None) -> Scan:
    """An uploaded volume.

    Raises:
        OSError, ValueError: If it cannot be used; the message says why.
    """
    if not path:
        raise ValueError("Add a volume first: a NIfTI file, a DICOM file, or a zip of the files of a DICOM series.")
    scan = engine.read(check_upload(path))
    if len(scan) > MAX_SLICES:
        raise ValueError(
            f"{Path(path).name} has {len(scan):,} slices, more than the {MAX_SLICES:,} that are segmented. Cut it "
            "into parts."
        )
    return scan


def measure(engine: Engine, request: Request, threshold: float) -> dict[str, Any]:
    """All that is known about a result, as it is downloaded and as the service answers."""
    scan, result = engine.read(request.path), engine.volume(request)
    slices, height, width = result.counts.shape
    return {
        "volume": Path(request.path).name,
        "slices": slices,
        "width": width,
        "height": height,
        "spacing_mm": scan.spacing and [scan.slice_spacing, *scan.spacing],
        "model": request.model,
        "text": result.text,
        "text_used": result.text_used,
        "tile_size": request.tile_size or None,
        "threshold": threshold,
        **result.measure(threshold, scan),
    }


def save_masks(scan: Scan, masks: np.ndarray, name: str) -> str:
    """The mask volume in the format of the file, or as a NIfTI file where frames have no place in the patient."""
    native = save_native(scan, masks, name)
    if native:
        return native
    rows, columns = scan.spacing or (1.0, 1.0)
    # As if they were axial, so that viewers show them as they are.
    image = nibabel.Nifti1Image(masks.T.astype(np.uint8), np.diag([-columns, -rows, scan.slice_spacing or 1.0, 1.0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.nii.gz")
        nibabel.save(image, path)
        return save_file_to_cache(path, get_upload_folder())


def save_results(engine: Engine, request: Request, threshold: float) -> tuple[str, str]:
    """Paths of the mask volume and of the measurements."""
    name, measures = stem_of(request.path), measure(engine, request, threshold)
    masks = engine.volume(request).mask(threshold)
    return save_masks(engine.read(request.path), masks, f"{name}_mask"), save_json(measures, f"{name}_measurements")


def describe_size(scan: Scan) -> str:
    slices, height, width = scan.slices.shape[:3]
    size = f"{slices} × {height} × {width}"
    if scan.spacing is None:
        return size
    distances = ("?" if distance is None else f"{distance:.3g}" for distance in (scan.slice_spacing, *scan.spacing))
    return f"{size}; {' × '.join(distances)} mm"


def choose_slices(count: int) -> list[int]:
    """Slices of the montage: all of them, or some at equal distances."""
    return sorted(set(np.linspace(0, count - 1, min(count, MONTAGE_SLICES)).round().astype(int).tolist()))


def show_slice(
    scan: Scan, result: VolumeSegmentation | None, index: int, threshold: float, opacity: float
) -> Annotated:
    image = scan.image(index).convert("RGB")
    return annotate(image, [(result.mask(threshold, index), MASK_LABEL)] if result else [], opacity)


def show_montage(
    scan: Scan, result: VolumeSegmentation | None, threshold: float, opacity: float
) -> list[tuple[Image.Image, str]]:
    """Thumbnails of slices, each with its number."""
    pictures = []
    for index in choose_slices(len(scan)):
        mask = None if result is None else result.mask(threshold, index)
        pictures.append((make_thumbnail(scan.image(index), mask, opacity, MONTAGE_SIZE), str(index + 1)))
    return pictures


def write_readings(measures: dict[str, Any]) -> list[str]:
    """Values of the readings."""
    largest, diameter = measures["largest_slice"], measures["largest_slice_largest_diameter"]
    unit = measures["largest_slice_diameter_unit"]
    return [
        f"{measures['voxels']:,}",
        write_number(measures["volume_ml"]),
        f"{measures['slices_with_findings']} / {measures['slices']}",
        "" if largest is None else str(largest + 1),
        "" if diameter is None else f"{diameter:.1f} {unit}",
        write_number(measures["mean_probability"]),
    ]


@dataclass(frozen=True)
class View:
    """The right side of the tab."""

    slice: gr.AnnotatedImage
    slice_index: gr.Slider
    threshold: gr.Slider
    opacity: gr.Slider
    montage: gr.Gallery
    readings: list[gr.Textbox]
    downloads: list[gr.DownloadButton]

    @property
    def results(self) -> list[Component]:
        return [self.slice, self.montage, *self.readings, *self.downloads]


def build_volume_tab(engine: Engine):
    """Adds the inputs, the outputs and what connects them, and the endpoint `/segment_volume`."""
    state = gr.State(time_to_live=3600)
    with gr.Row():
        with gr.Column():
            file = gr.File(label=translated("volume_file"), file_types=VOLUME_TYPES, height=150)
            size = gr.Textbox(label=translated("volume_size"), interactive=False)
            text = gr.Textbox(
                "",
                label=translated("caption"),
                max_length=MAX_CAPTION,
                placeholder=translated("caption_hint"),
                info=translated("volume_caption_info"),
            )
            work = build_work("segment_volume")
            with gr.Accordion(translated("builder"), open=False):
                build_caption_builder(text)
            model, device, tile_size = build_settings(engine)
            connect_device(engine, model, device)
        with gr.Column():
            view = build_view()

    def run(_: gr.Request, path, text, tile_size, model) -> Iterator[tuple]:
        with errors_shown(path):
            scan = read_volume(engine, path)
            request = Request(model, path, text=clean_caption(text), tile_size=tile_size or 0)
            for finished, total in engine.segment_volume(request):
                yield finished, total, gr.skip()
        yield len(scan), len(scan), request

    running = work.connect(
        run,
        [file, text, tile_size, model],
        [state],
        triggers=[text.submit],
    )
    connect_view(engine, file, size, state, view, running)
    add_endpoint(engine, text, view.threshold, any_tile_size(), model)


def build_view() -> View:
    picture = gr.AnnotatedImage(label=translated("volume_slice"), color_map=COLORS, height=IMAGE_HEIGHT)
    slice_index = gr.Slider(1, 2, value=1, step=1, label=translated("slice"), interactive=False)
    with gr.Row():
        threshold = gr.Slider(
            0, 1, value=0.5, step=0.01, label=translated("threshold"), info=translated("threshold_info")
        )
        opacity = gr.Slider(0, 1, value=0.5, step=0.05, label=translated("opacity"))
    with gr.Row():
        readings = [gr.Textbox(label=translated(name), interactive=False, min_width=140) for name in READINGS]
    readings.append(gr.Textbox(label=translated("use"), interactive=False))
    with gr.Row():
        downloads = [
            gr.DownloadButton(translated(name), interactive=False, size="sm", min_width=140) for name in DOWNLOADS
        ]
    montage = gr.Gallery(
        label=translated("montage"),
        elem_classes="thumbnails",
        object_fit="contain",
        height="auto",
        allow_preview=False,
        interactive=False,
        buttons=[],
    )
    return View(picture, slice_index, threshold, opacity, montage, readings, downloads)


def draw_slice(
    engine: Engine, path: str | None, request: Request | None, number: int, threshold: float, opacity: float
) -> Annotated | None:
    """A slice, counted from 1, with its mask where there is one."""
    if not path:
        return None
    with errors_shown(path):
        scan = read_volume(engine, path)
        result = engine.volume(request) if request and request.path == path else None
        return show_slice(scan, result, min(int(number), len(scan)) - 1, threshold, opacity)


def draw_montage(
    engine: Engine, path: str | None, request: Request | None, threshold: float, opacity: float
) -> list[tuple[Image.Image, str]] | None:
    if not path:
        return None
    with errors_shown(path):
        result = engine.volume(request) if request and request.path == path else None
        return show_montage(read_volume(engine, path), result, threshold, opacity)


def draw_all(
    engine: Engine, path: str | None, request: Request | None, number: int, threshold: float, opacity: float
) -> Iterator[list | dict[str, Any]]:
    """Values of `View.results`, at first without the downloads, which take longer."""
    if request is None or request.path != path:  # of a volume that is not there any more
        yield gr.skip()
        return
    pictures = [
        draw_slice(engine, path, request, number, threshold, opacity),
        draw_montage(engine, path, request, threshold, opacity),
    ]
    with errors_shown(path):
        readings = write_readings(measure(engine, request, threshold))
        use = describe_caption(engine.volume(request))
        yield [*pictures, *readings, use, *hide_downloads()]
        paths = save_results(engine, request, threshold)
    files = [gr.DownloadButton(value=file, interactive=True) for file in paths]
    yield [*(gr.skip() for _ in [*pictures, *readings, use]), *files]


def load(engine: Engine, path: str | None, threshold: float, opacity: float) -> list:
    """What is shown of a volume that comes in: its size, slider, middle slice and montage."""
    if not path:
        return ["", gr.Slider(maximum=2, value=1, interactive=False), None, None]
    with errors_shown(path):
        scan = read_volume(engine, path)
    number = len(scan) // 2 + 1
    slider = gr.Slider(maximum=max(len(scan), 2), value=number, interactive=len(scan) > 1)
    pictures = [
        draw_slice(engine, path, None, number, threshold, opacity),
        draw_montage(engine, path, None, threshold, opacity),
    ]
    return [describe_size(scan), slider, *pictures]


def find_largest(engine: Engine, request: Request, threshold: float) -> int | dict[str, Any]:
    """The slice with the largest area, counted from 1, if there is one."""
    areas = engine.volume(request).areas(threshold)
    return int(areas.argmax()) + 1 if areas.any() else gr.skip()


def hide_downloads() -> list[gr.DownloadButton]:
    return [gr.DownloadButton(value=None, interactive=False) for _ in DOWNLOADS]


def connect_view(engine: Engine, file: gr.File, size: gr.Textbox, state: gr.State, view: View, running: Any):
    """Shows a volume when it comes in, and its result when there is one."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    latest: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": BATCH_SIZE, **quiet}
    settings = [view.threshold, view.opacity]
    of_slice = [file, state, view.slice_index, *settings]

    def choose(path: str, event: gr.SelectData) -> int:
        with errors_shown(path):
            return choose_slices(len(read_volume(engine, path)))[event.index] + 1

    cleared = gr.on(
        [file.upload, file.clear],
        lambda: [None, "", None, None, *("" for _ in view.readings), *hide_downloads()],
        outputs=[state, size, *view.results],
        **quiet,
    )
    cleared.then(
        partial(load, engine),
        [file, *settings],
        [size, view.slice_index, view.slice, view.montage],
        show_progress_on=view.slice,
        api_visibility="private",
    )
    gr.on([view.slice_index.change, view.opacity.change], partial(draw_slice, engine), of_slice, view.slice, **latest)
    view.opacity.change(partial(draw_montage, engine), [file, state, *settings], view.montage, **latest)
    view.montage.select(choose, file, view.slice_index, **quiet)
    found = running.success(partial(find_largest, engine), [state, view.threshold], view.slice_index, **quiet)
    for trigger in (found.then, view.threshold.change):
        trigger(partial(draw_all, engine), of_slice, view.results, **latest)


def add_endpoint(engine: Engine, *inputs: Component):
    """Adds `/segment_volume`, whose inputs beside the file are those of the page."""

    def segment_volume(
        volume: str,
        text: str = "",
        threshold: float = 0.5,
        tile_size: int = 0,
        model: str = engine.default_model,
        progress: gr.Progress = gr.Progress(),
    ) -> Iterator[tuple[str | None, dict | None]]:
        """Segments all slices of a volume with the help of one caption.

        Args:
            volume: A NIfTI file, a DICOM file with several frames, or a zip of the files of one DICOM series.
            text: What to find and where, in each slice; may be empty.
            threshold: Probability in [0, 1], in steps of 0.01, above which a voxel belongs to the mask.
            tile_size: 0 for slices as a whole; else the side in pixels of the tiles into which slices are cut.
            model: The checkpoint.

        Returns:
            The mask volume, as NIfTI with the volume's affine or as DICOM Segmentation in its frame of reference, and
            the measurements.
        """
        with errors_shown(volume):
            read_volume(engine, volume)
            request = Request(model, volume, text=clean_caption(text), tile_size=int(tile_size or 0))
            for step in engine.segment_volume(request):
                progress(step, unit="slices")
                yield None, None
            measures = measure(engine, request, threshold)
            mask, _ = save_results(engine, request, threshold)
        yield mask, measures

    gr.Button(visible=False).click(
        segment_volume,
        [gr.File(visible=False, label="Volume"), *inputs],
        [gr.File(visible=False, label="mask"), gr.JSON(visible=False, label="measurements")],
        api_name="segment_volume",
        concurrency_limit=CONCURRENT_WORK,
        concurrency_id="work",
    )
