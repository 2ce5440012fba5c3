import io
import json
import os
import shutil
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import tifffile
from data_layouts import (
    CAPTIONS,
    make_pair,
    save_pairs,
    write_csv_files,
    write_image_folder,
    write_parquet,
    write_reference_layout,
    write_reference_layout_of_qata,
)
from deep_png import png_of_16_bits
from PIL import Image
from squares import make_rows
from tiny_lvit import tiny_model, tiny_processor
from typer.testing import CliRunner

from lvit_cli.main import app
from lvit_hf.data.check import check_data, describe_counts, read_all_splits, render_check
from lvit_hf.data.load import Mask, Picture, load_data, read_split, take_evenly
from lvit_hf.io.readers import read_mask, read_scan


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


WRITERS = [
    write_reference_layout,
    write_reference_layout_of_qata,
    write_csv_files,
    write_image_folder,
    write_parquet,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_source_gives_the_same_rows(write, tmp_path):
    write(tmp_path / "data")
    for seed, split in ((0, "train"), (3, "valid")):
        data = load_data(str(tmp_path / "data"), split)
        assert len(data) == 3 and {"image", "mask", "text", "id"} <= set(data.column_names)
        assert data["text"][:] == CAPTIONS
        assert len(set(data["id"])) == 3
        for number, row in enumerate(data):
            image, mask = make_pair(seed + number)
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(image))
            np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(mask))
    with pytest.raises(FileNotFoundError, match="test|Test_Folder"):
        load_data(str(tmp_path / "data"), "test")


