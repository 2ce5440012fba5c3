"""Tables as people have them: read as they are meant, or refused with the number of the line."""

import unicodedata
import zipfile
from pathlib import Path

import openpyxl
import openpyxl.chart
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lvit_hf.io.tables import FileNames, is_table_name, read_table


COLUMNS = ("image", "text")
HEADER = {name: name for name in COLUMNS}
EXPECTED = [{"image": "a.png", "text": "one small, smooth polyp"}, {"image": "b.png", "text": ""}]


def read(folder: Path, content: str | bytes, name: str = "table.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, COLUMNS)


def rows_of(path: Path) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in read_table(path, COLUMNS).rows]


def save_workbook(path: Path, rows: list[list]) -> Path:
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.active.append(row)
    workbook.save(path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        'image,text\na.png,"one small, smooth polyp"\nb.png,\n',
        "image;text\na.png;one small, smooth polyp\nb.png;\n",
        "image\ttext\na.png\tone small, smooth polyp\nb.png\t\n",
        "image|text\na.png|one small, smooth polyp\nb.png|\n",
        "sep=;\nimage;text\na.png;one small, smooth polyp\nb.png;\n",
        "\ufeffimage;text\r\na.png;one small, smooth polyp\r\nb.png;\r\n",
        "image;text\ra.png;one small, smooth polyp\rb.png;\r",
        "image;text\na.png;one small, smooth polyp\nb.png;\n".encode("utf-16"),
        '\n Image , TEXT \n\na.png , "one small, smooth polyp"\n,\nb.png,\n \n',
        'image,text,\na.png,"one small, smooth polyp",\nb.png,,,,\n',
        "image,text\na.png, one small, smooth polyp\nb.png,\n",
        "image,text,\na.png,one small, smooth polyp,,\nb.png,,,\n",
        ',image,text\n0,a.png,"one small, smooth polyp"\n1,b.png,\n',  # numbers of rows, as pandas writes them
        *(  # as R writes them, and `csv.QUOTE_ALL`
            start + line.join(mark.join(f'"{value}"' for value in row.values()) for row in [HEADER, *EXPECTED])
            for mark in ",;\t|"
            for line in ("\n", "\r\n")
            for start in ("", "\ufeff", f"sep={mark}\n")
        ),
        '"","image","text"\n"1","a.png","one small, smooth polyp"\n"2","b.png",""\n',
        'image,"text"\na.png,"one small, smooth polyp"\nb.png,\n',
    ],
)
def test_a_table_is_read_however_it_was_written(content, tmp_path):
    assert read(tmp_path, content).rows == EXPECTED


