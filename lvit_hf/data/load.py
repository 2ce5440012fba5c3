"""Readers: every source of images, masks and captions becomes one `datasets.Dataset`."""

import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow
import pyarrow.compute
from datasets.exceptions import DatasetGenerationError
from datasets.inspect import SplitsNotFoundError
from PIL import Image

from ..io.hub import explained_errors
from ..io.readers import explain_mask, is_picture_name, read_scan
from ..io.scan import name_some
from ..io.tables import TABLE_SUFFIXES, FileNames, is_table_name, read_table


logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
# How tables and their names may write them, in upper or lower case.
SPELLINGS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPELLINGS |= dict.fromkeys(("valid", "validation", "val", "dev"), "valid")
COLUMNS = ("image", "mask", "text")
TEXT_COLUMNS = ("text", "paraphrase")
REFERENCE_FOLDERS = {"train": "Train_Folder", "valid": "Val_Folder", "test": "Test_Folder"}
# What the name of a mask adds to that of its image: a word before it (QaTa-COV19) or after it (ISIC, BUSI, ...).
MASK_WORDS = r"(?:masks?|labels?|seg|segmentation|gt|ground_?truth|annotation)"
MASK_AFFIX = re.compile(rf"^{MASK_WORDS}[ _.-]+|[ _.-]+{MASK_WORDS}$", flags=re.IGNORECASE)


class SplitNotFoundError(FileNotFoundError):
    """The data set has no such split."""


@dataclass
class Split:
    """One split as it was found.

    Args:
        rows: The usable rows, with the columns `image` ([`Picture`]), `mask` ([`Mask`]), `text`, `id` and any others.
        problems: What is wrong with the rows that are not usable, a sentence each.
        orphans: Files and captions that belong to no image.
    """

    rows: datasets.Dataset
    problems: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


class Picture(datasets.Image):
    """A column of images, read as every other image: 8 bits, grey or RGB, upright."""

    def __eq__(self, other: object) -> bool:  # it is stored as any column of images, on the Hub too
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        return read_cell(value, self.read) if isinstance(value, dict) else value

    @staticmethod
    def read(path: Path) -> Image.Image:
        scan = read_scan(path)
        _check_one(path, len(scan))
        return scan.image()


class Mask(Picture):
    """A column of masks, read as every other mask: 255 for foreground, else 0."""

    @staticmethod
    def read(path: Path) -> Image.Image:
        return Image.fromarray(np.where(explain_one_mask(path)[0], np.uint8(255), np.uint8(0)))


def explain_one_mask(path: Path) -> tuple[np.ndarray, str]:
    """The foreground of a mask as `(height, width)`, and what was taken for it."""
    masks, rule = explain_mask(path)
    _check_one(path, len(masks))
    return masks[0], rule


def _check_one(path: Path, count: int):
    if count > 1:
        raise ValueError(f"{path} holds {count} images, and a row of a data set has one: save each as a file.")


def read_cell(cell: dict[str, Any], read: Callable[[Path], Any]) -> Any:
    """What a reader of files makes of an image that is stored as a path, an address or the content of a file.

    Raises:
        ValueError: As the reader. The content of a file is called what its file was called.
    """
    path, content = cell["path"], cell["bytes"]
    if content is None and "://" not in path:
        return read(Path(path))
    if content is None:
        with fsspec.open(path) as file:
            content = file.read()
    name = PurePosixPath(path or "image").name
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(name).suffix) as file:
        file.write(content)
        file.flush()
        try:
            return read(Path(file.name))
        except ValueError as error:
            raise ValueError(str(error).replace(file.name, name)) from error


