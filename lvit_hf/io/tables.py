"""Tables of images and their captions: text files, whatever separates their values, and Excel workbooks."""

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from ..model.image_processing_lvit import describe_error
from .errors import FileError
from .readers import is_picture_name, is_scan_name


TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
CAPTION = "text"
# What Excel's files before 2007 begin with, and those with a password.
OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
SHOWN = 10

# The number of a line, from 1, and its values.
Line = tuple[int, list[str]]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        columns: Names of its columns. Those that were asked for are written as the caller writes them.
        rows: The value of each column, without space around it; empty where there is none.
        lines: Where each row begins: the number of its line in a text file, or of its row in a workbook, from 1.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]


def is_table_name(path: PurePath) -> bool:
    """Whether a file's name is that of a table which [`read_table`] reads."""
    return path.suffix.lower() in TABLE_SUFFIXES


def read_table(path: Path, required: Collection[str], optional: Collection[str] = ()) -> Table:
    """Reads a table whose first line names its columns.

    A text file is in UTF-8, or in UTF-16 with its mark; the first line tells what separates values: a comma, a
    semicolon, a tab or a bar. Of a workbook the first sheet is read. Blank lines are left out. A line with more or
    fewer values than columns is refused, since nobody can know which value is whose; but a caption that was asked for
    and ends its line (the column `text`) may have commas without quotation marks.

    Args:
        path: The file. Its content tells what it is.
        required: Columns that it must have. Upper and lower case do not matter.
        optional: Columns to which the same applies where it has them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, lacks a column, has one twice, or has lines that do not fit the columns; the
            message has their numbers.
    """
    content = path.read_bytes()
    if content.startswith((b"PK\x03\x04", OLE_MAGIC)) or path.suffix.lower() == ".xlsx":
        lines, advice = _read_workbook(path), "Every value needs a column with a name."
    else:
        lines, separator = _read_text(path, content, required)
        advice = f"A value with a {separator} in it needs quotation marks around it."
    lines = [(number, [value.strip() for value in values]) for number, values in lines]
    lines = [(number, values) for number, values in lines if any(values)]
    header = lines[0][1] if lines else []
    known = {name.casefold(): name for name in (*required, *optional)}
    columns = [known.get(name.casefold(), name) for name in header]
    _check_columns(path, columns, required)
    while columns and not columns[-1]:
        columns.pop()
    _check_lines(path, lines[1:], columns, advice)
    return Table(
        columns=[name for name in columns if name],
        rows=[{name: value for name, value in zip(columns, values) if name} for _, values in lines[1:]],
        lines=[number for number, _ in lines[1:]],
    )