@pytest.mark.parametrize("name", ["T.XLSX", "t.csv"])
def test_a_workbook_is_a_table_whatever_its_name_says(name, tmp_path):
    rows = [["", None], ["Image", "text", None], ["a.png", 3, None], [None, None], ["007", True, None]]
    path = save_workbook(tmp_path / "book.xlsx", rows).rename(tmp_path / name)
    table = read_table(path, COLUMNS)
    assert table.rows == [{"image": "a.png", "text": "3"}, {"image": "007", "text": "True"}]
    assert table.lines == [3, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,image\nx,a.png\nOne small,round,b.png\n", "line 3, has 3 values for the 2 columns text, image"),
        ("image,text,note\na.png,x,y,z\nb.png,x,\nc.png,x,y,z\n", "line 2, .* likewise 4. A value with a comma"),
        ("text;image\nx;y;a.png\n", "line 2, .* A value with a semicolon"),
        ('image,text\na.png,"x",y\n', "line 2, has 3 values"),
        ("text,image\n\n\nx,y,a.png\n", "line 4"),
        ("sep=;\ntext;image\nx;y;a.png\n", "line 3"),
        ("image,text\na.png\n", "line 2, has 1 values"),
        ("image,text\na.png;x\n", "line 2, has 1 values"),
        ("text,image,\nOne small,round,a.png\n", "line 2, has 3 values"),
        ('image,text\na.png,"one "big" polyp"\n', "line 2: .*quotation marks"),
        ('image,text\na.png,x\nb.png,"one\nc.png,two\n', "line 3: .*quotation marks"),
        ('image,text\na.png,"one\nb.png,two"\nc.png,x\n', "line 2: .* the line of b.png"),
        ("image,text,text\na.png,x,y\n", "names the column text 2 times"),
        ("image,text,Text\na.png,x,y\n", "names the column text 2 times"),
        ("name,text\na.png,x\n", "needs the columns image and text; its first line has name, text"),
        ("", "needs the columns image and text; its first line has none"),
        ("image,text\na.png,x\nb.png,größe\n".encode("latin-1"), "not a CSV file in UTF-8, line 3"),
        ("image,text\na.png,x\n".encode("utf-16-le"), "not a CSV file in UTF-8, line 1"),
        ('text,image\n"one,\nround polyp",a.png\nx,y,b.png\n', "line 4, has 3 values"),
        ('text,image\n"one\npolyp",a.png\n"x" y,b.png\n', "line 4: .*quotation marks"),
        (b"\xff\xfe\x00", "not a CSV file in UTF-8"),
        (b"PK\x03\x04 and no more", "is no workbook"),
    ],
)
def test_what_may_be_meant_in_two_ways_is_refused_with_its_line(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


def test_a_value_beside_the_columns_of_a_workbook_is_refused_with_its_row(tmp_path):
    path = save_workbook(tmp_path / "t.xlsx", [["image", "text", None], ["a.png", "x", None], ["b.png", "x", "y"]])
    with pytest.raises(ValueError, match="line 3, has 3 values"):
        read_table(path, COLUMNS)


def fill(path: Path, cells: dict[str, str], merged: str = "", chart_first: bool = False) -> Path:
    """Writes a workbook; what begins with `=` is a formula, whose value only spreadsheet programs store."""
    workbook = openpyxl.Workbook()
    for place, value in {"A1": "image", "B1": "text", "A2": "a.png", "B2": "one polyp", **cells}.items():
        workbook.active[place] = value
    if merged:
        workbook.active.merge_cells(merged)
    if chart_first:
        workbook.create_chartsheet("chart", 0).add_chart(openpyxl.chart.BarChart())
    workbook.save(path)
    return path


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"B3": "#N/A"}, "t.xlsx: the cell B3 has the error #N/A; write a value"),
        ({"B2": "#DIV/0!"}, "the cell B2 has the error #DIV/0!"),
        ({"B2": '="one "&"polyp"'}, "t.xlsx: the cell B2 is a formula without a value; open the workbook in"),
        ({"A2": "=A1"}, "the cell A2 is a formula"),
    ],
)
def test_a_cell_without_a_value_is_named(cells, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_table(fill(tmp_path / "t.xlsx", cells), COLUMNS)


def test_formulas_that_a_spreadsheet_program_saved_have_their_values(tmp_path):
    fill(tmp_path / "made.xlsx", {"B2": '="one "&"polyp"', "A3": "b.png", "B3": '=""'})
    with zipfile.ZipFile(tmp_path / "made.xlsx") as made, zipfile.ZipFile(tmp_path / "t.xlsx", "w") as saved:
        for name in made.namelist():
            content = made.read(name)
            if name.endswith("sheet1.xml"):
                first, second, third = (
                    content.split(b"<v />") if content.count(b"<v />") == 2 else content.split(b"<v/>")
                )
                content = first + b"<v>one polyp</v>" + second + b"<v></v>" + third
                for place in (b"B2", b"B3"):
                    content = content.replace(b'r="%s"' % place, b'r="%s" t="str"' % place)
            saved.writestr(name, content)
    assert rows_of(tmp_path / "t.xlsx") == [("a.png", "one polyp"), ("b.png", "")]


def test_merged_cells_all_have_their_value_and_charts_are_no_tables(tmp_path):
    path = fill(tmp_path / "t.xlsx", {"A3": "b.png", "A4": "c.png", "B4": "two"}, merged="B2:B3", chart_first=True)
    assert rows_of(path) == [("a.png", "one polyp"), ("b.png", "one polyp"), ("c.png", "two")]


@pytest.mark.parametrize("name", ["t.xlsx", "t.csv"])
def test_an_old_workbook_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    with pytest.raises(
        ValueError, match=f"{name} is a workbook of Excel before 2007, or has a password: save it as .xlsx"
    ):
        read_table(tmp_path / name, COLUMNS)


values = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)


