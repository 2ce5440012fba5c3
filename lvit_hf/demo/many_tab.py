"""Many images: a table of measurements and a zip of masks, in which a file that cannot be used is a row."""

import csv
import io
import itertools
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_file_to_cache, save_pil_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from ..inference.segmenter import Segmentation
from ..io.errors import as_sentence
from ..io.readers import read_scan
from ..io.scan import Scan
from .captions import build_caption_builder
from .collection import Item, collect
from .engine import BATCH_PIXELS, BATCH_SIZE, Engine
from .files import FILE_TYPES, MAX_CAPTION, check_upload, clean_caption, errors_shown
from .image_tab import build_settings, connect_device
from .pictures import make_thumbnail
from .results import describe_diameter, write_number
from .service import any_tile_size
from .texts import translate, translated
from .work import CONCURRENT_WORK, build_work


MANY_TYPES = ["image", *FILE_TYPES, ".zip", ".csv"]
RESULT_NAME = "segmentations.zip"
THUMBNAIL_SIZE = 256
THUMBNAIL_OPACITY = 0.5
# Pictures that are shown while others are still to come.
EARLY_PICTURES = 40
# Columns of the table in the zip.
COLUMNS = (
    "image",
    "text",
    "text_used",
    "area_pixels",
    "area_percent",
    "area_mm2",
    "components",
    "largest_diameter",
    "diameter_unit",
    "mean_probability",
    "mask",
    "error",
)
# Columns of the table on the page, with their widths in pixels.
HEADERS = {
    "image": 190,
    "problem": 170,
    "area": 90,
    "percent": 90,
    "mm2": 90,
    "components": 70,
    "diameter": 110,
    "confidence": 110,
    "caption": 260,
}

Component = gr.components.Component


@dataclass(frozen=True)
class Settings:
    """How the images are segmented; see `/segment`."""

    threshold: float
    tile_size: int
    model: str


@dataclass
class Results:
    """What is known so far.

    Args:
        total: Number of all images.
        rows: Measurements of the finished images, or the error that says why there are none.
        pictures: Paths of small overlays, with the names of their images.
        archive: Path of the zip with the masks, once all are finished.
    """

    total: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    archive: str | None = None

    def table(self) -> list[list[str]]:
        """Rows of the table on the page."""
        return [_write_row(row) for row in self.rows]

    def report(self, settings: Settings) -> dict[str, Any]:
        """All measurements, as `lvit predict` writes them."""
        return {
            "model": settings.model,
            "threshold": settings.threshold,
            "tile_size": settings.tile_size or None,
            "images": [row for row in self.rows if "error" not in row],
            "failures": [row for row in self.rows if "error" in row],
        }


def segment_all(engine: Engine, items: Sequence[Item], settings: Settings) -> Iterator[Results]:
    """Segments images and packs their masks. Whoever takes no more results stops it.

    Returns:
        The results so far, after every few images, and at last those with the zip.

    Raises:
        OSError, ValueError: If the checkpoint cannot be used; the message says why.
    """
    results = Results(len(items))
    engine.segmenter(settings.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, RESULT_NAME)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            yield results
            names = NameGiver()
            for batch in segment_batches(engine, items, settings):
                for item, scan, result in batch:
                    if isinstance(result, Segmentation) and scan:
                        name = names.give(item.name)
                        mask = result.mask(settings.threshold)
                        row = describe(item, scan, result, settings.threshold)
                        results.rows.append({**row, "mask": pack_mask(archive, scan, mask, name)})
                        results.pictures.append((save_thumbnail(result, mask), PurePosixPath(item.name).name))
                    else:
                        results.rows.append({"image": item.name, "text": item.text, "error": str(result)})
                yield results
            archive.writestr("table.csv", write_table(results.rows))
            archive.writestr("measurements.json", json.dumps(results.report(settings), indent=2, ensure_ascii=False))
        results.archive = save_file_to_cache(path, get_upload_folder())
    yield results


Outcome = tuple[Item, Scan | None, Segmentation | str]


