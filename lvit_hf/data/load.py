"""Readers: every source of images, masks and captions becomes one `datasets.Dataset`."""

import logging
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pandas
import pyarrow.compute
from PIL import Image

from ..io.hub import explained_errors
from ..io.readers import is_picture_name


logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
COLUMNS = ("image", "mask", "text")
REFERENCE_FOLDERS = {"train": "Train_Folder", "valid": "Val_Folder", "test": "Test_Folder"}
MASK_PREFIX = "mask_"  # of QaTa-COV19's masks, in the reference implementation's layout


class SplitNotFoundError(FileNotFoundError):
    """The data set has no such split."""


@dataclass
class Split:
    """One split as it was found.

    Args:
        rows: The usable rows, with the columns `image` and `mask` (PIL images), `text`, `id` and any others.
        problems: What is wrong with the rows that are not usable, a sentence each.
        orphans: Files and captions that belong to no image.
    """

    rows: datasets.Dataset
    problems: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


def load_data(path: str, split: str) -> datasets.Dataset:
    """Reads one split of a data set.

    Args:
        path: One of

            - a folder in the reference implementation's layout: `Train_Folder/img`, `labelcol` and a workbook with
              the columns `Image` and `Description`, where mask and caption are found by the image's name;
            - a CSV file with the columns `image`, `mask` (both relative to the CSV) and `text`, and `split` unless all
              rows are of the split that is asked for; or a folder with such files, `train.csv` and so on;
            - a folder that `datasets` reads: parquet files, or images with a `metadata.csv` in each split's folder
              that has the columns `file_name`, `mask_file_name` and `text`;
            - the id of a data set on the Hub.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        A data set with the columns `image` and `mask` (PIL images), `text` (without a caption the empty string), `id`
        and any other columns that the source has.

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
    if folder.is_file() and folder.suffix.lower() == ".csv":
        return _read_csv(folder, split)
    if (folder / f"{split}.csv").is_file():
        return _read_csv(folder / f"{split}.csv", split)
    if reference_folder.is_dir():
        return _read_reference_layout(reference_folder)
    if any((folder / name).is_dir() for name in REFERENCE_FOLDERS.values()):
        raise SplitNotFoundError(f"{path} has no folder {reference_folder.name}.")
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise FileNotFoundError(f"{path} does not exist.")
    return _read_with_datasets(path, split)


def take_evenly(data: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """At most `limit` rows, spread evenly, so that the first subjects do not stand for all."""
    if limit is None or limit >= len(data):
        return data
    return data.select([position * len(data) // limit for position in range(limit)])


def _read_csv(path: Path, split: str) -> Split:
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except ValueError as error:  # also of an encoding, and of no columns at all
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}")
    _check_columns(path, split, table.columns)
    if table.empty:
        raise SplitNotFoundError(f"{path} has no rows.")
    if "split" in table.columns:
        table = table[table["split"] == split]
        if table.empty:
            raise SplitNotFoundError(f'{path} has no row whose column split says "{split}".')
    else:
        logger.warning(f"{path} has no column split: all of its rows are taken for {split}.")
    if "id" not in table.columns:
        table["id"] = [Path(name).with_suffix("").as_posix() for name in table["image"]]
    for column in ("image", "mask"):
        table[column] = [str(path.parent / name.strip()) if name.strip() else "" for name in table[column]]
    return _finish(datasets.Dataset.from_dict(table.to_dict("list")))


def _read_reference_layout(folder: Path) -> Split:
    """`img/`, `labelcol/` and one workbook; image, mask and row belong together by their names without suffix."""
    captions, problems = read_workbook(folder)
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    orphans = []
    for subfolder, files in (("img", images), ("labelcol", masks)):
        for path in sorted((folder / subfolder).iterdir()):
            name = _stem(path.name)
            if not is_picture_name(path):
                orphans.append(f"{subfolder}/{path.name} is no image file.")
            elif name in files:
                problems.append(f"{subfolder}/{path.name} and {files[name].name} have one name.")
            else:
                files[name] = path
    problems += [f"img/{path.name} has no mask." for name, path in images.items() if name not in masks]
    problems += [f"img/{path.name} has no caption." for name, path in images.items() if name not in captions]
    problems += [f"labelcol/{path.name} has no image." for name, path in masks.items() if name not in images]
    orphans += [f"The caption of {name} has no image." for name in captions if name not in images]
    names = [name for name in images if name in masks and name in captions]
    rows = {
        "image": [str(images[name]) for name in names],
        "mask": [str(masks[name]) for name in names],
        "text": [captions[name] for name in names],
        "id": names,
    }
    features = datasets.Features({name: datasets.Value("string") for name in rows})
    return _finish(datasets.Dataset.from_dict(rows, features=features), problems, orphans)


def read_workbook(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The captions in the one workbook of a folder by image name without suffix, and sentences about those in doubt.

    Raises:
        FileNotFoundError: If there is not one workbook.
        ValueError: If it cannot be read, or lacks the columns `Image` and `Description`.
    """
    workbooks = [path for path in sorted(folder.glob("*.xlsx")) if not path.name.startswith(("~$", "."))]
    if len(workbooks) != 1:
        names = ", ".join(path.name for path in workbooks) or "none"
        raise FileNotFoundError(f"{folder} must hold one workbook (*.xlsx) with the captions, found {names}.")
    try:
        table = pandas.read_excel(workbooks[0], dtype=str, keep_default_na=False)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{workbooks[0]} is no workbook: {error}")
    if not {"Image", "Description"} <= set(table.columns):
        raise ValueError(f"{workbooks[0]} needs the columns Image and Description, it has {list(table.columns)}.")
    captions: dict[str, str] = {}
    problems = []
    for file_name, text in zip(table["Image"], table["Description"]):
        name = _stem(file_name)
        if captions.setdefault(name, text) != text:
            problems.append(f"{workbooks[0].name} has several captions for {name}.")
    return captions, problems


