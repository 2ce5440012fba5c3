"""Uploads as a list of images: how many there may be, and which of them a row of a table means."""

import zipfile
from itertools import product

import numpy as np
import pytest
from dicom_files import make_dicom, save_zip

from lvit_hf.inference import collection
from lvit_hf.inference.collection import collect, is_series


SERIES = {f"IM{place}": make_dicom(np.zeros((8, 9), np.uint16), (0, 0, place)) for place in (0, 5)}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(collection, "MAX_IMAGES", 3)
    monkeypatch.setattr(collection, "MAX_FILE_BYTES", 2**20)


def listed(path, text: str = "all") -> list[tuple]:
    return [(item.name, item.text, item.problem) for item in collect([str(path)], text)]


@pytest.mark.parametrize(("images", "captions"), product((1, 3, 4), repeat=2))
def test_as_many_images_and_captions_as_are_taken(tmp_path, images, captions):
    table = "image,text\n" + "".join(f"0.png,{number}\n" for number in range(captions))
    files = {f"{number}.png": b"x" for number in range(images)} | {"t.csv": table.encode()}
    path = save_zip(files, tmp_path / "all.zip")
    if max(images, captions) > 3:
        with pytest.raises(ValueError, match="These are 4 images, more than the 3 that are taken at once"):
            collect([str(path)], "all")
    else:
        rows = [("0.png", str(number), None) for number in range(captions)]
        assert listed(path) == rows + [(f"{number}.png", "all", None) for number in range(1, images)]


def test_a_file_may_be_as_large_as_is_said_and_a_zip_in_a_zip_is_told_of(tmp_path):
    files = {"a.png": bytes(2**20), "b.png": bytes(2**20 + 1), "x/c.ZIP": b"x", ".hidden.png": b"x"}
    assert listed(save_zip(files, tmp_path / "all.zip")) == [
        ("a.png", "all", None),
        ("b.png", "all", "b.png has more than 1 MB."),
        ("x/c.ZIP", "all", "x/c.ZIP is a zip inside a zip; upload it by itself."),
    ]


def test_a_broken_zip_is_a_row_and_no_image_at_all_is_an_error(tmp_path):
    path = save_zip({"a.png": b"some pixels"}, tmp_path / "all.zip")
    path.write_bytes(path.read_bytes().replace(b"some pixels", b"same pixels"))
    assert listed(path) == [("all.zip", "all", "all.zip is a broken zip: a.png is damaged.")] and not is_series(path)
    with pytest.raises(ValueError, match="There is no image in the uploaded files"):
        collect([str(save_zip({"t.csv": b"image,text\n"}, tmp_path / "t.zip"))], "")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.png", [0]),
        ("y/a.png", [1]),
        ("x/y/a.png", [1]),
        ("z/b.png", [2]),  # of another folder, but the only one of that name
        ("/X/Y/A.PNG", [1]),
        ("../x/y/a.png", [1]),
        ("x\\y\\a.png", [1]),
        ("c.png", []),
        ("ng", []),
    ],
)
def test_a_row_means_the_image_whose_path_is_most_like_its_own(tmp_path, name, found):
    names = ("a.png", "x/y/a.png", "x/b.png")
    files = dict.fromkeys(names, b"x") | {"t.csv": f"image,text\n{name},own\n".encode()}
    items = listed(save_zip(files, tmp_path / "all.zip"))
    assert [text for _, text, problem in items if not problem] == ["own" if n in found else "all" for n in range(3)]
    problems = [] if found else [(name, "own", f"The CSV file has a caption for {name}, but there is no such image.")]
    assert items[3:] == problems


def test_a_table_by_itself_captions_what_was_uploaded_with_it(tmp_path):
    (tmp_path / "t.csv").write_text("image,text\na b.png,one\n")
    for name in ("ab.png", "b.png"):  # a browser's upload loses what is in a name between words
        (tmp_path / name).write_bytes(b"x")
    paths = [str(tmp_path / name) for name in ("t.csv", "ab.png", "b.png")]
    assert [(item.path, item.text) for item in collect(paths, "all")] == [
        (tmp_path / "ab.png", "one"),
        (tmp_path / "b.png", "all"),
    ]
    (tmp_path / "t.csv").write_text("file\na.png\n")
    with pytest.raises(ValueError, match=r"t\.csv needs the columns"):
        collect(paths, "all")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (SERIES, True),
        ({**SERIES, "notes.txt": b"x"}, True),
        ({**SERIES, "t.csv": b"image,text\n"}, False),
        ({**SERIES, "more.ZIP": b"x"}, False),
        ({**SERIES, "a.png": b"x"}, False),
        ({"IM0": SERIES["IM0"]}, False),
        ({"a.png": b"x"}, False),
        ({}, False),
    ],
)
def test_a_zip_of_one_series_and_nothing_else_is_a_volume(tmp_path, files, expected):
    path = tmp_path / "all.zip"
    zipfile.ZipFile(path, "w").close()
    assert is_series(save_zip(files, path)) == expected
    path.write_bytes(b"no zip")
    assert not is_series(path)