@given(rows=st.lists(st.tuples(values, values), max_size=4), delimiter=st.sampled_from(",;\t|"))
@example(rows=[("0,0", "")], delimiter=",")
def test_values_never_change_their_column(rows, delimiter, tmp_path_factory):
    """Whatever is joined without quotation marks comes back as it was, or is refused."""
    rows = [tuple(value.strip().strip(delimiter).strip() for value in row) for row in rows]
    content = "\n".join(delimiter.join(row) for row in [COLUMNS, *rows])
    try:
        table = read(tmp_path_factory.getbasetemp(), content)
    except ValueError as error:
        assert any('"' in "".join(row) for row in rows), error
        return
    rows = [row for row in rows if any(row)]
    found = [delimiter.join(row.values()).rstrip(delimiter) for row in table.rows]  # programs end short lines so
    assert found == [delimiter.join(row).rstrip(delimiter) for row in rows]
    if not any(delimiter in image for image, _ in rows):
        assert [tuple(row.values()) for row in table.rows] == rows


def test_columns_that_nobody_asked_for_keep_their_names(tmp_path):
    table = read(tmp_path, "SEP=;\nIMAGE;Text;Patient ID\na.png;x;7")
    assert table.columns == ["image", "text", "Patient ID"]
    assert table.rows == [{"image": "a.png", "text": "x", "Patient ID": "7"}]


def test_a_row_knows_its_line_and_a_column_its_name_as_it_was_asked_for(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('sep=#\n\nID#IMAGE#SPLIT#Text\n1#a.png##"one\npolyp"\n\n2#b.png#test# two# small ones\n')
    table = read_table(path, ("id", "image", "text"), ("Split", "note"))
    assert table.columns == ["id", "image", "Split", "text"] and table.lines == [4, 7]
    assert table.rows[0] == {"id": "1", "image": "a.png", "Split": "", "text": "one\npolyp"}
    assert table.rows[1] == {"id": "2", "image": "b.png", "Split": "test", "text": "two# small ones"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nx\n", "needs the column image; its first line has text"),
        ("image\n" + "a.png,x\n" * 3, "line 2, has 2 values .*; likewise 3, 4. A value"),
        ("image\n" + "a.png,x\n" * 10, "line 2, .*; likewise 3, 4, 5, 6, 7, 8, 9, 10, 11. A value"),
        ("image\n" + "a.png,x\n" * 11, "line 2, .*; likewise 3, 4, 5, 6, 7, 8, 9, 10, 11, .... A value"),
        ("image\na.png,x\n", "line 2, has 2 values for the 1 columns image. A value"),
        ("sep=#\nimage\na.png#x\n", "line 3, has 2 values .* A value with a '#' in it"),
        ("image,,note\na.png,z,x\n", "line 2, has 3 values for the 3 columns"),
    ],
)
def test_what_does_not_fit_is_named(content, message, tmp_path):
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "table.csv", ("image",))


def test_columns_without_a_name_and_a_value_are_left_out(tmp_path):
    (tmp_path / "table.csv").write_text("0,image,,note,\n1,a.png,,x\n")
    assert read_table(tmp_path / "table.csv", ("image",)).rows == [{"0": "1", "image": "a.png", "note": "x"}]
    assert [is_table_name(Path(name)) for name in ("a.CSV", "b.tsv", "c.xlsx", "d.txt")] == [True, True, True, False]


def test_files_are_found_by_names_of_other_systems(tmp_path):
    folder = tmp_path / "Bilder"
    folder.mkdir()
    for name in (unicodedata.normalize("NFD", "Müller_1.png"), "a.PNG", "twice.png", "Twice.png", "back\\slash.png"):
        (folder / name).touch()
    names = FileNames(tmp_path)
    for written in ("Bilder/Müller_1.png", "bilder\\müller_1.PNG", "Bilder\\a.png", str(folder / "A.png")):
        assert (tmp_path / names.find(written)).is_file(), written
    for written in ("Bilder/TWICE.png", "Bilder/none.png", "C:\\a.png", "", "x" * 5000, "Bilder"):
        assert names.find(written) == written
    assert names.find("Bilder/twice.png") == "Bilder/twice.png"
    assert names.find("Bilder/back\\slash.png") == "Bilder/back\\slash.png"