def segment_batches(engine: Engine, items: Sequence[Item], settings: Settings) -> Iterator[list[Outcome]]:
    """Segments a few images at a time, of few pixels together.

    Returns:
        Each image as it was read, with its result; of what cannot be used, a sentence that says why.
    """
    batch: list[tuple[Item, Scan | str]] = []
    pixels = 0
    for number, item in enumerate(items, 1):
        scan = read_item(item)
        batch.append((item, scan))
        pixels += scan.slices.size if isinstance(scan, Scan) else 0
        full = settings.tile_size or len(batch) == BATCH_SIZE or pixels > BATCH_PIXELS
        if full or number == len(items):
            yield segment_batch(engine, batch, settings)
            batch, pixels = [], 0


def segment_batch(engine: Engine, batch: list[tuple[Item, Scan | str]], settings: Settings) -> list[Outcome]:
    readable = [(item, scan) for item, scan in batch if isinstance(scan, Scan)]
    images, texts = [scan.image() for _, scan in readable], [clean_caption(item.text) for item, _ in readable]
    results = iter(engine.segment_images(settings.model, images, texts, settings.tile_size))
    return [(item, scan, next(results)) if isinstance(scan, Scan) else (item, None, scan) for item, scan in batch]


def read_item(item: Item) -> Scan | str:
    """The image, or a sentence that says why it cannot be used."""
    if item.problem:
        return item.problem
    with item.open() as path:
        try:
            clean_caption(item.text)
            scan = read_scan(check_upload(str(path)))
            if len(scan) > 1:
                raise ValueError(f"{path} has {len(scan)} slices; segment it as a volume.")
        except (ImportError, OSError, ValueError) as error:
            sentence = as_sentence(error, extra="medical")
            return sentence.replace(str(path), item.name).replace(path.name, item.name)
        return scan


def describe(item: Item, scan: Scan, result: Segmentation, threshold: float) -> dict[str, Any]:
    height, width = result.probabilities.shape
    return {
        "image": item.name,
        "text": result.text,
        "text_used": result.text_used,
        "width": width,
        "height": height,
        **result.measure(threshold, scan.spacing),
    }


class NameGiver:
    """Names for files that come from others' names and that are each safe and given once."""

    def __init__(self):
        self._given: set[str] = set()

    def give(self, name: str) -> str:
        stem = PurePosixPath(name.replace("\\", "/")).name.split(".")[0]
        safe = re.sub(r"[^\w-]+", "_", stem)[:100] or "image"
        for number in itertools.count(1):
            candidate = safe if number == 1 else f"{safe}-{number}"
            if candidate.casefold() not in self._given:
                self._given.add(candidate.casefold())
                return candidate
        raise AssertionError  # there is always one more number


def pack_mask(archive: zipfile.ZipFile, scan: Scan, mask: np.ndarray, name: str) -> str:
    """Adds a mask as PNG, and in the format of its image where that has masks, and returns the name of the PNG."""
    content = io.BytesIO()
    Image.fromarray(mask).convert("L").save(content, "png")
    archive.writestr(f"masks/{name}_mask.png", content.getvalue(), zipfile.ZIP_STORED)
    if scan.mask_writer is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"mask{scan.mask_writer.suffix}")
            with suppress(ValueError):  # a DICOM file that lacks what a Segmentation needs
                scan.mask_writer.save(mask[np.newaxis], path)
                archive.write(path, f"masks/{name}_mask{scan.mask_writer.suffix}")
    return f"{name}_mask.png"


def save_thumbnail(result: Segmentation, mask: np.ndarray) -> str:
    picture = make_thumbnail(result.image, mask, THUMBNAIL_OPACITY, THUMBNAIL_SIZE)
    return save_pil_to_cache(picture, get_upload_folder(), format="webp")


