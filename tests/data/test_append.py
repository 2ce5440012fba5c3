"""Rows that are added to a data set folder are read as those that were there."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_layouts import CAPTIONS, make_pair, write_csv_files, write_parquet
from PIL import Image
from tiny_lvit import tiny_processor

from lvit_hf.data.append import append_row, prepare_folder
from lvit_hf.data.check import check_data, has_problems, read_all_splits
from lvit_hf.data.load import load_data


CAPTION = 'one "round" area, lower left'


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def append(folder: Path, seed: int = 0, split: str = "train", text: str = CAPTION, name: str = "scan", flip=False):
    image, mask = make_pair(seed)
    pixels = np.asarray(mask) > 0
    return append_row(folder, split, name, image, ~pixels if flip else pixels, text, ~pixels, model="mine", dice=0.5)


def test_rows_are_read_as_they_were_added(tmp_path):
    assert append(tmp_path / "new" / "data") == {"train": 1, "valid": 0}
    assert append(tmp_path / "new" / "data", 1, text="") == {"train": 2, "valid": 0}
    assert append(tmp_path / "new" / "data", 2, "valid") == {"train": 2, "valid": 1}
    folder = str(tmp_path / "new" / "data")
    rows = [*load_data(folder, "train"), *load_data(folder, "valid")]
    assert [row["text"] for row in rows] == [CAPTION, "", CAPTION]
    for seed, row in enumerate(rows):
        image, mask = make_pair(seed)
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(image))
        np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(mask))
        predicted = Image.open(tmp_path / "new" / "data" / row["predicted"])
        np.testing.assert_array_equal(np.asarray(predicted), 255 - np.asarray(mask))
        assert (row["model"], row["dice"]) == ("mine", "0.5")
    report = check_data(folder, read_all_splits(folder), tiny_processor(), 10)
    assert not has_problems(report) and not report["orphans"]


def test_an_image_with_its_caption_is_one_row_and_no_file_is_written_over(tmp_path):
    append(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert append(tmp_path, flip=True) == {"train": 1, "valid": 0}
    [row] = load_data(str(tmp_path), "train")
    np.testing.assert_array_equal(np.asarray(row["mask"]), 255 - np.asarray(make_pair(0)[1]))
    assert append(tmp_path, text="another") == {"train": 2, "valid": 0}
    assert append(tmp_path, split="valid") == {"valid": 1, "train": 1}
    assert {path: path.read_bytes() for path in before} == before
    splits = read_all_splits(str(tmp_path))
    assert not has_problems(check_data(str(tmp_path), splits, tiny_processor(), 10))  # every row has an id of its own


@pytest.mark.parametrize("name", ["../../up", "C:\\a\\b.c", "a/b", "..", "", "x" * 300, "con\0", "肺 部/1", "=1+1"])
def test_a_name_leads_nowhere_else(tmp_path, name):
    folder = tmp_path / "data"
    append(folder, name=name)
    files = {path.relative_to(folder).as_posix() for path in tmp_path.rglob("*.png")}
    assert len(files) == 3
    assert all(re.fullmatch(r"(images|masks|predicted)/[\w][\w-]*-[0-9a-f]{12}\.png", file) for file in files)


def test_what_was_in_the_folder_stays_and_keeps_its_columns(tmp_path):
    write_csv_files(tmp_path)
    table = tmp_path / "train.csv"
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    table.write_text("\n".join([f"{lines[0]},split,note", *(f"{line},train,é" for line in lines[1:])]), "utf-8")
    assert append(tmp_path, seed=7) == {"train": 4, "valid": 3}
    data = load_data(str(tmp_path), "train")
    assert data["text"][:] == [*CAPTIONS, CAPTION]
    assert data["note"][:] == ["é", "é", "é", ""] and data["model"][:] == ["", "", "", "mine"]
    assert load_data(str(tmp_path), "valid").column_names == ["image", "mask", "text", "id"]


def test_rows_that_come_at_once_are_all_there(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: append(tmp_path, seed, name=f"scan {seed % 3}"), range(24)))
    assert len(load_data(str(tmp_path), "train")) == 24
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    write_parquet(tmp_path / "parquet")
    (tmp_path / "excel").mkdir()
    (tmp_path / "excel" / "train.xlsx").touch()
    (tmp_path / "columns").mkdir()
    (tmp_path / "columns" / "valid.csv").write_text("image,caption\n")
    (tmp_path / "file").touch()
    for name, reason in [
        ("other", "holds other files and neither train.csv nor valid.csv"),
        ("parquet", "holds other files"),
        ("excel", "has train.xlsx, and rows are added to CSV files alone"),
        ("columns", "needs the columns image, mask and text"),
    ]:
        before = sorted((tmp_path / name).rglob("*"))
        with pytest.raises(ValueError, match=reason):
            append(tmp_path / name)
        assert sorted((tmp_path / name).rglob("*")) == before
    with pytest.raises(OSError, match="file"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(ValueError, match="split must be one of train, valid"):
        append(tmp_path / "new", split="../test")
    assert not (tmp_path / "new").exists()