def _read_with_datasets(path: str, split: str) -> Split:
    with explained_errors(path, "dataset"):
        available = datasets.get_dataset_split_names(path)
    name = "validation" if split == "valid" and "valid" not in available else split
    if name not in available:
        raise SplitNotFoundError(f"{path} has no split {split}, it has {', '.join(available)}.")
    with explained_errors(path, "dataset"):
        data = datasets.load_dataset(path, split=name)
    _check_columns(path, split, data.column_names)
    if "id" not in data.column_names:
        data = data.add_column("id", _make_ids(path, data))
    return _finish(data)


def _make_ids(path: str, data: datasets.Dataset) -> list[str]:
    """The images' file names without suffix, within a local folder; numbers where two images have one name."""
    files = [Path(name or "") for name, _ in stored_files(data, "image")]
    if len(set(files)) < len(files):
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
        (path, held or bool(path) and ("://" in path or Path(path).is_file()))
        for path, held in zip(paths.to_pylist(), inside)
    ]


def _finish(data: datasets.Dataset, problems: Iterable[str] = (), orphans: Iterable[str] = ()) -> Split:
    """Makes images of paths and empty strings of missing captions, and sorts out rows whose files are missing."""
    for column in ("image", "mask"):
        data = data.cast_column(column, datasets.Image())
    texts = data["text"][:]
    if None in texts:
        data = data.remove_columns("text").add_column("text", [text or "" for text in texts])
    names, problems, unusable = data["id"][:], list(problems), set()
    for column in ("image", "mask"):
        for number, (path, exists) in enumerate(stored_files(data, column)):
            if not exists:
                problems.append(f"{names[number]}: the {column} {path or '(no name given)'} does not exist.")
                unusable.add(number)
    if unusable:
        data = data.select([number for number in range(len(data)) if number not in unusable])
    return Split(data, problems, list(orphans))


def _check_columns(path: str | Path, split: str, columns: Iterable[str]):
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"{path} ({split}) lacks the columns {missing}; it has {list(columns)}.")


def _stem(name: str) -> str:
    """What the files of one image have in common: no suffix, and no prefix of a mask."""
    path = Path(name.strip())
    stem = path.stem if path.suffix.lower() in Image.registered_extensions() else path.name
    return stem.removeprefix(MASK_PREFIX)
