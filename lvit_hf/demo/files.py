"""Files of visitors: what comes in is checked, what goes out lies where gradio deletes it in time."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import encode_pil_to_bytes, save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from ..io.errors import as_sentence
from ..io.readers import SCAN_SUFFIXES
from ..io.scan import Scan


MAX_FILE_BYTES = 100 * 1024**2
MAX_PIXELS = 16_000_000
MAX_CAPTION = 500
# What browsers do not show comes in through an input of its own.
FILE_TYPES = [*SCAN_SUFFIXES, ".tif", ".tiff"]


@contextmanager
def errors_shown(*paths: str | None) -> Iterator[None]:
    """Shows what is wrong with a visitor's input as a sentence, which does not tell where the server keeps files."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        sentence = as_sentence(error, extra="medical")
        for path in filter(None, paths):
            sentence = sentence.replace(path, Path(path).name)
        raise gr.Error(sentence.rstrip(".") + ".", print_exception=False)


def check_upload(path: str | None) -> str:
    """The path of an uploaded file, unless there is none or it announces too many pixels.

    Raises:
        ValueError: If it cannot be used.
    """
    if not path:
        raise ValueError("Add an image first.")
    if _count_pixels(path) > MAX_PIXELS:
        raise ValueError(
            f"The image has more than {MAX_PIXELS // 1_000_000} million pixels. Crop it, or use lvit predict, which "
            "takes larger ones."
        )
    return path


def _count_pixels(path: str) -> int:
    """Number of pixels that a picture announces, before any is decoded; 0 if it is no picture."""
    try:
        with Image.open(path) as header:
            return header.width * header.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except (OSError, SyntaxError, ValueError):
        return 0


def clean_caption(text: str | None) -> str:
    """A caption on one line, of characters that can be seen.

    Raises:
        ValueError: If it is too long to be one.
    """
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text or "").split())
    if len(text) > MAX_CAPTION:
        raise ValueError(f"The caption has {len(text):,} characters, more than the {MAX_CAPTION} that one may have.")
    return text


def save_picture(image: Image.Image, name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.png")
        image.save(path, compress_level=1)  # a third of the time, for files that are little larger
        return save_file_to_cache(path, get_upload_folder())


def cache_shown_picture(img: Image.Image, cache_dir: str, name: str = "image", format: str = "webp") -> str:
    """Stands in for gradio's `save_pil_to_cache`, which writes over a file that a browser may be reading.

    Pictures of the same content share one file, which comes into being whole and is not written again.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.{format}")
        path.write_bytes(encode_pil_to_bytes(img, format))
        return save_file_to_cache(path, cache_dir)


def save_mask(mask: np.ndarray, name: str) -> str:
    return save_picture(Image.fromarray(mask).convert("L"), name)


def save_json(content: dict[str, Any], name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.json")
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return save_file_to_cache(path, get_upload_folder())


def save_native(scan: Scan, masks: np.ndarray, name: str) -> str | None:
    """Masks of a whole scan in its own format, where it has one."""
    if scan.mask_writer is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}{scan.mask_writer.suffix}")
        try:
            scan.mask_writer.save(masks, path)
        except ValueError:  # frames without a frame of reference, of which a DICOM Segmentation can hold one alone
            return None
        return save_file_to_cache(path, get_upload_folder())
