"""Readers: every source of images, masks and captions becomes one `datasets.Dataset`."""

from pathlib import Path

import datasets
import pandas


COLUMNS = ("image", "mask", "text", "id")
SPLIT_FOLDERS = {"train": "Train_Folder", "valid": "Val_Folder", "test": "Test_Folder"}


def load_data(path: str, split: str) -> datasets.Dataset:
    """Reads one split of a data set.

    Args:
        path: A folder of `{split}-*.parquet` files, a folder in the reference implementation's layout
            (`Train_Folder/img`, `labelcol` and a workbook with the columns `Image` and `Description`), or the id of a
            data set on the Hub.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        A data set with the columns `image` and `mask` (PIL images), `text` and `id`.

    Raises:
        FileNotFoundError: If the folder has no such split.
        ValueError: If the split is none of the three, or columns, images or masks are missing; the message names all
            of them.
    """
    if split not in SPLIT_FOLDERS:
        raise ValueError(f"split must be one of {', '.join(SPLIT_FOLDERS)}, got {split!r}.")
    folder = Path(path)
    if sorted(folder.glob(f"{split}-*.parquet")):
        data = datasets.load_dataset("parquet", data_files=str(folder / f"{split}-*.parquet"), split="train")
    elif (folder / SPLIT_FOLDERS[split]).is_dir():
        data = _read_reference_layout(folder / SPLIT_FOLDERS[split])
    elif folder.exists():
        raise FileNotFoundError(f"{path} has neither {split}-*.parquet nor {SPLIT_FOLDERS[split]}/.")
    else:
        data = datasets.load_dataset(path, split="validation" if split == "valid" else split)
    missing = [name for name in COLUMNS if name not in data.column_names]
    if missing:
        raise ValueError(f"{path} ({split}) lacks the columns {missing}; it has {data.column_names}.")
    return data


def take_evenly(data: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """At most `limit` rows, spread evenly, so that the first subjects do not stand for all."""
    if limit is None or limit >= len(data):
        return data
    return data.select([position * len(data) // limit for position in range(limit)])


def _read_reference_layout(folder: Path) -> datasets.Dataset:
    """`img/`, `labelcol/` and one workbook; image, mask and row belong together by the stem of their names."""
    workbooks = sorted(folder.glob("*.xlsx"))
    if len(workbooks) != 1:
        raise FileNotFoundError(f"{folder} must hold one workbook (*.xlsx) with the captions, found {len(workbooks)}.")
    captions = {
        Path(str(name)).stem: text
        for name, text in pandas.read_excel(workbooks[0])[["Image", "Description"]].itertuples(index=False)
    }
    images = {path.stem: str(path) for path in sorted((folder / "img").iterdir())}
    masks = {path.stem: str(path) for path in sorted((folder / "labelcol").iterdir())}
    incomplete = sorted(set(images) ^ set(masks) | set(images) - set(captions))
    if incomplete:
        raise ValueError(f"{folder}: image, mask or caption is missing for {incomplete}.")
    rows = {
        "image": list(images.values()),
        "mask": [masks[stem] for stem in images],
        "text": [captions[stem] for stem in images],
        "id": list(images),
    }
    data = datasets.Dataset.from_dict(rows)
    return data.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
