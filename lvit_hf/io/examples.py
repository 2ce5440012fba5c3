"""Examples: files with captions that come with a checkpoint, for the page, the card and the static Space."""

import csv
from dataclasses import dataclass
from pathlib import Path


TABLE = "examples.csv"


@dataclass(frozen=True)
class Example:
    """A file of the examples.

    Args:
        path: An image or a volume.
        text: Its caption.
        tile_size: The side of the tiles in which it is segmented, in pixels; `None` for the whole image.
        label: What tells it from the others on the page; blank for its kind of image.
    """

    path: Path
    text: str
    tile_size: int | None
    label: str = ""


def read_examples(folder: Path) -> list[Example]:
    """The examples that `examples.csv` of a folder names.

    Raises:
        OSError: If there is no such table.
        ValueError: If the table lacks a column, has no row, or names a file outside the folder.
    """
    path = folder / TABLE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            examples = [
                Example(folder / row["image"], row["text"], int(row["tile_size"]) or None, row.get("label") or "")
                for row in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError):
        examples = []
    if not examples:
        raise ValueError(f"{path} needs the columns image, text and tile_size (0 for the whole image), and a row.")
    for example in examples:
        # By name: what the Hub's cache has in a folder are links to elsewhere.
        if not example.path.is_relative_to(folder) or ".." in example.path.relative_to(folder).parts:
            raise ValueError(f"{path} names {example.path}, which is outside the folder.")
    return examples
