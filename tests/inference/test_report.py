"""One report, in every format with the same content."""

import csv
import hashlib
import importlib.metadata
import io
import json
import platform
import sys
from importlib.util import find_spec

import nibabel
import pyarrow.parquet
import pytest
from tiny_lvit import tiny_model

from lvit_hf.inference.report import (
    FORMATS,
    LIBRARIES,
    OPTIONAL_LIBRARIES,
    check_report,
    describe_run,
    write_report,
    write_table,
)
from lvit_hf.io.hub import hash_weights


RUN = describe_run(model="lvit-small", weights_sha256={"model.safetensors": "00ff"}, threshold=0.5)
ENTRIES = [
    {"image": "=a.png", "area_percent": 12.5, "masks": ["=a_mask.png"], "text": None, "text_used": False},
    {"image": "b.nii.gz", "voxels": 7, "masks": ["b_mask.nii.gz"], "area_pixels_by_slice": [3, 4]},
    {"image": "c.png", "error": "c.png is broken."},
]


def read(path) -> list[dict]:
    """Rows, with what is nested as JSON."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(encoding="utf-8-sig", newline="")))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_file_of_the_weights_is_told_with_its_digest(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert hash_weights(tmp_path) == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_versions_of_what_is_installed_are_told():
    assert RUN["versions"] == {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        **{name: importlib.metadata.version(name) for name in OPTIONAL_LIBRARIES if find_spec(name)},
    }
    assert RUN["versions"]["nibabel"] == nibabel.__version__ and RUN["threshold"] == 0.5


@pytest.mark.parametrize("value", ["=1", "+1", "-1", "@a", "\ta", "\ra", "a=1", "a", "1-2", -1.5, [-1], None])
def test_no_text_in_a_table_is_a_formula(value):
    [[cell]] = list(csv.reader(io.StringIO(write_table([{"a": value}], ["a"]), newline="")))[1:]
    assert not isinstance(value, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    shown = "" if value is None else str(value)
    assert cell == (f"'{shown}" if isinstance(value, str) and value[0] in "=+-@\t\r" else shown)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_row_says_everything(suffix, tmp_path):
    path = tmp_path / "new" / f"report{suffix}"
    write_report(path, RUN, ENTRIES)
    rows = read(path)
    assert [row["image"].strip("'") for row in rows] == ["=a.png", "b.nii.gz", "c.png"]
    assert rows[2]["error"] == "c.png is broken."
    assert float(rows[0]["area_percent"]) == 12.5 and int(rows[1]["voxels"]) == 7
    for row in rows:
        nested = {name: row[name] for name in ("weights_sha256", "versions")}
        nested = {name: json.loads(value) if isinstance(value, str) else value for name, value in nested.items()}
        assert nested == {name: RUN[name] for name in nested} and nested["versions"]["torch"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_json_has_what_is_true_of_all_once_and_failures_apart(tmp_path):
    write_report(tmp_path / "report.json", RUN, ENTRIES)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == {**RUN, "images": ENTRIES[:2], "failures": ENTRIES[2:]}
    assert text.count("\n") > len(ENTRIES) and text.endswith("}\n")


@pytest.mark.parametrize("suffix", FORMATS)
def test_letters_of_all_alphabets_can_be_read_and_folders_are_made(suffix, tmp_path):
    path = tmp_path / "a" / "b" / f"report{suffix}"
    write_report(path, RUN, [{"image": "肺.png", "masks": ["Lunge, größer.png"], "text": "одна область"}])
    content = path.read_bytes()
    if suffix != ".parquet":
        assert b"\r\r" not in content
        for text in ("肺.png", "Lunge, größer.png", "одна область"):
            assert text in content.decode("utf-8")
    else:
        assert "größer" in read(path)[0]["masks"]


def test_spreadsheets_find_no_formula(tmp_path):
    write_report(tmp_path / "report.csv", RUN, ENTRIES)
    assert read(tmp_path / "report.csv")[0]["image"] == "'=a.png"


@pytest.mark.parametrize("suffix", FORMATS)
def test_only_an_earlier_report_is_replaced(suffix, tmp_path):
    path = tmp_path / f"report{suffix}"
    check_report(path)
    for entries in (ENTRIES, ENTRIES[:1]):
        write_report(path, RUN, entries)
        check_report(path)
    path.write_text("image,text\na.png,one\n")
    with pytest.raises(FileExistsError, match="did not write it"):
        check_report(path)


def test_only_parquet_needs_pyarrow_and_it_is_said_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError):
        check_report(tmp_path / "report.parquet")
    for suffix in FORMATS[:3]:
        check_report(tmp_path / f"report{suffix}")


def test_a_format_that_is_not_known_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"must end with one of \.json, \.jsonl, \.csv, \.parquet"):
        check_report(tmp_path / "report.xlsx")
