"""Rows added to a data set folder: its tables, `train.csv` and `valid.csv`, and pictures beside them."""

import csv
import hashlib
import io
import re
import unicodedata
from pathlib import Path

import numpy as np
from huggingface_hub.utils import WeakFileLock
from PIL import Image

from ..io.tables import TABLE_SUFFIXES, Table, read_table
from ..io.writing import replacing


SPLITS = ("train", "valid")
# What the model had said is kept beside the mask; `load_data` reads it as any other column.
PREDICTED = "predicted"
FOLDERS = {"image": "images", "mask": "masks", PREDICTED: PREDICTED}
REQUIRED = ("image", "mask", "text")
LONGEST_STEM = 60
# A folder that has it is one that rows are added to, even while the first row has but its pictures.
LOCK = ".lvit.lock"


def prepare_folder(folder: Path):
    """Makes the folder of a data set, unless it is there.

    Raises:
        OSError: If it cannot be made.
        ValueError: If it is there and rows cannot be added to it: it holds something else, or other tables than CSV.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    tables = {f"{split}{suffix}" for split in SPLITS for suffix in TABLE_SUFFIXES}
    if other := sorted(name for name in names & tables if not name.endswith(".csv")):
        raise ValueError(f"{folder} has {other[0]}, and rows are added to CSV files alone: save it as one.")
    if names and not names & tables and not (folder / LOCK).exists():
        raise ValueError(
            f"{folder} holds other files and neither train.csv nor valid.csv: name a new folder, or a data set that "
            "has them."
        )
    for split in SPLITS:
        _read_table(folder, split)


def append_row(
    folder: Path,
    split: str,
    name: str,
    image: Image.Image,
    mask: np.ndarray,
    text: str,
    predicted: np.ndarray,
    **values: object,
) -> dict[str, int]:
    """Adds an image, its mask and its caption to a data set folder, in place of a row of the same image and caption.

    Pictures are PNG files, named after the image and their content, so none is ever written over. A table is written
    beside the old one and then takes its place, while other processes that add rows wait.

    Args:
        folder: The data set.
        split: `"train"` or `"valid"`.
        name: What the image is called. It need not be fit for a file's name.
        image: 8 bits, grey or RGB.
        mask: Booleans of shape `(height, width)`.
        text: The caption, on one line; may be empty.
        predicted: The mask that the model had made, of the same shape.
        **values: Further columns.

    Returns:
        The number of rows of each split.

    Raises:
        OSError: If something cannot be written.
        ValueError: If the split is none of the two, or a table of the folder cannot be read.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    prepare_folder(folder)
    pictures = {"image": image, "mask": Image.fromarray(mask), PREDICTED: Image.fromarray(predicted)}
    with WeakFileLock(folder / LOCK):
        row = {column: _save_picture(folder, column, name, text, picture) for column, picture in pictures.items()}
        row |= {"text": text, "split": split, **{column: str(value) for column, value in values.items()}}
        counts = {}
        for other in (split, *(other for other in SPLITS if other != split)):  # a row is rather in both than in none
            table = _read_table(folder, other)
            rows = [old for old in table.rows if (old["image"], old["text"]) != (row["image"], row["text"])]
            rows += [row] if other == split else []
            if rows != table.rows:
                _write_table(folder, other, table.columns, rows)
            counts[other] = len(rows)
        return counts


def make_stem(name: str) -> str:
    """A name as that of a file on every system: letters, digits, `_` and `-`."""
    stem = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", name)).strip("-_")
    return stem[:LONGEST_STEM] or "image"


def _save_picture(folder: Path, column: str, name: str, text: str, picture: Image.Image) -> str:
    """Writes a picture unless it is there, and returns its path below the folder."""
    content = io.BytesIO()
    (picture.convert("L") if picture.mode == "1" else picture).save(content, "png")
    # An image with two captions is two rows, whose ids are the names of their images.
    digest = hashlib.blake2b(content.getvalue() + text.encode(), digest_size=6).hexdigest()
    path = folder / FOLDERS[column] / f"{make_stem(name)}-{digest}.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        _write(path, content.getvalue())
    return path.relative_to(folder).as_posix()


def _read_table(folder: Path, split: str) -> Table:
    path = folder / f"{split}.csv"
    return read_table(path, REQUIRED) if path.exists() else Table([], [], [])


def _write_table(folder: Path, split: str, columns: list[str], rows: list[dict[str, str]]):
    """Writes rows with the columns that the table had, and those that are new."""
    # Only a table that has a column for it needs to be told the split.
    new = [name for name in (*REQUIRED, *rows[-1]) if name != "split"] if rows else []
    content = io.StringIO()
    writer = csv.DictWriter(content, list(dict.fromkeys([*columns, *new])), restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    _write(folder / f"{split}.csv", content.getvalue().encode("utf-8-sig"))


def _write(path: Path, content: bytes):
    with replacing(path) as part:
        part.write_bytes(content)