def load_data(path: str, split: str) -> datasets.Dataset:
    """Reads one split of a data set.

    Args:
        path: One of

            - a folder in the reference implementation's layout: `Train_Folder/img`, `labelcol` and a workbook with
              the columns `Image` and `Description`, where mask and caption are found by the image's name, to which
              the mask's may add a word (`mask_1.png` or `1_mask.png` of `1.png`);
            - a table (see [`read_table`]) with the columns `image`, `mask` (both relative to the table) and `text`,
              and `split` unless all rows are of the split that is asked for; or a folder with such tables,
              `train.csv` and so on;
            - a folder that `datasets` reads: parquet files, or images with a `metadata.csv` in each split's folder
              that has the columns `file_name`, `mask_file_name` and `text`;
            - the id of a data set on the Hub.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        A data set with the columns `image` (8 bits, grey or RGB, upright) and `mask` (255 for foreground, else 0), PIL
        images; `text` (without a caption the empty string), `id` and any other columns that the source has.

    Raises:
        FileNotFoundError: If there is no such data set or split.
        ValueError: If columns, images, masks or captions are missing; the message names all of them. Or if the Hub
            does not give the data set; the message says what to do.
    """
    found = read_split(path, split)
    if found.problems:
        raise ValueError(f"{path} ({split}) has rows that cannot be used:\n- " + "\n- ".join(found.problems))
    if not len(found.rows):
        raise ValueError(f"{path} ({split}) has no rows.")
    return found.rows


def read_split(path: str, split: str) -> Split:
    """Reads one split as [`load_data`] does, and says which rows are not usable instead of refusing them.

    Raises:
        FileNotFoundError: If there is no such data set or split.
        ValueError: If a table cannot be read or lacks a column.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    folder = Path(path)
    reference_folder = folder / REFERENCE_FOLDERS[split]
    if folder.is_file():
        if not is_table_name(folder):
            raise ValueError(f"{path} is no table ({', '.join(TABLE_SUFFIXES)}), and no folder.")
        return _read_table(folder, split)
    if table := _find_table(folder, split):
        return _read_table(table, split)
    if reference_folder.is_dir():
        return _read_reference_layout(reference_folder)
    if any((folder / name).is_dir() for name in REFERENCE_FOLDERS.values()):
        raise SplitNotFoundError(f"{path} has no folder {reference_folder.name}.")
    # A bare name is no id: `datasets` would take whatever its cache has under that name.
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        raise FileNotFoundError(f"{path} does not exist. A data set on the Hub is named USER/NAME.")
    return _read_with_datasets(path, split)


def take_evenly(data: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """At most `limit` rows, spread evenly, so that the first subjects do not stand for all."""
    return data if limit is None or limit >= len(data) else data.select(spread_evenly(len(data), limit))


def spread_evenly(count: int, limit: int) -> list[int]:
    """Positions of so many rows among `count`, or of all if there are no more."""
    return [position * count // limit for position in range(limit)] if limit < count else list(range(count))


def _find_table(folder: Path, split: str) -> Path | None:
    """The table of a split in a folder, if there is one."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    tables = [file for file in files if is_table_name(file) and _is_split(file.stem, split)]
    if len(tables) > 1:
        raise ValueError(f"{folder} has {' and '.join(file.name for file in tables)}; leave one of them.")
    return tables[0] if tables else None


def _read_table(path: Path, split: str) -> Split:
    table = read_table(path, COLUMNS, (*TEXT_COLUMNS, "split", "id"))
    rows = list(zip(table.lines, table.rows))
    if not rows:
        raise SplitNotFoundError(f"{path} has no rows.")
    if "split" in table.columns:
        _check_spellings(path, rows)
        rows = [(line, row) for line, row in rows if _is_split(row["split"], split)]
        if not rows:
            raise SplitNotFoundError(f'{path} has no row whose column split says "{split}".')
    elif not _is_split(path.stem, split):
        logger.warning(f"{path} has no column split: all of its rows are taken for {split}.")
    names = FileNames(path.parent)
    for line, row in rows:
        found = {column: names.find(row[column]) for column in ("image", "mask")}
        row |= {column: str(path.parent / name) if name else "" for column, name in found.items()}
        row["id"] = row.get("id") or os.path.splitext(found["image"])[0] or f"line {line}"
    columns = {name: [row[name] for _, row in rows] for name in rows[0][1]}
    return _finish(_cast_images(path, datasets.Dataset.from_dict(columns)))