class FileNames:
    """Finds files by names that were written on another system.

    Windows separates folders by backslashes and ignores case, and macOS takes letters with marks apart.

    Args:
        folder: Where relative names begin.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> str:
        """The name of the only file that is meant, below the folder; the name as it is if there is none."""
        if not name or os.path.lexists(self.folder / name):
            return name
        found = PurePosixPath()
        for part in PurePosixPath(name.replace("\\", "/")).parts:
            if os.path.lexists(self.folder / found / part):
                found /= part
                continue
            alike = self._list(self.folder / found).get(_key(part), [])
            if len(alike) != 1:
                return name
            found /= alike[0]
        return str(found)

    def _list(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            self._names[folder] = {}
            for name in os.listdir(folder) if folder.is_dir() else ():
                self._names[folder].setdefault(_key(name), []).append(name)
        return self._names[folder]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _read_text(path: Path, content: bytes, required: Collection[str]) -> tuple[list[Line], str]:
    """The lines of a text file, and what separates their values."""
    text, first = _decode(path, content), 1
    delimiters: Iterable[str] = DELIMITERS
    if match := re.match(r"sep=(.)\r?\n", text, flags=re.IGNORECASE):  # Excel's own way to name it
        delimiters, text, first = [match[1]], text[match.end() :], 2
    wanted = {name.casefold() for name in required}
    headers = {delimiter: _read_header(path, text, delimiter) for delimiter in delimiters}
    fitting = [delimiter for delimiter, header in headers.items() if wanted <= set(header)]
    delimiter = [*fitting, *headers][0]
    header = headers[delimiter]
    joined = len(header) if CAPTION in wanted and header[-1:] == [CAPTION] else None
    lines = list(_split(path, text, delimiter, first, joined))
    for number, values in lines:
        for value in values:
            _check_breaks(path, number, value, delimiter)
    return lines, DELIMITERS.get(delimiter, repr(delimiter))


def _read_header(path: Path, text: str, delimiter: str) -> list[str]:
    """The names of the columns in lower case, without those at the end that have none."""
    # Not strict: where something else separates values, a name in quotation marks ends before its value does.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        header = next(filter(any, lines), [])
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}.")
    names = [name.strip().casefold() for name in header]
    while names and not names[-1]:
        names.pop()
    return names


def _decode(path: Path, content: bytes) -> str:
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
        zero = text.find("\0")
        if zero < 0:
            return text
        reason, line = "a zero byte", text.count("\n", 0, zero) + 1
    except UnicodeDecodeError as error:
        reason, line = error.reason, content.count(b"\n", 0, error.start) + 1
    raise ValueError(f'{path} is not a CSV file in UTF-8, line {line}: {reason}. Save it as "CSV UTF-8".')


def _split(path: Path, text: str, delimiter: str, first: int, joined: int | None = None) -> Iterator[Line]:
    """The values of each line; from that number on, if one is given, they are one value, as it stands there."""
    physical = list(io.StringIO(text, newline=""))
    reader = csv.reader(physical, delimiter=delimiter, strict=True, skipinitialspace=True)
    start = 0
    try:
        for values in reader:
            line = physical[start]
            if joined and len(values) > joined and reader.line_num == start + 1 and '"' not in line:
                *values, rest = line.split(delimiter, joined - 1)
                values = [*values, rest.strip().rstrip(delimiter)]
            yield first + start, values
            start = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a CSV file in UTF-8, line {first + start}: {error}. A value that has quotation marks "
            "needs a pair of them around it, and its own doubled."
        )


def _check_breaks(path: Path, number: int, value: str, delimiter: str):
    """Refuses a value that went on into the next rows because a quotation mark is missing."""
    for line in value.splitlines()[1:]:
        name, separator, _ = line.partition(delimiter)
        file = Path(name.strip(' "'))
        if separator and (is_picture_name(file) or is_scan_name(file)):
            raise ValueError(
                f"{path}, line {number}: a value goes on to the line of {file}: a quotation mark is missing."
            )


def _read_workbook(path: Path) -> list[Line]:
    """The rows of the first sheet of a workbook. Cells that are merged into one column's all have its value."""
    import openpyxl

    try:
        with path.open("rb") as file:
            if file.read(len(OLE_MAGIC)) == OLE_MAGIC:
                raise FileError(
                    f"{path} is a workbook of Excel before 2007, or has a password: save it as .xlsx without one, or "
                    'as "CSV UTF-8".'
                )
            sheet = openpyxl.load_workbook(file).worksheets[0]
            formulas = {place for place, cell in sheet._cells.items() if cell.data_type == "f"}
            cells = (openpyxl.load_workbook(file, data_only=True).worksheets[0] if formulas else sheet)._cells
    except (FileError, ImportError):
        raise
    except Exception as error:  # of whatever library reads some part of it
        raise ValueError(f"{path} is no workbook: {describe_error(error)}") from error
    _check_cells(path, cells, formulas)
    rows: dict[int, dict[int, str]] = {}
    for (row, column), cell in cells.items():
        if cell.value is not None:
            rows.setdefault(row, {})[column] = _write_value(cell.value)
    for merged in sheet.merged_cells.ranges:
        value = rows.get(merged.min_row, {}).get(merged.min_col, "")
        for row in range(merged.min_row, merged.max_row + 1):
            rows.setdefault(row, {})[merged.min_col] = value
    width = max(map(max, rows.values()), default=0)
    return [(row, [rows[row].get(column, "") for column in range(1, width + 1)]) for row in sorted(rows)]


def _check_cells(path: Path, cells: dict[tuple[int, int], Any], formulas: set[tuple[int, int]]):
    """Refuses cells of which nobody can know the value."""
    for place, cell in cells.items():
        if cell.data_type == "e":
            raise ValueError(f"{path}: the cell {cell.coordinate} has the error {cell.value}; write a value.")
        if place in formulas and cell.value is None and cell.data_type != "str":  # that of an empty text
            raise ValueError(
                f"{path}: the cell {cell.coordinate} is a formula without a value; open the workbook in Excel or "
                "LibreOffice and save it, or write the value."
            )


def _write_value(value: object) -> str:
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _check_columns(path: Path, columns: list[str], required: Collection[str]):
    missing = [name for name in required if name not in columns]
    if missing:
        *others, last = required
        wanted = f"the columns {', '.join(others)} and {last}" if others else f"the column {last}"
        raise ValueError(f"{path} needs {wanted}; its first line has {', '.join(columns) or 'none'}.")
    counts = Counter(name.casefold() for name in columns if name)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{path} names the column {twice[0]} {counts[twice[0]]} times in its first line.")


def _check_lines(path: Path, lines: list[Line], columns: list[str], advice: str):
    """Refuses lines of which nobody can know which value is of which column."""
    first = next((index for index, name in enumerate(columns) if name), 0)  # before it, the rows' numbers
    bad = [
        (number, values)
        for number, values in lines
        if len(values) < len(columns)
        or any(values[len(columns) :])
        or any(value and not name for name, value in list(zip(columns, values))[first:])
    ]
    if not bad:
        return
    number, values = bad[0]
    others = [str(other) for other, _ in bad[1:SHOWN]] + ["..."] * (len(bad) > SHOWN)
    likewise = f"; likewise {', '.join(others)}" if others else ""
    raise ValueError(
        f"{path}, line {number}, has {len(values)} values for the {len(columns)} columns {', '.join(columns)}"
        f"{likewise}. {advice}"
    )
