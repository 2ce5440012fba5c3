"""The report of many images, as JSON or as a table: what was asked, what was used, what was found and by what."""

import csv
import importlib.metadata
import io
import json
import platform
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..io.writing import check_replaceable, replacing


FORMATS = (".json", ".jsonl", ".csv", ".parquet")
LIBRARIES = ("lvit_hf", "torch", "transformers", "numpy", "scikit-image")
# Those that only some files or backends need.
OPTIONAL_LIBRARIES = ("openvino", "onnxruntime", "pydicom", "highdicom", "nibabel", "tifffile")

# Of every report and of no other file: the digests of the weights.
MARK = "weights_sha256"


def describe_run(**settings: Any) -> dict[str, Any]:
    """What is true of all images of a report: the settings, and the versions of the software.

    Args:
        **settings: With the digests of the weights among them, `weights_sha256`.
    """
    libraries = [*LIBRARIES, *filter(find_spec, OPTIONAL_LIBRARIES)]
    versions = {library: importlib.metadata.version(library) for library in libraries}
    return {**settings, "versions": {"python": platform.python_version(), **versions}}


def check_report(path: Path):
    """Refuses, before the work, a report that could not be written after it.

    Raises:
        FileExistsError: If there is something that is no report.
        ModuleNotFoundError: If Parquet is asked for and pyarrow is not installed.
        ValueError: If its name tells no format.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} must end with one of {', '.join(FORMATS)}.")
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet  # noqa: F401
    check_replaceable(path, MARK)


def write_report(path: Path, run: dict[str, Any], entries: Sequence[dict[str, Any]]):
    """Writes a report, in the format that its name ends with.

    JSON has `images` and `failures` beside what is true of all. The others have a row for each image, in order, that
    says everything; what is not one value is JSON in the cells of CSV and Parquet.

    Args:
        path: Where to write it; what is there is replaced.
        run: What `describe_run` returns.
        entries: What `describe_result` returns of each image, or more.
    """
    rows = [{**entry, **run} for entry in entries]
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    with replacing(path) as part:
        if suffix == ".parquet":
            import pyarrow.parquet

            columns = {name: [_as_value(row.get(name)) for row in rows] for name in name_columns(rows)}
            pyarrow.parquet.write_table(pyarrow.table(columns), part)
            return
        if suffix == ".csv":
            text = write_table(rows, name_columns(rows))
        elif suffix == ".jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            images = [entry for entry in entries if "error" not in entry]
            failures = [entry for entry in entries if "error" in entry]
            text = json.dumps({**run, "images": images, "failures": failures}, indent=2, ensure_ascii=False) + "\n"
        part.write_text(text, encoding="utf-8", newline="")


def name_columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The names of all values, in the order in which they come up."""
    return list(dict.fromkeys(name for row in rows for name in row))


def write_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Entries of a report as CSV, with a mark that makes spreadsheets read it as UTF-8."""
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(columns)
    writer.writerows([_as_cell(row.get(name)) for name in columns] for row in rows)
    return "\ufeff" + content.getvalue()


def _as_value(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | tuple | dict) else value


def _as_cell(value: Any) -> Any:
    """A text that a spreadsheet does not take for a formula."""
    value = _as_value(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