def _is_split(name: str, split: str) -> bool:
    return SPELLINGS.get(name.casefold()) == split


def _check_spellings(path: Path, rows: list[tuple[int, dict[str, str]]]):
    """Refuses rows of which nobody can know which split they are of."""
    others = [
        f"{row['split'] or 'nothing'} (line {line})" for line, row in rows if row["split"].casefold() not in SPELLINGS
    ]
    if others:
        raise ValueError(f"{path}: the column split says {name_some(others)}; write train, valid or test.")


def _read_reference_layout(folder: Path) -> Split:
    """`img/`, `labelcol/` and one workbook; image, mask and row belong together by their names without suffix."""
    captions, problems = read_workbook(folder)
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    orphans = []
    for subfolder, files in (("img", images), ("labelcol", masks)):
        for path in sorted((folder / subfolder).iterdir()):
            name = _stem(path.name) if files is images else _image_name(path.name, images)
            if not is_picture_name(path):
                orphans.append(f"{subfolder}/{path.name} is no image file.")
            elif name in files:
                problems.append(f"{subfolder}/{path.name} and {files[name].name} have one name.")
            else:
                files[name] = path
    texts: dict[str, str] = {}
    for written, text in captions.items():
        name = _image_name(written, images)
        if texts.setdefault(name, text) != text:
            problems.append(f"There are several captions for {name}.")
    problems += [f"img/{path.name} has no mask." for name, path in images.items() if name not in masks]
    problems += [f"img/{path.name} has no caption." for name, path in images.items() if name not in texts]
    problems += [f"labelcol/{path.name} has no image." for name, path in masks.items() if name not in images]
    orphans += [f"The caption of {name} has no image." for name in texts if name not in images]
    names = [name for name in images if name in masks and name in texts]
    rows = {
        "image": [str(images[name]) for name in names],
        "mask": [str(masks[name]) for name in names],
        "text": [texts[name] for name in names],
        "id": names,
    }
    features = datasets.Features({name: datasets.Value("string") for name in rows})
    data = datasets.Dataset.from_dict(rows, features=features)
    return _finish(_cast_images(folder, data), problems, orphans)