def test_a_csv_file_may_hold_all_splits_and_other_columns(tmp_path, caplog):
    save_pairs(tmp_path, 0, "images", "masks")
    lines = [
        "split,image,mask,text,paraphrase,id",
        "train,images/case-0.webp,masks/case-0.png,one,another,first",
        "valid,images/case-1.png,masks/case-1.png,NA,,second",
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    [row] = load_data(str(tmp_path / "table.csv"), "train")
    assert (row["id"], row["text"], row["paraphrase"]) == ("first", "one", "another")
    [row] = load_data(str(tmp_path / "table.csv"), "valid")
    assert (row["id"], row["text"]) == ("second", "NA")
    assert not caplog.records
    (tmp_path / "table.csv").write_text("image,mask,text\nimages/case-0.webp,masks/case-0.png,one\n")
    assert len(load_data(str(tmp_path / "table.csv"), "valid")) == 1
    assert "all of its rows are taken for valid" in caplog.text


def test_a_split_may_be_spelt_as_people_do_and_no_row_vanishes(tmp_path):
    save_pairs(tmp_path, 0, "i", "m")
    for split, words in {
        "train": ("train", "Train", "TRAINING"),
        "valid": ("valid", "Valid", "val", "VAL ", "validation", "dev"),
        "test": ("test", "Testing"),
    }.items():
        for word in words:
            (tmp_path / "t.csv").write_text(f"image,mask,text,split\ni/case-1.png,m/case-1.png,a, {word}\n")
            assert load_data(str(tmp_path / "t.csv"), split)["text"][:] == ["a"]
            (tmp_path / "t.csv").rename(tmp_path / f"{word.strip()}.csv")
            assert load_data(str(tmp_path), split)["text"][:] == ["a"]
            (tmp_path / f"{word.strip()}.csv").unlink()
    rows = "".join(f"i/case-1.png,m/case-1.png,a,{word}\n" for word in ("train", "tset", "valid", "", "holdout"))
    (tmp_path / "t.csv").write_text(f"image,mask,text,split\n{rows}")
    message = (
        r"t.csv: the column split says tset \(line 3\), nothing \(line 5\), holdout \(line 6\); write train, valid"
    )
    with pytest.raises(ValueError, match=message):
        load_data(str(tmp_path / "t.csv"), "train")


def test_all_bad_rows_of_the_reference_layout_are_named_at_once(tmp_path):
    write_reference_layout(tmp_path)
    folder = tmp_path / "Train_Folder"
    (folder / "labelcol" / "case-0.png").unlink()
    make_pair(7)[0].save(folder / "img" / "new.png")
    make_pair(7)[0].save(folder / "img" / "case-1.bmp")
    make_pair(7)[1].save(folder / "labelcol" / "lonely.png")
    with pytest.raises(ValueError) as error:
        load_data(str(tmp_path), "train")
    sentences = str(error.value).splitlines()[1:]
    assert sorted(sentences) == sorted(
        [
            "- img/case-1.png and case-1.bmp have one name.",
            "- img/case-0.webp has no mask.",
            "- img/new.png has no mask.",
            "- img/new.png has no caption.",
            "- labelcol/lonely.png has no image.",
        ]
    )
    assert len(load_data(str(tmp_path), "valid")) == 3


@pytest.mark.parametrize(("write", "prefix"), [(write_csv_files, "train/images"), (write_image_folder, "train")])
def test_all_missing_files_of_a_table_are_named_at_once(write, prefix, tmp_path):
    write(tmp_path)
    (tmp_path / prefix / "case-0.webp").unlink()
    (tmp_path / prefix / "case-2.tiff").unlink()
    (tmp_path / "train" / "masks" / "case-1.png").unlink()
    with pytest.raises(ValueError) as error:
        load_data(str(tmp_path), "train")
    for name in ("case-0: the image", "case-2: the image", "case-1: the mask"):
        assert name in str(error.value)


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/at/all does not exist"):
        load_data("nowhere/at/all", "train")
    with pytest.raises(ValueError, match="train, valid, test"):
        load_data(str(tmp_path), "validation")
    table = tmp_path / "table.csv"
    for content, message in (
        ("image,text\na.png,b\n", "needs the columns image, mask and text"),
        (b"\xff\xfe\x00", "not a CSV file in UTF-8"),
        ("image,mask,text\n", "has no rows"),
        ("image,mask,text,split\na,b,c,train\n", 'no row whose column split says "valid"'),
    ):
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_data(str(table), "valid")
    write_reference_layout(tmp_path / "reference")
    workbook = tmp_path / "reference" / "Val_Folder" / "some_text.xlsx"
    workbook.write_bytes(b"no workbook")
    with pytest.raises(ValueError, match="is no workbook"):
        load_data(str(tmp_path / "reference"), "valid")
    pandas.DataFrame({"Name": ["case-0"]}).to_excel(workbook)
    with pytest.raises(ValueError, match="needs the columns Image and Description"):
        load_data(str(tmp_path / "reference"), "valid")
    pandas.DataFrame({"Image": ["case-0"], "Description": ["a"]}).to_excel(workbook)
    shutil.rmtree(tmp_path / "reference" / "Val_Folder" / "labelcol")
    with pytest.raises(FileNotFoundError, match="labelcol"):
        load_data(str(tmp_path / "reference"), "valid")
    for name in ("img", "labelcol"):
        shutil.rmtree(tmp_path / "reference" / "Val_Folder" / name, ignore_errors=True)
        (tmp_path / "reference" / "Val_Folder" / name).mkdir()
    with pytest.raises(ValueError, match="has no rows"):
        load_data(str(tmp_path / "reference"), "valid")
    workbook.unlink()
    with pytest.raises(FileNotFoundError, match="must hold one workbook .*, found none"):
        load_data(str(tmp_path / "reference"), "valid")
    for name in ("b.XLSX", "a.xlsx", "~$a.xlsx", ".c.xlsx"):
        (workbook.parent / name).touch()
    with pytest.raises(FileNotFoundError, match="must hold one workbook .*, found a.xlsx, b.XLSX"):
        load_data(str(tmp_path / "reference"), "valid")


def test_several_captions_for_one_image_are_a_problem(tmp_path):
    write_reference_layout(tmp_path)
    table = pandas.DataFrame(
        {"Image": [f"case-{number}.png" for number in (0, 1, 2, 2)], "Description": ["a", "b", "c", "d"]}
    )
    table.to_excel(tmp_path / "Train_Folder" / "some_text.xlsx", index=False)
    with pytest.raises(ValueError, match="several captions for case-2"):
        load_data(str(tmp_path), "train")


def test_a_limit_spreads_over_the_split():
    data = datasets.Dataset.from_dict({"number": range(10)})
    assert take_evenly(data, 4)["number"][:] == [0, 2, 5, 7]
    assert len(take_evenly(data, None)) == len(take_evenly(data, 20)) == 10


@pytest.fixture
def flawed(tmp_path) -> Path:
    """A data set in which something is wrong with almost every row."""
    folder = tmp_path / "flawed"
    write_csv_files(folder)
    train = folder / "train"
    (train / "images" / "case-1.png").write_bytes((train / "images" / "case-1.png").read_bytes()[:60])
    Image.new("L", (20, 14)).save(train / "masks" / "case-2.png")  # empty
    Image.new("L", (9, 9), 255).save(folder / "valid" / "masks" / "case-0.png")  # of another size
    Image.fromarray(np.full((16, 20), 3, np.uint8)).save(folder / "valid" / "masks" / "case-1.png")  # dim
    make_pair(0)[0].save(folder / "valid" / "images" / "again.bmp")  # case-0 of train
    make_pair(0)[1].save(folder / "valid" / "masks" / "again.png")
    make_pair(9)[0].save(folder / "valid" / "images" / "orphan.png")
    long_caption = " ".join(["one two"] * 6)
    with (folder / "valid.csv").open("a") as file:
        file.write(f"\nvalid/images/again.bmp,valid/masks/again.png,{long_caption} ☃ ☃\n")
        file.write("valid/images/gone.png,valid/masks/again.png,x\n")
    return folder


def test_the_check_finds_every_flaw(flawed):
    splits = read_all_splits(str(flawed))
    report = check_data(str(flawed), splits, tiny_processor(), num_text_vectors=10)
    train, valid = report["splits"]["train"], report["splits"]["valid"]
    assert (train["images"], valid["images"]) == (3, 4)
    assert [text.split(":")[0] for text in train["problems"]] == ["train/images/case-1"]
    assert "is a broken image file" in train["problems"][0]
    gone, mismatch = sorted(valid["problems"], key=lambda text: "9 x 9" in text)
    assert gone.startswith("valid/images/gone: the image")
    assert "9 x 9 pixels and the image 20 x 15" in mismatch
    assert train["empty_masks"] == ["train/images/case-2"]
    assert valid["rules"]["the value 3"] == 1
    assert train["sizes"] == {"20 x 12": 1, "20 x 14": 1}
    assert report["duplicates"] == [["train/train/images/case-0", "valid/valid/images/again"]]
    assert report["orphans"] == ["valid/images/orphan.png"]
    captions = valid["captions"]["text"]
    assert (captions["distinct"], captions["without"]) == (3, ["valid/images/case-2"])
    assert captions["unknown_words"] == {"☃": 1}
    assert list(captions["too_long"]) == [" ".join(["one two"] * 6) + " ☃ ☃"] and captions["longest"] == 14


def test_the_check_says_what_masks_and_captions_hold(tmp_path):
    write_csv_files(tmp_path)
    report = check_data(str(tmp_path), read_all_splits(str(tmp_path)), tiny_processor(), num_text_vectors=10)
    train = report["splits"]["train"]
    shares = sorted(40 / (20 * (12 + seed)) for seed in range(3))
    assert train["foreground"] == pytest.approx([shares[0], shares[1], shares[2]])
    assert sum(train["rules"].values()) == 3 and train["empty_masks"] == []
    assert train["captions"]["text"]["families"] == {"lung infection": 2}
    text = render_check(report)
    low, middle, high = (f"{100 * share:.1f} %" for share in shares)
    [rule] = train["rules"]
    assert f"- Foreground of a mask: {low} to {high}, middle {middle}.\n- Taken for foreground: {rule} (3)." in text
    assert text.count("- Empty masks: none.") == 2
    assert "- Images in several splits: none.\n- Images twice in one split: none." in text


def test_the_same_picture_in_grey_and_in_colour_is_a_duplicate(tmp_path):
    image, mask = make_pair(0)
    grey = image.convert("L")
    rows = {
        "image": [grey, grey.convert("RGB"), image],
        "mask": [mask] * 3,
        "text": ["", "", ""],
        "id": ["a", "b", "c"],
    }
    data = (
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    )
    data.to_parquet(tmp_path / "train-0.parquet")
    report = check_data(str(tmp_path), read_all_splits(str(tmp_path)), tiny_processor(), num_text_vectors=10)
    assert report["duplicates"] == [["train/a", "train/b"]]
    assert "- Images in several splits: none.\n- Images twice in one split: 1: train/a = train/b." in render_check(
        report
    )


def test_counts_name_the_ten_most_frequent():
    counts = {f"word{number}": 30 - number for number in range(10)}
    assert describe_counts({}) == "none"
    assert describe_counts(counts).endswith("word9 (21)")
    assert describe_counts({**counts, "word10": 1}).endswith("word9 (21); ...")


def run_check(*arguments):
    return CliRunner().invoke(app, ["data", "check", *(str(argument) for argument in arguments)])


def test_the_command_shows_problems_and_fails(flawed, checkpoint, tmp_path):
    out = tmp_path / "new" / "out"
    result = run_check(flawed, "--model", checkpoint, "--out", out)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert result.stdout == (out / "data_check.md").read_text(encoding="utf-8") + "\n"
    for name in ("case-1", "gone", "9 x 9", "orphan.png", "☃", "case-2"):
        assert name in result.stdout
    assert sorted(os.listdir(out)) == ["contact_sheet.png", "data_check.json", "data_check.md"]
    report = json.loads((out / "data_check.json").read_text(encoding="utf-8"))
    assert list(report["splits"]) == ["train", "valid"]
    assert min(Image.open(out / "contact_sheet.png").size) > 300


def test_the_command_is_content_with_a_sound_data_set(checkpoint, tmp_path):
    write_reference_layout(tmp_path / "data")
    result = run_check(tmp_path / "data", "--model", checkpoint)
    assert result.exit_code == 0, result.output
    assert "## train: 3 images" in result.stdout and "problems" not in result.stdout


def test_the_command_reads_captions_as_the_named_checkpoint_does(tmp_path):
    make_rows(4, seed=0).to_parquet(tmp_path / "train-0.parquet")
    for words, too_long in ((3, True), (10, False)):
        folder = tmp_path / f"{words} words"
        tiny_model(num_text_vectors=words).save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
        assert run_check(tmp_path, "--model", folder, "--out", folder).exit_code == 0
        report = json.loads((folder / "data_check.json").read_text(encoding="utf-8"))
        assert bool(report["splits"]["train"]["captions"]["text"]["too_long"]) == too_long


def test_the_command_says_that_there_is_no_data_set(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing" / "data", tmp_path / "empty"):
        result = run_check(path, "--model", checkpoint)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ") and "Traceback" not in result.output


def save_pair(image: Path, mask: Path):
    for path, picture in zip((image, mask), make_pair(0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


@pytest.mark.parametrize("name", ["train.CSV", "train.tsv", "train.XLSX"])
def test_a_split_may_be_any_table(name, tmp_path):
    save_pair(tmp_path / "images" / "a.png", tmp_path / "masks" / "a.png")
    rows = [["Image", "mask", "text"], ["images\\A.png", "masks/a.png", "one area, left lung"]]
    if name.endswith("XLSX"):
        pandas.DataFrame(rows[1:], columns=rows[0]).to_excel(tmp_path / "t.xlsx", index=False)
        (tmp_path / "t.xlsx").rename(tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(("\t" if "tsv" in name else ";").join(row) for row in rows))
    [row] = load_data(str(tmp_path), "train")
    assert (row["id"], row["text"], row["image"].size) == ("images/a", "one area, left lung", (20, 12))
    (tmp_path / "train.csv").write_text("image,mask,text\n")
    with pytest.raises(ValueError, match="leave one of them"):
        load_data(str(tmp_path), "train")


@pytest.mark.parametrize("write", [write_csv_files, write_image_folder])
def test_values_that_do_not_fit_the_columns_are_refused_with_their_line(write, tmp_path):
    write(tmp_path)
    table = tmp_path / "train.csv" if write is write_csv_files else tmp_path / "train" / "metadata.csv"
    lines = table.read_text(encoding="utf-8-sig").replace('"', "").splitlines()
    table.write_text("\n".join([f"{lines[0]},note", *(f"{line},x" for line in lines[1:])]))
    with pytest.raises(ValueError, match=r"\.csv, line 2, has 5 values for the 4 columns"):
        load_data(str(tmp_path), "train")


def test_captions_that_end_their_lines_need_no_quotation_marks(tmp_path):
    write_csv_files(tmp_path)
    table = tmp_path / "train.csv"
    table.write_text(table.read_text(encoding="utf-8-sig").replace('"', ""))
    assert load_data(str(tmp_path), "train")["text"][:] == CAPTIONS


@pytest.mark.parametrize("mask", ["mask_Müller.png", "Müller_mask.tif", "Müller_Segmentation.png", "Müller-gt.png"])
def test_names_of_the_reference_layout_meet_in_spite_of_how_they_were_written(mask, tmp_path):
    folder = tmp_path / "Train_Folder"
    decomposed = unicodedata.normalize("NFD", "Müller.png")
    save_pair(folder / "img" / decomposed, folder / "labelcol" / unicodedata.normalize("NFD", mask))
    table = pandas.DataFrame({"Image": ["img\\" + mask], "Description": ["one polyp"]})
    table.to_excel(folder / "t.xlsx", index=False)
    (folder / "t.xlsx").rename(folder / "T.XLSX")
    [row] = load_data(str(tmp_path), "train")
    assert (row["id"], row["text"]) == ("Müller", "one polyp")


def test_an_image_may_be_named_like_a_mask(tmp_path):
    folder = tmp_path / "Train_Folder"
    for name in ("1", "1_mask"):
        save_pair(folder / "img" / f"{name}.png", folder / "labelcol" / f"{name}.png")
    table = pandas.DataFrame({"Image": ["1.png", "1_mask.png"], "Description": ["one", "two"]})
    table.to_excel(folder / "t.xlsx", index=False)
    assert {row["id"]: row["text"] for row in load_data(str(tmp_path), "train")} == {"1": "one", "1_mask": "two"}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("text", 3, "a caption is a text, and the column text holds .*int64, such as 3"),
        ("text", ["one polyp", "a polyp"], "the column text holds .*List, such as"),
        ("paraphrase", 2.5, "the column paraphrase holds .*float64"),
        ("mask", 1, "the column mask holds .*int64, no images"),
        ("image", [{"a": 1}], "the column image holds .*no images"),
    ],
)
def test_columns_of_another_kind_are_named(column, value, message, tmp_path):
    save_pair(tmp_path / "i.png", tmp_path / "m.png")
    row = {"image": str(tmp_path / "i.png"), "mask": str(tmp_path / "m.png"), "text": "a", "paraphrase": "b"}
    (tmp_path / "data").mkdir()
    data = datasets.Dataset.from_dict({name: [content] for name, content in {**row, column: value}.items()})
    data.to_parquet(tmp_path / "data" / "train-0.parquet")
    with pytest.raises(ValueError, match=message):
        load_data(str(tmp_path / "data"), "train")


def test_numbers_for_ids_and_no_captions_at_all_are_read(tmp_path):
    save_pair(tmp_path / "i.png", tmp_path / "m.png")
    (tmp_path / "data").mkdir()
    row = {"image": [str(tmp_path / "i.png")], "mask": [str(tmp_path / "m.png")], "text": [None], "id": [7]}
    datasets.Dataset.from_dict(row).to_parquet(tmp_path / "data" / "train-0.parquet")
    [row] = load_data(str(tmp_path / "data"), "train")
    assert (row["id"], row["text"]) == ("7", "")


def test_a_broken_file_of_a_data_set_is_a_sentence(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="cannot be read"):
        load_data(str(tmp_path), "train")


def test_a_bare_name_is_never_taken_from_the_cache(tmp_path, monkeypatch):
    """`datasets` knows a folder that it read once by its name alone, also when the folder is gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    write_parquet(Path("noise"))
    assert len(load_data("noise", "train")) == 3
    shutil.rmtree("noise")
    for name in ("noise", "noise.csv", "nowhere/noise/at.all", "./noise"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_data(name, "train")


def test_links_are_no_orphans_but_unnamed_ones(tmp_path, checkpoint):
    """As git-annex, DataLad and DVC keep files."""
    store = tmp_path / "store"
    for number in range(3):
        save_pair(store / f"{number}.png", tmp_path / ".git" / "annex" / f"{number}.png")
    for link, key in (("i.png", "store/0.png"), ("m.png", ".git/annex/0.png"), ("spare.png", "store/0.png")):
        (tmp_path / link).symlink_to(key)
    (tmp_path / "gone.png").symlink_to("store/9.png")
    (tmp_path / "valid.csv").write_text("image,mask,text\ni.png,m.png,\ngone.png,m.png,\n")
    splits = read_all_splits(str(tmp_path))
    report = check_data(str(tmp_path), splits, tiny_processor(), num_text_vectors=10)
    assert report["orphans"] == ["gone.png", "spare.png", "store/1.png", "store/2.png"]
    [problem] = splits["valid"].problems
    assert "gone.png is a link to a file that is not here" in problem


TWELVE_BITS = np.linspace(0, 4095, 1200).reshape(30, 40).astype(np.uint16)
DISK = np.hypot(*np.mgrid[-15:15, -20:20]) < 11
OPAQUE = np.full((30, 40), 65535, np.uint16)
DEEP_FILES = {  # images and masks, of which Pillow by itself keeps some bits or none
    "grey.png": (lambda array: png_of_16_bits(array, 0), np.uint16),
    "opaque.png": (lambda array: png_of_16_bits(np.dstack([array, OPAQUE]), 4), np.uint16),
    "colour.png": (lambda array: png_of_16_bits(np.dstack([array] * 3), 2), np.uint16),
    **{f"{kind}.tif": (None, kind) for kind in ("uint16", "float16", "float32", "float64", "int64", "uint64")},
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", DEEP_FILES)
def test_a_data_set_has_the_pictures_that_predict_sees(name, inside, tmp_path):
    make, kind = DEEP_FILES[name]
    labels = DISK * np.where(np.arange(40) < 20, 1, 2)
    for column, values in (("image", TWELVE_BITS), ("mask", labels)):
        path = tmp_path / f"{column}-{name}"
        if make:
            path.write_bytes(make(values.astype(kind)))
        else:
            tifffile.imwrite(path, values.astype(kind), compression="zlib")
    files = {column: tmp_path / f"{column}-{name}" for column in ("image", "mask")}
    (tmp_path / "train.csv").write_text("image,mask,text\n{},{},\n".format(*(path.name for path in files.values())))
    data = tmp_path
    if inside:
        data = tmp_path / "packed"
        data.mkdir()
        rows = {column: [{"bytes": path.read_bytes(), "path": None}] for column, path in files.items()}
        datasets.Dataset.from_dict({**rows, "text": [""]}).to_parquet(data / "train-0.parquet")
    [row] = load_data(str(data), "train")
    np.testing.assert_array_equal(np.asarray(row["image"]), read_scan(files["image"]).slices[0])
    assert len(np.unique(row["image"])) > 250
    np.testing.assert_array_equal(np.asarray(row["mask"]) > 0, DISK)
    np.testing.assert_array_equal(read_mask(files["mask"]), [DISK])
    report = check_data(str(data), read_all_splits(str(data)), tiny_processor(), num_text_vectors=10)
    assert not report["splits"]["train"]["problems"]
    assert report["splits"]["train"]["rules"] == {"every value but 0: 1, 2": 1}


def test_a_stack_is_no_row_and_a_broken_file_is_named(tmp_path):
    save_pair(tmp_path / "i.png", tmp_path / "m.png")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((2, 12, 20), np.uint8), photometric="minisblack")
    (tmp_path / "train.csv").write_text("image,mask,text\ni.png,stack.tif,\nstack.tif,m.png,\n")
    for row, column in ((0, "mask"), (1, "image")):
        with pytest.raises(ValueError, match="stack.tif holds 2 images, and a row of a data set has one"):
            load_data(str(tmp_path), "train")[row][column]
    report = check_data(str(tmp_path), read_all_splits(str(tmp_path)), tiny_processor(), num_text_vectors=10)
    assert [problem.split(":")[0] for problem in report["splits"]["train"]["problems"]] == ["i", "stack"]
    rows = {column: [{"bytes": b"\x89PNG\r\n\x1a\n", "path": "in/a.png"}] for column in ("image", "mask")}
    (tmp_path / "packed").mkdir()
    datasets.Dataset.from_dict({**rows, "text": [""]}).to_parquet(tmp_path / "packed" / "train-0.parquet")
    with pytest.raises(ValueError, match="^a.png is"):
        load_data(str(tmp_path / "packed"), "train")[0]


def test_columns_of_pictures_are_columns_of_images_to_others():
    for kind in (Picture, Mask):
        assert kind() == datasets.Image() and kind(decode=False) == datasets.Image(decode=False)
        assert kind() != datasets.Image(decode=False) and kind() != datasets.Value("string")


@pytest.mark.parametrize("is_broken", [False, True])
def test_images_may_lie_at_addresses(tmp_path, is_broken):
    save_pair(tmp_path / "i.png", tmp_path / "m.png")
    if is_broken:
        (tmp_path / "i.png").write_bytes((tmp_path / "i.png").read_bytes()[:60])
    cells = {name: {"path": f"file://{tmp_path}/{name[0]}.png", "bytes": None} for name in ("image", "mask")}
    kind = pyarrow.struct({"path": pyarrow.string(), "bytes": pyarrow.binary()})
    table = {name: pyarrow.array([cell], kind) for name, cell in cells.items()} | {"text": ["a"]}
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "data" / "train-0.parquet")
    if is_broken:
        with pytest.raises(ValueError, match="^i.png is a broken image file"):
            load_data(str(tmp_path / "data"), "train")[0]
    else:
        [row] = load_data(str(tmp_path / "data"), "train")
        assert [row[name].tobytes() for name in cells] == [picture.tobytes() for picture in make_pair(0)]


def test_an_image_is_called_after_its_file_or_its_line(tmp_path):
    save_pair(tmp_path / "a" / "x.1.png", tmp_path / "m.png")
    (tmp_path / "train.csv").write_text("image,mask,text\na/x.1.png,m.png,one\n,m.png,two\nb.png,,three\n")
    split = read_split(str(tmp_path), "train")
    assert split.rows["id"][:] == ["a/x.1"]
    assert split.problems == [
        "line 3: the image (no name given) does not exist.",
        f"b: the image {tmp_path}/b.png does not exist.",
        "b: the mask (no name given) does not exist.",
    ]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes.txt is no table \(.csv, .tsv, .xlsx\), and no folder"):
        load_data(str(tmp_path / "notes.txt"), "train")


def test_images_of_folders_and_tables_have_ids_that_differ(tmp_path):
    write_image_folder(tmp_path / "folder")
    assert load_data(str(tmp_path / "folder"), "train")["id"][:] == [f"train/case-{number}" for number in range(3)]
    content = io.BytesIO()
    make_pair(0)[1].save(content, "png")
    for number, (names, ids) in enumerate(
        [
            (["in/a.png", "in/b.png"], ["in/a", "in/b"]),
            (["a.png", "a.png"], ["0", "1"]),
            (["a.png", None], ["0", "1"]),
        ]
    ):
        cells = [{"bytes": content.getvalue(), "path": name} for name in names]
        data = datasets.Dataset.from_dict({"image": cells, "mask": cells, "text": ["x", "y"]})
        (tmp_path / str(number)).mkdir()
        data.to_parquet(tmp_path / str(number) / "train-0.parquet")
        assert load_data(str(tmp_path / str(number)), "train")["id"][:] == ids


def test_a_split_of_parquet_files_may_be_spelt_as_people_do(tmp_path):
    for number, name in enumerate(("train", "dev", "test")):
        make_rows(number + 1, seed=0).to_parquet(tmp_path / f"{number}.parquet")
        (tmp_path / name).mkdir()
        (tmp_path / f"{number}.parquet").rename(tmp_path / name / "0.parquet")
    assert [len(load_data(str(tmp_path), split)) for split in ("train", "valid", "test")] == [1, 2, 3]


def test_what_belongs_to_no_image_of_the_reference_layout_is_told(tmp_path):
    write_reference_layout(tmp_path)
    folder = tmp_path / "Train_Folder"
    for name in ("img/notes.txt", "labelcol/notes.txt"):
        (folder / name).write_text("words")
    rows = [(f"case-{number}.png", text) for number, text in enumerate(CAPTIONS)]
    rows += [("gone.png", "one"), ("", "nothing"), ("case-1.png", CAPTIONS[1]), ("Case\\case-0.png", "another")]
    pandas.DataFrame(rows, columns=["Image", "Description"]).to_excel(folder / "some_text.xlsx", index=False)
    split = read_split(str(tmp_path), "train")
    assert split.orphans == [
        "img/notes.txt is no image file.",
        "labelcol/notes.txt is no image file.",
        "The caption of gone has no image.",
    ]
    assert split.problems == [
        "some_text.xlsx, row 6, names no image.",
        "some_text.xlsx has several captions for case-0.",
    ]
    assert split.rows["text"][:] == CAPTIONS and split.rows["id"][:] == [f"case-{number}" for number in range(3)]


def test_the_check_tells_images_apart_by_their_pixels_and_rows_by_their_captions(tmp_path):
    blank = [Image.new(mode, size) for mode, size in (("L", (20, 12)), ("L", (12, 20)), ("RGB", (20, 12)))]
    coloured = Image.new("RGB", (20, 12), (0, 0, 1))
    images = [*blank, coloured, make_pair(0)[0], make_pair(0)[0]]
    rows = {
        "image": images,
        "mask": [Image.new("L", image.size, 255) for image in images],
        "text": ["a", "a", "b", "c", "d", "d"],
        "id": ["a", "b", "c", "d", "e", "e"],
    }
    features = datasets.Features(
        image=datasets.Image(), mask=datasets.Image(), text=datasets.Value("string"), id=datasets.Value("string")
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train-0.parquet")
    report = check_data(str(tmp_path), read_all_splits(str(tmp_path)), tiny_processor(), num_text_vectors=10)
    train = report["splits"]["train"]
    assert report["duplicates"] == [["train/a", "train/c"]]
    assert train["problems"] == ["e: 2 rows have this id and caption."]
    assert train["modes"] == {"RGB": 4, "L": 2} and train["sizes"] == {"20 x 12": 5, "12 x 20": 1}
    assert train["foreground"] == [1, 1, 1]
    assert (train["captions"]["text"]["distinct"], train["captions"]["text"]["longest"]) == (4, 1)
    assert train["captions"]["text"]["frequent"] == {"a": 2, "d": 2, "b": 1}


@pytest.mark.parametrize(("count", "more"), [(10, ""), (11, "; and 1 more")])
def test_of_many_findings_ten_are_named(count, more, tmp_path):
    save_pair(tmp_path / "i.png", tmp_path / "m.png")
    (tmp_path / "train.csv").write_text("image,mask,text\ni.png,m.png,\n")
    names = [f"x{number:02}.png" for number in range(count)]
    for name in names:
        make_pair(0)[0].save(tmp_path / name)
    report = check_data(str(tmp_path), read_all_splits(str(tmp_path)), tiny_processor(), num_text_vectors=10)
    assert report["splits"]["train"]["captions"]["text"]["longest"] == 0
    named = "; ".join(names[:10])
    assert f"- Image files that no row names: {count}: {named}{more}.\n" in render_check(report)