def write_table(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV, with a mark that makes spreadsheets read it as UTF-8."""
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(COLUMNS)
    writer.writerows([_as_cell(row.get(name)) for name in COLUMNS] for row in rows)
    return "\ufeff" + content.getvalue()


def _as_cell(value: Any) -> Any:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _write_row(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["image"], row["error"], *([""] * (len(HEADERS) - 3)), row["text"]]
    numbers = [write_number(row[name]) for name in ("area_pixels", "area_percent", "area_mm2", "components")]
    score = write_number(row["mean_probability"])
    return [row["image"], "", *numbers, describe_diameter(row), score, row["text"] or ""]


def build_many_tab(engine: Engine):
    """Adds the inputs, the outputs and what connects them, and the endpoint `/segment_many`."""
    with gr.Row():
        with gr.Column(scale=1):
            files = gr.File(label=translated("many_files"), file_count="multiple", file_types=MANY_TYPES, height=200)
            text = gr.Textbox(
                "",
                label=translated("caption"),
                max_length=MAX_CAPTION,
                placeholder=translated("caption_hint"),
                info=translated("many_caption_info"),
            )
            threshold = gr.Slider(
                0, 1, value=0.5, step=0.01, label=translated("threshold"), info=translated("threshold_info")
            )
            work = build_work("segment_many")
            with gr.Accordion(translated("builder"), open=False):
                build_caption_builder(text)
            model, device, tile_size = build_settings(engine)
            connect_device(engine, model, device)
        with gr.Column(scale=2):
            table = gr.Dataframe(
                column_widths=list(HEADERS.values()),
                datatype="str",
                label=translated("table"),
                interactive=False,
                visible=False,
                wrap=True,
                max_height=400,
                buttons=[],
            )
            download = gr.DownloadButton(translated("download_zip"), interactive=False, size="sm")
            overlays = gr.Gallery(
                label=translated("overlays"),
                object_fit="contain",
                height="auto",
                interactive=False,
                buttons=[],
                elem_classes="thumbnails",
            )

    def run(request: gr.Request, paths, text, threshold, tile_size, model) -> Iterator[tuple]:
        headers = [translate(name, request) for name in HEADERS]
        with errors_shown(*(paths or [])):
            settings = Settings(threshold, tile_size or 0, model)
            for results in segment_all(engine, collect_uploads(paths, text), settings):
                button = gr.DownloadButton(value=results.archive, interactive=results.archive is not None)
                show = results.archive or len(results.pictures) <= EARLY_PICTURES
                pictures = results.pictures if show else gr.skip()
                table = gr.Dataframe(value=results.table(), headers=headers, visible=True)
                yield len(results.rows), results.total, table, pictures, button

    work.connect(
        run,
        [files, text, threshold, tile_size, model],
        [table, overlays, download],
        triggers=[text.submit],
    )
    gr.on(
        [files.upload, files.clear],
        lambda: (gr.Dataframe(visible=False), None, gr.DownloadButton(value=None, interactive=False)),
        outputs=[table, overlays, download],
        show_progress="hidden",
        api_visibility="private",
    )
    add_endpoint(engine, text, threshold, any_tile_size(), model)


def collect_uploads(paths: list[str] | None, text: str | None) -> list[Item]:
    if not paths:
        raise ValueError("Add images first: pictures, DICOM or NIfTI files, or zips of them.")
    return collect(paths, clean_caption(text))


def add_endpoint(engine: Engine, *inputs: Component):
    """Adds `/segment_many`, whose inputs beside the files are those of the page."""

    def segment_many(
        files: list[str],
        text: str = "",
        threshold: float = 0.5,
        tile_size: int = 0,
        model: str = engine.default_model,
        progress: gr.Progress = gr.Progress(),
    ) -> Iterator[tuple[str | None, dict | None]]:
        """Segments many medical images, each with the help of a caption.

        Args:
            files: Images as `/segment` takes them, zips of them, and CSV files with the columns `image` and `text`.
            text: What to find and where, in images that no CSV file names; may be empty.
            threshold: Probability in [0, 1] above which a pixel belongs to the mask.
            tile_size: 0 for images as a whole; for slides the side of tiles in pixels: 176 at 40x, 96 at 20x.
            model: The checkpoint.

        Returns:
            A zip with the masks and a table, and the measurements of `images`, with `failures` that say why a file
            could not be used.
        """
        with errors_shown(*(files or [])):
            settings = Settings(threshold, int(tile_size or 0), model)
            results = None
            for results in segment_all(engine, collect_uploads(files, text), settings):
                progress((len(results.rows), results.total), unit="images")
                yield None, None
        if results:
            yield results.archive, results.report(settings)

    gr.Button(visible=False).click(
        segment_many,
        [gr.File(visible=False, label="Files", file_count="multiple"), *inputs],
        [gr.File(visible=False, label="zip"), gr.JSON(visible=False, label="measurements")],
        api_name="segment_many",
        concurrency_limit=CONCURRENT_WORK,
        concurrency_id="work",
    )
