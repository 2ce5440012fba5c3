"""Files of visitors: what comes in is checked, what goes out lies where gradio deletes it in time."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from ..inference.files import Item
from ..io.errors import as_sentence


logger = logging.getLogger(__name__)

MAX_PIXELS = 16_000_000
MAX_SLICES = 1000
MAX_CAPTION = 500

# What is wrong with a visitor's input. Anything else is a fault of the page.
EXPECTED = (ImportError, OSError, ValueError)
UNEXPECTED = "Something went wrong on the server. Its log says what."


def explain(error: Exception, *paths: str | Path | None) -> str:
    """A sentence for the visitor, which does not tell where the server keeps files. The log has the whole error."""
    if not isinstance(error, EXPECTED):
        logger.error(UNEXPECTED, exc_info=error)
        return UNEXPECTED
    logger.warning("A request was refused.", exc_info=error)
    sentence = as_sentence(error, extra="medical")
    for path in map(str, filter(None, paths)):
        sentence = sentence.replace(path, Path(path).name)
    return sentence.rstrip(".") + "."


@contextmanager
def errors_shown(*paths: str | None) -> Iterator[None]:
    """Answers what is wrong with a sentence, as gradio shows it to callers of the service."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(explain(error, *paths), print_exception=False)


def check_upload(path: str | Path) -> Path:
    """The path of an uploaded file, unless it announces too many pixels.

    Raises:
        ValueError: If it cannot be used.
    """
    if _count_pixels(path) > MAX_PIXELS:
        raise ValueError(
            f"The image has more than {MAX_PIXELS // 1_000_000} million pixels. Crop it, or use lvit predict, which "
            "takes larger ones."
        )
    return Path(path)


def find_upload(path: object) -> Path:
    """An uploaded file that a browser names.

    Raises:
        ValueError: If it is none, or is not kept any more.
    """
    found = Path(str(path)).resolve()
    if not found.is_relative_to(Path(get_upload_folder()).resolve()) or not found.is_file():
        raise ValueError("The file is not kept any more. Add it again.")
    return found


def check_slices(item: Item, slices: int):
    """Refuses volumes that would take too long.

    Raises:
        ValueError: If it has too many slices.
    """
    if slices > MAX_SLICES:
        raise ValueError(
            f"{item.name} has {slices:,} slices, more than the {MAX_SLICES:,} that are segmented. Cut it into parts."
        )


def _count_pixels(path: str | Path) -> int:
    """Number of pixels that a picture announces, before any is decoded; 0 if it is no picture."""
    try:
        with Image.open(path) as header:
            return header.width * header.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except (OSError, SyntaxError, ValueError):
        return 0


def clean_caption(text: object) -> str:
    """A caption on one line, of characters that can be seen.

    Raises:
        ValueError: If it is too long to be one.
    """
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text or "")).split())
    if len(text) > MAX_CAPTION:
        raise ValueError(f"The caption has {len(text):,} characters, more than the {MAX_CAPTION} that one may have.")
    return text


@contextmanager
def results_folder() -> Iterator[Path]:
    """A folder for files that `serve_file` hands out."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def serve_file(path: Path) -> str:
    """Copies a file to where the server may hand it out, and where it is deleted in time; returns its path there."""
    return save_file_to_cache(path, get_upload_folder())