def read_workbook(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The captions in the one workbook of a folder by file name without suffix, and sentences about those in doubt.

    Raises:
        FileNotFoundError: If there is not one workbook.
        ValueError: If it cannot be read, or lacks the columns `Image` and `Description`.
    """
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(("~$", "."))]
    workbooks = [path for path in files if path.suffix.lower() == ".xlsx"]
    if len(workbooks) != 1:
        names = ", ".join(path.name for path in workbooks) or "none"
        raise FileNotFoundError(f"{folder} must hold one workbook (*.xlsx) with the captions, found {names}.")
    table = read_table(workbooks[0], ("Image", "Description"))
    captions: dict[str, str] = {}
    problems = []
    for line, row in zip(table.lines, table.rows):
        name, text = _stem(row["Image"]), row["Description"]
        if not name:
            problems.append(f"{workbooks[0].name}, row {line}, names no image.")
        elif captions.setdefault(name, text) != text:
            problems.append(f"{workbooks[0].name} has several captions for {name}.")
    return captions, problems


def _read_with_datasets(path: str, split: str) -> Split:
    for table in sorted(Path(path).rglob("metadata.csv")):
        read_table(table, ())  # `datasets` shifts the values of too long lines
    with _hub_data_errors(path):
        available = datasets.get_dataset_split_names(path)
    names = [name for name in available if _is_split(name, split)]
    if not names:
        raise SplitNotFoundError(f"{path} has no split {split}, it has {', '.join(available)}.")
    with _hub_data_errors(path):
        data = datasets.load_dataset(path, split=split if split in names else names[0])
    _check_columns(path, split, data.column_names)
    for column in TEXT_COLUMNS:
        _check_texts(path, data, column)
    data = _cast_images(path, data)
    if "id" not in data.column_names:
        data = data.add_column("id", _make_ids(path, data))
    return _finish(data.cast_column("id", datasets.Value("string")))


@contextmanager
def _hub_data_errors(path: str) -> Iterator[None]:
    """Names the reason where `datasets` says only that something went wrong."""
    with explained_errors(path, "dataset"):
        try:
            yield
        except (DatasetGenerationError, SplitsNotFoundError) as error:
            raise ValueError(f"{path} cannot be read: {error.__cause__ or error}") from error


def _check_texts(path: str, data: datasets.Dataset, column: str):
    """Refuses captions that are numbers, lists or anything else than text."""
    feature = data.features.get(column)
    if feature is None or getattr(feature, "dtype", None) in ("string", "large_string", "null"):
        return
    example = next((value for value in data[column] if value is not None), None)
    raise ValueError(
        f"{path}: a caption is a text, and the column {column} holds {describe_feature(feature)}, such as "
        f"{example!r}. Give each image one caption in words."
    )


def describe_feature(feature: Any) -> str:
    """What a column holds, in a word or two."""
    return f"values of the type {getattr(feature, 'dtype', None) or type(feature).__name__}"


def _cast_images(path: str | Path, data: datasets.Dataset) -> datasets.Dataset:
    """Makes images of paths and of the content of files."""
    for column, kind in (("image", Picture), ("mask", Mask)):
        try:
            data = data.cast_column(column, kind())
        except (TypeError, ValueError, pyarrow.ArrowException):
            raise ValueError(
                f"{path}: the column {column} holds {describe_feature(data.features[column])}, no images."
            )
    return data


def _make_ids(path: str, data: datasets.Dataset) -> list[str]:
    """The images' file names without suffix, within a local folder; numbers where two have one name, or one none."""
    files = [Path(name or "") for name, _ in stored_files(data, "image")]
    if len(set(files)) < len(files) or Path() in files:
        return [str(number) for number in range(len(files))]
    names = [
        file.relative_to(Path(path).resolve()) if file.is_relative_to(Path(path).resolve()) else file for file in files
    ]
    return [name.with_suffix("").as_posix() for name in names]


def stored_files(data: datasets.Dataset, column: str) -> list[tuple[str | None, bool]]:
    """The path of each image of a column, and whether the image can be read from there or from the table itself."""
    cells = data.data.column(column)
    paths, contents = (pyarrow.compute.struct_field(cells, name) for name in ("path", "bytes"))
    inside = pyarrow.compute.is_valid(contents).to_pylist()
    return [
        (path, held or bool(path) and ("://" in path or os.path.isfile(path)))
        for path, held in zip(paths.to_pylist(), inside)
    ]


def _finish(data: datasets.Dataset, problems: Iterable[str] = (), orphans: Iterable[str] = ()) -> Split:
    """Makes empty strings of missing captions, and sorts out rows whose files are missing."""
    texts = data["text"][:]
    if None in texts:
        data = data.remove_columns("text").add_column("text", [text or "" for text in texts])
    names, problems, unusable = data["id"][:], list(problems), set()
    for column in ("image", "mask"):
        for number, (path, exists) in enumerate(stored_files(data, column)):
            if not exists:
                state = "is a link to a file that is not here" if os.path.islink(path or "") else "does not exist"
                problems.append(f"{names[number]}: the {column} {path or '(no name given)'} {state}.")
                unusable.add(number)
    if unusable:
        data = data.select([number for number in range(len(data)) if number not in unusable])
    return Split(data, problems, list(orphans))


def _check_columns(path: str | Path, split: str, columns: Iterable[str]):
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"{path} ({split}) lacks the columns {missing}; it has {list(columns)}.")


def _stem(name: str) -> str:
    """The name of a file without folders and suffix, the same for every system that wrote it."""
    path = PurePosixPath(unicodedata.normalize("NFC", name.strip().replace("\\", "/")))
    return path.stem if path.suffix.lower() in Image.registered_extensions() else path.name


def _image_name(name: str, images: Iterable[str]) -> str:
    """The image to which a file or a row belongs: that of its name, or of its name without the word for a mask."""
    stem = _stem(name)
    bare = MASK_AFFIX.sub("", stem)
    return bare if stem not in images and bare in images else stem
